"""Every wrong voxel is counted in exactly one part, the correct one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from helpers.grids import oriented
from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.evaluation.attribution import LOSSES, Attribution, OrganRegion, attribute, attribute_case
from zoomseg.io.scans import write_array

MM = (1.0, 1.0, 1.0)
SCHEMA = LabelSchema(("liver", "spleen"), (6, 300))


def block(shape: tuple[int, int, int], *ranges: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, dtype=bool)
    out[tuple(slice(a, b) for a, b in ranges)] = True
    return out


def everywhere(spacing_mm: tuple[float, float, float] = MM) -> OrganRegion:
    return OrganRegion(None, True, spacing_mm)


def losses(found: Attribution) -> list[float]:
    return [getattr(found, loss) for loss in LOSSES]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


class TestParts:
    """A cube with sides of 12 voxels; the region ends two planes before it."""

    SHAPE = (24, 24, 24)
    REFERENCE = block(SHAPE, (4, 16), (4, 16), (4, 16))
    REGION = block(SHAPE, (0, 24), (0, 24), (0, 14))
    PREDICTION = (
        (REFERENCE & REGION & ~block(SHAPE, (8, 12), (8, 12), (8, 12)))  # 64 voxels missed deep inside
        | block(SHAPE, (16, 17), (4, 16), (4, 14))  # 120 too many along one face
        | block(SHAPE, (20, 22), (0, 2), (0, 2))  # and 8 far away
    )
    TOTAL = 1728 + (1728 - 288 - 64 + 120 + 8)

    def test_each_is_what_was_made_wrong(self) -> None:
        found = attribute(self.PREDICTION, self.REFERENCE, MM, OrganRegion(self.REGION, True, MM))
        assert found.region_recall == 1440 / 1728
        assert losses(found) == [0, 288 / self.TOTAL, 120 / self.TOTAL, 72 / self.TOTAL]
        assert math.fsum(losses(found)) == pytest.approx(1 - dice(self.PREDICTION, self.REFERENCE), abs=1e-15)

    def test_what_the_coarse_stage_did_not_find_is_its_own(self) -> None:
        found = attribute(self.PREDICTION, self.REFERENCE, MM, OrganRegion(self.REGION, False, MM))
        assert losses(found) == [288 / self.TOTAL, 0, 120 / self.TOTAL, 72 / self.TOTAL]

    def test_everywhere_nothing_is_cut(self) -> None:
        """The two planes are then missed at the boundary: none of their voxels is deeper than 2 mm."""
        found = attribute(self.PREDICTION, self.REFERENCE, MM, everywhere())
        assert math.isnan(found.region_recall)
        assert losses(found) == [0, 0, (288 + 120) / self.TOTAL, 72 / self.TOTAL]

    def test_what_an_earlier_stage_found_outside_the_region_is_not_lost(self) -> None:
        found = attribute(self.REFERENCE, self.REFERENCE, MM, OrganRegion(self.REGION, True, MM))
        assert (found.region_recall, losses(found)) == (1440 / 1728, [0, 0, 0, 0])

    def test_masks_that_do_not_fit(self) -> None:
        with pytest.raises(GeometryError, match="differ in shape"):
            attribute(self.PREDICTION, self.REFERENCE, MM, OrganRegion(self.REGION[1:], True, MM))


class TestBoundary:
    SHAPE = (30, 30, 30)
    REFERENCE = block(SHAPE, (5, 25), (5, 25), (5, 25))

    @pytest.mark.parametrize(
        ("axis", "spacing_mm", "stage_mm", "voxels"),
        [
            (0, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 2),
            (0, (0.7, 0.7, 0.7), (1.5, 1.5, 1.5), 2),
            (0, (0.8, 0.8, 5.0), (1.5, 1.5, 5.0), 2),
            (0, (0.8, 0.8, 5.0), (3.0, 3.0, 5.0), 3),  # the stage's voxels are larger than 2 mm
            (2, (0.8, 0.8, 5.0), (3.0, 3.0, 5.0), 1),
            (2, (0.8, 0.8, 5.0), (1.5, 1.5, 2.0), 1),  # and so are the scan's
        ],
    )
    def test_as_far_as_2_mm_or_a_voxel(self, axis, spacing_mm, stage_mm, voxels) -> None:
        """A tunnel one voxel wide and five deep into the cube's face, and a spike as long out of another."""
        into, out = [[(14, 15)] * 3 for _ in range(2)]
        into[axis], out[axis] = (5, 10), (25, 30)
        tunnel, spike = block(self.SHAPE, *into), block(self.SHAPE, *out)
        prediction = (self.REFERENCE & ~tunnel) | spike
        found = attribute(prediction, self.REFERENCE, spacing_mm, everywhere(stage_mm))
        assert found.lost_boundary * 16000 == pytest.approx(2 * voxels)
        assert found.lost_elsewhere * 16000 == pytest.approx(2 * (5 - voxels))

    def test_the_end_of_the_scan_is_a_surface(self) -> None:
        whole = np.ones(self.SHAPE, dtype=bool)
        prediction = whole & ~block(self.SHAPE, (0, 1), (10, 20), (10, 20))
        assert losses(attribute(prediction, whole, MM, everywhere())) == [0, 0, 100 / 53900, 0]

    @pytest.mark.parametrize("shift", [20, 22])
    def test_an_organ_that_is_not_met_at_all_has_none(self, shift: int) -> None:
        """Otherwise, thin organs would seem to be missed at their boundary only."""
        reference = block((50, 6, 6), (2, 22), (2, 4), (2, 4))
        found = attribute(np.roll(reference, shift, axis=0), reference, MM, everywhere())
        assert losses(found) == [0, 0, 0, 1]

    def test_missed_and_invented_organs(self) -> None:
        nothing = np.zeros(self.SHAPE, dtype=bool)
        missed = attribute(nothing, self.REFERENCE, MM, everywhere())
        assert losses(missed) == [0, 0, 0, 1]
        invented = attribute(self.REFERENCE, nothing, MM, everywhere())
        assert math.isnan(invented.region_recall)
        assert losses(invented) == [0, 0, 0, 1]
        assert all(math.isnan(x) for x in losses(attribute(nothing, nothing, MM, everywhere())))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*(st.integers(1, 9) for _ in range(3))),
    spacing_mm=st.tuples(*(st.floats(0.3, 6) for _ in range(3))),
    stage_mm=st.tuples(*(st.floats(0, 6) for _ in range(3))),
    shares=st.tuples(*(st.sampled_from([0, 0.05, 0.5, 0.95, 1]) for _ in range(3))),
    found=st.booleans(),
)
def test_parts_of_any_masks(seed, shape, spacing_mm, stage_mm, shares, found) -> None:
    """They sum to one minus Dice; the boundary agrees with two distance transforms."""
    rng = np.random.default_rng(seed)
    prediction, reference, region = (rng.random(shape) < share for share in shares)
    parts = attribute(prediction, reference, spacing_mm, OrganRegion(region, found, stage_mm))
    total = prediction.sum() + reference.sum()
    if total == 0:
        assert all(math.isnan(loss) for loss in losses(parts))
        return
    assert math.fsum(losses(parts)) == pytest.approx(1 - dice(prediction, reference), abs=1e-12)
    assert min(losses(parts)) >= 0
    cut = int((reference & ~prediction & ~region).sum())
    assert (parts.lost_coarse, parts.lost_region) == ((0, cut / total) if found else (cut / total, 0))
    if (prediction & reference).any():
        relative = [s / max(2, s, m) for s, m in zip(spacing_mm, stage_mm, strict=True)]
        padded = np.pad(reference, 1)
        away = sum(ndimage.distance_transform_edt(side, sampling=relative) for side in (padded, ~padded))
        near = away[1:-1, 1:-1, 1:-1] <= 1 + 1e-6
        near_errors = (near & (prediction ^ reference) & ~(reference & ~region)).sum()
        assert parts.lost_boundary == near_errors / total


