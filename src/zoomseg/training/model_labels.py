"""Scans without labels are labelled by a model, one after the other; a list of them is kept beside the label
maps, so that what is labelled is not labelled again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from zoomseg.core.case import Case
from zoomseg.core.errors import TrainingError, quoted
from zoomseg.core.labels import LabelSchema
from zoomseg.inference.batch import Failed, result_path, tried
from zoomseg.inference.predictor import Predictor
from zoomseg.io.files import check_name, read_file, reason_of
from zoomseg.io.manifests import first_problem
from zoomseg.io.scans import ScanInput, read_scan
from zoomseg.pipeline.cascade import Prediction
from zoomseg.training.log import TrainingObserver

T = TypeVar("T")
ListT = TypeVar("ListT", bound=BaseModel)

Use = Callable[[Path, Case, Prediction], T]
"""Called with the path of a scan's label map, the scan, and its prediction; it writes the map if there is
one."""


def label(
    scans: Sequence[ScanInput],
    predictor: Predictor,
    out: Path,
    use: Use[T],
    step: str,
    observer: TrainingObserver,
) -> Iterator[tuple[ScanInput, T | Failed]]:
    """Every scan with what ``use`` returns for its prediction. Any error in one scan, even a bug of ours, is
    a failure of that scan only: it is reported, and the next one is labelled.

    Args:
        out: folder of the label maps, ``<case>.nii.gz``.
        step: name of the preparation, as shown to the user.

    Raises:
        OutputError: a label map cannot be written (neither could the next one).
    """
    for number, scan in enumerate(scans):
        observer.preparing(step, number, len(scans))
        found = _used(scan, predictor, out, use)
        if isinstance(found, Failed):
            observer.message(f"{scan.id}: not used ({found.reason})")
        yield scan, found
    observer.preparing(step, len(scans), len(scans))


def _used(scan: ScanInput, predictor: Predictor, out: Path, use: Use[T]) -> T | Failed:
    path = result_path(out, scan)

    def work() -> T:
        check_name(path)
        case = read_scan(scan, channels_last=predictor.channels > 1)
        return use(path, case, predictor.predict(case, keep=False))

    return tried(scan.id, scan.paths[0], work)


def read_list(
    file: Path, kind: type[ListT], organs: Callable[[ListT], Mapping[str, Iterable[str]]], schema: LabelSchema
) -> ListT | None:
    """The list of labelled scans in a file; None if there is none.

    Args:
        organs: the organs that a list states for each case; all must be of ``schema``.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        found = kind.model_validate_json(read_file(file))
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else reason_of(error)
        raise damaged(file, reason) from error
    for case, names in organs(found).items():
        if Path(case).name != case or not set(names) <= set(schema.names):
            raise damaged(file, f"case {quoted(case)}")
    return found


def damaged(file: Path, reason: str) -> TrainingError:
    """The error for a list of labelled scans that cannot be used."""
    return TrainingError(f"{file} is damaged ({reason}); remove it to label the scans again")
