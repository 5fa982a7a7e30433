"""A fingerprint depends on the patient, not on the storage of the scan; absent organs are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import SCHEMA, tiny_dataset
from zoomseg.core.errors import DatasetError
from zoomseg.core.geometry import Grid, Index3
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.io.scans import read_image, write_image, write_labels
from zoomseg.planning import fingerprint
from zoomseg.planning.fingerprint import SideBySide, compute_fingerprint, require, require_in_every

SHAPE = (24, 20, 16)


def written(root: Path, boxes: list[dict[int, tuple[Index3, Index3]]], flip: bool = False) -> Dataset:
    """Cases of 24x20x16 voxels of 2x2x3 mm whose organs are boxes (class -> start, stop), ten times their
    class bright, on a ramp as background. With ``flip``, stored from right to left."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    affine = np.diag([-2.0 if flip else 2.0, 2.0, 3.0, 1.0])
    for n, organs in enumerate(boxes):
        classes = np.zeros(SHAPE, dtype=np.uint8)
        for label, (start, stop) in organs.items():
            classes[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = label
        data = np.ascontiguousarray(classes[::-1] if flip else classes)
        image = np.where(data > 0, 10.0 * data, -np.linspace(0.5, 99.5, 16))
        write_image(root / "imagesTr" / f"c{n}_0000.nii.gz", Volume(image[None], Grid(SHAPE, affine)))
        write_labels(root / "labelsTr" / f"c{n}.nii.gz", LabelMap(data, Grid(SHAPE, affine), SCHEMA))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "left kidney": 3, "right kidney": 7},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return open_dataset(root)


SMALL = ((2, 2, 2), (4, 4, 4))  # 8 voxels of 12 mm3, 4x4x6 mm, about (3, 3, 3)
LARGE = ((12, 10, 8), (18, 18, 12))  # 192 voxels, 12x16x12 mm, about (15, 14, 10)


@pytest.mark.parametrize("flip", [False, True])
def test_organs_are_measured_in_the_patient(tmp_path: Path, flip: bool) -> None:
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}, {2: LARGE}], flip)
    found = compute_fingerprint(data, data.ids)
    left, right = found.organs
    assert (left.name, left.cases, left.annotated) == ("left kidney", 1, 2)
    assert (right.name, right.cases, right.annotated) == ("right kidney", 2, 2)
    assert left.volume_ml == pytest.approx(8 * 0.012)
    assert right.volume_ml == pytest.approx(192 * 0.012)
    assert left.extent_mm == pytest.approx((4, 4, 6))
    assert right.extent_mm == pytest.approx((12, 16, 12))
    assert (left.percentiles, right.percentiles) == ((10.0, 10.0), (20.0, 20.0))
    assert left.centre == pytest.approx((3 / 24, 3 / 20, 3 / 16))
    assert right.centre == pytest.approx((15 / 24, 14 / 20, 10 / 16))
    assert found.spacing_mm == (2.0, 2.0, 3.0)
    assert (found.shape, found.largest_shape) == (SHAPE, SHAPE)
    assert found.extent_mm == (48.0, 40.0, 48.0)
    assert found.voxels == math.prod(SHAPE)
    assert found.foreground_percentiles == (10.0, 20.0)


def test_medians_are_over_the_cases_that_have_the_organ(tmp_path: Path) -> None:
    middle = ((2, 2, 2), (6, 6, 6))  # 64 voxels
    data = written(tmp_path / "d", [{1: SMALL}, {1: middle}, {1: LARGE}, {2: LARGE}])
    left = compute_fingerprint(data, data.ids).organs[0]
    assert (left.cases, left.annotated) == (3, 4)
    assert left.volume_ml == pytest.approx(64 * 0.012)


def test_how_much_of_an_organ_is_in_one_piece_in_the_worst_case(tmp_path: Path) -> None:
    cut = {1: ((2, 2, 2), (12, 6, 6)), 2: ((4, 2, 2), (6, 6, 6))}  # the second divides the first
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}, cut])
    left, right = compute_fingerprint(data, data.ids).organs
    assert left.largest_part == pytest.approx(6 / 8)
    assert right.largest_part == 1.0


