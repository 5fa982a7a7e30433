"""Labelled data sets on disk: nnU-Net raw, Medical Segmentation Decathlon, plain folders.

Opening a data set only reads names and ``dataset.json``; voxels are read one case at a time by
``Dataset.load``. The JSON content is checked: types, label values, and that no path leaves the folder.
"""

from __future__ import annotations

import os
import random
import re
import reprlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, LabelError, ScanError, quoted
from zoomseg.core.labels import BACKGROUND, MAX_CLASSES, LabelSchema
from zoomseg.core.modality import named
from zoomseg.core.volume import LabelMap
from zoomseg.io.files import (
    MAX_JSON_BYTES,
    MAX_RESULTS_BYTES,
    RUN_JSON,
    one_file,
    parse_json,
    read_file,
    why_unreadable,
)
from zoomseg.io.scans import (
    ScanInput,
    as_channels,
    check_same_grid,
    files_by_case,
    find_scans,
    header_notes_by_case,
    read_image,
    read_label_values,
    read_labels,
    scan_files,
    scan_name,
    scan_suffix,
    split_channel,
)

MAX_CHANNELS = 256
MAX_NAME = 120
"""Maximum number of characters of a label's, group's or channel's name."""
MAX_FILE_NAME, MAX_PATH = 255, 4096
"""Bytes and characters: no file system supports longer ones."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, other line breaks, and halves of surrogate pairs, which cannot occur in file names."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_INTEGER = re.compile(r"\d{1,9}")

LABEL_FOLDERS = ("labelsTr", "labelsTs", "labels")
"""Folders of label files in a data set."""
LABELLING_FILES = ("labels.json", "dataset.json", RUN_JSON)
"""Files that may state the meaning of label values, in the order in which they are looked for."""

LAYOUTS = "expected imagesTr/, labelsTr/, dataset.json (nnU-Net raw, Decathlon) or images/, labels/ (plain)"


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case. ``images`` are the expected files, one per channel in order (or one 4-D file for
    all); they need not exist, so that an audit can name missing ones. ``annotated`` names the labels
    annotated in this case; None means all. ``pseudo``: labelled by a model, without any human annotation.
    Such a case is used for training, but not for planning, never held out, and not an atlas."""

    id: str
    images: tuple[Path, ...]
    labels: Path | None = None
    annotated: frozenset[str] | None = None
    pseudo: bool = False


@dataclass(frozen=True)
class Dataset:
    """A data set: its folder, channels, label schema and cases in order of their ids."""

    root: Path
    name: str
    channel_names: tuple[str, ...]
    schema: LabelSchema
    cases: tuple[CaseFiles, ...]

    @property
    def is_ct(self) -> bool:
        """Whether every channel is CT, that is, in Hounsfield units. A name that also states another modality
        (``PET/CT``, ``T1_to_CT``) is not clear about it."""
        return all(named(name) == {"CT"} for name in self.channel_names)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(case.id for case in self.cases)

    @property
    def labelled_ids(self) -> tuple[str, ...]:
        """The cases with labels, of people or of a model."""
        return tuple(case.id for case in self.cases if case.labels is not None)

    def channels_last(self, case: CaseFiles) -> bool:
        """Whether the case's single image file contains all channels as its fourth axis."""
        return len(case.images) == 1 and len(self.channel_names) > 1

    def load(self, case: CaseFiles) -> Case:
        """Read one case; its labels are assigned exactly the image's grid.

        Raises:
            ScanError: a file cannot be used, channels are missing, or image and labels are on different
                grids.
            LabelError: a label value that is not in the schema.
        """
        image = read_image(case.images, channels_last=self.channels_last(case))
        if image.channels != len(self.channel_names):
            raise ScanError(
                f"{case.images[0]}: {image.channels} channels, but the data set has "
                f"{len(self.channel_names)} ({', '.join(self.channel_names)})"
            )
        if case.labels is None:
            return Case(case.id, image, None, case.annotated)
        labels = read_labels(case.labels, self.schema)
        check_same_grid(image.grid, labels.grid, case.images[0], case.labels)
        return Case(case.id, image, LabelMap(labels.data, image.grid, self.schema), case.annotated)

    def header_notes(self, ids: Iterable[str]) -> list[str]:
        """What the user should know about how these cases' headers are read, as ``header_notes_by_case``."""
        files = {case.id: (*case.images, case.labels) for case in self.subset(ids).cases}
        return header_notes_by_case({id_: [file for file in own if file] for id_, own in files.items()})

    def subset(self, ids: Iterable[str]) -> Dataset:
        """The data set with these cases only, in the data set's order."""
        wanted = set(ids)
        unknown = sorted(wanted - set(self.ids))
        if unknown:
            raise DatasetError(f"{self.root}: no case {', '.join(unknown[:5])} in this data set")
        return replace(self, cases=tuple(case for case in self.cases if case.id in wanted))


