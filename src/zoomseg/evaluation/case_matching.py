"""Match predictions with references, and determine the meaning of their label values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoomseg.anatomy.organ_names import alike, label_of
from zoomseg.core.arrays import AnyNumpy
from zoomseg.core.errors import DatasetError, ScanError, listed, quoted
from zoomseg.core.geometry import Orientation
from zoomseg.core.labels import MAX_CLASSES, LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import (
    LABEL_FOLDERS,
    Dataset,
    labelling_beside,
    open_dataset,
    read_labels_by_case,
)
from zoomseg.evaluation.provenance import read_scans
from zoomseg.io.files import RUN_JSON, same_file
from zoomseg.io.scans import (
    check_same_grid,
    files_by_case,
    find_scans,
    read_image,
    read_label_values,
    read_labels,
)


@dataclass(frozen=True)
class Pair:
    """One case's files. ``organs`` are those scored in it; ``images`` is empty if none is known; ``labels``
    is the prediction's schema, if it differs from its folder's; ``spelled`` are the prediction's own names of
    organs that it spells differently."""

    id: str
    prediction: Path
    reference: Path
    organs: tuple[str, ...]
    images: tuple[Path, ...] = ()
    labels: LabelSchema | None = None
    spelled: Mapping[str, str] = field(default_factory=dict)

    def own_name(self, organ: str) -> str:
        """The prediction's name of an organ of the reference."""
        return self.spelled.get(organ, organ)


@dataclass(frozen=True)
class Pairs:
    """All cases with a prediction and a reference, and the schemas of either side's files. Labels of the
    predictions that are also in the reference have its spelling."""

    pairs: tuple[Pair, ...]
    predicted_schema: LabelSchema
    reference_schema: LabelSchema
    organs: tuple[str, ...]
    warnings: tuple[str, ...]

    def load(self, pair: Pair) -> tuple[LabelMap, LabelMap]:
        """Prediction and reference as class indices of the reference's schema, oriented RAS+.

        Raises:
            ScanError: a file cannot be used, or the two are not on one grid.
            LabelError: a label value that is not in the file's schema.
        """
        prediction = _canonical(read_labels(pair.prediction, pair.labels or self.predicted_schema))
        reference = _canonical(read_labels(pair.reference, self.reference_schema))
        check_same_grid(reference.grid, prediction.grid, pair.reference, pair.prediction)
        return LabelMap(self._translate(prediction), reference.grid, self.reference_schema), reference

    def load_image(self, pair: Pair, like: LabelMap) -> Volume | None:
        """The scan of a pair, oriented RAS+; None if no file is known.

        Raises:
            ScanError: the scan cannot be used, or is not on the grid of ``like``.
        """
        if not pair.images:
            return None
        image = read_image(pair.images, channels_last=True)
        image = image.reoriented(Orientation.to_canonical(image.grid))
        check_same_grid(like.grid, image.grid, pair.reference, pair.images[0])
        return image

    def _translate(self, labels: LabelMap) -> AnyNumpy:
        """The prediction's class indices to those of the reference's schema, by name."""
        if labels.schema.names == self.reference_schema.names:
            return labels.data
        table = np.zeros(256, dtype=np.uint8)
        for name in set(self.organs).intersection(labels.schema.names):
            table[labels.schema.class_of(name)] = self.reference_schema.class_of(name)
        return table[labels.data]


def _canonical(labels: LabelMap) -> LabelMap:
    return labels.reoriented(Orientation.to_canonical(labels.grid))


def find_pairs(
    predictions: Path, reference: Path | Dataset, schema: LabelSchema | None, images: Path | Dataset | None
) -> Pairs:
    """Match files by case id (their name without suffix), and labels by name: the same one, otherwise
    another spelling or a synonym if it is unambiguous.

    Args:
        predictions: a folder of label files.
        reference: a folder of label files or a data set.
        schema: of the references; by default what their ``dataset.json`` or ``labels.json`` says, or
            what the predictions' does, or ``label_<value>`` for every value found.
        images: where scans for the pictures are; by default the data set's own, or those that the
            predictions' ``run.json`` names.

    Raises:
        DatasetError: no such folder, no match, or no organ that both sides know.
    """
    _refuse_exchanged(predictions, reference.root if isinstance(reference, Dataset) else reference)
    predicted_files = _label_files(predictions)
    predicted = labelling_beside(predictions)
    source = _open_reference(reference)
    ids = [case for case in sorted(predicted_files) if case in source.files]
    same = [case for case in ids if same_file(predicted_files[case], source.files[case])]
    if same:
        raise DatasetError(
            f"{predicted_files[same[0]]} is the reference of its case, too (the same file, {len(same)} of "
            f"{len(ids)} cases); give a folder of predictions, and one of references"
        )
    if not ids:
        raise DatasetError(
            f"{predictions}: none of its {len(predicted_files)} label files has the name of one of the "
            f"{len(source.files)} references"
        )
    known = predicted[0] if predicted else None
    files = [f for case in ids for f in (predicted_files[case], source.files[case])]
    reference_schema = schema or source.schema or known or _schema_of(files)
    known = known or reference_schema
    others = _other_labels(predictions)
    schemas = {case: others.get(case, known) for case in ids}
    named = {own: alike(own, reference_schema) for own in {known, *schemas.values()}}
    both = {name for own in schemas.values() for name in named[own].values()}
    organs = tuple(name for name in reference_schema.names if name in both)
    if not organs:
        raise DatasetError(
            f"{predictions}: has labels {listed(known.names)}, the reference has "
            f"{listed(reference_schema.names)}; none is in both"
        )
    scans = _scans(images) if images is not None else {**read_scans(predictions), **source.images}
    pairs = [
        Pair(
            case,
            predicted_files[case],
            source.files[case],
            tuple(n for n in organs if n in source.annotated.get(case, organs) and n in found.values()),
            scans.get(case, ()),
            _spelled(others[case], found) if case in others else None,
            {name: own for own, name in found.items() if own != name},
        )
        for case, found in ((case, named[schemas[case]]) for case in ids)
    ]
    warnings = (
        *unmatched("no reference for", set(predicted_files) - set(ids)),
        *unmatched("no prediction for", set(source.files) - set(ids)),
        *_about_names(reference_schema, organs, named),
    )
    return Pairs(tuple(pairs), _spelled(known, named[known]), reference_schema, organs, warnings)


