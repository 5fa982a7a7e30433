import functools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from zoomseg.atlas import fuse as module
from zoomseg.atlas.fuse import context_offsets, fuse, window
from zoomseg.core.errors import GeometryError
from zoomseg.recipe.spec import IntensityFusion, MajorityFusion, PatchFusion

KINDS = (MajorityFusion(), IntensityFusion(), PatchFusion())
SHAPE = (5, 4, 3)


def atlases(n: int = 3, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A random scan, and atlases that resemble it."""
    random = torch.Generator().manual_seed(seed)
    scan = torch.rand(SHAPE, generator=random)
    images = scan + 0.4 * torch.rand((n, *SHAPE), generator=random)
    labels = torch.randint(0, classes, (n, *SHAPE), generator=random, dtype=torch.uint8)
    return scan, images, labels


# --- a reference implementation of the definition, voxel by voxel ----------------------------------

Index = tuple[int, int, int]


def plus(a: Index, b: Index) -> Index:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def at(volume: npt.NDArray[np.float64], x: Index) -> float:
    """Outside the volume, its edge values are repeated."""
    i, j, k = (min(max(a, 0), n - 1) for a, n in zip(x, SHAPE, strict=True))
    return float(volume[i, j, k])


class Naive:
    """One volume's features."""

    def __init__(self, volume: Tensor) -> None:
        self.volume = volume.double().numpy()
        self.mean = np.zeros(SHAPE)
        self.gradient = np.zeros((3, *SHAPE))
        for x in np.ndindex(SHAPE):
            self.mean[x] = sum(at(self.volume, plus(x, p)) for p in window(1)) / 27
            for axis, step in enumerate(((1, 0, 0), (0, 1, 0), (0, 0, 1))):
                back = (-step[0], -step[1], -step[2])
                self.gradient[axis][x] = (at(self.volume, plus(x, step)) - at(self.volume, plus(x, back))) / 2
        self.gradient /= np.maximum(np.sqrt((self.gradient**2).sum(axis=0)), 1e-6)

    def features(self, x: Index, patch_radius: int) -> list[float]:
        """Intensities and unit gradients of the patch, then the surroundings' means minus the centre."""
        patch = [plus(x, p) for p in window(patch_radius)]
        out = [at(volume, y) for volume in (self.volume, *self.gradient) for y in patch]
        return out + [at(self.mean, plus(x, o)) - at(self.volume, x) for o in context_offsets()]


def naive_patch_fusion(
    spec: PatchFusion, scan: Tensor, images: Tensor, labels: Tensor, classes: int
) -> Tensor:
    out = torch.zeros(classes, *SHAPE)
    target, atlases = Naive(scan), [Naive(image) for image in images]
    features = functools.cache(lambda n, y: atlases[n].features(y, spec.patch_radius_vox))
    for x in np.ndindex(SHAPE):
        candidates = [(n, plus(x, s)) for n in range(len(atlases)) for s in window(spec.search_radius_vox)]
        offered = np.array([features(n, y) for n, y in candidates])
        span = offered.max(axis=0) - offered.min(axis=0)
        scale = np.where(span > 1e-6, np.maximum(span, 1e-6) ** -2, 0.0)
        wanted = np.array(target.features(x, spec.patch_radius_vox))
        distance = ((offered - wanted) ** 2 * scale).sum(axis=1)
        weight = np.exp(-distance / (distance.min() + 1e-6))
        for (n, y), w in zip(candidates, weight / weight.sum(), strict=True):
            out[(int(at(labels[n].double().numpy(), y)), *x)] += w
    return out


# --- tests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("radius", "search"), [(1, 1), (0, 1), (1, 0)])
def test_patch_fusion_is_its_definition(radius: int, search: int) -> None:
    spec = PatchFusion(patch_radius_vox=radius, search_radius_vox=search)
    scan, images, labels = atlases(2)
    expected = naive_patch_fusion(spec, scan, images, labels, 4)
    assert torch.allclose(fuse(spec, scan, images, labels, 4), expected, atol=1e-5)


def test_patch_fusion_in_slabs_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, images, labels = atlases()
    whole = fuse(PatchFusion(), scan, images, labels, 4)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert torch.allclose(fuse(PatchFusion(), scan, images, labels, 4), whole, atol=1e-6)


@pytest.mark.parametrize("spec", KINDS, ids=lambda s: s.kind)
def test_probabilities_sum_to_one(spec: MajorityFusion | IntensityFusion | PatchFusion) -> None:
    scan, images, labels = atlases()
    found = fuse(spec, scan, images, labels, 6)
    assert found.shape == (6, *SHAPE)
    assert found.min() >= 0
    assert torch.allclose(found.sum(dim=0), torch.ones(SHAPE), atol=1e-6)
    assert found[4:].max() == 0  # no atlas has these classes


@pytest.mark.parametrize("spec", KINDS[:2], ids=lambda s: s.kind)
def test_identical_atlases_give_their_labels(spec: MajorityFusion | IntensityFusion) -> None:
    scan, images, labels = atlases(1)
    found = fuse(spec, scan, images.repeat(3, 1, 1, 1), labels.repeat(3, 1, 1, 1), 4)
    assert np.array_equal(found.argmax(dim=0).to(torch.uint8), labels[0])
    assert torch.allclose(found.amax(dim=0), torch.ones(SHAPE))


def test_atlases_that_are_the_scan_give_their_labels() -> None:
    # Search windows contain other labels, too, but the patch that equals the scan's dominates the weights.
    scan, _, labels = atlases(1)
    found = fuse(PatchFusion(), scan, scan.repeat(3, 1, 1, 1), labels.repeat(3, 1, 1, 1), 4)
    assert np.array_equal(found.argmax(dim=0).to(torch.uint8), labels[0])
    assert found.amax(dim=0).min() > 0.999


def test_majority_is_a_count() -> None:
    labels = torch.zeros(4, *SHAPE, dtype=torch.uint8)
    labels[:3, 1, 1, 1] = torch.tensor([2, 2, 1], dtype=torch.uint8)
    labels[:2, 0, 3, 2] = 1
    found = fuse(MajorityFusion(), torch.zeros(SHAPE), torch.rand(4, *SHAPE), labels, 3)
    assert found[:, 1, 1, 1].tolist() == [0.25, 0.25, 0.5]
    assert found[:, 0, 3, 2].tolist() == [0.5, 0.5, 0.0]
    assert found[:, 2, 2, 2].tolist() == [1.0, 0.0, 0.0]


def test_intensity_weights_by_hand() -> None:
    # Differences 0.1 and 0.2: d = 0.01 and 0.04, h = 0.01 + 1e-6.
    scan = torch.zeros(SHAPE)
    images = torch.stack([torch.full(SHAPE, 0.1), torch.full(SHAPE, 0.2)])
    labels = torch.stack([torch.full(SHAPE, 1), torch.full(SHAPE, 2)]).to(torch.uint8)
    found = fuse(IntensityFusion(), scan, images, labels, 3)
    near, far = math.exp(-0.01 / 0.010001), math.exp(-0.04 / 0.010001)
    assert found[1, 2, 2, 2].item() == pytest.approx(near / (near + far), abs=1e-5)
    assert found[2, 2, 2, 2].item() == pytest.approx(far / (near + far), abs=1e-5)


def test_intensity_patch_is_a_cube_of_the_radius() -> None:
    # One voxel of atlas 0 differs: its weight is lower exactly at voxels within a distance of one.
    images = torch.zeros(2, *SHAPE)
    images[0, 2, 1, 1] = 1.0
    images[1] = 0.01
    labels = torch.stack([torch.full(SHAPE, 1), torch.full(SHAPE, 2)]).to(torch.uint8)
    found = fuse(IntensityFusion(patch_radius_vox=1), torch.zeros(SHAPE), images, labels, 3)
    trusts_second = found[2] > found[1]
    expected = torch.zeros(SHAPE, dtype=torch.bool)
    expected[1:4, 0:3, 0:3] = True
    assert torch.equal(trusts_second, expected)


def step(at_i: int, size: int = 12) -> Tensor:
    volume = torch.zeros(size, 8, 8)
    volume[at_i:] = 1.0
    return volume


def test_patch_fusion_prefers_the_atlas_that_matches() -> None:
    scan = step(6)
    images = torch.stack([step(6), step(9), step(9)])
    labels = torch.stack([step(6), step(9), step(9)]).to(torch.uint8)
    assert np.array_equal(fuse(PatchFusion(), scan, images, labels, 2).argmax(dim=0).float(), scan)
    majority = fuse(MajorityFusion(), scan, images, labels, 2).argmax(dim=0).float()
    assert torch.equal(majority, step(9))


def test_search_window_finds_a_label_shifted_by_one_voxel() -> None:
    random = torch.Generator().manual_seed(3)
    scan = torch.rand(12, 10, 10, generator=random)
    truth = (scan > 0.5).to(torch.uint8)
    image, labels = scan.roll(1, dims=0)[None], truth.roll(1, dims=0)[None]
    inner = (slice(2, -2),) * 3

    def right(search: int) -> float:
        found = fuse(PatchFusion(search_radius_vox=search), scan, image, labels, 2).argmax(dim=0)
        return float((found == truth)[inner].float().mean())

    assert right(1) == 1.0
    assert right(0) < 0.7


def test_contrast_of_the_surroundings_tells_equal_patches_apart() -> None:
    # Both atlases look alike around the middle; only one has the scan's bright rim four voxels away.
    scan, other = torch.zeros(13, 13, 13), torch.zeros(13, 13, 13)
    scan[10] = 1.0
    other[2] = 1.0
    labels = torch.stack([torch.full(scan.shape, 1), torch.full(scan.shape, 2)]).to(torch.uint8)
    found = fuse(PatchFusion(search_radius_vox=0), scan, torch.stack([scan, other]), labels, 3)
    assert found[1, 6, 6, 6] > 0.99


def test_what_cannot_be_fused_is_refused() -> None:
    scan, images, labels = atlases()
    with pytest.raises(GeometryError, match="N > 0"):
        fuse(MajorityFusion(), scan, images[:0], labels[:0], 4)
    with pytest.raises(GeometryError, match=r"for a scan of \(5, 4, 2\)"):
        fuse(MajorityFusion(), scan[..., :2], images, labels, 4)
    with pytest.raises(GeometryError, match="holds class 3, but there are 3 classes"):
        fuse(MajorityFusion(), scan, images, labels.clamp_max(3), 3)
