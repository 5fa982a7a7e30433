from __future__ import annotations

import functools
import math
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from zoomseg.core import memory
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import MemoryLimitError, RecipeError, ScanError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.resample import AxisInterpolations, resample_data
from zoomseg.core.volume import Volume
from zoomseg.pipeline import inputs
from zoomseg.pipeline.inputs import Normalisation, check_within, line
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import (
    ATLAS,
    AtlasInput,
    ImageInput,
    InputSpec,
    MinMax,
    PerChannel,
    PriorInput,
    Recipe,
    Unchanged,
    Window,
    ZScore,
)

GRID = Grid.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))


def scan(*channels: np.ndarray) -> Volume:
    return Volume(np.stack(channels), GRID)


def ramp(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 64, dtype=np.float32).reshape(4, 4, 4)


class TestNormalisation:
    def test_window_clips_and_scales_to_its_output(self) -> None:
        spec = Window(lower=-100, upper=300, output=(-1, 1))
        image = scan(np.tile([-1000.0, -100, 0, 100, 200, 300, 301, 9999], 8).reshape(4, 4, 4))
        out = inputs.normalisation(spec, image).apply(image.data).flatten()[:8]
        assert out.tolist() == pytest.approx([-1, -1, -0.5, 0, 0.5, 1, 1, 1])

    def test_window_is_the_same_for_every_scan_and_channel(self) -> None:
        spec = Window(lower=0, upper=100)
        image = scan(ramp(0, 50), ramp(0, 200))
        out = inputs.normalisation(spec, image).apply(image.data)
        assert out[0].max() == pytest.approx(0.5)
        assert out[1].max() == pytest.approx(1)

    def test_window_shows_its_inner_part_with_more_contrast(self) -> None:
        spec = Window(lower=-1000, upper=1600, output=(-1, 1), inner=(0, 100), inner_share=0.5)
        image = scan(np.tile([-2000.0, -1000, -500, 0, 50, 100, 850, 2000], 8).reshape(4, 4, 4))
        out = inputs.normalisation(spec, image).apply(image.data).flatten()[:8]
        # One of the two halves of the output for 100 HU, the other for 1000 below and 1500 above.
        assert out.tolist() == pytest.approx([-1, -1, -0.8, -0.6, -0.1, 0.4, 0.7, 1], abs=1e-6)

    def test_zscore_gives_each_channel_mean_zero_and_deviation_one(self) -> None:
        image = scan(ramp(0, 50), ramp(-7, -6))
        out = inputs.normalisation(ZScore(clip_percentiles=(0, 1)), image).apply(image.data)
        assert out.mean(axis=(1, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-4)
        assert out.std(axis=(1, 2, 3), ddof=1).tolist() == pytest.approx([1, 1], abs=1e-4)

    def test_zscore_clips_outliers_before_it_measures(self) -> None:
        data = ramp(0, 1)
        data[0, 0, 0], data[3, 3, 3] = -1e6, 1e6
        out = inputs.normalisation(ZScore(clip_percentiles=(0.05, 0.95)), scan(data)).apply(data[None])
        assert np.abs(out).max() < 3

    def test_zscore_of_a_constant_is_finite(self) -> None:
        image = scan(np.full((4, 4, 4), 7.0, dtype=np.float32))
        out = inputs.normalisation(ZScore(), image).apply(image.data)
        assert np.abs(out).max() == 0

    def test_zscore_of_a_large_scan_samples_every_slice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stride that divides the number of slices would sample only the first slice."""
        monkeypatch.setattr(inputs, "STATISTICS_VOXELS", 100)
        slices = np.broadcast_to(np.arange(20.0), (10, 10, 20))  # 2000 voxels, of which every 20th is sampled
        image = Volume(slices[None], Grid.from_spacing((10, 10, 20), (1.0, 1.0, 1.0)))
        numbers = inputs.normalisation(ZScore(clip_percentiles=(0, 1)), image)
        assert (numbers.lower, numbers.upper) == ((0.0,), (19.0,))
        assert numbers.shift[0] == pytest.approx(9.5, abs=0.5)

    def test_zscore_clips_to_the_percentiles(self) -> None:
        image = Volume(np.arange(1001.0).reshape(1, -1, 1, 1), Grid((1001, 1, 1), np.eye(4)))
        numbers = inputs.normalisation(ZScore(clip_percentiles=(0.1, 0.9)), image)
        clipped = np.arange(1001.0).clip(100, 900)
        assert (numbers.lower, numbers.upper) == ((100.0,), (900.0,))
        assert numbers.shift[0] == pytest.approx(float(clipped.mean()))
        assert numbers.scale[0] == pytest.approx(1 / float(clipped.std(ddof=1)))

    def test_integers_become_floats(self) -> None:
        image = scan(ramp(0, 100).astype(np.int16))
        out = inputs.normalisation(Window(lower=0, upper=100), image).apply(image.data)
        assert out.dtype == np.float32


class TestSelection:
    def test_image_channels_in_order(self) -> None:
        assert inputs.image_channels([ImageInput()], 3) == (0, 1, 2)
        both = [ImageInput(channel=2), PriorInput(of="coarse"), ImageInput(channel=0)]
        assert inputs.image_channels(both, 3) == (2, 0)
        assert inputs.prior_specs(both) == (PriorInput(of="coarse"),)

    def test_prior_labels_without_background(self) -> None:
        probabilities = np.broadcast_to(np.arange(4.0).reshape(4, 1, 1, 1), (4, 2, 2, 2))
        labels = ("liver", "spleen", "aorta")
        everything = inputs.select_prior(PriorInput(of="coarse"), probabilities, labels)
        assert everything[:, 0, 0, 0].tolist() == [1, 2, 3]
        some = inputs.select_prior(PriorInput(of="coarse", labels=("aorta", "liver")), probabilities, labels)
        assert some[:, 0, 0, 0].tolist() == [3, 1]

    def test_prior_selection_keeps_a_batch(self) -> None:
        probabilities = np.random.default_rng(0).random((5, 3, 2, 2, 2))
        out = inputs.select_prior(PriorInput(of="coarse", labels=("b",)), probabilities, ("a", "b"))
        assert np.array_equal(out, probabilities[:, 2:])


def seen(
    specs: Sequence[InputSpec], image: Volume, priors: Mapping[str, StagePrediction], grid: Grid
) -> np.ndarray:
    n = image.channels
    plain = Normalisation((-math.inf,) * n, (math.inf,) * n, (0.0,) * n, (1.0,) * n)
    return np.concatenate(
        [inputs.image_on(specs, image, plain, grid), *inputs.priors_on(specs, priors, grid, {})]
    )


def test_image_and_priors_come_on_the_asked_grid() -> None:
    image = scan(ramp(0, 63), np.full((4, 4, 4), 5.0, dtype=np.float32))
    coarse = GRID.downsampled((2, 2, 2))
    probabilities = np.zeros((3, *coarse.shape), dtype=np.float32)
    probabilities[0], probabilities[2] = 0.75, 0.25
    prior = StagePrediction(probabilities, coarse, ("liver", "spleen"), Region.whole(coarse), "coarse")
    specs = [ImageInput(channel=0), PriorInput(of="coarse", labels=("spleen",))]
    target = GRID.crop(Box((1, 1, 1), (3, 3, 3)))
    out = seen(specs, image, {"coarse": prior}, target)
    assert np.array_equal(out[0], image.data[0, 1:3, 1:3, 1:3])
    assert out[1].tolist() == np.full((2, 2, 2), 0.25, dtype=np.float32).tolist()
    assert out.shape == (2, 2, 2, 2)


def test_atlas_and_stages_come_in_the_order_of_the_inputs() -> None:
    def constant(source: str, *values: float) -> StagePrediction:
        probabilities = np.ones((3, *GRID.shape), np.float32) * np.reshape(values, (3, 1, 1, 1))
        return StagePrediction(
            probabilities.astype(np.float32), GRID, ("liver", "spleen"), Region.whole(GRID), source
        )

    priors = {"coarse": constant("coarse", 0.5, 0.25, 0.25), ATLAS: constant(ATLAS, 0.1, 0.6, 0.3)}
    specs = [AtlasInput(labels=("spleen",)), ImageInput(), PriorInput(of="coarse", labels=("liver",))]
    found = np.concatenate(inputs.priors_on(specs, priors, GRID, {}))
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.25])
    everything = np.concatenate(inputs.priors_on([AtlasInput(labels="all")], priors, GRID, {}))
    assert everything[:, 1, 1, 1].tolist() == pytest.approx([0.6, 0.3])
    assert inputs.image_channels(specs, 2) == (0, 1)


def test_a_prior_lies_where_it_was_computed() -> None:
    """A prior that is certain in one half of the scan: linear at the boundary, edge values outside."""
    grid = Grid.from_spacing((4, 1, 1), (4.0, 1.0, 1.0))
    spleen = np.array([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1)
    prior = StagePrediction(np.stack([1 - spleen, spleen]), grid, ("spleen",), Region.whole(grid), "coarse")
    image = Volume(np.zeros((1, 8, 1, 1), dtype=np.float32), grid.with_shape((8, 1, 1)))
    specs = [ImageInput(), PriorInput(of="coarse")]
    out = seen(specs, image, {"coarse": prior}, image.grid)
    assert out[1].flatten().tolist() == [0, 0, 0, 0.25, 0.75, 1, 1, 1]
    beyond = seen(specs, image, {"coarse": prior}, image.grid.crop(Box((6, 0, 0), (11, 1, 1))))
    assert beyond[1].flatten().tolist() == [1, 1, 1, 1, 1]


def test_gradients_pass_to_the_channels_chosen() -> None:
    probabilities = torch.full((4, 2, 2, 2), 0.25, requires_grad=True)
    chosen = inputs.select_prior(PriorInput(of="coarse", labels=("b",)), probabilities, ("a", "b", "c"))
    (gradient,) = torch.autograd.grad(chosen.sum(), probabilities)
    assert gradient.sum(dim=(1, 2, 3)).tolist() == [0, 0, 8, 0]


def test_a_plain_window_is_one_line() -> None:
    shift, scale, gain = line(-100, 300, (-1, 1), None, 0.6)
    assert gain == 0
    assert [(x - shift) * scale for x in (-100, 0, 300)] == pytest.approx([-1, -0.5, 1])


def test_the_inner_part_gets_its_share_of_the_output() -> None:
    shift, scale, gain = line(-1000, 1600, (-1, 1), (0, 100), 0.5)
    found = [(x - shift) * scale + gain * min(max(x, 0), 100) for x in (-1000, -500, 0, 50, 100, 850, 1600)]
    assert found == pytest.approx([-1, -0.8, -0.6, -0.1, 0.4, 0.7, 1])


@pytest.mark.parametrize(("lowest", "highest"), [(-1100, -900), (-1100, -125), (275, 4000), (300, 300)])
def test_a_scan_on_one_side_of_the_window_is_refused(lowest: float, highest: float) -> None:
    with pytest.raises(
        ScanError, match=rf"^no voxel of a .* -125 to 275: they run from {lowest} to {highest};"
    ):
        check_within(-125, 275, lowest, highest, "a")


@pytest.mark.parametrize(
    ("lowest", "highest"), [(-1000, -124), (274, 4000), (-125, 275), (0, 10), (-3000, 3000)]
)
def test_a_scan_of_which_the_window_shows_something_is_not(lowest: float, highest: float) -> None:
    check_within(-125, 275, lowest, highest, "a")


def test_zscore_without_percentiles_is_that_of_every_voxel() -> None:
    data = (
        np.random.default_rng(0).gamma(2.0, size=(2, 130, 100, 90)).astype(np.float32)
    )  # more than are sampled
    out = inputs.normalisation(ZScore(clip_percentiles=None), Volume(data, Grid((130, 100, 90), np.eye(4))))
    expected = (data - data.mean(axis=(1, 2, 3), keepdims=True)) / data.std(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(out.apply(data), expected, atol=1e-4)


def test_the_nonzero_box_is_of_all_channels_together() -> None:
    data = np.zeros((2, 6, 6, 6), dtype=np.float32)
    image = Volume(data, Grid((6, 6, 6), np.eye(4)))
    assert inputs.nonzero_box(image) == Box((0, 0, 0), (6, 6, 6))
    data[0, 1, 2, 3], data[1, 4, 2, 2] = 1, -1
    assert inputs.nonzero_box(image) == Box((1, 2, 2), (5, 3, 4))


def hollow(seed: int) -> np.ndarray:
    """A shell of noise around a hole of zeros, in a field of zeros."""
    data = np.zeros((9, 9, 9), dtype=np.int16)
    data[2:8, 1:8, 2:7] = np.random.default_rng(seed).integers(50, 900, size=(6, 7, 5))
    data[4:6, 3:6, 4] = 0
    return data


def shown(spec: ZScore | PerChannel, data: np.ndarray) -> np.ndarray:
    """The input of a network for a scan on its own grid."""
    image = Volume(data, Grid((9, 9, 9), np.eye(4)))
    found = inputs.image_on((ImageInput(),), image, inputs.normalisation(spec, image), image.grid)
    return np.asarray(found)


def test_within_the_nonzero_mask_moments_are_those_of_it_and_zero_is_around_it() -> None:
    """As in ``ZScoreNormalization`` with ``use_mask_for_norm``."""
    data = np.stack([hollow(0), hollow(1) * 0])
    data[1, 0, 0, 0] = 7  # not zero in one channel, so inside for all
    inside = ndimage.binary_fill_holes((data != 0).any(axis=0))
    assert 0 < inside.sum() < (data[0] != 0).sum() + 8  # the hole of six and that corner
    out = shown(ZScore(clip_percentiles=None, within="nonzero"), data)
    for own, found in zip(data.astype(np.float64), out, strict=True):
        expected = np.where(inside, (own - own[inside].mean()) / own[inside].std(), 0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (out[:, ~inside] == 0).all()


def test_nothing_inside_the_mask_is_zero() -> None:
    assert (shown(ZScore(clip_percentiles=None, within="nonzero"), np.zeros((1, 9, 9, 9))) == 0).all()


def large(side: int) -> Volume:
    """Noise within a margin of zeros, as in a file: plane by plane."""
    data = np.zeros((side, side, side, 1), dtype=np.int16).T
    inner = slice(side // 10, side - side // 10)
    shape = (len(range(side)[inner]),) * 3
    data[0, inner, inner, inner] = np.random.default_rng(0).integers(1, 1000, shape)
    return Volume(data, Grid.from_spacing((side, side, side), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize("masked", [False, True])
def test_moments_are_numpys_and_take_no_memory_of_a_scan(masked: bool) -> None:
    whole = large(80).data[0]
    for data in (whole, whole.transpose(1, 0, 2), whole[::-1, :, ::2]):
        inside = data != 0 if masked else None
        work = functools.partial(inputs._moments, data, inside, ZScore(clip_percentiles=None))
        found, taken = peak(work)
        own = (data if inside is None else data[inside]).astype(np.float64)
        assert found == pytest.approx((own.min(), own.max(), own.mean(), 1 / own.std()), rel=1e-12)
        assert taken < whole.size


@pytest.mark.parametrize("kernels", [None, ("cubic", "cubic", "cubic"), ("cubic", "cubic", "nearest")])
def test_only_the_part_that_is_read_is_filled(kernels: AxisInterpolations | None) -> None:
    image = large(60)
    numbers = inputs.normalisation(ZScore(clip_percentiles=None, within="nonzero"), image)
    whole = numbers.filled(image.data, image.grid.box)
    assert np.array_equal(numbers.inside, image.data[0] != 0)
    assert (whole[:, image.data[0] == 0] == np.float32(numbers.shift[0])).all()
    finer = image.grid.with_spacing((0.7, 0.8, 1.0))
    coarser = image.grid.downsampled((2, 2, 2))
    turned = Orientation((2, 0, 1), (True, False, True)).grid(image.grid)
    targets = [
        image.grid.crop(Box((0, 0, 0), (12, 12, 12))),
        finer.crop(Box((8, 50, 20), (30, 70, 40))),
        coarser.crop(Box((10, 10, 10), (20, 20, 20))),
        coarser.crop(Box((-5, 20, 20), (8, 36, 30))),
        turned.crop(Box((5, 20, 40), (17, 30, 50))),
    ]
    for target in targets:
        expected = resample_data(whole, image.grid, target, change=numbers.apply, kernels=kernels)
        found = inputs.image_on((ImageInput(),), image, numbers, target, kernels)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert np.abs(found).max() > 0.4
    _, taken = peak(lambda: inputs.image_on((ImageInput(),), image, numbers, targets[0], kernels))
    assert taken < image.data.size


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and the bytes of arrays that were alive at once."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_mask_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_ram", lambda: 0)
    monkeypatch.setattr(memory, "used_ram", lambda: 0)
    with pytest.raises(MemoryLimitError, match=r"^the mask of a scan of 9 x 9 x 9 voxels takes about"):
        shown(ZScore(clip_percentiles=None, within="nonzero"), hollow(0)[None])


def test_masks_take_memory_if_there_are_any() -> None:
    masked = ZScore(clip_percentiles=None, within="nonzero")
    assert inputs.masking_bytes([ZScore(), MinMax()], 2) == 0
    assert inputs.masking_bytes([ZScore(), masked], 1) == 8
    assert inputs.masking_bytes([PerChannel(channels=(MinMax(), masked, MinMax()))], 3) == 13


def test_every_channel_has_its_own_normalisation() -> None:
    """The scaling agrees with nnU-Net's five schemes."""
    rng = np.random.default_rng(2)
    data = np.stack([hollow(n) for n in range(4)]).astype(np.float32)
    data += rng.normal(size=data.shape) * (data != 0)
    spec = PerChannel(
        channels=(
            Window(lower=100, upper=500, output=(-1, 3)),
            ZScore(clip_percentiles=None, within="nonzero"),
            MinMax(),
            Unchanged(),
        )
    )
    ct, masked, rescaled, same = shown(spec, data)
    inside = ndimage.binary_fill_holes((data != 0).any(axis=0))
    np.testing.assert_allclose(ct, (data[0].clip(100, 500) - 200) / 100, atol=1e-5)
    own = data[1][inside].astype(np.float64)
    np.testing.assert_allclose(masked, np.where(inside, (data[1] - own.mean()) / own.std(), 0), atol=1e-5)
    np.testing.assert_allclose(rescaled, (data[2] - data[2].min()) / np.ptp(data[2]), atol=1e-6)
    np.testing.assert_array_equal(same, data[3])


def test_a_stage_that_sees_one_channel_normalises_that_one() -> None:
    data = np.stack([hollow(0), hollow(1)])
    image = Volume(data, Grid((9, 9, 9), np.eye(4)))
    spec = PerChannel(channels=(MinMax(), ZScore(clip_percentiles=None, within="nonzero")))
    numbers = inputs.normalisation(spec, image)
    found = inputs.image_on((ImageInput(channel=1),), image, numbers, image.grid)
    np.testing.assert_array_equal(found[0], shown(spec, data)[1])


def test_a_constant_channel_becomes_zero() -> None:
    assert (shown(PerChannel(channels=(MinMax(),)), np.full((1, 9, 9, 9), 4.0)) == 0).all()


def test_a_window_of_one_channel_that_shows_nothing_names_it() -> None:
    spec = PerChannel(channels=(Unchanged(), Window(lower=5, upper=9)))
    image = Volume(np.zeros((2, 4, 4, 4)), GRID)
    with pytest.raises(ScanError, match=r"no voxel of a, channel 1 lies inside the model's intensity window"):
        inputs.check_seen(spec, image, "a")


def test_intensities_of_other_channels_are_refused() -> None:
    recipe = load("roth2018-cascade")
    assert isinstance(recipe, Recipe)
    intensity = PerChannel(channels=(MinMax(), MinMax()))
    stages = tuple(stage.model_copy(update={"intensity": None}) for stage in recipe.stages)
    recipe = recipe.model_copy(update={"intensity": intensity, "stages": stages})
    with pytest.raises(RecipeError, match=r"intensity: of 2 channels, but scans have 1"):
        inputs.input_channels(recipe.stages[0], recipe, LabelSchema.consecutive(["liver"]), 1)


def test_the_likeness_of_scans_is_judged_by_the_first_channels_window() -> None:
    spec = PerChannel(channels=(Window(lower=5, upper=9), MinMax()))
    assert inputs.window_of(spec) == (5, 9)
    assert inputs.limits_of(spec) is None
