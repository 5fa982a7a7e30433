"""Metrics compared with DeepMind's surface-distance on random shapes, and with known values."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from surface_distance import lookup_tables

from zoomseg.core.errors import GeometryError, LabelError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.evaluation import metrics
from zoomseg.evaluation.metrics import (
    farthest_point,
    neighbour_codes,
    score,
    surface_agreement,
    surface_areas,
)
from zoomseg.evaluation.tolerances import read_tolerances

SPACING = (0.7, 1.3, 4.0)
SCHEMA = LabelSchema(("liver", "spleen", "aorta"), (6, 1, 8))
FLOAT32 = {"rel": 3e-7, "abs": 1e-6}
"""Precision of large distances."""
spacings = st.tuples(*(st.floats(0.2, 8.0) for _ in range(3)))


NOTHING = np.zeros((2, 2, 2), np.uint8)


def grid_of(classes: np.ndarray, spacing_mm=SPACING) -> Grid:
    return Grid.from_spacing(classes.shape, spacing_mm)


def blob(
    rng: np.random.Generator, shape: tuple[int, int, int], smoothness: float, level: float
) -> np.ndarray:
    """A random shape that often touches the border; never empty."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), smoothness, mode="nearest")
    return field >= np.quantile(field, level)


def theirs(prediction: np.ndarray, reference: np.ndarray, spacing_mm, tolerance_mm: float) -> list[float]:
    found = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
    return [
        surface_distance.compute_dice_coefficient(reference, prediction),
        surface_distance.compute_surface_dice_at_tolerance(found, tolerance_mm),
        surface_distance.compute_robust_hausdorff(found, 95),
        float(np.mean(surface_distance.compute_average_surface_distance(found))),
    ]


def ours(prediction: np.ndarray, reference: np.ndarray, spacing_mm, tolerance_mm: float) -> list[float]:
    classes = (prediction.astype(np.uint8), reference.astype(np.uint8))
    (row,) = score(
        *classes, Grid.from_spacing(classes[0].shape, spacing_mm), LabelSchema(("organ",), (1,)), tolerance_mm
    )
    return [row.dice, row.nsd, row.hd95_mm, row.assd_mm]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestAgainstSurfaceDistance:
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(*(st.integers(2, 14) for _ in range(3))),
        smoothness=st.sampled_from([0.0, 0.7, 2.0]),
        level=st.floats(0.1, 0.95),
        spacing_mm=spacings,
        tolerance_mm=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    )
    def test_random_shapes(self, seed, shape, smoothness, level, spacing_mm, tolerance_mm):
        rng = np.random.default_rng(seed)
        a, b = blob(rng, shape, smoothness, level), blob(rng, shape, smoothness, level)
        expected = theirs(a, b, spacing_mm, tolerance_mm)
        assert ours(a, b, spacing_mm, tolerance_mm) == pytest.approx(
            expected, rel=3e-7, abs=1e-6
        )  # far distances are float32

    @given(
        seed=st.integers(0, 2**32 - 1),
        spacing_mm=st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.5, 2.5), SPACING]),
    )
    def test_shapes_that_nearly_agree(self, seed, spacing_mm):
        """As in a good prediction; distances of exactly the tolerance are common here."""
        rng = np.random.default_rng(seed)
        reference = np.pad(blob(rng, (18, 16, 12), 2.0, 0.6), ((3, 0), (1, 2), (0, 4)))
        prediction = np.roll(reference, rng.integers(-2, 3, 3), axis=(0, 1, 2))
        for tolerance_mm in (0.5, 1.0, 2.5):
            expected = theirs(prediction, reference, spacing_mm, tolerance_mm)
            assert ours(prediction, reference, spacing_mm, tolerance_mm) == pytest.approx(
                expected, rel=3e-7, abs=1e-6
            )  # far distances are float32

    @pytest.mark.parametrize(
        ("a", "b"),
        [((0, 0, 0), (5, 5, 5)), ((5, 5, 5), (5, 5, 5)), ((0, 3, 5), (0, 4, 5)), ((2, 2, 2), (3, 3, 3))],
    )
    def test_single_voxels(self, a, b):
        prediction, reference = np.zeros((2, 6, 6, 6), dtype=bool)
        prediction[a], reference[b] = True, True
        expected = theirs(prediction, reference, SPACING, 1.0)
        assert ours(prediction, reference, SPACING, 1.0) == pytest.approx(
            expected, rel=3e-7, abs=1e-6
        )  # far distances are float32

    def test_whole_volume_against_a_corner(self):
        prediction, reference = np.ones((7, 5, 6), dtype=bool), np.zeros((7, 5, 6), dtype=bool)
        reference[:2, :2, :1] = True
        expected = theirs(prediction, reference, SPACING, 1.0)
        assert ours(prediction, reference, SPACING, 1.0) == pytest.approx(
            expected, rel=3e-7, abs=1e-6
        )  # far distances are float32

    @given(spacing_mm=spacings)
    def test_area_of_every_neighbour_code(self, spacing_mm):
        expected = np.asarray(lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm))
        reverse_bits = [
            int(f"{code:08b}"[::-1], 2) for code in range(256)
        ]  # they count bits from the far corner
        np.testing.assert_allclose(surface_areas(spacing_mm), expected[reverse_bits], rtol=1e-12)


