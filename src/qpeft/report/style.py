"""How a plot looks: colours for light and dark pages, one mark for each arm, and labels next to what they name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qpeft.errors import MissingDependencyError

FONT = 8.8  # points, of a name next to a curve or point
_NEAR, _FAR = 9, 20  # pixels: between a point and its name; from where on a line joins them
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)))


@dataclass(frozen=True)
class Theme:
    """Colours of a page. `palette` is safe for the common forms of colour blindness; its order is the same in every theme."""

    paper: str
    ink: str
    muted: str
    grid: str
    palette: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#1c2128",
    "#5b6470",
    "#e4e7eb",
    ("#0072B2", "#D55E00", "#009E73", "#C05A9B", "#E69F00", "#3FA9E0", "#6B6F76", "#3B2F8F"),
)
DARK = Theme(
    "#161b22",
    "#e6e9ed",
    "#9aa4b0",
    "#2c333c",
    ("#4FA3E3", "#FF7A3D", "#2BC49A", "#E48CC4", "#F5B83D", "#9AD9FF", "#AEB4BC", "#A79BFF"),
)


@dataclass(frozen=True)
class Mark:
    """Look of an arm in every plot: palette index, marker and dash. `number` counts arms from 0."""

    index: int
    marker: str
    dash: Any
    number: int = 0

    def color(self, theme: Theme) -> str:
        """The arm's colour on a page of that theme."""
        return theme.palette[self.index]

    def tag(self, *artists: Any) -> None:
        """Mark what is drawn of the arm, so that a page can pick it out (see `svg`)."""
        for artist in artists:
            artist.set_gid(f"arm-{self.number}")


@dataclass(frozen=True)
class Panel:
    """One pair of axes before it is drawn: its width next to another (inches), the inches and rows of labels to its right, and
    how to draw it."""

    width: float
    label_width: float
    label_rows: int
    draw: Callable[[Any, Theme], None]


