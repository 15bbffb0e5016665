"""The text of a file in its encoding."""

from __future__ import annotations

import codecs
import logging
from pathlib import Path

from qpeft.training.data.problems import Report

logger = logging.getLogger(__name__)


def read_text(path: Path, report: Report, *, legacy: bool = False) -> str:
    """The whole text, without a byte order mark.

    The encoding is the report's, else UTF-16 with a byte order mark, else UTF-8.

    Args:
        path: the file.
        report: its encoding, if it is known; collects the problems.
        legacy: read what is not UTF-8 as Windows-1252, with a warning.

    Raises:
        DataError: the file is empty, or its bytes are not text in that encoding.
    """
    data = path.read_bytes()
    if report.encoding is not None:
        text = _decoded(data, report.encoding, report)
    elif data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = _decoded(data, "utf-16", report)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = _legacy(data, error, report, legacy)
    if "\x00" in text:
        hint = "name the encoding with --encoding, such as utf-16-le, or save the file as UTF-8"
        raise report.stop("NUL byte", "text", line=line_of(text, text.index("\x00")), hint=hint)
    if not text.strip():
        raise report.stop("the file is empty", "at least one row")
    return text


def line_of(text: str, position: int) -> int:
    """The line, from 1, of a position in a text."""
    return text.count("\n", 0, position) + 1


def _decoded(data: bytes, name: str, report: Report) -> str:
    try:
        return data.decode(name).removeprefix("\ufeff")
    except LookupError as error:
        raise report.stop(f"unknown encoding {name!r}", "a name such as utf-8, windows-1252, gb18030 or shift_jis") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise report.stop(f"byte 0x{data[error.start]:02x} is not {name}", f"{name} text", line=line) from error


def _legacy(data: bytes, error: UnicodeDecodeError, report: Report, allowed: bool) -> str:
    """Windows-1252, which most spreadsheets of Western countries write."""
    line = data.count(b"\n", 0, error.start) + 1
    what = f"byte 0x{data[error.start]:02x} is not UTF-8"
    try:
        text = data.decode("windows-1252") if allowed else ""
    except UnicodeDecodeError:
        text = ""
    if not text:
        hint = "save the file as UTF-8" + (", or name its encoding, such as gb18030" if allowed else "")
        raise report.stop(what, "UTF-8 text", line=line, hint=hint) from error
    seen = text[max(0, error.start - 20) : error.start + 20].split("\n")
    sample = next(part for part in seen if any(ord(letter) > 127 for letter in part)).strip()
    logger.warning("%s:%d: %s; read as Windows-1252: %r. If that looks wrong, name the encoding", report.file, line, what, sample)
    return text