# --- opening --------------------------------------------------------------------------------------


def open_dataset(path: Path) -> Dataset:
    """Open a data set folder of any layout.

    Raises:
        DatasetError: no such folder, no known layout, no cases, or an invalid ``dataset.json``.
    """
    root = Path(path)
    if root.name == "dataset.json":
        root = root.parent
    if not os.path.isdir(root):
        raise DatasetError(f"{quoted(root)}: no such data set folder")
    description = read_description(root)
    try:
        if holds_dicom_only(root):
            what = f"{root}: DICOM, not yet a data set"
            raise DatasetError(f"{what}; write one with 'zoomseg check {root} --fix OUT', and use OUT")
        if _has_folder(root, "imagesTr"):
            if description is None:
                raise DatasetError(f"{root}: dataset.json is missing; it names the channels and the labels")
            return _open_described(root, description)
        if _has_folder(root, "images"):
            return _open_plain(root, description)
    except (LabelError, ScanError) as error:
        raise DatasetError(str(error)) from error
    raise DatasetError(f"{root}: not a data set; {_meant(root) or LAYOUTS}")


def _meant(root: Path) -> str:
    """The folder to be given instead of one inside a data set; empty if it is not inside one."""
    here = Path(os.path.abspath(root))
    inside = here.name in ("images", "labels", "imagesTr", "labelsTr", "imagesTs", "labelsTs")
    has_images = any(os.path.isdir(here.parent / name) for name in ("images", "imagesTr"))
    meant = root.parent if len(root.parts) > 1 else here.parent
    return f"did you mean {meant}?" if inside and has_images else ""


def _has_folder(root: Path, name: str) -> bool:
    """Whether a folder exists; anything else under its name (such as a broken link) is refused."""
    if os.path.isdir(root / name):
        return True
    if os.path.lexists(root / name):
        raise DatasetError(f"{root / name}: {why_unreadable(root / name) or 'not a folder'}")
    return False


def holds_dicom_only(root: Path) -> bool:
    """Whether a folder is not a data set, but contains DICOM objects, which ``datasets.dicom`` may convert to
    one."""
    folders = [root / name for name in ("images", "labels") if os.path.isdir(root / name)]
    if (
        not os.path.isdir(root)
        or os.path.isdir(root / "imagesTr")
        or any(scan_files(folder) for folder in folders)
    ):
        return False
    from zoomseg.io.dicom.read.archive import files_in, is_zip
    from zoomseg.io.dicom.read.series_discovery import any_dicom

    return any_dicom(file for file in files_in(root) if not is_zip(file))


def read_labelling(path: Path) -> tuple[LabelSchema, dict[str, frozenset[str]]] | None:
    """The label information of a JSON file (``dataset.json``, ``labels.json``, ``run.json``) for label files
    beside it: their schema, and by case id the annotated labels. None if it has no ``labels``.

    Raises:
        DatasetError: unreadable, or its labels are invalid.
    """
    description = _labels_file(path) if path.name == "labels.json" else read_json(path)
    if "labels" not in description:
        return None
    schema = _parse_schema(path, description)
    return schema, _parse_annotated(path, description, schema)


def _labels_file(path: Path) -> dict[str, Any]:
    """The content of a ``labels.json``, which may be the mapping of names to values alone."""
    content = read_json(path)
    return content if "labels" in content else {"labels": content}


def labelling_beside(folder: Path) -> tuple[LabelSchema, dict[str, frozenset[str]]] | None:
    """The label information of label files in a folder, as ``read_labelling``: of the first file of
    ``LABELLING_FILES`` there that has any, otherwise of those above a folder of ``LABEL_FOLDERS``; None if
    there is none.

    Raises:
        DatasetError: such a file is unreadable, or its labels are invalid.
    """
    above = [folder.parent] if folder.name in LABEL_FOLDERS else []
    for file in (where / name for where in (folder, *above) for name in LABELLING_FILES):
        if os.path.lexists(file):
            found = read_labelling(file)
            if found is not None:
                return found
    return None


