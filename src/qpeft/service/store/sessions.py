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

from qpeft.service.store.schema import sessions
from qpeft.service.store.writer import Transaction

LIFE_S: Final = 12 * 3600.0


@dataclass(frozen=True)
class Login:
    """A session to keep, by the SHA-256 of its cookie, and the key that it stands for."""

    digest: bytes
    prefix: str


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
    """Keep sessions; forget those that have ended."""
    txn.connection.execute(sa.delete(sessions).where(sessions.c.expires_at < txn.now))
    rows = [{"digest": login.digest, "prefix": login.prefix, "expires_at": txn.now + LIFE_S} for login in logins]
    txn.connection.execute(sessions.insert(), rows)
    return [None for _ in logins]


def log_out(txn: Transaction, digests: Sequence[bytes]) -> list[None]:
    """Forget sessions."""
    txn.connection.execute(sa.delete(sessions).where(sessions.c.digest.in_(list(digests))))
    return [None for _ in digests]