class TestKnownValues:
    def test_equal_masks(self):
        mask = blob(np.random.default_rng(0), (8, 9, 10), 1.5, 0.6)
        assert ours(mask, mask, SPACING, 0.0) == [1.0, 1.0, 0.0, 0.0]

    def test_parallel_slabs(self):
        """Two slabs through the whole volume, 2 voxels of 4 mm apart along k."""
        prediction, reference = np.zeros((2, 30, 30, 12), dtype=bool)
        reference[:, :, 2:6], prediction[:, :, 4:8] = True, True
        dice, _, hd95, _ = ours(prediction, reference, (1.0, 1.0, 4.0), 1.0)
        assert dice == 0.5
        assert hd95 == 8.0

    def test_volumes_are_in_millilitres(self):
        prediction, reference = np.zeros((2, 10, 10, 10), dtype=np.uint8)
        prediction[:5, :4, :3], reference[:5, :5, :5] = 1, 1
        row = score(prediction, reference, grid_of(reference, (2.0, 2.5, 4.0)), SCHEMA, organs="liver")[0]
        assert (row.volume_ml, row.reference_ml) == pytest.approx((60 * 0.02, 125 * 0.02), rel=1e-12)

    def test_a_sheared_voxel_is_as_large_as_its_determinant(self):
        """A gantry tilted by 30 degrees: the slices' offset makes the edge longer, not the voxel larger."""
        reference = np.zeros((10, 10, 10), dtype=np.uint8)
        reference[2:7, 2:6, 3:8] = 1
        affine = np.diag([2.0, 2.5, 4.0, 1.0])
        affine[1, 2] = 4.0 * math.tan(math.radians(30))
        row = score(reference, reference, Grid((10, 10, 10), affine), SCHEMA, organs="liver")[0]
        assert (row.volume_ml, row.reference_ml) == pytest.approx((2.0, 2.0), rel=1e-12)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    def test_order_in_memory_does_not_matter(self, order):
        rng = np.random.default_rng(5)
        a, b = rng.integers(0, 4, (2, 9, 8, 7)).astype(np.uint8)
        expected = score(a, b, grid_of(a), SCHEMA)
        back = np.argsort(order)
        turned = [np.ascontiguousarray(x.transpose(order)).transpose(back) for x in (a, b)]
        assert turned[0].strides != a.strides or order == (0, 1, 2)
        for found, row in zip(score(*turned, grid_of(a), SCHEMA), expected, strict=True):
            assert astuple(found)[1:] == pytest.approx(astuple(row)[1:], rel=1e-12)

    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(*(st.integers(1, 40) for _ in range(3))),
        spacing_mm=st.tuples(*(st.sampled_from([0.01, 0.5, 1.0, 3.0, 90.0]) for _ in range(3))),
        share=st.sampled_from([0.0, 1e-3, 0.02, 0.6]),
    )
    @settings(deadline=None)
    def test_distances_are_those_of_a_transform(self, seed, shape, spacing_mm, share):
        """Small ones exactly, large ones to float32."""
        rng = np.random.default_rng(seed)
        goal = rng.random(shape) < share
        goal[tuple(rng.integers(0, shape))] = True
        elements = rng.permutation(goal.size)[: goal.size // 3 + 1]
        found = metrics.distance_to(goal, elements, spacing_mm)
        expected = ndimage.distance_transform_edt(~goal, sampling=spacing_mm).ravel()[elements]
        near = expected <= min(spacing_mm)
        np.testing.assert_allclose(found[near], expected[near], rtol=1e-12)
        np.testing.assert_allclose(found, expected, rtol=3e-7)

    @given(
        shape=st.tuples(*(st.integers(2, 30) for _ in range(3))),
        spacing_mm=st.tuples(*(st.sampled_from([0.1, 0.3, 0.7, 1.1, 2.3]) for _ in range(3))),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_a_distance_of_exactly_the_tolerance_is_within_it(self, shape, spacing_mm, seed):
        """Two voxels, at all distances: 3 times 0.7 mm is 2.0999999999999996 in float64."""
        rng = np.random.default_rng(seed)
        steps = rng.integers(0, shape)
        a, b = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        a[0, 0, 0], b[tuple(steps)] = True, True
        tolerance_mm = round(float(np.linalg.norm(steps * spacing_mm)), 12)
        assert surface_agreement(a, b, spacing_mm, tolerance_mm).nsd == 1.0
        if tolerance_mm:
            assert surface_agreement(a, b, spacing_mm, tolerance_mm * (1 - 1e-5)).nsd < 1.0

    def test_neighbour_codes_of_one_voxel(self):
        codes = neighbour_codes(np.ones((1, 1, 1), dtype=bool))
        # The voxel is the last of the 8 around its first corner, and the first around its last one.
        assert codes[0, 0, 0] == 1 << 7
        assert codes[1, 0, 0] == 1 << 3
        assert codes[0, 0, 1] == 1 << 6
        assert codes[1, 1, 1] == 1 << 0

    def test_area_table_cannot_be_changed_by_a_caller(self):
        with pytest.raises(ValueError, match="read-only"):
            surface_areas(SPACING)[3] = 0.0


class TestEmptyMasks:
    empty = np.zeros((4, 5, 6), dtype=np.uint8)

    def full(self) -> np.ndarray:
        mask = self.empty.copy()
        mask[1:3, 1:3, 1:3] = 1
        return mask

    def test_both_empty_is_not_scored(self):
        row = score(self.empty, self.empty, grid_of(self.empty), SCHEMA)[0]
        assert all(math.isnan(v) for v in (row.dice, row.nsd, row.hd95_mm, row.assd_mm))
        assert not row.missed
        assert not row.spurious

    def test_missed(self):
        row = score(self.empty, self.full(), grid_of(self.empty), SCHEMA)[0]
        assert (row.dice, row.nsd, row.hd95_mm, row.assd_mm) == (0.0, 0.0, math.inf, math.inf)
        assert (row.volume_ml, row.reference_ml) == pytest.approx((0.0, 8 * 0.7 * 1.3 * 4 / 1000), rel=1e-12)
        assert row.missed
        assert not row.spurious

    def test_spurious(self):
        row = score(self.full(), self.empty, grid_of(self.empty), SCHEMA)[0]
        assert (row.dice, row.nsd, row.hd95_mm, row.assd_mm) == (0.0, 0.0, math.inf, math.inf)
        assert row.spurious
        assert not row.missed

    def test_surfaces_of_an_empty_mask_are_refused(self):
        with pytest.raises(GeometryError, match="not empty"):
            surface_agreement(self.empty.astype(bool), self.full().astype(bool), SPACING, 1.0)


class TestScore:
    def test_rows_follow_the_schema_and_each_organ_is_scored_alone(self):
        rng = np.random.default_rng(1)
        prediction, reference = rng.integers(0, 4, (2, 9, 8, 7)).astype(np.uint8)
        rows = score(prediction, reference, grid_of(reference), SCHEMA, organs=("aorta", "liver"))
        assert [row.organ for row in rows] == ["liver", "aorta"]
        for row, c in zip(rows, (1, 3), strict=True):
            expected = ours(prediction == c, reference == c, SPACING, 1.0)
            assert [row.dice, row.nsd, row.hd95_mm, row.assd_mm] == expected

    def test_ignored_voxels_do_not_count(self):
        reference = np.zeros((6, 6, 6), dtype=np.uint8)
        reference[1:3, 1:3, 1:3] = 1
        reference[4:] = IGNORE
        prediction = reference.copy()
        prediction[4:] = 1
        (row,) = score(prediction, reference, grid_of(reference), SCHEMA, organs="liver")
        assert (row.dice, row.nsd, row.hd95_mm) == (1.0, 1.0, 0.0)

    def test_unknown_organ(self):
        with pytest.raises(LabelError, match="unknown label 'lung'; allowed: liver, spleen, aorta"):
            score(NOTHING, NOTHING, grid_of(NOTHING), SCHEMA, organs="lung")

    def test_shapes_that_differ(self):
        with pytest.raises(GeometryError, match="differ in shape"):
            score(NOTHING, np.zeros((2, 2, 3), np.uint8), grid_of(NOTHING), SCHEMA)

    def test_a_grid_of_another_shape(self):
        with pytest.raises(GeometryError, match=r"the shape \(2, 2, 2\), their grid \(2, 2, 3\)"):
            score(NOTHING, NOTHING, Grid.from_spacing((2, 2, 3), SPACING), SCHEMA)

    @pytest.mark.parametrize("tolerance_mm", [-0.1, math.nan])
    def test_impossible_tolerance(self, tolerance_mm):
        with pytest.raises(GeometryError, match="tolerance must be 0 mm or more"):
            score(NOTHING, NOTHING, grid_of(NOTHING), SCHEMA, tolerance_mm)


FLARE_SCHEMA = LabelSchema(("aorta", "liver", "portal vein"), (5, 1, 9))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestRuleOfFlare:
    """Compared with the challenge's script, line by line; ``benchmarks/flare_metrics.py`` runs the script
    itself."""

    def by_flare(self, prediction: np.ndarray, reference: np.ndarray, grid: Grid):
        return score(prediction, reference, grid, FLARE_SCHEMA, read_tolerances("flare22"))

    @given(seed=st.integers(0, 2**32 - 1), spacing_mm=st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.5, 2.5)]))
    def test_random_shapes(self, seed, spacing_mm):
        rng = np.random.default_rng(seed)
        reference, prediction = np.zeros((2, 14, 12, 12), np.uint8)
        for c, level in ((1, 0.5), (2, 0.7)):
            drawn = np.pad(blob(rng, (14, 12, 7), 2.0, level), ((0, 0), (0, 0), (2, 3)))
            reference[drawn] = c
            prediction[np.roll(drawn, rng.integers(-2, 3, 3), axis=(0, 1, 2))] = c
        aorta, liver, _ = self.by_flare(prediction, reference, grid_of(reference, spacing_mm))
        slices = np.where(reference == 1)[2]
        if slices.size and slices.min() < slices.max():
            low, high = slices.min(), slices.max()
            cut = [labels[:, :, low:high] == 1 for labels in (prediction, reference)]
            assert [aorta.dice, aorta.nsd] == pytest.approx(theirs(*cut, spacing_mm, 2)[:2], rel=3e-7)
        if (reference == 2).any():
            whole = [labels == 2 for labels in (prediction, reference)]
            assert [liver.dice, liver.nsd] == pytest.approx(theirs(*whole, spacing_mm, 5)[:2], rel=3e-7)

    def test_in_the_order_of_any_memory(self):
        rng = np.random.default_rng(3)
        prediction, reference = (blob(rng, (9, 8, 7), 1.0, 0.6).astype(np.uint8) for _ in range(2))
        grid = grid_of(reference)
        fortran = self.by_flare(np.asfortranarray(prediction), np.asfortranarray(reference), grid)
        assert fortran[0] == self.by_flare(prediction, reference, grid)[0]

    def test_a_tube_beyond_the_reference_costs_nothing(self):
        reference, prediction = np.zeros((2, 6, 6, 10), np.uint8)
        reference[2:4, 2:4, 2:6] = 1
        prediction[2:4, 2:4] = 1
        aorta, *_ = self.by_flare(prediction, reference, grid_of(reference, (1.0, 1.0, 1.0)))
        assert (aorta.dice, aorta.nsd) == (1.0, 1.0)
        assert (aorta.volume_ml, aorta.reference_ml) == pytest.approx((0.04, 0.016))

    def test_the_highest_slice_of_the_reference_is_left_out(self):
        reference, prediction = np.zeros((2, 6, 6, 10), np.uint8)
        reference[2:4, 2:4, 2:6] = 1
        prediction[2:4, 2:4, 2:5] = 1
        aorta, *_ = self.by_flare(prediction, reference, grid_of(reference))
        assert aorta.dice == 1.0

    def test_absent_organs(self):
        """One if neither map has it, zero if one map has it; without a tolerance, no NSD."""
        aorta, liver, vein = self.by_flare(NOTHING, NOTHING, grid_of(NOTHING))
        assert (aorta.dice, aorta.nsd, liver.dice, liver.nsd) == (1.0, 1.0, 1.0, 1.0)
        assert math.isnan(vein.dice)
        found = NOTHING.copy()
        found[0, 0, 0], found[1, 1, :] = 1, 3
        for maps in ((found, NOTHING), (NOTHING, found)):
            aorta, liver, vein = self.by_flare(*maps, grid_of(NOTHING))
            assert (liver.dice, vein.dice) == (1.0, 0.0)
            assert math.isnan(vein.nsd)
        assert (self.by_flare(found, NOTHING, grid_of(NOTHING))[0].dice) == 0.0
        assert self.by_flare(found, found, grid_of(NOTHING))[2].dice == 1.0
        assert math.isnan(self.by_flare(found, found, grid_of(NOTHING))[2].nsd)

    def test_of_a_tube_on_one_slice_nothing_can_be_said(self):
        found = np.zeros((4, 4, 4), np.uint8)
        found[1, 1, 2] = 1
        for prediction in (found, np.zeros_like(found)):
            aorta, *_ = self.by_flare(prediction, found, grid_of(found))
            assert math.isnan(aorta.dice)
            assert math.isnan(aorta.nsd)


def test_the_farthest_point_is_where_one_surface_goes_astray():
    a, b = np.zeros((2, 30, 12, 10), dtype=bool)
    a[2:8, 2:8, 2:8] = b[2:8, 2:8, 2:8] = True
    a[24:27, 4, 4] = True
    found = farthest_point(a, b, (2.0, 1.0, 1.0))
    assert found.voxel == (26, 4, 4)
    assert found.distance_mm == pytest.approx(2.0 * (27 - 8))
    assert farthest_point(b, a, (2.0, 1.0, 1.0)) == found


def test_the_farthest_point_of_a_part_that_is_missing():
    a, b = np.zeros((2, 20, 20, 10), dtype=bool)
    b[2:18, 5:9, 2:6] = True
    a[2:9, 5:9, 2:6] = True
    found = farthest_point(a, b, (1.0, 1.0, 3.0))
    assert found.voxel[0] == 17
    assert b[found.voxel]
    assert found.distance_mm == pytest.approx(18 - 9)


def test_no_farthest_point_of_nothing():
    empty = np.zeros((3, 3, 3), dtype=bool)
    with pytest.raises(GeometryError):
        farthest_point(empty, ~empty, (1.0, 1.0, 1.0))
