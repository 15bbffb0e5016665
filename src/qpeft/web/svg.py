"""Writing SVG: elements as escaped text. Colours and sizes come from classes of app.css."""

from __future__ import annotations

from html import escape


class Markup(str):
    """HTML that is not to be escaped again; Jinja asks for `__html__`."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def element(name: str, content: object = None, **attributes: object) -> str:
    """`<name ...>content</name>`. A content that is no Markup is escaped; `class_` is class, `_` in names is `-`."""
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value) if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "" if content is None else content if isinstance(content, Markup) else escape(str(content))
    return f"<{name}{parts}>{inner}</{name}>"


def number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def picture(width: float, height: float, parts: list[str], label: str, *, fixed: bool = False) -> Markup:
    """An `<svg>` that a screen reader names.

    Args:
        width: of the drawing, in its own units.
        height: of the drawing, in its own units.
        parts: elements as text, escaped already.
        label: what a screen reader says of the picture.
        fixed: keeps its size in pixels; else it fills its place.
    """
    size = f' width="{number(width)}" height="{number(height)}"' if fixed else ""
    body = "".join(parts)
    box = f"0 0 {number(width)} {number(height)}"
    return Markup(f'<svg viewBox="{box}"{size} role="img" aria-label="{escape(label)}">{body}</svg>')
