"""Files that appear complete or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoomseg.core.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same suffixes; rename it to ``path`` on success.

    On failure the temporary file is removed and an earlier ``path`` stays as it was. Missing parent
    folders are made.

    Raises:
        OutputError: no permission, full disk.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        suffixes = "".join(path.suffixes[-2:])
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=suffixes, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {reason}; free space or choose another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically.

    Raises:
        OutputError: as ``replacing``.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _flush_to_disk(path: Path) -> None:
    """Without this a crash of the machine may leave the new name on an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    """mkstemp makes private files; results are made as ``open`` would make them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
