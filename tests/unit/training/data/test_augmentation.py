"""Random changes: drawn as data, within their limits, applied by one resampling."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from helpers.grids import rotation
from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Grid, Vector3
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.resample import sample_nearest
from zoomseg.recipe.spec import Augmentation
from zoomseg.training.data import augmentation
from zoomseg.training.data.augmentation import Elastic, Intensity, Spatial
from zoomseg.training.data.warp import sample_linear

SPACING = (2.0, 2.5, 4.0)
REACH = (40.0, 30.0, 50.0)


def patch(shape: tuple[int, int, int], first_mm: Vector3, spacing_mm: Vector3 = SPACING) -> Grid:
    return Grid.from_spacing(shape, spacing_mm, first_mm)


def axes(reach: Vector3 = REACH, count: int = 15) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Local coordinates that span ``reach`` on both sides of zero."""
    a, b, c = (torch.linspace(-r, r, count) for r in reach)
    return a, b, c


def draw(spec: Augmentation, seed: int) -> Spatial:
    return augmentation.draw_spatial(spec, SPACING, REACH, np.random.default_rng(seed))


def waves(reach: Vector3 = REACH, strength_mm: float = 5.0, seed: int = 0) -> Elastic:
    spec = Augmentation(elastic_vox=strength_mm, elastic_grid_vox=10)
    drawn = augmentation.draw_spatial(spec, (1.0, 1.0, 1.0), reach, np.random.default_rng(seed)).elastic
    assert drawn is not None
    return drawn


# --- elastic --------------------------------------------------------------------------------------


class TestElastic:
    def test_weights_are_the_cubic_b_spline_s(self) -> None:
        position = torch.linspace(-1, 8, 91)
        weights = augmentation._bspline_weights(position, 7).numpy()
        basis = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
        expected = np.nan_to_num(basis(position.numpy()[:, None] - np.arange(7)[None]))
        assert weights == pytest.approx(expected, abs=1e-6)

    def test_weights_sum_to_one_wherever_a_patch_reaches(self) -> None:
        bent = waves()
        for axis, pitch, count in zip(axes(), bent.pitch_mm, bent.displacement_mm.shape[:3], strict=True):
            weights = augmentation._bspline_weights(axis / pitch + (count - 1) / 2, count)
            assert weights.sum(dim=1).numpy() == pytest.approx(1, abs=1e-6)

    def test_equal_control_points_shift_everything_alike(self) -> None:
        lattice = np.broadcast_to(np.array([1.0, -2.0, 3.0], np.float32), (9, 9, 11, 3)).copy()
        moved = Elastic(lattice, (14.0, 14.0, 14.0)).at(axes())
        assert moved.numpy() == pytest.approx(np.broadcast_to([1.0, -2.0, 3.0], moved.shape), abs=1e-5)

    def test_a_point_moves_by_the_weighted_control_points_around_it(self) -> None:
        bent = waves()
        u = (3.7, -12.2, 21.0)
        expected = np.zeros(3)
        basis = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
        for index in np.ndindex(bent.displacement_mm.shape[:3]):
            node = [
                (n - (count - 1) / 2) * pitch
                for n, count, pitch in zip(index, bent.displacement_mm.shape, bent.pitch_mm, strict=False)
            ]
            away = [(a - b) / p for a, b, p in zip(u, node, bent.pitch_mm, strict=True)]
            weight = np.prod([float(np.nan_to_num(basis(d))) for d in away])
            expected += weight * bent.displacement_mm[index]
        moved = bent.at(tuple(torch.tensor([x]) for x in u))  # type: ignore[arg-type]
        assert moved.flatten().numpy() == pytest.approx(expected, abs=1e-5)

    def test_nothing_moves_farther_than_the_control_points(self) -> None:
        spec = Augmentation(elastic_vox=4, elastic_grid_vox=6)
        largest = np.zeros(3)
        for seed in range(5):
            bent = draw(spec, seed).elastic
            assert bent is not None
            assert bent.pitch_mm == (12.0, 15.0, 24.0)
            assert (np.abs(bent.displacement_mm) <= 4 * np.array(SPACING, np.float32)).all()
            moved = bent.at(axes()).abs()
            largest = np.maximum(largest, moved.amax(dim=(0, 1, 2)).numpy())
        assert (largest <= 4 * np.array(SPACING)).all()
        assert (largest > 1 * np.array(SPACING)).all()  # but the deformation is not zero

    def test_normal_control_points_have_the_standard_deviation_asked_for(self) -> None:
        """Roth et al. 2018, Section 3.1: "a normal distribution with a standard deviation of 4"; the released
        layer draws each component of each control point by itself."""
        spec = Augmentation(elastic_vox=4, elastic_grid_vox=4, elastic_distribution="normal")
        bent = draw(spec, 0).elastic
        assert bent is not None
        vox = (bent.displacement_mm / np.array(SPACING, np.float32)).reshape(-1, 3)
        assert len(vox) > 1000
        assert vox.std(axis=0) == pytest.approx([4, 4, 4], rel=0.1)
        assert vox.mean(axis=0) == pytest.approx([0, 0, 0], abs=0.5)
        assert (np.abs(vox) > 4).mean() == pytest.approx(0.317, abs=0.03)  # no largest displacement
        assert np.abs(np.corrcoef(vox.T)[np.triu_indices(3, 1)]).max() < 0.1


