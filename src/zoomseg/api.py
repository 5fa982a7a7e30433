"""Behind ``zoomseg.load`` and ``zoomseg.train``: models as objects, for notebooks and servers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from zoomseg.anatomy.plausibility import position_notes
from zoomseg.backends.device import resolve
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.errors import ScanError, ZoomSegError
from zoomseg.core.geometry import Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import open_dataset
from zoomseg.inference.confidence import organ_rows_of
from zoomseg.inference.html_page import environment
from zoomseg.inference.load import PredictionSettings, load_predictor
from zoomseg.inference.organ_pictures import overview
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.result_page import flag_words
from zoomseg.inference.summary import OrganRow
from zoomseg.io import memory_images
from zoomseg.io.scans import read_scan, reading_bytes, the_scan, write_labels
from zoomseg.io.seg_nrrd import write_segmentation

if TYPE_CHECKING:
    import PIL.Image

    from zoomseg.training.requested_recipe import TrainingRequest


SEGMENTATION_SUFFIX = ".seg.nrrd"


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A segmented scan; in a notebook, a picture with its organs.

    ``labels`` lies on the scan's own grid (class indices, see ``schema``). ``probabilities`` are those of the
    last stage on its own grid; None if they were not asked for, or its region was empty. ``summary`` has
    one row per organ, ``seconds`` the time of each step. ``notes`` state how the scan was read, how far it
    differs from the training scans, and what was removed from the label map; each is also issued as a
    warning. ``image`` is the scan, ``source`` its file, if it came from one.
    """

    labels: LabelMap
    schema: LabelSchema
    probabilities: StagePrediction | None
    summary: Sequence[OrganRow]
    seconds: Mapping[str, float]
    image: Volume
    notes: Sequence[str] = ()
    source: Path | None = None

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the label map, with the schema's file values, as ``.nii.gz``, ``.nii``, ``.nrrd`` or
        ``.mha``; as ``.seg.nrrd`` a segmentation for 3D Slicer with names and colours. The path is returned.

        Raises:
            OutputError: another suffix, or it cannot be written.
        """
        path = Path(path)
        if path.name.lower().endswith(SEGMENTATION_SUFFIX):
            write_segmentation(path, self.labels, tuple(row.organ for row in self.summary))
        else:
            write_labels(path, self.labels, like=self.source)
        return path

    def to_nibabel(self) -> Any:
        """The label map as ``nibabel.Nifti1Image``, with the schema's file values."""
        return memory_images.to_nibabel(self.labels)

    def to_sitk(self) -> Any:
        """The label map as ``SimpleITK.Image``, with the schema's file values.

        Raises:
            ZoomSegError: SimpleITK is not installed.
        """
        return memory_images.to_sitk(self.labels)

    def to_dataframe(self) -> Any:
        """The summary as ``pandas.DataFrame``: a row per organ, with the columns ``volume_ml``,
        ``confidence``, ``mean_intensity``, ``median_intensity`` and ``flags``.

        Raises:
            ZoomSegError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ZoomSegError("pandas is not installed: pip install pandas") from error
        columns = ("volume_ml", "confidence", "mean_intensity", "median_intensity", "flags")
        rows = [[row.organ, *(getattr(row, column) for column in columns)] for row in self.summary]
        return pandas.DataFrame(rows, columns=["organ", *columns]).set_index("organ")

    def plot(self) -> PIL.Image.Image:
        """Three planes of the scan with every organ in its colour, as a Pillow image."""
        from PIL import Image

        return Image.open(io.BytesIO(self._overview()))

    def _overview(self) -> bytes:
        turned = Orientation.to_canonical(self.image.grid)
        labels, image = self.labels.reoriented(turned), self.image.reoriented(turned)
        return overview(image, labels, self.image.grid).jpeg

    def _repr_html_(self) -> str:
        template = environment("zoomseg.inference").get_template("result.html")
        words = {row: flag_words(row) for row in self.summary}
        return template.render(picture=self._overview(), rows=self.summary, words=words, notes=self.notes)

    def __repr__(self) -> str:
        found = sum(row.box is not None for row in self.summary)
        flagged = sum(bool(row.flags) for row in self.summary)
        shape = " x ".join(map(str, self.labels.grid.shape))
        return f"<Result: {found} of {len(self.summary)} organs found, {flagged} flagged, {shape} voxels>"


class Model:
    """A loaded model, whose networks stay in memory for any number of scans."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def schema(self) -> LabelSchema:
        """Names and file values of the labels."""
        return self._predictor.bundle.schema

    def __repr__(self) -> str:
        model = self._predictor.bundle
        organs = f"{len(model.schema.names)} organs"
        return f"<Model: {model.recipe.name}, {organs}, on {self._predictor.device.name}>"

    def predict(
        self,
        image: Any,
        organs: Sequence[str] | None = None,
        affine: npt.ArrayLike | None = None,
        probabilities: bool = False,
    ) -> Result:
        """Segment a scan.

        Args:
            image: a path (a file, or a folder or zip of one DICOM series), or a scan in memory: a nibabel or
                SimpleITK image, a TorchIO image or subject, a MONAI ``MetaTensor``, a ``Volume``, or a numpy
                array ``[I, J, K]`` or ``[C, I, J, K]`` with its ``affine``.
            organs: names or groups of the organs to segment; by default all.
            affine: of an array: 4x4, voxel index to RAS+ millimetres, as in nibabel.
            probabilities: whether the result has those of the last stage; the predictions of all stages are
                then held as a whole, which takes more memory.

        Raises:
            ScanError: the scan cannot be used.
            GeometryError: the number of channels differs from the model's, or the grid is invalid.
            LabelError: the model does not have one of the organs.
            MemoryLimitError: the scan does not fit into the free memory.
        """
        source = Path(image) if isinstance(image, str | PathLike) else None
        if source is not None and affine is not None:
            raise ScanError("an affine is given with a numpy array only; files know their own")
        if source is None:
            case = Case("scan", memory_images.as_volume(image, affine))
        else:
            case = self._read(source, probabilities)
        chosen = None if organs is None else self.schema.select(organs)
        found = self._predictor.predict(case, chosen, keep=probabilities)
        model = self._predictor.bundle
        organs = "all" if chosen is None else chosen
        rows = organ_rows_of(case.id, found, case.image, model.calibration, organs, model.domain)
        notes = (*found.notes, *position_notes({row.organ: row.flags for row in rows}))
        for note in notes:
            warnings.warn(f"{case.id}: {note}", stacklevel=2)
        return Result(
            found.labels,
            self.schema,
            found.probabilities if probabilities else None,
            rows,
            found.seconds,
            case.image,
            notes,
            source,
        )

    def _read(self, path: Path, probabilities: bool) -> Case:
        notes: list[str] = []
        scan, several = the_scan(path, notes.append), self._predictor.channels > 1
        self._predictor.admit(*reading_bytes(scan, channels_last=several), keep=probabilities)
        case = read_scan(scan, channels_last=several)
        return replace(case, notes=(*notes, *case.notes))


def load_model(path: Path, device: str, any_scan: bool) -> Model:
    return Model(load_predictor([path], resolve(device), PredictionSettings(any_scan=any_scan)))


def train_model(
    dataset: Path, out: Path, request: TrainingRequest, resume: bool, device: str, split: Path | None
) -> Model:
    from zoomseg.datasets.split_file import read_splits
    from zoomseg.training import requested_recipe, training_run, validation
    from zoomseg.training.log import NullObserver

    data, where = open_dataset(dataset), resolve(device)
    if split is not None:
        splits = requested_recipe.trained_on(read_splits(split, data))
        request = requested_recipe.with_split(request, splits)
    if resume:
        given = [one.name for one in fields(request) if getattr(request, one.name) != one.default]
        settings = training_run.settings_given(request, given)
        trained = training_run.resume(
            data, out, where, NullObserver(), request.seconds, request.epochs, settings=settings
        )
    else:
        trained = training_run.start(data, out, request, where, NullObserver())
    found = validation.validate_held_out(data, out, trained, where)
    for case in () if found is None else found.failed:
        warnings.warn(f"{case.case}: {case.reason}", stacklevel=3)
    return Model(load_predictor([out], where))
