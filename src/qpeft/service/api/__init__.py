"""HTTP: `app(service)` is the ASGI application of one API process."""

from qpeft.service.api.app import app

__all__ = ["app"]