# --- one resample ---------------------------------------------------------------------------------


class TestSpatial:
    def test_nothing_changed_is_exactly_a_crop(self) -> None:
        data = torch.rand(2, 20, 18, 16, generator=torch.Generator().manual_seed(0))
        # Local zero lies at index (10, 9.5, 8): the patch spans 4..13, 6..13 and 5..10.
        grid = patch((10, 8, 6), (-6 * 2.0, -3.5 * 2.5, -3 * 4.0))
        at = Spatial.identity().coordinates(grid, SPACING, np.array([10.0, 9.5, 8.0]))
        assert torch.equal(at, at.round())
        assert torch.equal(sample_nearest(data, at), data[:, 4:14, 6:14, 5:11])
        # grid_sample scales indices to [-1, 1] and back, which costs a bit or two.
        assert sample_linear(data, at).numpy() == pytest.approx(data[:, 4:14, 6:14, 5:11], abs=1e-5)

    def test_mirroring_is_exactly_a_flip(self) -> None:
        data = torch.rand(1, 12, 10, 8, generator=torch.Generator().manual_seed(0))
        spec = Augmentation(flip_axes=("R",), probability=0)
        change = next(c for c in (draw(spec, s) for s in range(20)) if c.mirrored)
        grid = patch(data.shape[1:], (-5.5 * 2.0, -4.5 * 2.5, -3.5 * 4.0))  # type: ignore[arg-type]
        at = change.coordinates(grid, SPACING, np.array([5.5, 4.5, 3.5]))
        assert torch.equal(at, at.round())
        assert torch.equal(sample_nearest(data, at), data.flip(1))

    def test_source_points_are_pivot_plus_matrix_times_bent_point_plus_shift(self) -> None:
        bent = waves()
        matrix = 1.2 * rotation((10, -20, 30))
        change = Spatial(matrix, (3.0, -4.0, 5.0), bent, False)
        grid = patch((7, 6, 5), (-9.0, 4.0, -20.0))
        pivot = np.array([30.25, 28.0, 17.5])
        found = change.coordinates(grid, SPACING, pivot).numpy()
        for index in itertools.product((0, 3, 6), (0, 2, 5), (0, 4)):
            u = grid.world(index)
            v = u + bent.at(tuple(torch.tensor([x], dtype=torch.float32) for x in u)).flatten().numpy()  # type: ignore[arg-type]
            wanted = pivot + (matrix @ v + np.array([3.0, -4.0, 5.0])) / np.array(SPACING)
            assert found[index] == pytest.approx(wanted, abs=1e-4)

    def test_fused_equals_one_after_the_other(self) -> None:
        """Rotation and scaling, followed by deformation: two resamplings in sequence equal the fused one (on
        a ramp, which interpolation preserves, so that only the geometry is compared)."""
        source = Grid.from_spacing((60, 60, 60), (1.0, 1.0, 1.0))
        index = np.stack(np.meshgrid(*[np.arange(60.0)] * 3, indexing="ij"))
        ramp = torch.from_numpy(index.astype(np.float32))
        middle, one = np.full(3, 29.5), source.spacing_mm
        matrix = 0.9 * rotation((12, 8, -15))
        bent = waves((15.0, 15.0, 15.0), strength_mm=3.0)
        whole = patch((60, 60, 60), (-29.5, -29.5, -29.5), one)
        turned = sample_linear(
            ramp, Spatial(matrix, (2.0, 1.0, -3.0), None, False).coordinates(whole, one, middle)
        )
        small = patch((16, 16, 16), (-7.5, -7.5, -7.5), one)
        bend = Spatial(np.eye(3), (0.0, 0.0, 0.0), bent, False)
        after = sample_linear(turned, bend.coordinates(small, one, middle))
        fused = Spatial(matrix, (2.0, 1.0, -3.0), bent, False).coordinates(small, one, middle)
        assert sample_linear(ramp, fused).numpy() == pytest.approx(after.numpy(), abs=1e-3)
        assert (after - ramp[:, 22:38, 22:38, 22:38]).abs().max() > 5  # and it changes the patch

    def test_two_grids_show_the_same_point_at_the_same_place(self) -> None:
        """A coarse and a fine patch, anywhere: where a voxel of both lies at equal local coordinates,
        both show the same tissue, with the same rotation and deformation."""
        change = Spatial(1.1 * rotation((20, 5, -30)), (4.0, 2.0, -6.0), waves(), True)
        coarse, fine = (8.0, 7.5, 12.0), (2.0, 2.5, 4.0)  # coarse = 4, 3 and 3 fine voxels
        low = change.coordinates(
            patch((8, 7, 6), (-28.0, -22.5, -30.0), coarse), coarse, np.array([9.0, 8.0, 7.0])
        )
        # The same point of the scan as the coarse pivot: (index + 1/2) * spacing is shared.
        pivot = (np.array([9.0, 8.0, 7.0]) + 0.5) * np.array(coarse) / np.array(fine) - 0.5
        high = change.coordinates(patch((9, 7, 7), (-12.0, -7.5, -18.0), fine), fine, pivot)
        low_mm = (low.numpy() + 0.5) * np.array(coarse)
        high_mm = (high.numpy() + 0.5) * np.array(fine)
        # Local -12, -4, 4 (i), -7.5, 0, 7.5 (j) and -18, -6, 6 (k) are voxels of both.
        assert high_mm[::4, ::3, ::3] == pytest.approx(low_mm[2:5, 2:5, 1:4], abs=1e-3)

    def test_local_finds_where_a_point_is_shown(self) -> None:
        change = Spatial(1.3 * rotation((25, -10, 40)) @ np.diag([-1, 1, 1]), (0.0, 0.0, 0.0), None, True)
        offset = np.array([14.0, -9.0, 22.0])
        u = change.local(offset)
        grid = patch((1, 1, 1), tuple(u.tolist()))
        shown = change.coordinates(grid, SPACING, np.array([30.0, 30.0, 30.0]))
        assert shown.flatten().numpy() == pytest.approx(30 + offset / np.array(SPACING), abs=1e-4)