def _spelled(own: LabelSchema, named: Mapping[str, str]) -> LabelSchema:
    """A schema with other names of some labels."""
    return LabelSchema(tuple(named.get(name, name) for name in own.names), own.values)


def _about_names(
    reference_schema: LabelSchema, organs: Sequence[str], named: Mapping[LabelSchema, Mapping[str, str]]
) -> list[str]:
    """What the user should know about the matching of names; ``named`` is by the predictions' schemas."""
    pairs = {pair for found in named.values() for pair in found.items()}
    left = set(reference_schema.names) - set(organs)
    doubtful = {name for name in left if any(label_of(name, own) is not None for own in named)}
    return [
        *unmatched("taken for the same organ", {f"{own} and {name}" for own, name in pairs if own != name}),
        *unmatched("not scored, as the predictions do not include", left - doubtful),
        *unmatched("not scored, as several labels of one side mean the same", doubtful),
    ]


def _refuse_exchanged(predictions: Path, reference: Path) -> None:
    """Refuse swapped folders: the scores would be almost correct (Dice is symmetric), but missed and spurious
    organs, volumes and the labels that count would be those of the other side.

    Folders written by ``zoomseg predict`` have a ``run.json``; labels of a data set are beside its images.
    """
    if not os.path.isdir(predictions):
        return
    if _is_run(reference) and not _is_run(predictions):
        raise DatasetError(
            f"{reference} was written by zoomseg predict (it has a run.json), and {predictions} was not: the "
            "predictions come first, then the references; labels that are the reference nevertheless need a "
            "folder without run.json"
        )
    if _of_data_set(predictions) and not _is_run(predictions) and not _of_data_set(reference):
        raise DatasetError(
            f"{predictions} holds the labels of a data set, and {reference} does not: the predictions come "
            "first, then the references; to score a data set's labels, copy them into a folder of their own"
        )


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / RUN_JSON)


def _of_data_set(folder: Path) -> bool:
    """Whether it is a data set, or its folder of training labels."""
    images = {"labelsTr": "imagesTr", "labels": "images"}
    if folder.name in images:
        return os.path.isdir(folder.parent / images[folder.name])
    return any(os.path.isdir(folder / name) for name in images.values())


@dataclass(frozen=True)
class _Reference:
    files: Mapping[str, Path]
    schema: LabelSchema | None
    annotated: Mapping[str, frozenset[str]]
    images: Mapping[str, tuple[Path, ...]]


def _open_reference(reference: Path | Dataset) -> _Reference:
    path = reference.root if isinstance(reference, Dataset) else reference
    if isinstance(reference, Dataset) or os.path.isdir(path / "imagesTr") or os.path.isdir(path / "images"):
        dataset = reference if isinstance(reference, Dataset) else open_dataset(path)
        files = {case.id: case.labels for case in dataset.cases if case.labels is not None}
        annotated = {case.id: case.annotated for case in dataset.cases if case.annotated is not None}
        return _Reference(files, dataset.schema, annotated, _scans(dataset))
    folder = next((path / n for n in LABEL_FOLDERS if os.path.isdir(path / n)), path)
    schema, annotated = labelling_beside(folder) or (None, {})
    return _Reference(_label_files(folder), schema, annotated, {})


def _label_files(folder: Path) -> dict[str, Path]:
    if not os.path.isdir(folder):
        raise DatasetError(f"{quoted(folder)}: no such folder; give a folder of label files")
    try:
        files = files_by_case(folder)
    except ScanError as error:
        raise DatasetError(str(error)) from error
    if not files:
        raise DatasetError(f"{folder}: no label files in this folder; expected <case>.nii.gz")
    return files


def _other_labels(folder: Path) -> dict[str, LabelSchema]:
    """The schemas of label files whose labels differ from the folder's."""
    file = folder / RUN_JSON
    return read_labels_by_case(file) if file.is_file() else {}


def _scans(images: Path | Dataset) -> dict[str, tuple[Path, ...]]:
    if isinstance(images, Dataset):
        return {case.id: case.images for case in images.cases}
    folder = next((images / n for n in ("imagesTr", "images") if os.path.isdir(images / n)), images)
    return {scan.id: scan.paths for scan in find_scans(folder)}


def _schema_of(files: Sequence[Path]) -> LabelSchema:
    """``label_<value>`` for every value found; unreadable files are reported when they are scored."""
    values: set[int] = set()
    for file in files:
        try:
            values.update(int(v) for v in np.unique(read_label_values(file)[0]))
        except ScanError:
            continue
    found = sorted(values - {0})
    if not found or found[0] < 0 or len(found) > MAX_CLASSES:
        raise DatasetError(
            f"{files[0].parent}: {len(found)} label values found, 1 to {MAX_CLASSES} positive ones are "
            "supported; are these label maps? Name them in a labels.json"
        )
    return LabelSchema(tuple(f"label_{v}" for v in found), tuple(found))


def unmatched(what: str, names: set[str]) -> list[str]:
    """A warning that names some of these, if there are any."""
    return [f"{what}: {listed(sorted(names))}"] if names else []