def read_labels_by_case(path: Path) -> dict[str, LabelSchema]:
    """The schemas of those label files beside a ``run.json`` that other runs wrote with other labels; by case
    id.

    Raises:
        DatasetError: unreadable, or invalid labels.
    """
    cases = read_json(path).get("cases")
    runs = {
        case: account.get("run")
        for case, account in (cases.items() if isinstance(cases, dict) else ())
        if isinstance(account, dict)
    }
    return {
        case: _parse_schema(path, run)
        for case, run in runs.items()
        if isinstance(run, dict) and "labels" in run
    }


def read_description(root: Path) -> dict[str, Any] | None:
    """The content of ``dataset.json``, checked only to be a JSON object; None if there is no such file."""
    return read_json(root / "dataset.json") if os.path.lexists(root / "dataset.json") else None


def dataset_description(
    name: str,
    channels: Sequence[str],
    schema: LabelSchema,
    cases: int,
    annotated: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The content of ``dataset.json`` for a data set in nnU-Net's raw layout; ``open_dataset`` reads the same
    from it.

    Args:
        cases: number of labelled cases.
        annotated: by case id, the annotated labels of cases in which not all are.
    """
    written: dict[str, Any] = {
        "name": name,
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {BACKGROUND: 0, **schema.value_of},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if schema.groups:
        written["groups"] = {group: list(members) for group, members in schema.groups.items()}
    if annotated:
        written["cases"] = {
            case: {"annotated": [label for label in schema.names if label in labels]}
            for case, labels in annotated.items()
        }
    return written


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, checked only to be an object; a ``run.json`` lists any number of cases.

    Raises:
        DatasetError: unreadable, or not an object.
    """
    reason = why_unreadable(path)
    if reason is not None:
        raise DatasetError(f"{quoted(path)}: {reason}")
    try:
        most = MAX_RESULTS_BYTES if path.name == RUN_JSON else MAX_JSON_BYTES
        data = parse_json(read_file(path, most))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: must hold a JSON object, got {type(data).__name__}")
    return data


def _open_described(root: Path, description: dict[str, Any]) -> Dataset:
    where = root / "dataset.json"
    channels = _parse_channels(where, description)
    schema = _parse_schema(where, description)
    pairs = description.get("training")
    if isinstance(pairs, list) and pairs and not _names_cases(root, pairs):
        cases = _pair_cases(root, pairs, len(channels))
    else:
        cases = _nnunet_cases(root, len(channels))
    return _assemble(root, where, description, channels, schema, cases)


def _open_plain(root: Path, description: dict[str, Any] | None) -> Dataset:
    labels = files_by_case(root / "labels") if _has_folder(root, "labels") else {}
    scans = find_scans(root / "images", apart=_labelled_apart(root / "images", labels))
    if any(scan.dicom is not None for scan in scans):
        raise DatasetError(
            f"{root / 'images'}: DICOM series; a data set needs images in NIfTI, NRRD or MetaImage files: "
            "convert the series, for example with dcm2niix"
        )
    cases = [CaseFiles(s.id, s.paths, labels.pop(s.id, None)) for s in scans]
    if labels:
        stray, file = next(iter(labels.items()))
        raise DatasetError(f"{quoted(file)}: {_why_stray(stray, root / 'images', scans)}")
    where, known = root / "dataset.json", description or {}
    if "labels" not in known and os.path.lexists(root / "labels.json"):
        where = root / "labels.json"
        known = _labels_file(where) | known
    if "channel_names" in known or "modality" in known:
        channels = _parse_channels(where, known)
    else:
        channels = tuple(f"channel_{c}" for c in range(max(len(case.images) for case in cases)))
    schema = _parse_schema(where, known) if "labels" in known else _schema_from_files(root, cases)
    listed_in = root / "dataset.json" if "cases" in (description or {}) else where
    return _assemble(root, listed_in, known, channels, schema, cases)


def _labelled_apart(images: Path, labels: Container[str]) -> frozenset[str]:
    """Names of images that look like channels of one case (``img_0000``, ``img_0001``), but all have separate
    labels: each is a case."""
    groups: dict[str, list[str]] = {}
    for name in map(scan_name, scan_files(images)):
        groups.setdefault(split_channel(name)[0], []).append(name)
    return frozenset(
        name for names in groups.values() if all(one in labels for one in names) for name in names
    )


def _why_stray(label: str, images: Path, scans: Iterable[ScanInput]) -> str:
    case, channel = split_channel(label)
    if channel is not None and (read := as_channels([scan for scan in scans if scan.id == case])):
        return (
            f"{read}, whose labels would be called {quoted(case)}; if each is a case of its own, give all of "
            "them labels, or names that do not end in _0000, _0001, ..."
        )
    return f"no image of this name in {images}; labels need their image's name"


def _assemble(
    root: Path,
    where: Path,
    description: dict[str, Any],
    channels: tuple[str, ...],
    schema: LabelSchema,
    cases: Sequence[CaseFiles],
) -> Dataset:
    if not cases:
        raise DatasetError(f"{root}: no cases; {LAYOUTS}")
    _refuse_one_name(root, cases)
    annotated = _parse_annotated(where, description, schema)
    _check_entries(where, description.get("cases", {}), {case.id for case in cases})
    complete = [replace(case, annotated=annotated.get(case.id)) for case in sorted(cases, key=lambda c: c.id)]
    name = description.get("name")
    name = quoted(name) if isinstance(name, str) else root.name
    return Dataset(root, name, channels, schema, tuple(complete))


def _refuse_one_name(root: Path, cases: Iterable[CaseFiles]) -> None:
    """Refuse cases whose files, written later, would overwrite each other on some disks."""
    alike = one_file(dict.fromkeys(case.id for case in cases))
    if alike is not None:
        both = f"'{quoted(alike[0])}' and '{quoted(alike[1])}'"
        raise DatasetError(f"{root}: some disks treat the cases {both} as one name; rename one of them")


# --- cases ----------------------------------------------------------------------------------------


def _nnunet_cases(root: Path, channels: int) -> list[CaseFiles]:
    """Cases of ``imagesTr/<case>_<channel>`` and ``labelsTr/<case>``; a case present in either counts."""
    found: dict[str, dict[int, Path]] = {}
    for file in scan_files(root / "imagesTr"):
        case, channel = split_channel(scan_name(file))
        if channel is None:
            raise DatasetError(f"{file}: images need a channel number, as in {scan_name(file)}_0000.nii.gz")
        if channel >= channels:
            raise DatasetError(
                f"{file}: channel {channel:04d}, but dataset.json names {channels} channel(s); a case of its "
                f"own would be called {scan_name(file)}_0000, and its labels {scan_name(file)}"
            )
        if channel in found.setdefault(case, {}):
            raise DatasetError(
                f"{file}: channel {channel:04d} of this case is also in {found[case][channel].name}"
            )
        found[case][channel] = file
    labels = files_by_case(root / "labelsTr") if _has_folder(root, "labelsTr") else {}
    for case in labels:
        found.setdefault(case, {})
    cases = []
    for case, files in found.items():
        missing = root / "imagesTr"
        images = tuple(files.get(c, missing / f"{case}_{c:04d}.nii.gz") for c in range(channels))
        cases.append(CaseFiles(case, images, labels.get(case)))
    return cases


def _names_cases(root: Path, pairs: Sequence[object]) -> bool:
    """Whether ``training`` names cases without channel numbers (nnU-Net v1), not files (Decathlon): none of
    these exists, but their first channels do."""
    listed = [_inside(root, pair.get("image")) for pair in pairs if isinstance(pair, dict)]
    if any(os.path.lexists(image) for image in listed):
        return False
    return any(
        os.path.lexists(image.with_name(f"{scan_name(image)}_0000{scan_suffix(image) or ''}"))
        for image in listed
    )


def _inside(root: Path, relative: object) -> Path:
    """``root / relative``, refused if it is not a path or leads outside ``root``."""
    where = root / "dataset.json"
    if not isinstance(relative, str) or not relative or _CONTROL.search(relative):
        raise DatasetError(
            f"{where}: 'training' needs paths as strings without control characters, got {_repr(relative)}"
        )
    longest = max(len(os.fsencode(part)) for part in relative.split("/"))
    if longest > MAX_FILE_NAME or len(relative) > MAX_PATH:
        raise DatasetError(f"{where}: no file can have the name '{quoted(relative)}'; it is too long")
    normal = os.path.normpath(relative)
    if os.path.isabs(normal) or normal.split(os.sep)[0] in (os.pardir, os.curdir):
        raise DatasetError(f"{where}: path '{quoted(relative)}' leaves the data set folder")
    return root / normal


def _repr(value: object) -> str:
    return quoted(_SHORT.repr(value), 80)


def _pair_cases(root: Path, pairs: Sequence[object], channels: int) -> list[CaseFiles]:
    """Cases of ``training: [{"image": ..., "label": ...}]``."""
    cases: dict[str, CaseFiles] = {}
    for pair in pairs:
        if not isinstance(pair, dict) or "image" not in pair:
            raise DatasetError(
                f"{root / 'dataset.json'}: 'training' needs {{image, label}} pairs, got {_repr(pair)}"
            )
        image = _inside(root, pair["image"])
        case, channel = split_channel(scan_name(image))
        case = case if channel == 0 else scan_name(image)
        if case in cases:
            raise DatasetError(f"{root / 'dataset.json'}: case {case} is listed twice in 'training'")
        labels = _inside(root, pair["label"]) if pair.get("label") is not None else None
        others = _other_channels(image, channels) if channel == 0 else ()
        cases[case] = CaseFiles(case, (image, *others), labels)
    return list(cases.values())


def _other_channels(first: Path, channels: int) -> tuple[Path, ...]:
    """The files of the other channels beside that of the first one; none if it contains all channels."""
    case, _ = split_channel(scan_name(first))
    files = [first.with_name(f"{case}_{c:04d}{scan_suffix(first) or ''}") for c in range(1, channels)]
    return tuple(files) if any(map(os.path.lexists, files)) else ()


# --- content of dataset.json -----------------------------------------------------------------------


def _parse_channels(where: Path, description: Mapping[str, Any]) -> tuple[str, ...]:
    names = description.get("channel_names", description.get("modality"))
    if not isinstance(names, dict) or not names:
        raise DatasetError(f'{where}: \'channel_names\' is missing; give for example {{"0": "CT"}}')
    if len(names) > MAX_CHANNELS:
        raise DatasetError(f"{where}: {len(names)} channels; at most {MAX_CHANNELS} are supported")
    expected = [str(c) for c in range(len(names))]
    if sorted(names) != sorted(expected) or not all(isinstance(n, str) for n in names.values()):
        raise DatasetError(
            f"{where}: 'channel_names' must map 0..{len(names) - 1} to names, got {_repr(names)}"
        )
    for name in names.values():
        _check_name(where, name, "a channel")
    return tuple(names[c] for c in expected)


def _check_name(where: Path, name: str, what: str) -> None:
    """Refuse names that would be unreadable in a table, or are not a single line."""
    if not name.strip() or len(name) > MAX_NAME or _CONTROL.search(name):
        raise DatasetError(
            f"{where}: '{quoted(name, 60)}' cannot be the name of {what}; give 1 to {MAX_NAME} characters "
            "without line breaks or control characters"
        )


def _parse_schema(where: Path, description: Mapping[str, Any]) -> LabelSchema:
    labels = description.get("labels")
    if not isinstance(labels, dict):
        raise DatasetError(
            f'{where}: \'labels\' is missing; give for example {{"background": 0, "liver": 1}}'
        )
    pairs = _name_values(where, labels)
    zero = list(dict.fromkeys(quoted(name, 60) for name, value in pairs if value == 0))
    if len(zero) > 1:
        raise DatasetError(
            f"{where}: '{zero[0]}' and '{zero[1]}' have the value 0, that of the background only"
        )
    by_value = sorted((value, name) for name, value in pairs if value != 0)
    if len(by_value) > MAX_CLASSES:
        raise DatasetError(f"{where}: {len(by_value)} labels; at most {MAX_CLASSES} are supported")
    names, values = tuple(n for _, n in by_value), tuple(v for v, _ in by_value)
    for name in names:
        _check_name(where, name, "a label")
    if "ignore" in names:
        raise DatasetError(
            f"{where}: an 'ignore' label is not supported; list the annotated labels of each case under "
            "'cases'"
        )
    groups = _parse_groups(where, description.get("groups", {}), names)
    try:
        return LabelSchema(names, values, groups)
    except LabelError as error:
        raise DatasetError(f"{where}: {error}") from error


def _name_values(where: Path, labels: dict[str, Any]) -> list[tuple[str, int]]:
    """``{"liver": 1}`` (nnU-Net v2) or ``{"1": "liver"}`` (Decathlon) as (name, value) pairs."""
    pairs: list[tuple[str, int]] = []
    for key, value in labels.items():
        if isinstance(value, list):
            raise DatasetError(
                f"{where}: region-based labels ('{quoted(key, 60)}': {_repr(value)}) are not supported; give "
                "one value each"
            )
        if isinstance(value, int) and not isinstance(value, bool):
            pairs.append((key, value))
        elif isinstance(value, str) and _INTEGER.fullmatch(key):
            pairs.append((value, int(key)))
        elif isinstance(value, str) and _INTEGER.fullmatch(value):
            pairs.append((key, int(value)))
        else:
            raise DatasetError(
                f"{where}: label '{quoted(key, 60)}' needs a whole number as its value, got {_repr(value)}"
            )
    return pairs


def _parse_groups(where: Path, groups: object, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    if not isinstance(groups, dict):
        raise DatasetError(f"{where}: 'groups' must map group names to lists of label names")
    out: dict[str, tuple[str, ...]] = {}
    for group, members in groups.items():
        _check_name(where, group, "a group")
        if not isinstance(members, list) or not members or not all(m in names for m in members):
            raise DatasetError(f"{where}: group '{group}' must list labels among {', '.join(names)}")
        if group in names or group == "all":
            raise DatasetError(f"{where}: group '{group}' has the name of a label")
        out[group] = tuple(members)
    return out


def _parse_annotated(
    where: Path, description: Mapping[str, Any], schema: LabelSchema
) -> dict[str, frozenset[str]]:
    """``cases.<id>.annotated``: the labels (or groups) annotated in each case."""
    cases = description.get("cases", {})
    if not isinstance(cases, dict):
        raise DatasetError(f"{where}: 'cases' must map case ids to objects")
    out: dict[str, frozenset[str]] = {}
    for case, facts in cases.items():
        if not isinstance(facts, dict):
            raise DatasetError(f"{where}: case {quoted(case)} must be an object, got {_repr(facts)}")
        names = facts.get("annotated")
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DatasetError(f"{where}: case {quoted(case)}: 'annotated' must be a list of label names")
        try:
            out[case] = frozenset(schema.select(names))
        except LabelError as error:
            raise DatasetError(f"{where}: case {quoted(case)}: {error}") from error
    return out


def _check_entries(where: Path, entries: Mapping[str, Mapping[str, Any]], ids: Container[str]) -> None:
    """Refuse entries of ``cases`` without effect, which may be misspelled: labels that are not annotated
    would be learned as background."""
    for case, facts in entries.items():
        if case not in ids:
            raise DatasetError(
                f"{where}: case {quoted(case)} under 'cases' is not in the data set; correct its name, or "
                "delete the entry"
            )
        if facts and "annotated" not in facts:
            raise DatasetError(
                f"{where}: case {quoted(case)} lists {_repr(next(iter(facts)))}, but not 'annotated', the "
                "labels that are annotated"
            )


def _schema_from_files(root: Path, cases: Sequence[CaseFiles]) -> LabelSchema:
    """``label_<value>`` for every value found; unreadable files are left to the audit."""
    values: set[int] = set()
    for case in cases:
        if case.labels is None:
            continue
        try:
            values.update(np.unique(read_label_values(case.labels)[0]).tolist())
        except ScanError:
            continue
    values.discard(0)
    if not values:
        raise DatasetError(
            f"{root / 'labels'}: no label values found; write the names into {root / 'labels.json'}"
        )
    if len(values) > MAX_CLASSES or min(values) < 0:
        raise DatasetError(
            f"{root / 'labels'}: {len(values)} label values from {min(values)} to {max(values)}; "
            f"up to {MAX_CLASSES} positive ones are supported: are these label maps?"
        )
    ordered = sorted(values)
    return LabelSchema(tuple(f"label_{v}" for v in ordered), tuple(ordered))


# --- splits ---------------------------------------------------------------------------------------


def folds(ids: Sequence[str], k: int, seed: int = 0) -> tuple[tuple[str, ...], ...]:
    """Split ids into ``k`` disjoint validation sets whose sizes differ by at most one.

    The same ids (in any order), ``k`` and seed always give the same folds.
    """
    if len(set(ids)) != len(ids):
        raise DatasetError("case ids must be distinct to be split into folds")
    if len(ids) < 2:
        raise DatasetError(
            f"{len(ids)} labelled case(s) cannot be split: train without folds, or label more cases"
        )
    if not 2 <= k <= len(ids):
        raise DatasetError(
            f"{len(ids)} labelled cases can be split into 2 to {len(ids)} folds, got {k}: choose a number in "
            "between, or label more cases"
        )
    shuffled = sorted(ids)
    random.Random(seed).shuffle(shuffled)
    return tuple(tuple(sorted(shuffled[part::k])) for part in range(k))