# --- drawing --------------------------------------------------------------------------------------


class TestDrawSpatial:
    def test_stays_within_what_the_recipe_says(self) -> None:
        spec = Augmentation(rotation_deg=(10, 0, 30), scale=(0.5, 2.0), translation_vox=5)
        angles, zooms, shifts = [], [], []
        for seed in range(300):
            change = draw(spec, seed)
            zooms.append(np.cbrt(np.linalg.det(change.matrix)))
            turn = change.matrix / zooms[-1]
            assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-9)
            angles.append(euler(turn))
            shifts.append(np.array(change.shift_mm) / np.array(SPACING))
        assert (np.abs(angles) <= np.array([10, 1e-6, 30])).all()
        assert np.abs(angles).max(axis=0) == pytest.approx([10, 0, 30], rel=0.05, abs=1e-6)
        assert (min(zooms), max(zooms)) == pytest.approx((0.5, 2), rel=0.03)
        assert min(zooms) >= 0.5
        assert max(zooms) <= 2
        assert np.mean(np.log(zooms)) == pytest.approx(0, abs=0.08)  # enlarged as often as reduced
        assert (np.abs(shifts) <= 5).all()
        assert np.abs(shifts).max(axis=0) == pytest.approx([5, 5, 5], rel=0.05)

    def test_nothing_asked_for_is_no_change(self) -> None:
        change = draw(Augmentation(), 0)
        assert np.array_equal(change.matrix, np.eye(3))
        assert (change.shift_mm, change.elastic, change.mirrored) == ((0, 0, 0), None, False)

    def test_probability_is_of_the_affine_and_the_elastic_change_each(self) -> None:
        spec = Augmentation(rotation_deg=(5, 5, 5), elastic_vox=2, probability=0.3)
        drawn = [draw(spec, seed) for seed in range(600)]
        turned = np.array([not np.array_equal(c.matrix, np.eye(3)) for c in drawn])
        bent = np.array([c.elastic is not None for c in drawn])
        assert turned.mean() == pytest.approx(0.3, abs=0.06)
        assert bent.mean() == pytest.approx(0.3, abs=0.06)
        assert (turned & bent).mean() == pytest.approx(0.09, abs=0.04)

    @pytest.mark.parametrize(("axis", "number"), [("R", 0), ("A", 1), ("S", 2)])
    def test_half_of_the_patches_are_mirrored_along_a_named_axis(self, axis: str, number: int) -> None:
        spec = Augmentation(flip_axes=(axis,), probability=0)  # type: ignore[arg-type]
        drawn = [draw(spec, seed) for seed in range(400)]
        signs = np.array([np.diag(c.matrix) for c in drawn])
        assert (signs[:, number] < 0).mean() == pytest.approx(0.5, abs=0.07)
        assert (np.delete(signs, number, axis=1) == 1).all()
        # Left and right are exchanged only by mirroring along R.
        assert [c.mirrored for c in drawn] == [axis == "R" and s < 0 for s in signs[:, number]]

    def test_equal_generators_give_equal_changes(self) -> None:
        spec = Augmentation(rotation_deg=(5, 5, 5), elastic_vox=2, flip_axes=("R", "S"))
        one, same, other = draw(spec, 1), draw(spec, 1), draw(spec, 2)
        assert np.array_equal(one.matrix, same.matrix)
        assert one.elastic is not None
        assert same.elastic is not None
        assert np.array_equal(one.elastic.displacement_mm, same.elastic.displacement_mm)
        assert not np.array_equal(one.matrix, other.matrix)


