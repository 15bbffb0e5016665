"""What a page of the dashboard is: a `Page` names its address and its handler, a `PageContext` is one request of a session."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qpeft.errors import ServiceError
from qpeft.service.api.auth import Authenticator, Principal
from qpeft.service.core import Service
from qpeft.service.store.listings import Listings
from qpeft.service.store.sessions import token_of
from qpeft.web import http
from qpeft.web.language import translate
from qpeft.web.site import render

SITE: Final = "qpeft quantum tasks"
TEMPLATES: Final = ("qpeft.service.dashboard", "templates")
PAGE_ROWS: Final = 50
TITLES: Final = {
    403: "Not allowed",
    404: "There is no such page",
    405: "Not allowed",
    429: "Too many requests",
    503: "Not available now",
}
PageHandler: TypeAlias = Callable[["PageContext"], Awaitable[Response]]


@dataclass(frozen=True)
class Page:
    """One address of the dashboard. `scope` is what the session's key needs; `nav` is its title in the menu, "" for none."""

    path: str
    handler: PageHandler
    scope: str = "read"
    method: str = "GET"
    nav: str = ""


@dataclass
class PageContext:
    """One request of a session; `form` is what a POST brought, `menu` the pages in the menu."""

    service: Service
    auth: Authenticator
    request: Request
    principal: Principal
    cookie: str
    form: Mapping[str, str]
    menu: tuple[Page, ...] = ()

    @property
    def owner(self) -> str:
        """The id of the user who asks."""
        return self.principal.owner

    @property
    def is_admin(self) -> bool:
        """Whether the session's key has the scope `admin`."""
        return "admin" in self.principal.scopes

    @functools.cached_property
    def listings(self) -> Listings:
        """Questions of lists."""
        return Listings(self.service.database.reader)

    async def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Run a question on a thread."""
        return await self.service.ask(question, *arguments)

    def path(self, name: str) -> str:
        """A part of the address."""
        return str(self.request.path_params[name])

    def query(self, name: str, longest: int = 200) -> str:
        """A word of the query, "" when it is not there; cut at `longest` characters, without what cannot be stored."""
        text = self.request.query_params.get(name, "")
        return "".join(c for c in text if c.isprintable() and not 0xD800 <= ord(c) < 0xE000)[:longest].strip()

    def number(self, name: str) -> int | None:
        """A whole number of the query, None when it is not there or is none."""
        text = self.request.query_params.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def link(self, **changes: object) -> str:
        """This address with other words in its query; None takes one out."""
        query = dict(self.request.query_params) | changes
        kept = {name: value for name, value in query.items() if value not in (None, "")}
        return self.request.url.path + (f"?{urlencode(kept)}" if kept else "")

    def t(self, text: str, **values: object) -> str:
        """A sentence in the visitor's language."""
        return translate(http.language_of(self.request), text, **values)

    def render(self, template: str, status: int = 200, *, package: str = "", **values: Any) -> Response:
        """A page of the session.

        Args:
            template: name of the template, without `.html.jinja`.
            status: HTTP status.
            package: an outside package whose folder `templates` is searched before ours.
            values: what the template shows, besides what every page shows.
        """
        scopes = self.principal.scopes
        nav = [(page.path, page.nav) for page in self.menu if page.nav and (page.scope in scopes or self.is_admin)]
        common = {"user": self.principal.name, "admin": self.is_admin, "token": token_of(self.cookie), "link": self.link}
        return shown(self.request, template, status, package=package, nav=nav, live="/live", **common, **values)


def shown(
    request: Request,
    template: str,
    status: int = 200,
    *,
    package: str = "",
    nav: list[tuple[str, str]] | None = None,
    live: str = "",
    **values: Any,
) -> Response:
    """A page, in the visitor's language and colours.

    Args:
        request: tells language, colours and address.
        template: name of the template, without `.html.jinja`.
        status: HTTP status.
        package: an outside package whose folder `templates` is searched before ours.
        nav: `(address, title)` of the pages in the menu.
        live: address of the events that refresh the page, "" for none.
        values: what the template shows.
    """
    values.setdefault("user", "")
    own = ((package, "templates"),) if package else ()
    text = render(
        (*own, TEMPLATES), template, language=http.language_of(request), theme=http.theme_of(request), site=SITE,
        path=http.path_of(request), nav=nav or (), live=live, values=values,
    )  # fmt: skip
    return http.page(text, status)


def error_page(request: Request, error: ServiceError) -> Response:
    """A page that says what went wrong.

    Args:
        request: the request that was refused.
        error: status, reason and hint; `retry_after_s` becomes the header `Retry-After`.
    """
    status = error.status or 500
    words = translate(http.language_of(request), TITLES.get(status, "That did not work"))
    reason, _, hint = str(error).partition("; hint: ")
    answer = shown(request, "problem", status, title=words, reason=reason, hint=hint, code=status)
    if error.retry_after_s is not None:
        answer.headers["retry-after"] = str(int(error.retry_after_s) + 1)
    return answer


def see(path: str) -> Response:
    """See another page of this service."""
    return RedirectResponse(path, 303)