# --- from files -----------------------------------------------------------------------------------


def keep(folder: Path, grid: Grid, region: np.ndarray, coarse: np.ndarray, **more: object) -> None:
    """The outputs of a case's stages: arrays are on the scan's own grid."""
    labels = {"liver": 6, "spleen": 300}
    coarse_stage = {"name": "coarse", "labels": labels, "everywhere": True, "placed_by": None}
    fine_stage = {"name": "fine", "labels": labels, "everywhere": False, "placed_by": "coarse"}
    description = {
        "stages": [coarse_stage | {"spacing_mm": [4, 4, 4]}, fine_stage | {"spacing_mm": [1, 1, 1]}],
        "deciding": {"liver": ["fine"], "spleen": ["fine"]},
    }
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(description | more))
    write_array(folder / "a-coarse.nii.gz", coarse.astype(np.uint16), grid)
    write_array(folder / "a-fine-region.nii.gz", region.astype(np.uint8), grid)


@pytest.mark.parametrize("angles_deg", [(0.0, 0.0, 0.0), (12.0, -20.0, 7.0)])
def test_files_in_any_orientation(tmp_path: Path, angles_deg: tuple[float, float, float]) -> None:
    """The scan's axes are permuted, flipped and rotated; the organs of ``TestParts``, the liver found by the
    coarse stage and the spleen not."""
    shape = (48, 24, 24)
    grid = oriented(shape, MM, (5.0, -30.0, 80.0), (1, 2, 0), (1, 0, 1), angles_deg)
    prediction, reference = np.zeros((2, *shape), dtype=np.uint8)
    region = np.concatenate([TestParts.REGION, TestParts.REGION])
    for c, first in ((1, 0), (2, 24)):
        prediction[first : first + 24][TestParts.PREDICTION] = c
        reference[first : first + 24][TestParts.REFERENCE] = c
    reference[0, 0, 0] = IGNORE
    prediction[0, 0, 0] = 1  # not counted
    keep(tmp_path / "stages", grid, region, np.where(prediction == 1, 6, 0))
    turn = Orientation.to_canonical(grid)
    assert not turn.identity
    said, drawn = (LabelMap(x, grid, SCHEMA).reoriented(turn) for x in (prediction, reference))
    found = attribute_case(tmp_path / "stages", "a", said, drawn, {n: n for n in SCHEMA.names})
    total = TestParts.TOTAL
    assert losses(found["liver"]) == [0, 288 / total, 120 / total, 72 / total]
    assert losses(found["spleen"]) == [288 / total, 0, 120 / total, 72 / total]


