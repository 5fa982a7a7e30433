"""Atomic files, which never look complete before they are: write under another name, then rename. And
messages for errors of reading and writing."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import traceback
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from zoomseg.core.errors import GeometryError, OutputError, ScanError, ZoomSegError, quoted

_OUT_OF_REACH = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.ENOTDIR}
"""Errors after which nothing is known about a file's content."""

_SHORT_NAME = 100
"""Every file system accepts names of this many bytes."""

MAX_JSON_BYTES = 64 * 1024**2
"""Maximum size of any JSON file that is read, except ``run.json``; those of ZoomSeg have a few MB."""

RUN_JSON = "run.json"
"""The file that lists the cases in a folder of results."""

SUMMARY = "summary.csv"
"""The table of all organs of the cases in a folder of results."""

MAX_RESULTS_BYTES = 1024**3
"""Maximum size of files that list all cases of a folder of results: of a scan, ``run.json`` has 3 kB and
``summary.csv`` up to 18 kB."""

_MAX_SUFFIX_LENGTH = 12
"""Maximum length of a suffix that states a file's format; a longer one is part of a name with a dot."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert system errors inside (permission, full disk) to one OutputError that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{path}: cannot be written ({reason}); choose another folder or free some space"
        raise OutputError(message) from error


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Convert any exception inside to one ScanError that names the file, which should contain ``what``."""
    try:
        yield
    except GeometryError as error:
        raise ScanError(f"{path}: {error}") from error
    except ZoomSegError:
        raise
    except FileNotFoundError as error:
        raise ScanError(f"{quoted(path)}: {why_unreadable(path) or 'no such file'}") from error
    except MemoryError as error:
        raise ScanError(f"{path}: does not fit in memory") from error
    except Exception as error:  # on hostile bytes, parsers may raise any exception
        if isinstance(error, OSError) and error.errno in _OUT_OF_REACH:
            raise ScanError(f"{quoted(path)}: cannot be read ({error.strerror})") from error
        raise ScanError(f"{path}: damaged, truncated or not {what} ({reason_of(error)})") from error


def why_unreadable(path: Path) -> str | None:
    """Why there is no readable file at a path: nothing there, a broken or circular link, an invalid name, no
    permission for a folder, not a file. None if there is one; never raises."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        target = os.readlink(path) if os.path.islink(path) else None
        return "no such file" if target is None else f"no such file (a link to {quoted(target)})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:  # a NUL, half of a surrogate pair
        return f"not a possible name ({error})"
    return None if kind == stat.S_IFREG else "not a file"


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are the same file, also by links; a broken link is no file."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def read_file(path: Path, most_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file of any origin. A pipe would block forever, and a device would fill the memory.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than ``most_bytes``.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        if found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"has {found.st_size} bytes, {most_bytes} at most are read", str(path))
        return file.read(found.st_size)


def refuse_link(path: str | Path) -> None:
    """Refuse to write through a link in a folder of any origin: it may lead to a file outside of it.

    Raises:
        OSError: it is a link.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "a link, which may lead outside of its folder", str(path))


