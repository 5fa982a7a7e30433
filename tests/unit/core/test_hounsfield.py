"""CT is recognised by its intensities, complete or clipped to a window; other units are not mistaken for
it."""

from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.hounsfield import looks_like_hounsfield

WINDOWS = [(-125, 275), (-160, 240), (-200, 300), (-1024, 1500), (-1000, 400), (-175, 250), (-500, 1300)]


def patient(noise: float = 15.0) -> np.ndarray:
    """Soft tissue with fat around it, lungs and bone inside it, in air."""
    i, j, _ = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
    radius = np.hypot(i - 20, j - 20)
    image = np.select([radius < 13, radius < 16], [50.0, -100.0], -1000.0)
    image[14:18, 14:18], image[22:25, 22:25] = -800.0, 700.0
    return image + np.random.default_rng(0).normal(0, noise, image.shape)


@pytest.mark.parametrize("noise", [5.0, 40.0])
@pytest.mark.parametrize("window", [(-4000, 4000), *WINDOWS])
def test_ct_is_known_in_every_window(window: tuple[int, int], noise: float) -> None:
    clipped = patient(noise).clip(*window)
    assert looks_like_hounsfield(clipped)
    assert looks_like_hounsfield(np.rint(clipped).astype(np.int16))
    # As BTCV stores it: 8 bit and a slope, so no whole numbers any more.
    low, high = window
    step = (high - low) / 255
    assert looks_like_hounsfield((np.rint((clipped - low) / step) * step + low).astype(np.float32))


def test_voxels_that_are_no_numbers_do_not_count() -> None:
    image = patient()
    image[:, :, 0] = np.nan
    assert looks_like_hounsfield(image)
    assert not looks_like_hounsfield(np.full((4, 4, 4), np.nan))


@pytest.mark.parametrize(
    "image",
    [
        patient() + 1024,  # cone-beam CT, or CT without its rescale intercept
        (patient().clip(-125, 275) + 125) / 400 * 255,
        (patient() - patient().mean()) / patient().std(),
        np.abs(patient()),
        np.random.default_rng(0).integers(-4096, 4096, (40, 40, 40)),  # MR phase
        np.where(
            patient() > -50, 800.0, np.random.default_rng(0).normal(0, 40, (40, 40, 40))
        ),  # MR, resampled
        np.zeros((4, 4, 4)),
    ],
    ids=["shifted", "grey values", "z-score", "magnitude", "phase", "undershoot", "constant"],
)
def test_what_is_not_ct_is_not_taken_for_it(image: np.ndarray) -> None:
    assert not looks_like_hounsfield(image)