def euler(turn: np.ndarray) -> np.ndarray:
    """Angles (degrees) about R, A and S of a turn about R first, then A, then S; signs left aside."""
    a = np.arcsin(np.clip(-turn[2, 0], -1, 1))
    return np.rad2deg(np.array([np.arctan2(turn[2, 1], turn[2, 2]), a, np.arctan2(turn[1, 0], turn[0, 0])]))


# --- left and right -------------------------------------------------------------------------------

PAIRED = LabelSchema.consecutive(("left_kidney", "liver", "right_kidney", "aorta"))


def test_mirror_table_swaps_pairs_and_nothing_else() -> None:
    table = augmentation.mirror_table(PAIRED)
    assert table[:5].tolist() == [0, 3, 2, 1, 4]
    assert table[5:].tolist() == list(range(5, 256))
    assert table[IGNORE] == IGNORE
    assert np.array_equal(table[table], np.arange(256))


def test_mirroring_along_r_needs_both_sides() -> None:
    alone = LabelSchema.consecutive(("liver", "right_kidney", "left_adrenal_gland"))
    with pytest.raises(RecipeError, match=r"'right_kidney' has no symmetric counterpart .* omit R"):
        augmentation.check_flips(Augmentation(flip_axes=("S", "R")), alone, alone)
    heart = LabelSchema.consecutive(("left_atrium", "right_atrium"))
    with pytest.raises(RecipeError, match=r"'left_atrium' has no symmetric counterpart .* omit R"):
        augmentation.check_flips(Augmentation(flip_axes=("R",)), heart, heart)
    augmentation.check_flips(Augmentation(flip_axes=("S", "A")), alone, alone)
    augmentation.check_flips(Augmentation(flip_axes=("R",)), PAIRED, PAIRED)