def test_how_far_an_organ_s_brightness_differs_beside_the_others(tmp_path: Path) -> None:
    """Organs are 10 and 20 bright above 0, the scan's darkest voxel is at -99.5."""
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}, {1: LARGE}, {2: SMALL, 1: LARGE}])
    left, right = compute_fingerprint(data, data.ids).organs
    # The second case has a single organ, which has nothing to be compared with.
    assert (left.relative_brightness_sd, right.relative_brightness_sd) == (0.0, 0.0)
    image = data.cases[0].images[0]
    scan = read_image(image)
    write_image(image, replace(scan, data=np.where(scan.data == 20, 150.0, scan.data)))
    left, right = compute_fingerprint(data, data.ids).organs
    multiples = 2 * np.array([109.5 / (109.5 + 249.5), 109.5 / (109.5 + 119.5)])
    assert left.relative_brightness_sd == pytest.approx(multiples.std(), rel=1e-4)
    assert right.relative_brightness_sd == pytest.approx(multiples.std(), rel=1e-4)


def test_an_organ_that_is_never_beside_another_has_no_spread(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: SMALL}, {1: LARGE}, {1: SMALL, 2: LARGE}])
    assert [organ.relative_brightness_sd for organ in compute_fingerprint(data, data.ids).organs] == [
        None,
        None,
    ]


@pytest.mark.parametrize("flip", [False, True])
def test_which_organ_lies_to_the_right_in_most_cases(tmp_path: Path, flip: bool) -> None:
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}] * 18 + [{1: LARGE, 2: SMALL}] * 2, flip)
    assert compute_fingerprint(data, data.ids).side_by_side == SideBySide(
        "right kidney", "left kidney", 18, 20
    )
    assert compute_fingerprint(data, data.ids[:19]).side_by_side is None


def test_what_the_data_set_leaves_unsaid_is_advised(tmp_path: Path) -> None:
    """Intensities of two cases of three are distributed like Hounsfield units, in a channel that is not named
    CT."""
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}] * 3)
    assert compute_fingerprint(data, data.ids).advice == ()
    for case in data.cases[:2]:
        scan = read_image(case.images[0])
        air = np.where(scan.data > 0, 50.0, -1000.0)
        air[0, 0, 0, 0] = 900
        write_image(case.images[0], replace(scan, data=air))
    assert compute_fingerprint(data, data.ids).advice == ()  # it is called CT
    (advice,) = compute_fingerprint(replace(data, channel_names=("image",)), data.ids).advice
    assert advice.found.startswith(
        "channel 0 ('image'): values are distributed like Hounsfield units in 2 of 3"
    )


def test_organs_in_line_lie_on_neither_side(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: ((4, 2, 2), (6, 4, 4)), 2: ((2, 8, 8), (8, 12, 12))}] * 20)
    found = compute_fingerprint(data, data.ids).side_by_side
    assert found is not None
    assert (found.cases, found.together, found.share) == (0, 20, 0.0)


def test_what_was_not_drawn_does_not_count(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}, {1: SMALL, 2: LARGE}])
    first = replace(data.cases[0], annotated=frozenset({"right kidney"}))
    partial = replace(data, cases=(first, data.cases[1]))
    left, right = compute_fingerprint(partial, partial.ids).organs
    assert (left.cases, left.annotated) == (1, 1)
    assert (right.cases, right.annotated) == (2, 2)


@pytest.mark.parametrize(("cases", "read"), [(3, 3), (5, 3), (1000, 4)])
def test_few_cases_are_all_read_many_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: int, read: int
) -> None:
    """Five cases by pairs are three, a thousand by 250 four."""
    monkeypatch.setattr(fingerprint, "FINGERPRINT_CASES", 4 if cases == 1000 else 3)
    one = tiny_dataset(tmp_path / "d", 1)
    many = replace(one, cases=tuple(replace(one.cases[0], id=f"c{n:04}") for n in range(cases)))
    told: list[tuple[int, int]] = []
    found = compute_fingerprint(many, many.ids, lambda done, total: told.append((done, total)))
    assert (found.cases, found.read) == (cases, read)
    assert told == [(n, read) for n in range(read)]


