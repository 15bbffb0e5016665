"""Where vendors' keys are found, and that they stay secret."""

from __future__ import annotations

import logging
import pickle

import pytest

from qpeft.backends.vendors.keys import Secret, find_key, warn_if_unencrypted
from qpeft.backends.vendors.pyqpanda import KEY_VARIABLES
from qpeft.errors import BackendError

KEY = "a-secret-key-0123"


def test_keys(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    secret = find_key("SOME_KEY", "qpeft-test")
    assert secret.reveal() == KEY
    assert KEY not in f"{secret} {secret!r} {[secret]} {vars}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(BackendError, match="SOME_KEY"):
        find_key("SOME_KEY", "qpeft-test")
    assert Secret("abc").censor("xabcx") == "x***x"


def test_one_of_several_variables(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    names = KEY_VARIABLES
    assert names[0] == "PYQPANDA_API_KEY"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[1], KEY)
    with caplog.at_level(logging.INFO):
        assert find_key(names, "pyqpanda").reveal() == KEY
    assert names[1] in caplog.text
    monkeypatch.setenv(names[2], KEY)
    assert find_key(names, "pyqpanda").reveal() == KEY
    monkeypatch.setenv(names[0], "another-key")
    with pytest.raises(BackendError, match="different keys") as caught:
        find_key(names, "pyqpanda")
    assert KEY not in str(caught.value)


def test_key_from_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = pytest.importorskip("keyring")
    from keyring.backend import KeyringBackend

    class Ring(KeyringBackend):
        priority = 1  # type: ignore[assignment]

        def set_password(self, service: str, username: str, password: str) -> None:
            raise NotImplementedError

        def delete_password(self, service: str, username: str) -> None:
            raise NotImplementedError

        def get_password(self, service: str, username: str) -> str | None:
            return KEY if (service, username) == ("qpeft", "pyqpanda") else None

    before = keyring.get_keyring()
    keyring.set_keyring(Ring())
    try:
        monkeypatch.delenv("PYQPANDA_API_KEY", raising=False)
        assert find_key("PYQPANDA_API_KEY", "pyqpanda").reveal() == KEY
    finally:
        keyring.set_keyring(before)


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://127.0.0.1:80", False),
        ("http://localhost/x", False),
        ("http://[::1]:9", False),
        ("https://example.org", False),
        ("http://example.org", True),
        ("example.org:8080", True),
        ("http://127.0.0.1.example.org", True),
        ("http://10.0.0.1", True),
    ],
)
def test_warning_about_clear_text(url: str, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert warn_if_unencrypted(url) is warns
    assert ("not encrypted" in caplog.text) is warns
