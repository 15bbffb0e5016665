"""Random names and keys."""

from __future__ import annotations

import hashlib
import os
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]


class _Random:
    """Random bytes of the system, fetched many at once: a system call hands the interpreter's lock to another thread."""

    def __init__(self) -> None:
        self._lock, self._buffer, self._at = threading.Lock(), b"", 0

    def take(self, n: int) -> bytes:
        with self._lock:
            if self._at + n > len(self._buffer):
                self._buffer, self._at = os.urandom(8192), 0
            self._at += n
            return self._buffer[self._at - n : self._at]


_random = _Random()


def new_id(kind: str) -> str:
    """`kind` and 26 characters: 48 bits of time in milliseconds (neighbours stay neighbours in an index), 80 random bits."""
    value = (int(time.time() * 1000) & 0xFFFFFFFFFFFF) << 82 | int.from_bytes(_random.take(10), "big") << 2
    return kind + "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


def new_key() -> tuple[str, str, bytes]:
    """A key of 256 random bits: `(key, prefix, digest)`; only the prefix and the SHA-256 are stored."""
    prefix, secret = "qk" + os.urandom(5).hex(), os.urandom(32).hex()
    key = f"{prefix}_{secret}"
    return key, prefix, digest(key)


def digest(key: str) -> bytes:
    """SHA-256: a key has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