@pytest.mark.parametrize("shown", [("RK", "LK"), ("LK",)])
def test_mirroring_along_r_is_refused_where_names_leave_a_doubt(shown: tuple[str, ...]) -> None:
    """This includes a stage that predicts only one of the two."""
    data_set, stage = (LabelSchema.consecutive(names) for names in (("RK", "LK", "liver"), shown))
    with pytest.raises(RecipeError, match=r"'LK' and 'RK' may be the left and the right one"):
        augmentation.check_flips(Augmentation(flip_axes=("R",)), stage, data_set)
    augmentation.check_flips(Augmentation(flip_axes=("S",)), stage, data_set)
    augmentation.check_flips(Augmentation(flip_axes=("R",)), LabelSchema.consecutive(["liver"]), data_set)


# --- intensity ------------------------------------------------------------------------------------

NEUTRAL = Intensity()


def picture(seed: int = 0, shape: tuple[int, ...] = (2, 16, 15, 14)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.1


class TestIntensity:
    def test_neutral_changes_nothing(self) -> None:
        assert torch.equal(augmentation.apply_intensity(picture(), NEUTRAL, None), picture())

    def test_brightness_is_in_standard_deviations_of_each_channel(self) -> None:
        image = picture() * torch.tensor([1.0, 5.0])[:, None, None, None]
        out = augmentation.apply_intensity(image, replace(NEUTRAL, brightness=0.5), None)
        spread = image.std(dim=(1, 2, 3), keepdim=True)
        assert (out - image).numpy() == pytest.approx((0.5 * spread).expand_as(image).numpy(), abs=1e-5)

    def test_contrast_keeps_the_mean(self) -> None:
        out = augmentation.apply_intensity(picture(), replace(NEUTRAL, contrast=1.4), None)
        assert out.mean(dim=(1, 2, 3)).tolist() == pytest.approx(
            picture().mean(dim=(1, 2, 3)).tolist(), abs=1e-5
        )
        assert out.std(dim=(1, 2, 3)).tolist() == pytest.approx((1.4 * picture().std(dim=(1, 2, 3))).tolist())

    def test_shift_and_scale_are_monai_s(self) -> None:
        image = torch.tensor([0.0, 0.25, 1.0]).reshape(1, 3, 1, 1)
        out = augmentation.apply_intensity(image, replace(NEUTRAL, shift=0.1, scale=1.2), None)
        assert out.flatten().tolist() == pytest.approx([0.12, 0.42, 1.32])
        spec = Augmentation(shift_intensity=0.4, scale_intensity=0.3, probability=0.5)
        drawn = [augmentation.draw_intensity(spec, np.random.default_rng(s)) for s in range(600)]
        for middle, reach, values in (
            (0, 0.4, [d.shift for d in drawn]),
            (1, 0.3, [d.scale for d in drawn]),
        ):
            assert middle - reach <= min(values) < middle - 0.95 * reach
            assert middle + 0.95 * reach < max(values) <= middle + reach
            assert np.mean([v != middle for v in values]) == pytest.approx(0.5, abs=0.06)

    def test_gamma_bends_between_the_ends(self) -> None:
        image = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 4, 1, 1)
        out = augmentation.apply_intensity(image, replace(NEUTRAL, gamma=2.0), None)
        assert out.flatten().tolist() == pytest.approx([-1, -1 + 4 / 16, -1 + 4 / 4, 3])

    def test_noise_comes_from_its_seed_and_is_as_strong_as_drawn(self) -> None:
        image = picture(shape=(1, 30, 30, 30))
        once, again, other = (
            augmentation.apply_intensity(image, replace(NEUTRAL, noise=0.2, seed=seed), None)
            for seed in (3, 3, 4)
        )
        assert torch.equal(once, again)
        assert not torch.equal(once, other)
        added = once - image
        assert float(added.std()) == pytest.approx(0.2 * float(image.std()), rel=0.03)
        assert float(added.mean()) == pytest.approx(0, abs=0.002)

    def test_blur_keeps_constants_and_the_sum_and_has_the_width_asked_for(self) -> None:
        flat = torch.full((1, 9, 9, 9), 0.7)
        assert augmentation.apply_intensity(
            flat, replace(NEUTRAL, blur_vox=1.0), None
        ).numpy() == pytest.approx(0.7)
        point = torch.zeros(1, 21, 21, 21)
        point[0, 10, 10, 10] = 1
        out = augmentation.apply_intensity(point, replace(NEUTRAL, blur_vox=1.2), None)[0]
        assert float(out.sum()) == pytest.approx(1, abs=1e-5)
        for axis in range(3):
            profile = out.sum(dim=[a for a in range(3) if a != axis])
            variance = float((profile * (torch.arange(21.0) - 10) ** 2).sum())
            assert np.sqrt(variance) == pytest.approx(1.2, rel=0.08)  # cut off at 2.5 deviations

    def test_a_window_s_range_is_kept(self) -> None:
        out = augmentation.apply_intensity(
            picture(), replace(NEUTRAL, brightness=3.0, contrast=2.0), (-1.0, 1.0)
        )
        assert float(out.max()) == 1
        assert float(out.min()) >= -1

    def test_drawn_within_what_the_recipe_says(self) -> None:
        spec = Augmentation(brightness=0.2, contrast=0.3, gamma=(0.7, 1.5), noise=0.1, blur_vox=0.9)
        drawn = [augmentation.draw_intensity(spec, np.random.default_rng(s)) for s in range(500)]
        for low, high, values in (
            (-0.2, 0.2, [d.brightness for d in drawn]),
            (0.7, 1.3, [d.contrast for d in drawn]),
            (0.7, 1.5, [d.gamma for d in drawn]),
            (0.0, 0.1, [d.noise for d in drawn]),
            (0.0, 0.9, [d.blur_vox for d in drawn]),
        ):
            assert low <= min(values) < low + 0.03 * (high - low)
            assert high - 0.03 * (high - low) < max(values) <= high
        assert len({d.seed for d in drawn}) == 500

    def test_each_change_happens_with_its_own_chance(self) -> None:
        spec = Augmentation(
            brightness=0.2, contrast=0.3, noise=0.1, gamma=(0.5, 2), blur_vox=1, probability=0.25
        )
        drawn = [augmentation.draw_intensity(spec, np.random.default_rng(s)) for s in range(800)]
        changed = np.array(
            [[d.brightness != 0, d.contrast != 1, d.noise > 0, d.gamma != 1, d.blur_vox > 0] for d in drawn]
        )
        assert changed.mean(axis=0) == pytest.approx([0.25] * 5, abs=0.05)
        assert changed.all(axis=1).mean() < 0.02

    def test_nothing_asked_for_is_neutral(self) -> None:
        drawn = augmentation.draw_intensity(Augmentation(), np.random.default_rng(0))
        assert replace(drawn, seed=0) == NEUTRAL


