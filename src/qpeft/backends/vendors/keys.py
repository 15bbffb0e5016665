"""Vendors' keys: where they are looked for, and that they do not show themselves."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from qpeft.errors import BackendError, MissingDependencyError

logger = logging.getLogger(__name__)


class Secret:
    """A key that does not show itself: not in repr, str, logs or pickles. `reveal()` gives it."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key in clear text."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not pickled")

    def censor(self, text: str) -> str:
        """The text with every occurrence of the key replaced."""
        return text.replace(self._value, "***") if self._value else text


def find_key(variables: str | Sequence[str], service: str) -> Secret:
    """A vendor's key, from the environment or from the system's keyring (extra `keyring`).

    Args:
        variables: environment variables that may hold it, our own first; which one was used is logged where there are several.
        service: the user name under which the keyring holds it, for the service `qpeft`.

    Raises:
        BackendError: there is no key, or two variables hold different ones.
    """
    names = (variables,) if isinstance(variables, str) else tuple(variables)
    found = {name: value for name in names if (value := os.environ.get(name, "").strip())}
    if len(set(found.values())) > 1:
        raise BackendError(f"different keys for {service}", value=", ".join(found), hint="unset all but one of these variables")
    if found:
        used = next(iter(found))
        if len(names) > 1:
            logger.info("the key for %s is that of %s", service, used)
        return Secret(found[used])
    wanted = " or ".join(names)
    try:
        import keyring
        import keyring.errors
    except ImportError as error:
        missing = MissingDependencyError("keyring", "keyring", "reading a key from the keyring")
        raise BackendError(
            f"no key for {service}",
            value=f"{wanted} is not set",
            hint=f"export {names[0]}=...; or {missing.hint} and keyring set",
        ) from error
    try:
        value = keyring.get_password("qpeft", service) or ""
    except keyring.errors.KeyringError:
        value = ""
    if not value:
        raise BackendError(f"no key for {service}", hint=f"export {wanted}=..., or: keyring set qpeft {service}")
    return Secret(value)


def warn_if_unencrypted(url: str) -> bool:
    """Warn, and return True, when keys and circuits would cross a network in clear text: http to a host that is not this one."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if parts.scheme == "https" or local:
        return False
    logger.warning("%s is not encrypted: your key and your circuits cross the network in clear text", host or url)
    return True
