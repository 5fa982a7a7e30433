"""The input of a stage: canonical orientation, region, and values."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.network_inputs import network_input
from helpers.tiny_dataset import SCHEMA, tiny_case, tiny_recipe
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.errors import MemoryLimitError, ScanError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.pipeline import stage_input
from zoomseg.recipe.spec import (
    BodyMask,
    BoxAround,
    DilatedForeground,
    FixedShape,
    FixedSpacing,
    ImageInput,
    Recipe,
    RoiSpec,
    Stage,
    WholeVolume,
    Window,
    ZScore,
)

RECIPE = tiny_recipe(together=True)
COARSE, FINE = RECIPE.stages
AFFINES = {
    "canonical": np.diag([2.0, 3.0, 4.0, 1.0]),
    "flipped": np.array([[-2.0, 0, 0, 9], [0, 3, 0, -5], [0, 0, -4, 1], [0, 0, 0, 1]]),
    "permuted": np.array([[0.0, 0, 2, 9], [-3, 0, 0, 4], [0, 4, 0, 1], [0, 0, 0, 1]]),
}


def prepared(recipe: Recipe = RECIPE) -> stage_input.PreparedScan:
    return stage_input.prepare(Case("a", *tiny_case(0)), recipe)


def coordinate(grid: Grid, axis: int) -> np.ndarray:
    """Every voxel's world coordinate (mm) along one world axis."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    return grid.world(index)[..., axis].astype(np.float32)


def coarse_prediction(scan: stage_input.PreparedScan, box: Box, c: int = 1) -> StagePrediction:
    """Probability 1 of class ``c`` in ``box`` of the coarse grid, and of background elsewhere."""
    seen = stage_input.view(COARSE, RECIPE, scan, {})
    assert seen is not None
    winner = np.zeros(seen.grid.shape, dtype=np.uint8)
    winner[box.slices] = c
    hot = np.stack([winner == c for c in range(3)]).astype(np.float32)
    return StagePrediction(hot, seen.grid, SCHEMA.names, seen.region, "coarse")


def test_labels_that_were_not_drawn_are_no_reference() -> None:
    image, labels = tiny_case(0)
    assert stage_input.prepare(Case("a", image, labels), RECIPE).annotated is None
    partly = stage_input.prepare(Case("a", image, labels, frozenset({"right kidney"})), RECIPE)
    assert partly.annotated == {"right kidney"}
    assert partly.labels is not None
    assert (labels.data == 1).any()
    assert np.array_equal(partly.labels.data, np.where(labels.data == 1, 0, labels.data))
    for drawn in (None, frozenset(SCHEMA.names)):
        whole = stage_input.prepare(Case("a", image, labels, drawn), RECIPE).labels
        assert whole is not None
        assert np.array_equal(whole.data, labels.data)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_scans_of_any_orientation_become_ras_and_labels_go_back(affine: np.ndarray) -> None:
    grid = Grid((5, 6, 7), affine)
    image = Volume(np.stack([coordinate(grid, axis) for axis in range(3)]), grid)
    classes = np.random.default_rng(0).integers(0, 3, grid.shape, dtype=np.uint8)
    scan = stage_input.prepare(Case("a", image, LabelMap(classes, grid, SCHEMA)), RECIPE)
    directions = scan.grid.affine[:3, :3]
    assert np.array_equal(directions, np.diag(np.diag(directions)))
    assert (np.diag(directions) > 0).all()
    shown = scan.image.data
    on_grid = scan.image_on(scan.grid, RECIPE.stages[0])
    for axis in range(3):
        expected = scan.normalisation.of([axis]).apply(coordinate(scan.grid, axis)[None])[0]
        assert np.array_equal(shown[axis], expected)
        assert np.array_equal(on_grid[axis], expected)
    assert scan.image.grid.same_as(scan.grid)
    assert scan.labels is not None
    back = scan.labels.reoriented(scan.orientation.inverse)
    assert back.grid.same_as(grid)
    assert np.array_equal(back.data, classes)


