"""Files that never look complete before they are: write beside, then rename. And what reading and writing say
when they fail."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoomseg.core.errors import GeometryError, OutputError, ScanError, ZoomSegError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system refuses inside (permission, full disk) becomes one OutputError naming ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{path}: cannot be written ({reason}); choose another place or make room"
        raise OutputError(message) from error


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one ScanError that names the file, which should hold ``what``."""
    try:
        yield
    except GeometryError as error:
        raise ScanError(f"{path}: {error}") from error
    except ZoomSegError:
        raise
    except FileNotFoundError as error:
        raise ScanError(f"{path}: no such file") from error
    except MemoryError as error:
        raise ScanError(f"{path}: does not fit in memory") from error
    except Exception as error:  # parsers of hostile bytes fail in any way they like
        raise ScanError(f"{path}: damaged, truncated or not {what} ({reason_of(error)})") from error


def reason_of(error: Exception) -> str:
    """The telling end of a library's message in one line; ITK puts source lines and addresses before it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"\[nrrd\] |ITK ERROR: \w+\(0x\w+\): ", text)[-1][:160]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` with the same suffixes; renamed to ``path`` on success.

    The temporary file is hidden (leading dot), so that a killed process leaves nothing that a reader
    of the folder would take for a result. On any error it is removed and ``path`` is left as it was.

    Raises:
        OutputError: permission, full disk or any other OSError while writing.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}{''.join(path.suffixes)}")
    try:
        with writing(path):
            yield partial
            _flush_to_disk(partial)
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # an unwritable folder has been reported already
            partial.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """Without this a crash of the machine may leave the new name on an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def writable_directory(path: Path) -> Path:
    """Create ``path`` with its parents where needed and prove that files can be made in it.

    Raises:
        OutputError: it cannot be created, is a file, or cannot be written to.
    """
    path = Path(path)
    probe = path / f".writable-{secrets.token_hex(4)}"
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    return path


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file, making its folder where needed; the file is either the old one or the whole new one."""
    with atomic_path(path) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text; the file is either the old one or the whole new one."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def parse_json(content: bytes | str) -> Any:
    """JSON as RFC 8259 has it. Python's parser also takes NaN, infinite numbers and lone surrogates; these
    would fail only where they are written again, after the work is done.

    Raises:
        ValueError: it is none, in one line.
    """
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(
            "it holds NaN, an infinite number or a lone surrogate, which JSON has not"
        ) from error
    return value


def write_json_atomic(path: Path, value: Any) -> None:
    """Write indented JSON; NaN and infinity are refused, as other programs cannot read them."""
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