class TestCrop:
    GRID = Grid.from_spacing((8, 8, 8), (2.0, 2.0, 2.0), (-7.0, -7.0, -7.0))
    """A patch of 16 mm about local zero."""
    MM, PIVOT = (2.0, 2.0, 2.0), np.full(3, 3.5)

    def drawn(self, seed: int) -> augmentation.Spatial:
        spec = Augmentation(crop=(0.5, 1.5))
        return augmentation.draw_spatial(spec, self.MM, (8.0, 8.0, 8.0), np.random.default_rng(seed))

    def test_what_is_cut_out_lies_in_the_middle_and_its_edge_goes_on(self) -> None:
        for seed in range(50):
            change = self.drawn(seed)
            assert change.shown_mm is not None
            first, last = ((corner + 8) / 2 for corner in change.shown_mm)  # in voxel edges of the patch
            assert (first >= -1e-9).all()
            assert (last <= 8 + 1e-9).all()
            assert (last - first >= 4 - 1e-9).all()
            found = change.coordinates(self.GRID, self.MM, self.PIVOT).numpy()
            steps = np.arange(8) - 3.5
            for axis, along in enumerate((found[:, 0, 0, 0], found[0, :, 0, 1], found[0, 0, :, 2])):
                middle = (first[axis] + last[axis] - 1) / 2
                wanted = np.clip(middle + steps, first[axis], last[axis] - 1)
                assert along == pytest.approx(wanted, abs=1e-4)

    def test_half_of_the_axes_stay_whole(self) -> None:
        shown = [self.drawn(seed).shown_mm for seed in range(300)]
        whole = [np.isclose(s[1] - s[0], 16) for s in shown if s is not None]
        assert np.mean(whole) == pytest.approx(0.5, abs=0.06)

    def test_a_stretched_change_shows_a_part_of_the_patch(self) -> None:
        change = augmentation.Spatial.identity().stretched(np.array([1.0, 0.5, 0.25]), np.zeros(3))
        found = change.coordinates(self.GRID, self.MM, self.PIVOT).numpy()
        assert found[[0, -1], 0, 0, 0].tolist() == pytest.approx([0, 7])
        assert found[0, [0, -1], 0, 1].tolist() == pytest.approx([1.75, 5.25])
        assert found[0, 0, [0, -1], 2].tolist() == pytest.approx([2.625, 4.375])

    def test_a_stretched_change_is_moved_with_what_it_shows(self) -> None:
        """By a voxel of 2 mm; a mirrored patch shows the same part."""
        mirrored = replace(augmentation.Spatial.identity(), matrix=np.diag([1.0, -1.0, 1.0]))
        shown = (np.full(3, -8.0), np.full(3, 4.0))
        for change, ends in ((augmentation.Spatial.identity(), [2.75, 6.25]), (mirrored, [6.25, 2.75])):
            moved = replace(change, shown_mm=shown).stretched(np.array([1.0, 0.5, 1.0]), np.array([0, 2, 0]))
            assert moved.shown_mm is not None
            assert [corner.tolist() for corner in moved.shown_mm] == [[-8, -2, -8], [4, 4, 4]]
            found = replace(moved, shown_mm=None).coordinates(self.GRID, self.MM, self.PIVOT).numpy()
            assert found[0, [0, -1], 0, 1].tolist() == pytest.approx(ends)