def test_image_is_normalised_and_raw_is_not() -> None:
    grid = Grid.from_spacing((5, 1, 1), (1.0, 1.0, 1.0))
    values = np.array([-900.0, -150.0, 25.0, 200.0, 3000.0]).reshape(1, 5, 1, 1)
    scan = stage_input.prepare(Case("a", Volume(values, grid)), RECIPE)
    assert np.array_equal(scan.raw.data, values)
    assert scan.image.data.flatten().tolist() == pytest.approx([0, 0, 0.5, 1, 1])
    assert scan.labels is None


def test_a_scan_of_air_alone_is_refused_by_a_recipe_with_a_window() -> None:
    grid = Grid.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    air = np.linspace(-1100, -950, 64).astype(np.int16).reshape(1, 4, 4, 4)
    with pytest.raises(ScanError, match=r"^no voxel of a lies inside the model's intensity window"):
        stage_input.prepare(Case("a", Volume(air, grid)), RECIPE)
    stage_input.prepare(
        Case("a", Volume(np.concatenate([air, air + 1000]), grid)), RECIPE
    )  # one channel shows something
    moments = RECIPE.model_copy(update={"intensity": ZScore()})
    stage_input.prepare(Case("a", Volume(air, grid)), moments)


def in_stage(stage: Stage, recipe: Recipe, intensity: Window | None) -> Recipe:
    """The recipe with this intensity normalisation of the stage."""
    own = stage.model_copy(update={"intensity": intensity})
    return recipe.model_copy(update={"stages": (own, *recipe.stages[1:])})


def test_a_stage_may_see_intensities_in_its_own_way() -> None:
    grid = Grid.from_spacing((4, 1, 1), (4.0, 4.0, 4.0))
    values = np.array([-150.0, 25.0, 200.0, 1000.0]).reshape(1, 4, 1, 1)
    wide = Window(lower=-1000, upper=1000, output=(-1, 1))
    recipe = in_stage(COARSE, RECIPE, wide)
    scan = stage_input.prepare(Case("a", Volume(values, grid)), recipe)
    first, second = (scan.image_on(grid, stage)[0].flatten().tolist() for stage in recipe.stages)
    assert first == pytest.approx([-0.15, 0.025, 0.2, 1])
    assert second == pytest.approx([0, 0.5, 1, 1])


def test_a_scan_that_one_stage_s_window_shows_nothing_of_is_refused() -> None:
    grid = Grid.from_spacing((2, 1, 1), (4.0, 4.0, 4.0))
    image = Volume(np.array([0.0, 100.0]).reshape(1, 2, 1, 1), grid)
    stage_input.prepare(Case("a", image), in_stage(COARSE, RECIPE, Window(lower=50, upper=90)))
    with pytest.raises(ScanError, match="inside the model's intensity window, 500 to 900"):
        stage_input.prepare(Case("a", image), in_stage(COARSE, RECIPE, Window(lower=500, upper=900)))


def test_zero_mean_subtracts_the_mean_inside_the_region() -> None:
    grid = Grid.from_spacing((4, 1, 1), (1.0, 1.0, 1.0))
    values = np.array([-500.0, 0.0, 500.0, 900.0]).reshape(1, 4, 1, 1)
    recipe = in_stage(COARSE, RECIPE, Window(lower=-500, upper=500, zero_mean=True))
    scan = stage_input.prepare(Case("a", Volume(values, grid)), recipe)
    mask = np.array([True, False, True]).reshape(3, 1, 1)
    region = Region(grid, Box((1, 0, 0), (4, 1, 1)), mask)
    seen = stage_input.StageView(recipe.stages[0], grid, region)
    # In the region lie 0 and 900 HU: 0.5 and 1.
    whole = network_input(seen, scan, {}, grid.box)
    assert whole.flatten().tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.25])
    part = network_input(seen, scan, {}, Box((2, 0, 0), (3, 1, 1)))
    assert part.flatten().tolist() == pytest.approx([0.25])


def test_a_whole_volume_is_seen_whole_on_the_stage_grid() -> None:
    seen = stage_input.view(COARSE, RECIPE, prepared(), {})
    assert seen is not None
    assert seen.grid.spacing_mm == (4.0, 4.0, 4.0)
    assert seen.grid.shape == (12, 10, 12)  # 48 x 40 x 48 mm
    assert seen.region.box == seen.grid.box
    assert seen.region.mask is None


