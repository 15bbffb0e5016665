"""What sites that serve pages share: policy, shared files, language and colours of a visitor, streams of changes."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qpeft.web.language import LANGUAGES, preferred
from qpeft.web.site import STATIC, THEMES, shared_file

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
YEAR_S: Final = 365 * 86400
LANGUAGE, THEME = "qpeft_language", "qpeft_theme"


def page(text: str, status: int = 200) -> Response:
    """A page, with the policy that allows only this server's scripts and styles.

    Args:
        text: the page's HTML.
        status: HTTP status.
    """
    return Response(text, status, {"content-security-policy": POLICY}, "text/html; charset=utf-8")


def static_file(name: str) -> Response | None:
    """A shared style or script; None for any other name."""
    content = shared_file(name)
    return None if content is None else Response(content, media_type=STATIC[name])


def language_of(request: Request) -> str:
    """The language that the visitor chose, else the browser's."""
    chosen = request.cookies.get(LANGUAGE, "")
    return chosen if chosen in LANGUAGES else preferred(request.headers.get("accept-language", ""))


def theme_of(request: Request) -> str:
    """ "light", "dark", or "" for what the system has."""
    chosen = request.cookies.get(THEME, "")
    return chosen if chosen in THEMES else ""


def wants_page(request: Request) -> bool:
    """Whether a browser asks for something to show, and not a program or a script of a page."""
    return "text/html" in request.headers.get("accept", "")


def preferences(request: Request) -> Response:
    """`?language=` or `?theme=` into a cookie, then back to the page of this server that `?back=` names."""
    query = request.query_params
    response = RedirectResponse(local_path(query.get("back", "/")), 303)
    for name, cookie, allowed in (("language", LANGUAGE, LANGUAGES), ("theme", THEME, (*THEMES, "auto"))):
        if (value := query.get(name, "")) in allowed:
            response.set_cookie(cookie, value, max_age=YEAR_S, path="/", httponly=True, samesite="lax")
    return response


def local_path(path: str) -> str:
    """The path when it leads to this server, else "/"."""
    plain = unquote(path)
    safe = plain.startswith("/") and not plain.startswith("//") and "\\" not in plain and plain.isprintable()
    return path if safe else "/"


def path_of(request: Request) -> str:
    """Path and query, as a link back."""
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")
