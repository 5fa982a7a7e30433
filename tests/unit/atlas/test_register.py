import builtins
import math
from typing import Literal

import numpy as np
import pytest

from zoomseg.atlas.register import RegistrationError, Warp, register
from zoomseg.core.errors import GeometryError, ZoomSegError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.resample import resample_labels
from zoomseg.core.volume import LabelMap, Volume

SCHEMA = LabelSchema.consecutive(("body", "ball", "rod"))


def turn(degrees: float, axis: int) -> FloatArray:
    a, b = [x for x in range(3) if x != axis]
    out = np.eye(4)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    out[a, a], out[b, b], out[a, b], out[b, a] = c, c, -s, s
    return out


def grid(shape: tuple[int, int, int], oblique: bool, spacing: tuple[float, float, float] = (4, 4, 5)) -> Grid:
    """A grid centred on the origin of the world; rotated by 25 and 15 degrees if oblique."""
    affine = np.diag([*spacing, 1.0])
    if oblique:
        affine = turn(25, 2) @ turn(15, 0) @ affine
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def phantom(on: Grid, moved_by: FloatArray | None = None, bump_mm: float = 0.0) -> tuple[Volume, LabelMap]:
    """A body with a ball and a rod in it, asymmetric, ``moved_by`` (4x4, mm) in the world."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in on.shape), indexing="ij"), axis=-1)
    world = on.world(index)
    if moved_by is not None:
        world = (world - moved_by[:3, 3]) @ moved_by[:3, :3]  # the inverse of a rotation, then shift
    world = world + bump_mm * np.sin(world[..., [1, 2, 0]] / 25.0)
    x, y, z = world[..., 0], world[..., 1], world[..., 2]
    body = (x / 60) ** 2 + (y / 45) ** 2 + (z / 65) ** 2 < 1
    ball = (x - 25) ** 2 + (y - 5) ** 2 + (z - 15) ** 2 < 17**2
    rod = ((x + 25) ** 2 + (y + 10) ** 2 < 10**2) & (z > -35) & (z < 25)
    labels = np.where(ball, 2, np.where(rod, 3, np.where(body, 1, 0))).astype(np.uint8)
    # Smooth texture that belongs to the patient, so that movement of the interior is detected, too.
    texture = 0.15 * np.sin(x / 12) * np.sin(y / 14 + 1) * np.sin(z / 13 + 2) * body
    image = np.array([0.0, 0.4, 0.8, 0.65])[labels] + texture
    return Volume(image.astype(np.float32)[None], on), LabelMap(labels, on, SCHEMA)


def dice(a: LabelMap, b: LabelMap) -> list[float]:
    out = []
    for c in range(1, 4):
        x, y = a.data == c, b.data == c
        out.append(float(2 * (x & y).sum() / (x.sum() + y.sum())))
    return out


KINDS: tuple[Literal["affine", "deformable"], ...] = ("affine", "deformable")
FIXED = grid((34, 30, 32), oblique=False)
MOVING = grid((36, 34, 30), oblique=True, spacing=(4, 4.2, 5))
MOTION = turn(10, 2) @ turn(-6, 1)
MOTION[:3, 3] = (14.0, -10.0, 12.0)


@pytest.fixture(scope="module")
def affine() -> Warp:
    return register(phantom(FIXED)[0], phantom(MOVING, MOTION)[0], "affine")


def errors_mm(warp: Warp, bump_mm: float = 0.0) -> FloatArray:
    """Distances of the body's voxels from their correct positions."""
    inner = phantom(FIXED, bump_mm=bump_mm)[1].data > 0
    here = FIXED.world(np.argwhere(inner))
    here = here + bump_mm * np.sin(here[:, [1, 2, 0]] / 25.0)
    expected = here @ MOTION[:3, :3].T + MOTION[:3, 3]
    out: FloatArray = np.linalg.norm(warp.moving.world(warp.coordinates)[inner] - expected, axis=-1)
    return out


def test_recovers_a_known_motion_of_an_oblique_scan(affine: Warp) -> None:
    here = FIXED.world(np.argwhere(phantom(FIXED)[1].data > 0))
    moved_mm = np.linalg.norm(here @ MOTION[:3, :3].T + MOTION[:3, 3] - here, axis=-1)
    assert moved_mm.mean() > 20
    assert errors_mm(affine).mean() < 1.0
    assert errors_mm(affine).max() < 2.5


