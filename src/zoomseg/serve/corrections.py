"""Corrected label maps become training cases: a data set for every model, in nnU-Net's raw layout, which
`zoomseg train` reads.

```
FOLDER/corrected/<model>/dataset.json                  the model's channel and labels
FOLDER/corrected/<model>/imagesTr/<job>_0000.nii.gz    the scan
FOLDER/corrected/<model>/labelsTr/<job>.nii.gz         its corrected label map
```
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from zoomseg.core.errors import DatasetError, ScanError, ZoomSegError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import dataset_description, read_json
from zoomseg.io.files import atomic_path, link_or_copy, writable_directory, write_json_atomic, writing
from zoomseg.io.nifti_header import AnyArray
from zoomseg.io.scans import read_grid, read_label_values, scan_files, write_array
from zoomseg.serve.jobs import Job, QueueFullError

MAX_ARRIVING = 8
"""Maximum number of simultaneous uploads of corrected maps."""

_ARRIVING = ".arriving-"
_LEFT = re.compile(rf"{re.escape(_ARRIVING)}[0-9a-f]{{16}}-[0-9a-f]{{8}}\.nii\.gz")


class NotCorrectableError(ZoomSegError):
    """A corrected map cannot become a training case; the message states the reason."""


class Corrections:
    """The corrected label maps of a server. Any thread may use this."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the server's.

        Raises:
            OutputError: it cannot be written.
        """
        self._folder = writable_directory(folder / "corrected", 0o700)
        self._guard = threading.Lock()
        self._arriving = threading.BoundedSemaphore(MAX_ARRIVING)
        for left in self._folder.iterdir():  # left by a server that was killed
            if _LEFT.fullmatch(left.name):
                left.unlink(missing_ok=True)

    def data_set(self, model: str) -> Path:
        """The folder for `zoomseg train`."""
        return self._folder / model

    def labels(self, job: Job) -> Path:
        """A job's corrected label map, if there is one."""
        return self.data_set(job.model) / "labelsTr" / f"{job.id}.nii.gz"

    @contextmanager
    def arriving(self, job: Job) -> Iterator[Path]:
        """A path for an upload, which is deleted at the end.

        Raises:
            QueueFullError: too many uploads at once.
        """
        if not self._arriving.acquire(blocking=False):
            raise QueueFullError(f"{MAX_ARRIVING} corrections are being uploaded already; try again later")
        place = self._folder / f"{_ARRIVING}{job.id}-{secrets.token_hex(4)}.nii.gz"
        try:
            yield place
        finally:
            with suppress(OSError):
                place.unlink(missing_ok=True)
            self._arriving.release()

    def add(
        self,
        job: Job,
        uploaded: Path,
        scan: Path,
        predicted: Path,
        schema: LabelSchema,
        channels: Sequence[str],
    ) -> None:
        """Create a job's training case, or replace it.

        Args:
            uploaded: the corrected label map, as uploaded.
            scan: as NIfTI.
            predicted: the label map that was corrected; its grid is the scan's.
            schema: of the label map, with the groups that the model's recipe may name.
            channels: of the model.

        Raises:
            ScanError: the upload is not a label map, is on another grid, or contains other values.
            NotCorrectableError: the model reads several channels, or its labels have changed.
            DatasetError: the label map that was corrected is gone, or damaged.
            OutputError: the disk refuses it.
        """
        if len(channels) != 1:
            raise NotCorrectableError("only scans of one channel can become training cases")
        values = _checked(uploaded, predicted, schema)
        with self._guard:
            known = self._same_described(job.model, schema, channels)
            image = self._image(job)
            for place in (image, self.labels(job)):
                writable_directory(place.parent)
            self._describe(job, known, schema, channels)
            if not image.is_file():
                with atomic_path(image) as partial:  # a scan is large and does not change
                    link_or_copy(scan, partial)
            write_array(self.labels(job), values, read_grid(predicted), like=predicted)

    def remove(self, job: Job) -> None:
        """Delete a job's training case, if it has one."""
        with self._guard:
            was_corrected = self.labels(job).exists()
            for place in (self.labels(job), self._image(job)):
                with writing(place):
                    place.unlink(missing_ok=True)
            if was_corrected:
                with suppress(ZoomSegError):  # a full disk; the next correction counts again
                    self._count(job.model)

    def _image(self, job: Job) -> Path:
        return self.data_set(job.model) / "imagesTr" / f"{job.id}_0000.nii.gz"

    def _same_described(self, model: str, schema: LabelSchema, channels: Sequence[str]) -> dict[str, Any]:
        """The content of ``dataset.json``, of the same channels and labels; empty if there is none yet."""
        known, wanted = self._described(model), dataset_description(model, channels, schema, 0)
        if known is None:
            raise NotCorrectableError("the training cases' dataset.json is damaged")
        if known and any(known.get(key) != wanted[key] for key in ("channel_names", "labels")):
            raise NotCorrectableError(
                "there are training cases of a model of this name with other labels; move their folder "
                f"corrected/{model} away"
            )
        return known

    def _describe(
        self, job: Job, known: dict[str, Any], schema: LabelSchema, channels: Sequence[str]
    ) -> None:
        """Write ``dataset.json`` for the cases that are there and this one; other entries of the known one
        are kept."""
        cases = {path.name for path in scan_files(self.labels(job).parent)} | {self.labels(job).name}
        name = f"corrected results of {job.model}"
        own = dataset_description(name, channels, schema, len(cases))
        file = self.data_set(job.model) / "dataset.json"
        write_json_atomic(file, known | own)

    def _count(self, model: str) -> None:
        """Correct the number of cases in ``dataset.json``, if there is one."""
        known, folder = self._described(model), self.data_set(model)
        if known:
            cases = len(scan_files(folder / "labelsTr"))
            write_json_atomic(folder / "dataset.json", {**known, "numTraining": cases})

    def _described(self, model: str) -> dict[str, Any] | None:
        """The content of ``dataset.json``; empty if there is none yet, None if it is damaged."""
        file = self.data_set(model) / "dataset.json"
        if not file.exists():
            return {}
        try:
            return read_json(file)
        except DatasetError:
            return None


def _grid_of_result(predicted: Path) -> Grid:
    try:
        return read_grid(predicted)
    except ScanError as error:  # the server's file: not an error of what was sent
        raise DatasetError(str(error)) from error


def _checked(uploaded: Path, predicted: Path, schema: LabelSchema) -> AnyArray:
    """The values of an uploaded label map. Its grid is checked before its voxels are read, which limits their
    number to the scan's."""
    grid = _grid_of_result(predicted)
    try:
        alike = read_grid(uploaded).same_as(grid)
        values, _ = read_label_values(uploaded) if alike else (None, None)
    except ScanError as error:  # the message contains paths of the server
        raise ScanError("what was sent is no label map in NIfTI that can be read") from error
    if values is None:
        raise ScanError("what was sent lies on another grid than labels.nii.gz")
    strange = sorted(set(np.unique(values).tolist()) - {0, *schema.values})
    if strange:
        raise ScanError(f"what was sent holds the value {strange[0]}, which is none of the model's labels")
    return values.astype(np.uint8 if max(schema.values) <= np.iinfo(np.uint8).max else np.int32)
