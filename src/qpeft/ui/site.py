"""What a page of `qpeft ui` is: an `Address` names its path and handler, a `Visit` is one request of somebody who has the token."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qpeft.ui.control import Control
from qpeft.ui.runs import RunFolder, TrainingRun
from qpeft.ui.worker import ModelProcess
from qpeft.web import http
from qpeft.web.language import translate
from qpeft.web.site import render

SITE = "qpeft runs"
TEMPLATES = (("qpeft.ui", "templates"),)
VisitHandler: TypeAlias = Callable[["Visit"], Awaitable[Response]]


@dataclass(frozen=True)
class Address:
    """One address. `nav` is its title in the menu, "" for none."""

    path: str
    handler: VisitHandler
    method: str = "GET"
    nav: str = ""


@dataclass
class Studio:
    """What the server has: runs, who starts them, the process with a model, the token, the menu."""

    folder: RunFolder
    control: Control
    model: ModelProcess
    token: str
    menu: list[tuple[str, str]] = field(default_factory=list)
    stopping: bool = False

    def knows(self, token: str) -> bool:
        """Whether it is the server's token, compared in constant time."""
        return token.isascii() and hmac.compare_digest(token, self.token)


@dataclass
class Visit:
    """One request; `form` is what a POST brought."""

    studio: Studio
    request: Request
    form: Mapping[str, str] = field(default_factory=dict)

    def run(self) -> TrainingRun:
        """The run that `?name=` or the form names."""
        return self.studio.folder.run(self.form.get("name") or self.request.query_params.get("name", ""))

    def t(self, text: str, **values: object) -> str:
        """A sentence in the visitor's language."""
        return translate(http.language_of(self.request), text, **values)

    def render(self, template: str, **values: Any) -> Response:
        """A page."""
        return shown(self.request, template, nav=self.studio.menu, live="/live", token=self.studio.token, **values)

    def see(self, path: str) -> Response:
        """See another page."""
        return RedirectResponse(path, 303)


def shown(
    request: Request, template: str, status: int = 200, *, nav: list[tuple[str, str]] | None = None, live: str = "", **values: Any
) -> Response:
    """A page, in the visitor's language and colours.

    Args:
        request: the request.
        template: name of the template.
        status: HTTP status.
        nav: path and title of each page in the navigation.
        live: address that the page asks for changes; "" for none.
        **values: values for the template.
    """
    text = render(
        TEMPLATES, template, language=http.language_of(request), theme=http.theme_of(request), site=SITE,
        path=http.path_of(request), nav=nav or (), live=live, values=values,
    )  # fmt: skip
    return http.page(text, status)