def test_nothing_labelled_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{}, {}])
    with pytest.raises(DatasetError, match=r"no labelled voxel in 2 cases read; zoomseg check lists"):
        compute_fingerprint(data, data.ids)


def test_an_organ_that_no_case_has_is_named_with_the_way_out(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{2: LARGE}, {1: SMALL, 2: LARGE}])
    require(data, data.ids, SCHEMA.names)
    with pytest.raises(DatasetError) as refusal:
        require(data, ["c0"], SCHEMA.names)
    assert str(refusal.value) == (
        "data set 'd': no voxel of left kidney in any of the 1 training cases, so it cannot be learned; "
        "remove it from 'labels' in dataset.json, or train on cases that contain it"
    )


def test_an_organ_of_one_fold_alone_is_named_with_its_cases_and_the_fold(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}, {2: LARGE}, {1: SMALL, 2: LARGE}, {2: LARGE}])
    require_in_every(data, [("c2", "c3"), ("c0", "c1")], SCHEMA.names)
    require_in_every(data, [[c for c in data.ids if c != out] for out in data.ids], SCHEMA.names)
    require_in_every(data, [("c0", "c2"), ("c1", "c3")], ["right kidney"])
    with pytest.raises(DatasetError) as refusal:
        require_in_every(data, [("c0", "c2"), ("c1", "c3")], SCHEMA.names)
    assert str(refusal.value) == (
        "data set 'd': left kidney is only in c0, c2, on which the model of fold 1 is not trained, so that "
        "it could not learn it; remove it from 'labels' in dataset.json, add cases that contain it, or train "
        "without --fold all"
    )
    with pytest.raises(DatasetError, match=r"no voxel of spleen in any of the 4 training cases"):
        require_in_every(data, [("c0", "c2"), ("c1", "c3")], ["spleen", "left kidney"])
    partial = replace(data, cases=(replace(data.cases[0], annotated=frozenset()), *data.cases[1:]))
    with pytest.raises(DatasetError, match="left kidney is only in c2, on which the model of fold 1 is not"):
        require_in_every(partial, [("c2", "c3"), ("c0", "c1")], SCHEMA.names)


def test_folds_are_read_in_turn_until_all_organs_were_found(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}, {}, {1: SMALL, 2: LARGE}, {}])
    for case in (1, 3):
        Path(data.cases[case].images[0]).write_bytes(b"not a scan")
    read: list[tuple[int, int]] = []
    folds = [("c2", "c3"), ("c0", "c1")]
    require_in_every(data, folds, SCHEMA.names, lambda done, total: read.append((done, total)))
    assert read == [(0, 4), (1, 4)]


def test_an_organ_that_is_there_but_was_not_drawn_cannot_be_learned(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}])
    partial = replace(data, cases=(replace(data.cases[0], annotated=frozenset({"right kidney"})),))
    with pytest.raises(DatasetError, match="no voxel of left kidney"):
        require(partial, partial.ids, SCHEMA.names)


def test_of_many_absent_organs_some_are_named(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: SMALL}])
    names = [f"vertebra {n}" for n in range(7)]
    with pytest.raises(DatasetError, match=r"no voxel of vertebra 0, .*vertebra 4 and 2 more in any"):
        require(data, data.ids, names)


def test_only_as_many_cases_are_read_as_needed(tmp_path: Path) -> None:
    data = written(tmp_path / "d", [{1: SMALL, 2: LARGE}, {}])
    Path(data.cases[1].images[0]).write_bytes(b"not a scan")
    require(data, data.ids, SCHEMA.names)
    require(data, data.ids, ())