def marks(labels: Iterable[str]) -> dict[str, Mark]:
    """A mark for each distinct label, in order: colours first, then the same colours with other dashes and markers."""
    n = len(LIGHT.palette)
    return {
        label: Mark(i % n, _MARKERS[(i + i // n) % len(_MARKERS)], _DASHES[i // n % len(_DASHES)], i)
        for i, label in enumerate(dict.fromkeys(labels))
    }


@contextmanager
def drawing(theme: Theme) -> Iterator[Any]:
    """The matplotlib module with the theme's settings, and without its complaint about a character its font lacks."""
    try:
        import matplotlib
        from matplotlib.rcsetup import cycler
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report", "a plot") from error
    settings = {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "text.color": theme.ink,
        "text.parse_math": False,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "axes.prop_cycle": cycler(color=theme.palette),
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "font.family": ["DejaVu Sans"],
        "font.size": 9.5,
        "svg.hashsalt": "qpeft",
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield matplotlib


def shorten_label(text: str, length: int = 30) -> str:
    """A label on one line, cut in the middle when it is too long.

    Args:
        text: the label.
        length: the most characters.
    """
    line = " ".join(text.split()) or "(no label)"
    if len(line) <= length:
        return line
    head = (length - 1) * 2 // 3
    return f"{line[:head]}…{line[head + 1 - length :]}"


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to the given heights as a distance of `gap` between them allows, inside low..high when they fit there.

    Neighbours that stand too close merge into a block around their mean (pool adjacent violators); blocks that leave low..high
    are pushed back.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[float, int]] = []  # (centre, members)
    for i in order:
        centre, members = heights[i], 1
        while blocks and centre - blocks[-1][0] < (members + blocks[-1][1]) * gap / 2:
            other, more = blocks.pop()
            centre, members = (other * more + centre * members) / (more + members), members + more
        blocks.append((centre, members))
    places = [centre + (k - (members - 1) / 2) * gap for centre, members in blocks for k in range(members)]
    for i, place in enumerate(places):
        places[i] = max(place, low if i == 0 else places[i - 1] + gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], high if i == len(places) - 1 else places[i + 1] - gap)
    result = [0.0] * len(heights)
    for i, place in zip(order, places, strict=True):
        result[i] = place
    return result


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Name:
    """Label of a point at x, y (data units): text, colour of its leader line, mark of the arm."""

    text: str
    x: float
    y: float
    color: str
    mark: Mark | None = None


def name_points(axes: Any, names: Iterable[Name], taken: list[Box], theme: Theme, size: float = FONT, joined: bool = False) -> None:
    """Write each name near its point, where it covers least. A thin line joins a name that is far from its point.

    Args:
        axes: Matplotlib axes that have their limits and their place.
        names: names and their points.
        taken: boxes `(x0, y0, x1, y1)` to keep clear, pixels. The names' boxes are added.
        theme: colours of the page.
        size: font size, points.
        joined: a line joins every name and its point.
    """
    from matplotlib.patheffects import withStroke

    renderer, bounds = axes.get_figure().canvas.get_renderer(), axes.get_window_extent()
    frame = (bounds.x0 + 2, bounds.y0 + 2, bounds.x1 - 2, bounds.y1 - 2)
    to_data = axes.transData.inverted().transform
    halo = [withStroke(linewidth=2.5, foreground=theme.paper)]
    for name in sorted(names, key=lambda name: -len(name.text)):  # long names while there is room
        x, y = axes.transData.transform((name.x, name.y))
        text = axes.text(0, 0, name.text, size=size, va="bottom", ha="left", zorder=4, path_effects=halo)
        extent = text.get_window_extent(renderer)
        box = free_place((x, y), (extent.width, extent.height), frame, taken, clear=_NEAR)
        taken.append(box)
        if name.mark is not None:
            name.mark.tag(text)
        text.set_position(to_data((box[0], box[1])))
        near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        if joined or math.dist(near, (x, y)) > _FAR:
            ends = zip(*(to_data(end) for end in ((x, y), near)), strict=True)
            lines = axes.plot(*ends, color=name.color, linewidth=0.7, alpha=0.8, zorder=1.5)
            if name.mark is not None:
                name.mark.tag(*lines)


def free_place(point: tuple[float, float], size: tuple[float, float], frame: Box, taken: Sequence[Box], clear: float) -> Box:
    """A box (x0, y0, x1, y1) of `size` near a point that covers as few of the boxes `taken` as possible and stays in `frame`.

    `clear` is the distance kept from the point and a quarter of it from other boxes; all lengths in pixels. Places are tried
    ring by ring. In units of the box's own area, a place costs a half for each box it touches, the area it covers, twenty times
    the area outside the frame, and a little for its distance.
    """
    width, height = size
    area = width * height
    places: list[tuple[float, int, Box]] = []
    for ring in (1.0, 1.7, 2.6, 3.8, 5.2, 7.0, 9.0, 12.0):
        for right, up in (
            (1, 0),
            (-1, 0),
            (1, 0.6),
            (1, -0.6),
            (-1, 0.6),
            (-1, -0.6),
            (0, 1),
            (0, -1),
            (1, 1),
            (1, -1),
            (-1, 1),
            (-1, -1),
        ):
            x, y = point[0] + right * (clear * ring + width / 2), point[1] + up * (clear * ring + height / 2)
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            covered = [overlap for other in taken if (overlap := _overlap(box, other, clear / 4)) > 0]
            cost = 0.5 * len(covered) + (sum(covered) + 20 * (area - _overlap(box, frame))) / area + 0.06 * (ring - 1)
            places.append((round(cost, 9), len(places), box))
    return min(places)[2]


def _overlap(a: Box, b: Box, margin: float = 0.0) -> float:
    """Shared area of two boxes, the first widened by a margin on the left and right and a third of it above and below."""
    across = min(a[2] + margin, b[2]) - max(a[0] - margin, b[0])
    along = min(a[3] + margin / 3, b[3]) - max(a[1] - margin / 3, b[1])
    return max(0.0, across) * max(0.0, along)