def test_a_region_lies_around_what_the_earlier_stage_found() -> None:
    scan = prepared()
    prior = coarse_prediction(scan, Box((2, 4, 5), (4, 6, 6)))
    seen = stage_input.view(FINE, RECIPE, scan, {"coarse": prior})
    assert seen is not None
    mask = seen.region.mask_in(seen.grid.box)
    # The box holds fine voxels 4..7, 8..11, 7 (centres in 20..24 mm: index 7, 22.5 mm): dilated by 2.
    held = np.argwhere(mask)
    assert held.min(axis=0).tolist() == [2, 6, 5]
    assert held.max(axis=0).tolist() == [9, 13, 9]
    assert bool(mask[4:8, 8:12, 7].all())
    assert not bool(mask[2, 6, 5])  # a ball has no corners


@pytest.mark.parametrize(("on_missing", "looks"), [("whole_volume", True), ("empty", False)])
def test_nothing_found_means_everywhere_or_nowhere(on_missing: str, looks: bool) -> None:
    recipe = RECIPE.model_copy(update={"on_missing": on_missing})
    scan = prepared(recipe)
    seen = stage_input.view(
        FINE, recipe, scan, {"coarse": stage_input.background_prediction(COARSE, scan, SCHEMA.names)}
    )
    assert (seen is not None) == looks
    assert seen is None or seen.region.box == seen.grid.box


def test_a_fixed_shape_spans_the_box_it_looks_at() -> None:
    scan = prepared()
    prior = coarse_prediction(scan, Box((2, 4, 5), (4, 6, 6)))
    changes = {
        "roi": BoxAround(of="coarse", margin_mm=4.0),
        "grid": FixedShape(shape=(8, 8, 4), tile=(8, 8, 4)),
    }
    seen = stage_input.view(FINE.model_copy(update=changes), RECIPE, scan, {"coarse": prior})
    assert seen is not None
    assert seen.grid.shape == (8, 8, 4)
    # 8 x 8 x 4 mm, widened by 4 mm or the next scan voxel (2, 2, 3 mm) on either side.
    assert seen.grid.extent_mm == pytest.approx((16.0, 16.0, 18.0))
    corner = seen.grid.world((-0.5, -0.5, -0.5)) - scan.grid.world((-0.5, -0.5, -0.5))
    assert corner.tolist() == pytest.approx([4.0, 12.0, 12.0])
    assert seen.region.box == seen.grid.box


def test_nothing_is_background_everywhere() -> None:
    scan = prepared()
    prior = stage_input.background_prediction(COARSE, scan, SCHEMA.names)
    assert prior.grid.extent_mm == pytest.approx(scan.grid.extent_mm)
    grid = scan.grid.with_shape((3, 2, 2))
    seen = stage_input.StageView(FINE, grid, Region.whole(grid))
    data = network_input(seen, scan, {"coarse": prior}, grid.box)
    assert float(np.abs(data[1:]).max()) == 0.0


def ramp_scan() -> stage_input.PreparedScan:
    """Normalised intensity = world x, for a window that keeps values as they are."""
    window = {"kind": "window", "lower": -1000, "upper": 1000, "output": (-1000.0, 1000.0)}
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"intensity": window})
    grid = Grid.from_spacing((24, 20, 16), (2.0, 2.0, 3.0), (-24.0, -20.0, -24.0))
    return stage_input.prepare(Case("a", Volume(coordinate(grid, 0)[None], grid)), recipe)


def test_input_is_image_then_prior_at_the_same_places() -> None:
    scan = ramp_scan()
    prior = coarse_prediction(scan, Box((2, 4, 5), (4, 6, 6)), c=2)
    grid = stage_input.view(COARSE, RECIPE, scan, {}).grid  # type: ignore[union-attr]
    seen = stage_input.StageView(FINE, grid, Region.whole(grid))
    box = Box((1, 3, 4), (6, 8, 8))
    data = network_input(seen, scan, {"coarse": prior}, box)
    assert tuple(data.shape) == (3, 5, 5, 4)
    np.testing.assert_allclose(data[0], coordinate(grid.crop(box), 0), rtol=0, atol=1e-3)
    np.testing.assert_allclose(data[1:], prior.probabilities[1:, 1:6, 3:8, 4:8], rtol=1.3e-6, atol=1e-5)