class TestOrganBrightness:
    def test_factors_follow_from_the_name_and_lie_within_what_the_recipe_says(self) -> None:
        spec = Augmentation(organ_brightness=0.7)
        drawn = [augmentation.draw_intensity(spec, np.random.default_rng(s)) for s in range(300)]
        factors = np.stack([d.organ_factors(["liver", "spleen"]) for d in drawn])
        assert (factors[:, [0, IGNORE]] == 1).all()
        for c in (1, 2):
            assert 0.3 <= factors[:, c].min() < 0.33
            assert 1.67 < factors[:, c].max() <= 1.7
        assert abs(np.corrcoef(factors[:, 1], factors[:, 2])[0, 1]) < 0.2
        spleen = [d.organ_factors(["spleen"])[1] for d in drawn]
        assert spleen == factors[:, 2].tolist()

    def test_each_organ_changes_with_its_own_chance(self) -> None:
        spec = Augmentation(organ_brightness=0.5, probability=0.25)
        drawn = [augmentation.draw_intensity(spec, np.random.default_rng(s)) for s in range(800)]
        changed = np.stack([d.organ_factors(["a", "b"])[1:3] != 1 for d in drawn])
        assert changed.mean(axis=0) == pytest.approx([0.25] * 2, abs=0.05)
        assert changed.all(axis=1).mean() == pytest.approx(1 / 16, abs=0.03)

    def test_an_organ_is_brightened_from_the_darkest_voxel_and_softly_at_its_edge(self) -> None:
        image = torch.full((2, 9, 5, 5), 3.0)
        image[:, 0] = -1.0
        target = torch.zeros(9, 5, 5, dtype=torch.uint8)
        target[4:] = 2
        factors = np.ones(256, dtype=np.float32)
        factors[2] = 0.5
        out = augmentation.brighten_organs(image, target, factors)
        # 4 above the darkest value: halved inside; two thirds and one third of the change across the edge.
        along = [-1, 3, 3, -1 + 4 * (1 - 0.5 / 3), -1 + 4 * (1 - 1 / 3), 1, 1, 1, 1]
        assert out[1, :, 2, 2].tolist() == pytest.approx(along)