def open_unlinked(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """As ``os.open``, for a file that is written in a folder of any origin.

    Raises:
        OSError: it cannot be opened, is a link, or is not a regular file.
    """
    refuse_link(path)
    never = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would block forever
    descriptor = os.open(path, flags | never, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return descriptor


class _Messages:
    """Whether messages of libraries are shown."""

    shown = True


@contextmanager
def without_library_messages() -> Iterator[None]:
    """Reasons contain the type of a library's error instead of its message, which may quote a header: in all
    threads of the process, until the end."""
    before, _Messages.shown = _Messages.shown, False
    try:
        yield
    finally:
        _Messages.shown = before


def reason_of(error: Exception) -> str:
    """A library's message in one line (see ``without_library_messages``)."""
    message = " ".join(str(error).split()) if _Messages.shown else ""
    return (message or type(error).__name__)[:160]


def why(error: Exception) -> str:
    """One line about an error that is not the user's: too little memory, or a bug of ours, then with its
    place in the package."""
    if out_of_memory(error):
        return "does not fit in memory"
    ours = Path(__file__).parents[1]
    inside = [f for f in traceback.extract_tb(error.__traceback__) if ours in Path(f.filename).parents]
    at = f" at {Path(inside[-1].filename).relative_to(ours)}:{inside[-1].lineno}" if inside else ""
    return (
        f"unexpected {type(error).__name__}{at} ({reason_of(error)}); please report it with the scan's header"
    )


def out_of_memory(error: Exception) -> bool:
    """Whether memory was too small. Torch has its own error if a GPU is full, but none for main memory."""
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return full or "can't allocate memory" in str(error)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` with the same suffix; renamed to ``path`` on success.

    The temporary file is hidden (leading dot), so that a killed process leaves nothing that a reader of the
    folder would take for a result. On any error it is removed and ``path`` is unchanged.

    Raises:
        OutputError: permission, full disk or any other OSError while writing.
    """
    path = Path(path)
    partial = path.with_name(_partial_name(path.name))
    try:
        with writing(path):
            yield partial
            _flush_to_disk(partial)
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # an unwritable folder has already been reported
            partial.unlink(missing_ok=True)


def _partial_name(name: str) -> str:
    """A name that is valid wherever ``name`` is: it has at most as many bytes, unless ``name`` is short."""
    suffix = "".join(Path(name).suffixes[-2 if name.lower().endswith(".gz") else -1 :])
    end = f".partial-{secrets.token_hex(4)}{suffix if len(suffix) <= _MAX_SUFFIX_LENGTH else ''}"
    begin, room = os.fsencode(f".{name}"), max(len(os.fsencode(name)), _SHORT_NAME) - len(end)
    return begin[:room].decode(errors="ignore") + end


def stays_inside(name: str) -> bool:
    """Whether a relative path of any origin, with slashes, leads to a place inside the folder that it is
    joined to. Links there, and characters that a system reads otherwise, are not considered."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def check_name(path: Path) -> None:
    """Refuse a result whose name the file system does not accept, before it is computed.

    Raises:
        ScanError: the name is too long, or the result would be hidden.
    """
    if path.name.startswith("."):
        raise ScanError(f"{path.name}: the result would be a hidden file; rename the scan")
    folder = next((parent for parent in path.parents if parent.is_dir()), path.parent)
    try:
        (folder / path.name).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            size = len(os.fsencode(path.name))
            message = f"the result's name would have {size} bytes, too many for its folder; rename the scan"
            raise ScanError(f"{path.name}: {message}") from error


def folded(name: str) -> str:
    """Equal for names that are one file on some disks: those of Windows and macOS ignore case, and some how
    accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def one_file(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two of these names that are one file on some disks (see ``folded``); None if all differ."""
    known: dict[str, str] = {}
    for name in names:
        if folded(name) in known:
            return known[folded(name)], name
        known[folded(name)] = name
    return None


def printable(text: str) -> str:
    """A text in which invalid UTF-8 bytes of file names are escaped (``\\xff``), so that any file can contain
    it."""
    return os.fsencode(text).decode(errors="backslashreplace")


def _flush_to_disk(path: Path) -> None:
    """Flush a file: otherwise a crash of the machine may leave the new name on an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush a folder: only then are the names in it on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link if the file system supports it; otherwise a copy, which is on the disk when this returns.

    Raises:
        OSError: neither can be written.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        _flush_to_disk(target)


def writable_directory(path: Path, mode: int = 0o777) -> Path:
    """Create ``path`` with its parents if necessary and check that files can be created in it.

    Args:
        mode: permissions with which ``path`` is created; an existing folder keeps its own.

    Raises:
        OutputError: it cannot be created, is a file, or cannot be written to.
    """
    path = Path(path)
    probe = path / f".writable-{secrets.token_hex(4)}"
    with writing(path):
        path.mkdir(mode, parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    return path


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file, creating its folder if necessary; the file is either the old one or the complete new
    one."""
    with atomic_path(path) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text; the file is either the old one or the complete new one."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def parse_json(content: bytes | str) -> Any:
    """Parse JSON according to RFC 8259. Python's parser also accepts NaN, infinite numbers and lone
    surrogates, which would fail only when they are written again, after the work is done. A key that occurs
    twice must have the same value.

    Raises:
        ValueError: it is not JSON; one line.
    """
    if isinstance(content, bytes):  # as json.loads does
        content = content.decode(json.detect_encoding(content), "surrogatepass")
    try:
        value = json.loads(
            content,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _has_lone_surrogate(content):
        raise ValueError(_NO_JSON)
    return value


_MAX_DIGITS = 300
"""Of a whole number: all of these can be converted to floating point."""

_NO_JSON = "it holds NaN, an infinite number or a lone surrogate, which JSON does not allow"


def _refuse_constant(name: str) -> None:
    """``NaN``, ``Infinity`` or ``-Infinity``."""
    raise ValueError(_NO_JSON)


def _whole(written: str) -> int:
    if len(written) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(written)} digits, {_MAX_DIGITS} at most are read")
    return int(written)


def _finite(written: str) -> float:
    number = float(written)
    if math.isinf(number):  # for example 1e999
        raise ValueError(_NO_JSON)
    return number


_NOT_LONE = re.compile(r"\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}", re.IGNORECASE)
"""An escaped backslash, after which no escape begins, and the escapes of a pair of surrogates."""

_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


def _has_lone_surrogate(text: str) -> bool:
    """Whether a JSON text contains one, literally or as an escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return _SURROGATE.search(text) is not None and _SURROGATE.search(_NOT_LONE.sub("", text)) is not None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which a key that occurs twice has the same value: otherwise it is ambiguous."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"'{quoted(key)}' appears twice, with different values")
        found[key] = value
    return found


def write_json_atomic(path: Path, value: Any) -> None:
    """Write indented JSON; NaN and infinity are refused, as other programs cannot read them."""
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