SMALL = Grid.from_spacing((4, 4, 4), MM)


def small_case(folder: Path, organs: tuple[str, ...] = SCHEMA.names) -> dict[str, Attribution]:
    """The liver is everywhere; nothing of it was predicted."""
    nothing = np.zeros(SMALL.shape, dtype=np.uint8)
    maps = (LabelMap(data, SMALL, SCHEMA) for data in (nothing, nothing + 1))
    return attribute_case(folder, "a", *maps, {n: n for n in organs})


def stage(name: str, **more: object) -> dict[str, object]:
    base = {"name": name, "labels": {"liver": 6}, "everywhere": False, "placed_by": None, "spacing_mm": None}
    return base | more


def test_an_organ_that_no_stage_answers_for_is_left_out(tmp_path: Path) -> None:
    keep(tmp_path / "s", SMALL, np.ones(SMALL.shape), np.ones(SMALL.shape), deciding={"liver": ["fine"]})
    assert list(small_case(tmp_path / "s")) == ["liver"]


def test_stages_that_vote_look_where_any_of_them_does(tmp_path: Path) -> None:
    """Three quarters of the organ are in one region or the other; no stage determined either."""
    keep(
        tmp_path / "s",
        SMALL,
        block(SMALL.shape, (0, 2), (0, 4), (0, 4)),
        np.zeros(SMALL.shape),
        stages=[stage("fine"), stage("other")],
        deciding={"liver": ["fine", "other"]},
    )
    other = block(SMALL.shape, (1, 3), (0, 4), (0, 4)).astype(np.uint8)
    write_array(tmp_path / "s" / "a-other-region.nii.gz", other, SMALL)
    found = small_case(tmp_path / "s")["liver"]
    assert found.region_recall == 0.75
    assert losses(found) == [0, 0.25, 0, 0.75]


@pytest.mark.parametrize(("value", "lost"), [(0, [1, 0, 0, 0]), (1, [0, 1, 0, 0])])
def test_a_coarse_stage_with_coarser_labels_has_found_something_or_nothing(
    tmp_path: Path, value: int, lost: list[float]
) -> None:
    keep(
        tmp_path / "s",
        SMALL,
        np.zeros(SMALL.shape),
        np.full(SMALL.shape, value),
        stages=[stage("coarse", labels={"abdomen": 1}, everywhere=True), stage("fine", placed_by="coarse")],
        deciding={"liver": ["fine"]},
    )
    assert losses(small_case(tmp_path / "s")["liver"]) == lost


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.json", "{", r"a\.json: top level: Invalid JSON.*predict again"),
        ("a.json", '{"stages": [], "deciding": {"liver": ["../fine"]}}', "must be distinct and named among"),
        ("a.json", json.dumps({"stages": [stage("../x")], "deciding": {}}), r"stages\.0\.name: String"),
        ("a.json", json.dumps({"stages": [], "deciding": {}, "run": 1}), "run: Extra inputs"),
        ("a.json", None, r"a\.json: cannot be read \(No such file"),
        ("a-coarse.nii.gz", None, r"a-coarse\.nii\.gz: no such file"),
        ("a-fine-region.nii.gz", "damaged", r"a-fine-region\.nii\.gz: damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    keep(tmp_path / "s", SMALL, np.ones(SMALL.shape), np.ones(SMALL.shape))
    if content is None:
        (tmp_path / "s" / file).unlink()
    else:
        (tmp_path / "s" / file).write_text(content)
    with pytest.raises(ScanError, match=message):
        small_case(tmp_path / "s")


def test_files_that_are_not_of_this_scan_are_named(tmp_path: Path) -> None:
    keep(tmp_path / "s", SMALL, np.ones(SMALL.shape), np.ones(SMALL.shape))
    region = tmp_path / "s" / "a-fine-region.nii.gz"
    write_array(region, np.full(SMALL.shape, 2, dtype=np.uint8), SMALL)
    with pytest.raises(ScanError, match="a region holds 0 and 1"):
        small_case(tmp_path / "s")
    write_array(region, np.ones(SMALL.shape, dtype=np.uint8), Grid.from_spacing(SMALL.shape, (1, 1, 2)))
    with pytest.raises(ScanError, match=r"a-fine-region\.nii\.gz: is up to 3 mm off the grid"):
        small_case(tmp_path / "s")
