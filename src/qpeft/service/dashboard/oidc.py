"""Sign-in to the dashboard with an OpenID Connect provider: the authorization code flow with PKCE, by Authlib.

`/login/oidc` sends the browser to the provider, `/login/oidc/callback` takes it back. State, nonce and verifier are in a signed
cookie of ten minutes (Starlette's SessionMiddleware). What comes of it is a session as any other.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Final

from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from qpeft.errors import MissingDependencyError, ServiceError
from qpeft.service.api.auth import Authenticator
from qpeft.service.core import Service
from qpeft.service.settings import Settings
from qpeft.service.store.sessions import SignIn, digest_of, new_cookie, sign_in

log = logging.getLogger("qpeft.service")
PATH: Final = "/login/oidc"
FLOW_S: Final = 600


def mounted(service: Service, auth: Authenticator, cookie_name: str, life_s: int) -> list[Route]:
    """The two routes, none when no provider is set.

    Args:
        service: whose users sign in.
        auth: counts failed attempts by address.
        cookie_name: of the dashboard's session.
        life_s: seconds that the session lives.
    """
    settings = service.settings
    if settings.oidc_issuer is None:
        return []
    client = _client(settings)
    secure = settings.behind_proxy or settings.tls_cert is not None

    async def start(request: Request) -> Response:
        auth.admit(request)
        try:
            answer: Response = await client.authorize_redirect(request, _callback(request, secure))
        except Exception as error:
            raise _unavailable(error) from error
        return answer

    async def callback(request: Request) -> Response:
        address = auth.admit(request)
        try:
            token = await client.authorize_access_token(request)
            claims = dict(token["userinfo"])
        except Exception as error:
            auth.failed(address)
            log.warning("OpenID sign-in failed: %s: %s", type(error).__name__, error)
            raise ServiceError("the sign-in failed", status=401, code="oidc", hint="begin again at /login") from error
        name, scopes = who(settings, claims)
        cookie = new_cookie()
        new = SignIn(digest_of(cookie), str(claims["iss"]), str(claims["sub"]), name, scopes)
        await service.writer.call(sign_in, new)
        # a redirect would still count as the provider's, and a strict cookie would not be sent: the page itself goes on
        answer = HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0;url=/"><a href="/">qpeft</a>')
        answer.set_cookie(cookie_name, cookie, max_age=life_s, path="/", secure=secure, httponly=True, samesite="strict")
        return answer

    signing = hashlib.sha256(b"qpeft oidc flow\0" + (settings.oidc_client_secret or "").encode()).hexdigest()
    flow = Middleware(
        SessionMiddleware,
        secret_key=signing,
        session_cookie="qpeft_oidc",
        max_age=FLOW_S,
        path=PATH,
        same_site="lax",
        https_only=secure,
    )
    return [
        Route(PATH, start, methods=["GET"], middleware=[flow]),
        Route(f"{PATH}/callback", callback, methods=["GET"], middleware=[flow]),
    ]


def _client(settings: Settings) -> Any:
    try:
        from authlib.integrations.starlette_client import OAuth  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("authlib", "service", "OpenID sign-in") from error
    assert settings.oidc_issuer is not None
    return OAuth().register(
        "provider",
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        server_metadata_url=settings.oidc_issuer.rstrip("/") + "/.well-known/openid-configuration",
        client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256", "timeout": 10.0},
    )


def _callback(request: Request, secure: bool) -> str:
    host = request.headers.get("host", "")
    return f"{'https' if secure else request.url.scheme}://{host}{PATH}/callback"


def _unavailable(error: Exception) -> ServiceError:
    log.error("the OpenID provider cannot be used: %s: %s", type(error).__name__, error)
    return ServiceError("the sign-in provider does not answer", status=503, code="oidc", hint="log in with a key", retry_after_s=10)


def who(settings: Settings, claims: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The name and the scopes of a user.

    Args:
        settings: which addresses may sign in, and which are administrators'.
        claims: of the provider's ID token.

    Returns:
        The e-mail address, or the subject of a user without a verified one; and the scopes.

    Raises:
        ServiceError: 403 for an address of another domain, or without a verified address where domains are listed.
    """
    email = str(claims.get("email") or "").lower()
    verified = bool(email) and claims.get("email_verified") is True
    domain = email.rpartition("@")[2]
    if settings.oidc_domains and not (verified and domain in {one.lower() for one in settings.oidc_domains}):
        raise ServiceError("this address may not sign in", status=403, code="oidc", bound=", ".join(settings.oidc_domains))
    admin = verified and email in {one.lower() for one in settings.oidc_admins}
    name = email if verified else f"oidc:{claims['sub']}"
    return name[:128], ("submit", "read", "admin") if admin else ("submit", "read")
