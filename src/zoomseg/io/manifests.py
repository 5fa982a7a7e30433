"""Manifests: a JSON file that names the other files of its folder by their SHA-256 and is written last, so
that a process that is killed leaves the earlier content usable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from zoomseg.core.errors import ModelError, quoted
from zoomseg.io.files import parse_json, read_file, write_bytes_atomic

Manifest = TypeVar("Manifest", bound=BaseModel)


def read_manifest(
    file: Path, kind: type[Manifest], newest: int, subject: str, damaged: Callable[[str], ModelError]
) -> Manifest:
    """An existing manifest.

    Args:
        newest: the highest ``format`` that is known here.
        subject: what has this format, for the message: ``model m has``.
        damaged: the error for a reason.

    Raises:
        ModelError: it is damaged, or of a later ZoomSeg.
    """
    try:
        data = parse_json(read_file(file))
    except OSError as error:
        raise damaged(f"{file.name}: {error.strerror}") from error
    except ValueError as error:
        raise damaged(f"{file.name}: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, int) and found > newest:
        raise ModelError(
            f"{subject} format {quoted(found)}, this ZoomSeg reads up to {newest}; update ZoomSeg"
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise damaged(f"{file.name}: {first_problem(error)}") from error


def write_content(folder: Path, stem: str, suffix: str, content: bytes) -> tuple[str, str]:
    """Write a file named after its content; returns its name in ``folder`` and its SHA-256.

    Raises:
        OutputError: no permission, full disk.
    """
    digest = hashlib.sha256(content).hexdigest()
    file = f"{stem}-{digest[:12]}{suffix}"
    write_bytes_atomic(folder / file, content)
    return file, digest


def first_problem(error: ValidationError) -> str:
    """The first problem of a JSON file: where, and what."""
    detail = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in detail["loc"]) or "top level"
    return f"{where}: {detail['msg']}"
