"""Behind ``zoomseg.load`` and ``zoomseg.train``: models as objects, for notebooks and servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from zoomseg.core.case import Case, Prior
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.engine import job as jobs
from zoomseg.engine.device import Device, resolve
from zoomseg.engine.log import Silent
from zoomseg.engine.memory import Limits
from zoomseg.engine.predict import Predictor
from zoomseg.io import bundle
from zoomseg.io.dataset import open_dataset
from zoomseg.io.scans import ScanInput, read_image, reading_bytes, scan_name
from zoomseg.report.confidence import summed_up
from zoomseg.report.summary import OrganRow


@dataclass(frozen=True, eq=False)
class Result:
    """A segmented scan. ``labels`` on the scan's own grid (class indices, see ``schema``);
    ``probabilities`` of the last stage on its own grid, None where it found nothing to look at;
    ``summary`` one row per organ."""

    labels: LabelMap
    schema: LabelSchema
    probabilities: Prior | None
    summary: Sequence[OrganRow]
    seconds: Mapping[str, float]


class Model:
    """A loaded model: its networks stay in memory for any number of scans."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def schema(self) -> LabelSchema:
        return self._predictor.bundle.schema

    def predict(self, image: str | PathLike[str] | Volume, organs: Sequence[str] | None = None) -> Result:
        """Segment a scan, given as a file or as voxels on a grid.

        Raises:
            ScanError: the file cannot be used.
            GeometryError: the scan has other channels than the model needs.
            LabelError: an organ that the model does not know.
            MemoryLimitError: it does not fit into the memory that is free.
        """
        name = "scan" if isinstance(image, Volume) else scan_name(Path(image))
        several = self._predictor.channels > 1
        volume = image if isinstance(image, Volume) else self._read(Path(image), name, several)
        chosen = None if organs is None else self.schema.select(organs)
        found = self._predictor.predict(Case(name, volume), chosen)
        calibration = self._predictor.bundle.calibration
        rows = summed_up(name, found, volume, calibration, "all" if chosen is None else chosen)
        return Result(found.labels, self.schema, found.probabilities, rows, found.seconds)

    def _read(self, path: Path, name: str, channels_last: bool) -> Volume:
        self._predictor.admit(*reading_bytes(ScanInput(name, (path,)), channels_last))
        return read_image(path, channels_last)


def load_model(path: Path, device: str) -> Model:
    return _ready(bundle.load(path), resolve(device))


def _ready(trained: bundle.Bundle, device: Device) -> Model:
    return Model(Predictor(trained, device, limits=Limits(device, "free")))


def train_model(dataset: Path, out: Path, job: jobs.Job, resume: bool, device: str) -> Model:
    data, where = open_dataset(dataset), resolve(device)
    if resume:
        trained = jobs.resume(data, out, where, Silent(), job.seconds, job.epochs)
    else:
        trained = jobs.start(data, out, job, where, Silent())
    return _ready(trained, where)
