"""A figure's SVG as part of a page: colours by CSS variables, arms by CSS classes, text as text."""

from __future__ import annotations

import re

from qpeft.report.style import DARK, LIGHT, Theme

_IDS = re.compile(r' id="(?!arm-)[A-Za-z][A-Za-z0-9.]*_\d+"')  # matplotlib's own names of groups, the same in every figure
_ATTRIBUTE = re.compile(r'="[^"]*"')
_NUMBER = re.compile(r"(?<=[ML ,\"(])-?\d+\.\d{3,}")


def _colours(theme: Theme) -> dict[str, str]:
    """Name of a CSS variable, without its prefix -> colour."""
    colours = {"paper": theme.paper, "ink": theme.ink, "muted": theme.muted, "grid": theme.grid}
    return colours | {f"arm{index}": colour for index, colour in enumerate(theme.palette)}


def variables() -> str:
    """The colours of both themes as CSS declarations: light-dark() follows the page's color-scheme."""
    light, dark = _colours(LIGHT), _colours(DARK)
    return " ".join(f"--plot-{name}: light-dark({colour}, {dark[name]});" for name, colour in light.items())


def page_svg(svg: str) -> str:
    """The `<svg>` element of a figure drawn in the light theme, for a page that sets `variables`.

    What is drawn of an arm has the classes "arm" and "arm-N". Coordinates have two decimals.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = _IDS.sub("", text)
    text = re.sub(r'id="(arm-\d+)"', r'class="arm \1"', text)
    return re.sub(r"\n\s*", "\n", _ATTRIBUTE.sub(_attribute, text)).strip()


_VARIABLES = {colour.lower(): f"var(--plot-{name})" for name, colour in _colours(LIGHT).items()}
_COLOUR = re.compile("|".join(map(re.escape, _VARIABLES)), re.IGNORECASE)


def _attribute(match: re.Match[str]) -> str:
    text = _COLOUR.sub(lambda colour: _VARIABLES[colour[0].lower()], match[0])
    return _NUMBER.sub(lambda number: f"{float(number[0]):.2f}", text)


def styles(arms: int) -> str:
    """CSS for a page: colours of both themes, and rules that pick out the arms whose row is under the cursor or ticked."""
    rules = [
        f":root {{ {variables()} }}",
        ".plot svg { display: block; width: 100%; height: auto; }",
        ".plot text { paint-order: stroke; stroke: var(--plot-paper); stroke-width: 2.5px; stroke-linejoin: round; }",
        "section:has(tr[data-arm]:hover) .arm, section:has(.pick:checked) .arm { opacity: .08; }",
    ]
    for number in range(arms):
        rules.append(
            f"section:has(tr[data-arm='{number}']:hover) .arm-{number}, "
            f"section:has(tr[data-arm='{number}'] .pick:checked) .arm-{number} {{ opacity: 1; }}"
        )
    return "\n".join(rules)