def test_moves_image_and_labels_onto_the_fixed_grid(affine: Warp) -> None:
    image, labels = phantom(FIXED)
    moving_image, moving_labels = phantom(MOVING, MOTION)
    unmoved = resample_labels(moving_labels, FIXED)
    moved = affine.labels(moving_labels)
    assert moved.grid == FIXED
    assert moved.schema == SCHEMA
    assert max(dice(unmoved, labels)[1:]) < 0.4
    assert min(dice(moved, labels)) > 0.88  # a ball of eight voxels across, nearest neighbour
    assert float(np.abs(affine.image(moving_image).data - image.data).mean()) < 0.02


def test_scans_of_mean_zero_are_registered_as_well() -> None:
    """Z-scored scans have arbitrary centres of mass: registration must not start from there."""
    (fixed, _), (moving, _) = phantom(FIXED), phantom(MOVING, MOTION)
    scored = [Volume((v.data - v.data.mean()) / v.data.std(), v.grid) for v in (fixed, moving)]
    found = register(scored[0], scored[1], "affine")
    assert errors_mm(found).mean() < 2.0  # half a voxel; each scan's own scale moves the histograms a little
    assert errors_mm(found).max() < 4.0


def test_deformable_follows_a_deformation_that_affine_cannot() -> None:
    image, labels = phantom(FIXED, bump_mm=14.0)
    moving_image, moving_labels = phantom(MOVING, MOTION)
    straight, bent = (register(image, moving_image, kind) for kind in KINDS)
    before, after = dice(straight.labels(moving_labels), labels), dice(bent.labels(moving_labels), labels)
    assert np.mean(after) > np.mean(before) + 0.06
    assert min(after) > 0.85
    assert errors_mm(bent, bump_mm=14.0).mean() < 0.8 * errors_mm(straight, bump_mm=14.0).mean()


def test_two_runs_agree_to_the_last_bit() -> None:
    image, moving = phantom(FIXED, bump_mm=9.0)[0], phantom(MOVING, MOTION)[0]
    one, other = (register(image, moving, "deformable").coordinates for _ in range(2))
    assert np.array_equal(one, other)


def test_sheared_grids_stay_right() -> None:
    affine = FIXED.affine.copy()
    affine[1, 2] = 1.2  # gantry tilt: each slice a little further back
    sheared = Grid(FIXED.shape, affine)
    labels = phantom(FIXED)[1]
    image, moving = phantom(sheared)
    assert min(dice(register(phantom(FIXED)[0], image, "affine").labels(moving), labels)) > 0.88


def test_beyond_the_moving_scan_is_background() -> None:
    coordinates = np.stack(np.meshgrid(*(np.arange(4, dtype=np.float32),) * 3, indexing="ij"), axis=-1) + 2
    cube = Grid.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    warp = Warp(cube, cube, coordinates)
    labels = LabelMap(np.full((4, 4, 4), 2, dtype=np.uint8), cube, SCHEMA)
    moved = warp.labels(labels).data
    assert np.unique(moved[:2, :2, :2]).tolist() == [2]
    assert np.unique(moved[2:]).tolist() == [0]
    assert np.unique(moved[:, 2:]).tolist() == [0]
    ramp = Volume(np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], (1, 4, 4, 4)), cube)
    assert warp.image(ramp).data[0, :, 0, 0].tolist() == [2, 3, 3, 3]  # edge values are repeated


def test_warp_moves_only_its_own_grid(affine: Warp) -> None:
    with pytest.raises(GeometryError, match="grid it was found for"):
        affine.image(phantom(FIXED)[0])
    with pytest.raises(GeometryError, match="warp of shape"):
        Warp(FIXED, MOVING, affine.coordinates[1:])


def test_scans_without_content_are_refused() -> None:
    image = phantom(FIXED)[0]
    with pytest.raises(RegistrationError, match="moving scan has the same value everywhere"):
        register(image, Volume(np.zeros((1, *MOVING.shape), dtype=np.float32), MOVING), "affine")
    broken = image.data.copy()
    broken[0, 3, 3, 3] = math.nan
    with pytest.raises(RegistrationError, match="fixed scan holds values that are not finite"):
        register(Volume(broken, FIXED), image, "affine")


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_ants(name: str, *args: object, **kwargs: object) -> object:
        if name == "ants":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_ants)
    image = phantom(FIXED)[0]
    with pytest.raises(ZoomSegError, match=r"pip install '\.\[atlas\]' in a clone"):
        register(image, image, "affine")
