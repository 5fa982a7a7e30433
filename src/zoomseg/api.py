"""Behind ``zoomseg.load`` and ``zoomseg.train``: models as objects, for notebooks and servers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from zoomseg.backends.device import resolve
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import open_dataset
from zoomseg.inference.confidence import organ_rows_of
from zoomseg.inference.load import ready_predictor
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.summary import OrganRow
from zoomseg.io import bundle
from zoomseg.io.scans import read_scan, reading_bytes, the_scan

if TYPE_CHECKING:
    from zoomseg.training.training_run import TrainingRequest


@dataclass(frozen=True, eq=False)
class Result:
    """A segmented scan.

    ``labels`` lies on the scan's own grid (class indices, see ``schema``). ``probabilities`` are those of the
    last stage on its own grid, or None if its region was empty. ``summary`` has one row per organ,
    ``seconds`` the time of each step. ``notes`` state how the scan was read, how far it differs from the
    training scans, and what was removed from the label map; each is also issued as a warning.
    """

    labels: LabelMap
    schema: LabelSchema
    probabilities: StagePrediction | None
    summary: Sequence[OrganRow]
    seconds: Mapping[str, float]
    notes: Sequence[str] = ()


class Model:
    """A loaded model, whose networks stay in memory for any number of scans."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def schema(self) -> LabelSchema:
        """Names and file values of the labels."""
        return self._predictor.bundle.schema

    def predict(self, image: str | PathLike[str] | Volume, organs: Sequence[str] | None = None) -> Result:
        """Segment a scan.

        Args:
            image: a file, a folder or zip of one DICOM series, or voxels ``[C, I, J, K]`` on a grid.
            organs: names or groups of the organs to segment; by default all.

        Raises:
            ScanError: the file cannot be used.
            GeometryError: the number of channels differs from the model's.
            LabelError: the model does not have one of the organs.
            MemoryLimitError: the scan does not fit into the free memory.
        """
        case = Case("scan", image) if isinstance(image, Volume) else self._read(Path(image))
        chosen = None if organs is None else self.schema.select(organs)
        found = self._predictor.predict(case, chosen)
        model = self._predictor.bundle
        organs = "all" if chosen is None else chosen
        rows = organ_rows_of(case.id, found, case.image, model.calibration, organs, model.domain)
        for note in found.notes:
            warnings.warn(f"{case.id}: {note}", stacklevel=2)
        return Result(found.labels, self.schema, found.probabilities, rows, found.seconds, found.notes)

    def _read(self, path: Path) -> Case:
        notes: list[str] = []
        scan, several = the_scan(path, notes.append), self._predictor.channels > 1
        self._predictor.admit(*reading_bytes(scan, channels_last=several))
        case = read_scan(scan, channels_last=several)
        return replace(case, notes=(*notes, *case.notes))


def load_model(path: Path, device: str) -> Model:
    return Model(ready_predictor(bundle.load(path), resolve(device)))


def train_model(dataset: Path, out: Path, request: TrainingRequest, resume: bool, device: str) -> Model:
    from zoomseg.training import training_run
    from zoomseg.training.log import Silent

    data, where = open_dataset(dataset), resolve(device)
    if resume:
        training_run.resume(data, out, where, Silent(), request.seconds, request.epochs)
    else:
        training_run.start(data, out, request, where, Silent())
    return Model(ready_predictor(bundle.load(out), where))