def test_beyond_the_scan_its_edge_goes_on() -> None:
    scan = ramp_scan()
    stage: Stage = COARSE.model_copy(update={"inputs": (ImageInput(),)})
    seen = stage_input.StageView(stage, scan.grid, Region.whole(scan.grid))
    data = network_input(seen, scan, {}, Box((-3, 0, 0), (27, 2, 2)))[0, :, 0, 0]
    assert data[:4].tolist() == pytest.approx([-24.0] * 4)
    assert data[3:27].tolist() == pytest.approx(np.arange(-24, 24, 2).tolist())
    assert data[26:].tolist() == pytest.approx([22.0] * 4)


@pytest.mark.parametrize(
    "where", [WholeVolume(), BodyMask(), DilatedForeground(of="coarse"), BoxAround(of="coarse")]
)
def test_a_grid_that_no_machine_holds_is_refused_before_it_is_sampled(where: RoiSpec) -> None:
    """A micrometre instead of a millimetre: 1e14 voxels and more."""
    scan, fine = prepared(), RECIPE.stages[1]
    grid = FixedSpacing(mm=(0.001, 0.001, 0.001), tile=(16, 16, 12))
    stage = fine.model_copy(update={"grid": grid, "roi": where})
    priors = {"coarse": coarse_prediction(scan, Box((1, 1, 1), (5, 5, 4)))}
    with pytest.raises(MemoryLimitError, match=r"a region of .* voxels takes about .* GB of memory"):
        stage_input.view(stage, RECIPE, scan, priors)


def test_beyond_the_scan_there_may_be_zeros() -> None:
    scan = ramp_scan()
    grid = COARSE.grid.model_copy(update={"beyond": "zero"})
    stage: Stage = COARSE.model_copy(update={"inputs": (ImageInput(),), "grid": grid})
    seen = stage_input.StageView(stage, scan.grid, Region.whole(scan.grid))
    data = network_input(seen, scan, {}, Box((-3, -1, 0), (27, 2, 2)))[0]
    assert data[:, 1, 0].tolist() == pytest.approx([0.0] * 3 + np.arange(-24, 24, 2).tolist() + [0.0] * 3)
    assert not data[:, 0].any()


@pytest.mark.parametrize("name", AFFINES)
def test_scans_may_be_seen_as_they_are_stored(name: str) -> None:
    grid = Grid((4, 5, 6), AFFINES[name])
    data = np.random.default_rng(0).uniform(-100, 100, size=(1, 4, 5, 6)).astype(np.float32)
    recipe = RECIPE.model_copy(update={"orientation": "stored"})
    scan = stage_input.prepare(Case("a", Volume(data, grid)), recipe)
    assert scan.grid == grid
    assert scan.orientation.identity
    np.testing.assert_array_equal(scan.image.data, scan.normalisation.apply(data))


@pytest.mark.parametrize("name", AFFINES)
def test_scans_may_be_seen_with_axes_in_given_directions(name: str) -> None:
    grid = Grid((4, 5, 6), AFFINES[name])
    volume = Volume(coordinate(grid, 0)[None], grid)
    scan = stage_input.prepare(Case("a", volume), RECIPE.model_copy(update={"orientation": "PSL"}))
    assert scan.grid.axes == "PSL"
    expected = scan.normalisation.apply(coordinate(scan.grid, 0)[None])
    np.testing.assert_allclose(scan.image.data, expected, atol=1e-5)


def test_a_scan_may_be_cut_to_what_is_not_zero() -> None:
    case = Case("a", *tiny_case(0))
    image, labels = case.image, case.labels
    assert labels is not None
    data = np.zeros_like(image.data)
    box = Box((2, 3, 1), (9, 8, 7))
    data[(slice(None), *box.slices)] = 5
    scan = stage_input.prepare(
        Case("a", Volume(data, image.grid), labels), RECIPE.model_copy(update={"crop": "nonzero"})
    )
    assert scan.box == box
    assert scan.raw.grid == image.grid.crop(box)
    assert scan.labels is not None
    np.testing.assert_array_equal(
        scan.labels.reoriented(scan.orientation.inverse).data, labels.data[box.slices]
    )