class TestShorterScan:
    def test_it_shows_what_must_be_kept_and_never_more_than_there_is(self) -> None:
        spec = Augmentation(shorter_scan=1.0)
        lengths = []
        for seed in range(400):
            rng = np.random.default_rng(seed)
            keep = rng.uniform(0, 300)
            drawn = augmentation.draw_extent(spec, 300.0, keep, rng)
            assert drawn is not None
            first, last = drawn
            assert -1e-9 <= first <= keep <= last <= 300 + 1e-9
            lengths.append((last - first) / 300)
        assert 0.15 <= min(lengths) < 0.16
        assert max(lengths) > 0.98
        # The logarithm is distributed symmetrically.
        assert np.median(lengths) == pytest.approx(np.sqrt(0.15), rel=0.1)

    def test_it_happens_with_its_chance_and_takes_no_randomness_where_it_is_not_asked_for(self) -> None:
        drawn = [
            augmentation.draw_extent(Augmentation(shorter_scan=0.3), 100.0, 50.0, np.random.default_rng(s))
            for s in range(1000)
        ]
        assert np.mean([d is not None for d in drawn]) == pytest.approx(0.3, abs=0.05)
        rng = np.random.default_rng(0)
        assert augmentation.draw_extent(Augmentation(), 100.0, 50.0, rng) is None
        assert rng.random() == np.random.default_rng(0).random()

    def test_beyond_the_cut_its_edges_go_on(self) -> None:
        coordinates = torch.zeros(2, 1, 6, 3)
        coordinates[..., 2] = torch.tensor([0.0, 1.4, 1.6, 2.0, 3.4, 3.6])
        shown, beyond = augmentation.cut_coordinates(coordinates, 2, 3)
        assert shown[1, 0, :, 2].tolist() == [2, 2, 2, 2, 3, 3]
        assert beyond[0, 0].tolist() == [True, True, False, False, False, True]
        assert float(coordinates[0, 0, 0, 2]) == 0
