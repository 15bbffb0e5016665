"""Archives of published packages: read without being run, and refused when they are not what the hash says."""

from __future__ import annotations

import hashlib
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from qpeft.applications.data_sets import readers
from qpeft.applications.data_sets.sources import PackageSource
from qpeft.errors import DataError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QPEFT_CACHE", str(tmp_path))
    (tmp_path / "sources").mkdir()
    return tmp_path / "sources"


def source(path: Path, kind: str, member: str) -> PackageSource:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PackageSource(
        package="no-such-package-qpeft", version="1", archive=path.name, sha256=digest, members=(member,), kind=kind
    )


def test_a_wheel_and_a_debian_package_are_read(cache: Path) -> None:
    with zipfile.ZipFile(cache / "a.whl", "w") as wheel:
        wheel.writestr("a/data.csv", "x,y\n1,2\n")
    assert source(cache / "a.whl", "wheel", "a/data.csv").read() == [b"x,y\n1,2\n"]

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        info = tarfile.TarInfo("./usr/share/d.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    raw_deb = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", packed.getvalue())):  # an odd length, then its padding
        raw_deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    (cache / "d.deb").write_bytes(raw_deb)
    assert source(cache / "d.deb", "deb", "./usr/share/d.txt").read() == [b"hello"]


def test_another_file_is_refused(cache: Path) -> None:
    (cache / "a.whl").write_bytes(b"one")
    pinned = source(cache / "a.whl", "wheel", "m")
    (cache / "a.whl").write_bytes(b"two")
    with pytest.raises(DataError, match="SHA-256") as caught:
        pinned.read()
    assert pinned.sha256 in str(caught.value)


def test_arff() -> None:
    text = b"% c\n@relation r\n@attribute 'a b' {'x, y', z}\n@attribute n numeric\n@data\n'x, y',3\n?,4\nz,?\n"
    assert readers.read_arff(text) == [{"a b": "x, y", "n": "3"}, {"a b": "", "n": "4"}, {"a b": "z", "n": ""}]


@pytest.mark.parametrize("text", [b"a,b\n1,2\n", b"@relation r\n@attribute a string\n@data\nx\n"])
def test_what_is_not_arff_is_said(text: bytes) -> None:
    with pytest.raises(DataError, match="not ARFF"):
        readers.read_arff(text)


def test_a_pickle_that_would_run_something_is_refused() -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1/0",)

    with pytest.raises(DataError, match=r"builtins\.eval"):
        readers.read_frame(lzma.compress(pickle.dumps(Attack())))


def test_icd_chapters() -> None:
    text = b"""<r><chapter><desc>Bugs (A00-B99)</desc><section><diag><name>A00</name><desc>Cholera</desc>
        <diag><name>A00.1</name><desc>Cholera, eltor</desc></diag></diag></section></chapter></r>"""
    assert readers.read_icd(text) == [
        {"code": "A00", "category": "A00", "text": "Cholera", "chapter": "Bugs"},
        {"code": "A00.1", "category": "A00", "text": "Cholera, eltor", "chapter": "Bugs"},
    ]
