"""Sessions of the dashboard: a random cookie, stored as its SHA-256, that stands for a key until it ends or the key is revoked.

The token that forms must bring (against requests forged by other sites) is derived from the cookie, which no script can read.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.ids import new_id
from qpeft.service.store.audit import write_audit
from qpeft.service.store.schema import api_keys, identities, owners, sessions
from qpeft.service.store.writer import Transaction

LIFE_S: Final = 12 * 3600.0
OIDC_PREFIX: Final = "oi"


@dataclass(frozen=True)
class Login:
    """A session to keep, by the SHA-256 of its cookie, and the key that it stands for."""

    digest: bytes
    prefix: str


@dataclass(frozen=True)
class SignIn:
    """A session of a user that an OpenID provider vouches for: `subject` at `issuer`, called `name` when it is new here."""

    digest: bytes
    issuer: str
    subject: str
    name: str
    scopes: tuple[str, ...]


@dataclass(frozen=True)
class LinkIdentity:
    """A user who is here already, and who he is at an OpenID provider."""

    actor: str
    user: str
    issuer: str
    subject: str


def new_cookie() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def digest_of(cookie: str) -> bytes:
    """SHA-256 of a cookie: what is stored."""
    return hashlib.sha256(b"session\0" + cookie.encode()).digest()


def token_of(cookie: str) -> str:
    """CSRF token that forms of this session must send."""
    return hashlib.sha256(b"token\0" + cookie.encode()).hexdigest()


def token_is_right(cookie: str, token: str) -> bool:
    """Whether a form's token belongs to the cookie, compared in constant time."""
    return hmac.compare_digest(token_of(cookie), token) if token.isascii() else False


def log_in(txn: Transaction, logins: Sequence[Login]) -> list[None]:
    """Store sessions, and delete those that have ended.

    Args:
        txn: transaction of the writer.
        logins: the sessions.
    """
    txn.connection.execute(sa.delete(sessions).where(sessions.c.expires_at < txn.now))
    rows = [{"digest": login.digest, "prefix": login.prefix, "expires_at": txn.now + LIFE_S} for login in logins]
    txn.connection.execute(sessions.insert(), rows)
    return [None for _ in logins]


def sign_in(txn: Transaction, arguments: Sequence[SignIn]) -> list[ServiceError | None]:
    """Store sessions of users that a provider vouches for. Each has one key, known to nobody, that its sessions stand for.

    A user is made at the first sign-in. A name that exists here already is refused, since it may be another person's.

    Args:
        txn: transaction of the writer.
        arguments: the provider's subjects and their sessions.

    Returns:
        None for each, or the refusal.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        here = (identities.c.issuer == argument.issuer, identities.c.subject == argument.subject)
        owner = txn.connection.execute(sa.select(identities.c.owner).where(*here)).scalar()
        if owner is None:
            if txn.connection.execute(sa.select(owners.c.id).where(owners.c.name == argument.name)).first() is not None:
                hint = "an administrator links them: qpeft service link-user"
                outcomes.append(
                    ServiceError("a user of this name exists already", status=403, code="name", value=argument.name, hint=hint)
                )
                continue
            owner = new_id("u")
            row = {"id": owner, "name": argument.name, "open_circuits": 0, "created_at": txn.now, "weight": 1.0}
            txn.connection.execute(owners.insert(), row)
            txn.connection.execute(identities.insert(), {"issuer": argument.issuer, "subject": argument.subject, "owner": owner})
            write_audit(txn, "oidc", "user.create", f"{argument.name}: {argument.subject} at {argument.issuer}")
        disabled = txn.connection.execute(sa.select(owners.c.disabled_at).where(owners.c.id == owner)).scalar()
        if disabled is not None:
            outcomes.append(ServiceError("this user is disabled", status=403, code="disabled", hint="ask an administrator"))
            continue
        log_in(txn, [Login(argument.digest, _session_key(txn, owner, " ".join(argument.scopes)))])
        outcomes.append(None)
    return outcomes


def link_identity(txn: Transaction, arguments: Sequence[LinkIdentity]) -> list[ServiceError | None]:
    """Let a provider's subject sign in as a user who is here already.

    Args:
        txn: transaction of the writer.
        arguments: the users and the provider's subjects.

    Returns:
        None for each, or the refusal.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        owner = txn.connection.execute(sa.select(owners.c.id).where(owners.c.name == argument.user)).scalar()
        if owner is None:
            outcomes.append(ServiceError("no such user", status=404, code="not_found", value=argument.user))
            continue
        here = (identities.c.issuer == argument.issuer, identities.c.subject == argument.subject)
        txn.connection.execute(sa.delete(identities).where(*here))
        txn.connection.execute(identities.insert(), {"issuer": argument.issuer, "subject": argument.subject, "owner": owner})
        write_audit(txn, argument.actor, "user.link", f"{argument.user}: {argument.subject} at {argument.issuer}")
        outcomes.append(None)
    return outcomes


def _session_key(txn: Transaction, owner: str, scopes: str) -> str:
    """The prefix of the key that the user's sessions stand for, with these scopes from now on."""
    mine = (api_keys.c.owner == owner, api_keys.c.prefix.like(f"{OIDC_PREFIX}%"), api_keys.c.revoked_at.is_(None))
    prefix: str | None = txn.connection.execute(sa.select(api_keys.c.prefix).where(*mine)).scalar()
    if prefix is None:
        prefix = OIDC_PREFIX + secrets.token_hex(5)
        key = {"prefix": prefix, "digest": secrets.token_bytes(32), "owner": owner, "scopes": scopes, "created_at": txn.now}
        txn.connection.execute(api_keys.insert(), key)
    txn.connection.execute(sa.update(api_keys).where(api_keys.c.prefix == prefix).values(scopes=scopes))
    return prefix


def log_out(txn: Transaction, digests: Sequence[bytes]) -> list[None]:
    """Delete sessions.

    Args:
        txn: transaction of the writer.
        digests: SHA-256 of each session's cookie.
    """
    txn.connection.execute(sa.delete(sessions).where(sessions.c.digest.in_(list(digests))))
    return [None for _ in digests]
