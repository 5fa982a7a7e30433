"""Phantom torso CTs: synthetic patients with known labels, for the demo and for tests.

A patient is a set of implicit shapes (ellipsoids and tubes, in millimetres, RAS+ about the body's centre)
whose sizes, positions and tilts vary with the seed, with a smooth random deformation. Shapes are independent
of voxels, so one seed gives the same patient on any grid. The anatomy is only plausible: nothing learned here
may be used on patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from zoomseg.core.case import Case
from zoomseg.core.geometry import FloatArray, Grid, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import dataset_description
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.io.scans import write_array, write_labels

PHANTOM_SCHEMA = LabelSchema(
    (
        "spleen",
        "right_kidney",
        "left_kidney",
        "gallbladder",
        "liver",
        "aorta",
        "inferior_vena_cava",
        "portal_vein",
        "pancreas",
        "right_adrenal_gland",
        "left_adrenal_gland",
    ),
    # Numbered with gaps, as in data sets of which some labels were dropped.
    (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13),
    {
        "kidneys": ("right_kidney", "left_kidney"),
        "adrenal_glands": ("right_adrenal_gland", "left_adrenal_gland"),
        "vessels": ("aorta", "inferior_vena_cava", "portal_vein"),
    },
)

Size = Literal["small", "demo"]
_GRIDS: Mapping[Size, tuple[tuple[int, int, int], Vector3]] = {
    "demo": ((112, 96, 64), (3.0, 3.0, 4.0)),
    "small": ((40, 36, 28), (8.4, 8.0, 9.2)),
}

AIR, FAT, MUSCLE, WATER = -1000.0, -105.0, 58.0, 10.0
"""Hounsfield units."""
NOISE_HU = 14.0
WALL_MM = 14.0
"""Thickness of the muscles around the abdominal cavity, which contain the ribs."""


# --- shapes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ellipsoid:
    centre: Vector3
    radii: Vector3
    tilt_deg: Vector3 = (0.0, 0.0, 0.0)
    """Rotations about the x, y and z axes."""

    @property
    def low(self) -> FloatArray:
        return np.array(self.centre) - max(self.radii)

    @property
    def high(self) -> FloatArray:
        return np.array(self.centre) + max(self.radii)

    def depth(self, p: FloatArray, thinnest: float) -> FloatArray:
        """Approximate depth of points ``[3, N]`` below the surface, in mm; negative outside."""
        radii = np.maximum(self.radii, thinnest)
        q = (_rotation(self.tilt_deg).T / radii[:, None]) @ (p - _column(self.centre))
        out: FloatArray = (1.0 - np.sqrt((q * q).sum(axis=0))) * radii.min()
        return out


@dataclass(frozen=True)
class _Tube:
    """A chain of line segments with a radius at each node."""

    nodes: tuple[Vector3, ...]
    radii: tuple[float, ...]

    @property
    def low(self) -> FloatArray:
        return np.min(np.array(self.nodes) - np.array(self.radii)[:, None], axis=0)  # type: ignore[no-any-return]

    @property
    def high(self) -> FloatArray:
        return np.max(np.array(self.nodes) + np.array(self.radii)[:, None], axis=0)  # type: ignore[no-any-return]

    def depth(self, p: FloatArray, thinnest: float) -> FloatArray:
        nodes, radii = np.array(self.nodes), np.maximum(self.radii, thinnest)
        best = np.full(p.shape[1], -np.inf)
        for a, b, radius_a, radius_b in zip(nodes, nodes[1:], radii, radii[1:], strict=False):
            way, from_a = b - a, p - _column(a)
            along = np.clip(way @ from_a / (way @ way), 0.0, 1.0)
            off = from_a - along * _column(way)
            best = np.maximum(
                best, radius_a + (radius_b - radius_a) * along - np.sqrt((off * off).sum(axis=0))
            )
        return best


_Shape = _Ellipsoid | _Tube


def _column(vector: npt.ArrayLike) -> FloatArray:
    return np.asarray(vector, dtype=np.float64)[:, None]


def _world(grid: Grid, axis: int) -> FloatArray:
    """One world coordinate (mm) of every voxel centre, ``[I, J, K]``."""
    i, j, k = np.ogrid[: grid.shape[0], : grid.shape[1], : grid.shape[2]]
    a, b, c, d = grid.affine[axis]
    out: FloatArray = a * i + b * j + c * k + d
    return out


def _rotation(degrees: Vector3) -> FloatArray:
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    out: FloatArray = z @ y @ x
    return out


# --- the average patient --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Organ:
    shapes: tuple[_Shape, ...]
    hu: float
    """With contrast agent, portal venous phase."""
    texture_hu: float = 4.0
    below_diaphragm: bool = False
    """Fills the cavity up to the diaphragm and the abdominal wall, and no farther."""
    hollow: tuple[_Shape, ...] = ()
    """Removed parts: the fat of a kidney's sinus, the fissure of the liver."""


_ORGANS: Mapping[str, _Organ] = {
    "stomach": _Organ((_Ellipsoid((-52, 38, 38), (44, 32, 46), (0, 25, 0)),), 28.0, 6.0, True),
    "liver": _Organ(
        (
            _Ellipsoid((74, 0, 28), (76, 84, 70), (0, 18, 0)),
            _Ellipsoid((8, 45, 46), (66, 34, 32), (0, 14, 0)),
        ),
        105.0,
        6.0,
        True,
        (_Ellipsoid((40, -2, -22), (30, 34, 30)), _Ellipsoid((30, -48, 16), (22, 26, 36))),
    ),
    "spleen": _Organ((_Ellipsoid((-101, -28, 36), (32, 48, 54), (12, -14, 20)),), 122.0, 4.0, True),
    "right_kidney": _Organ(
        (_Ellipsoid((60, -44, -42), (31, 27, 53), (8, 12, 30)),),
        178.0,
        10.0,
        hollow=(_Ellipsoid((40, -35, -42), (14, 9, 20)),),
    ),
    "left_kidney": _Organ(
        (_Ellipsoid((-62, -44, -28), (31, 27, 55), (8, -12, -30)),),
        178.0,
        10.0,
        hollow=(_Ellipsoid((-42, -35, -28), (14, 9, 20)),),
    ),
    "gallbladder": _Organ((_Ellipsoid((52, 48, -14), (15, 17, 29), (-25, 20, 0)),), WATER, 2.0),
    "pancreas": _Organ(
        (
            _Tube(
                ((32, 4, -34), (28, 8, -12), (8, 20, 0), (-24, 16, 8), (-54, -4, 16), (-78, -22, 26)),
                (13, 15, 10, 12, 12, 9),
            ),
        ),
        92.0,
        14.0,
    ),
    "portal_vein": _Organ(
        (
            _Tube(((4, 2, -2), (24, 4, 20), (42, 6, 38), (74, -4, 46)), (7, 7.5, 7, 4.5)),
            _Tube(((42, 6, 38), (26, 26, 50), (2, 42, 54)), (6, 5, 4)),
            _Tube(((4, 2, -2), (-24, -4, 8), (-52, -16, 18), (-74, -24, 28)), (6.5, 5, 5, 4)),
        ),
        168.0,
        3.0,
    ),
    "inferior_vena_cava": _Organ(
        (
            _Tube(
                ((22, -26, -140), (23, -25, -60), (24, -22, 0), (26, -16, 50), (22, -4, 92)),
                (11, 11, 11, 12, 12),
            ),
        ),
        146.0,
        3.0,
    ),
    "aorta": _Organ(
        (
            _Tube(
                ((-9, -24, -140), (-10, -25, -60), (-9, -24, 0), (-13, -30, 60), (-20, -36, 150)),
                (8.5, 9, 10, 11, 12),
            ),
        ),
        182.0,
        3.0,
    ),
    "right_adrenal_gland": _Organ(
        (
            _Tube(((30, -36, 32), (36, -42, 22), (42, -52, 14)), (5.4, 5.4, 4.2)),
            _Tube(((36, -42, 22), (30, -54, 12)), (5.2, 4.2)),
        ),
        88.0,
        3.0,
    ),
    "left_adrenal_gland": _Organ(
        (
            _Tube(((-36, -24, 30), (-40, -34, 24), (-50, -42, 18)), (5.4, 5.4, 4.2)),
            _Tube(((-40, -34, 24), (-36, -46, 16)), (5.2, 4.2)),
        ),
        88.0,
        3.0,
    ),
}
"""Painted in this order, later over earlier; the stomach is not labelled."""

_ENHANCED_HU = 60.0
"""Brighter tissue takes up contrast agent, to an extent that varies between patients."""


# --- one patient ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Waves:
    """A smooth random field: a sum of sines, without a lattice and interpolation."""

    vectors: FloatArray
    phases: FloatArray
    amplitudes: FloatArray

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, wavelength_mm: float, deviation: float) -> _Waves:
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        lengths = wavelength_mm * rng.uniform(0.7, 1.4, size=(count, 1))
        amplitudes = rng.uniform(0.5, 1.5, size=count)
        amplitudes *= deviation * np.sqrt(2.0 / (amplitudes**2).sum())
        return cls(2 * np.pi * direction / lengths, rng.uniform(0, 2 * np.pi, size=count), amplitudes)

    def on(self, grid: Grid) -> FloatArray:
        """The field's values ``[I, J, K]`` at a grid's voxel centres."""
        i, j, k = (np.arange(n) for n in grid.shape)
        out = np.zeros(grid.shape)
        for vector, phase, amplitude in zip(self.vectors, self.phases, self.amplitudes, strict=True):
            step = vector @ grid.affine[:3, :3]
            plane = (i * step[0])[:, None] + j * step[1] + (vector @ grid.affine[:3, 3] + phase)
            # sin(a + b) = sin a cos b + cos a sin b spares a sine per voxel.
            out += np.multiply.outer(amplitude * np.sin(plane), np.cos(k * step[2]))
            out += np.multiply.outer(amplitude * np.cos(plane), np.sin(k * step[2]))
        return out


@dataclass(frozen=True, eq=False)
class _Pose:
    """The difference of one patient's organ from the average one, about the organ's centre."""

    centre: FloatArray
    shift: FloatArray
    matrix: FloatArray

    def to_average(self, p: FloatArray) -> FloatArray:
        out: FloatArray = self.matrix @ (p - _column(self.centre + self.shift)) + _column(self.centre)
        return out


@dataclass(frozen=True, eq=False)
class _Patient:
    """All random parameters of a patient, drawn before any voxel is computed."""

    half_width: float
    half_depth: float
    fat_mm: float
    diaphragm_mm: float
    contrast: float
    shift: FloatArray
    rotation: FloatArray
    warp: tuple[_Waves, _Waves, _Waves]
    bowel: _Waves
    gas: _Waves
    rib_phase_mm: float
    poses: Mapping[str, _Pose]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Patient:
        girth = rng.uniform(0.92, 1.06)
        return cls(
            half_width=154 * girth * rng.uniform(0.97, 1.03),
            half_depth=112 * girth * rng.uniform(0.97, 1.03),
            fat_mm=rng.uniform(9, 20),
            diaphragm_mm=rng.uniform(-6, 8),
            contrast=rng.uniform(0.82, 1.15),
            shift=rng.normal(size=3) * (4, 4, 6),
            rotation=_rotation((rng.normal() * 2, rng.normal() * 2, rng.normal() * 3)),
            warp=(
                _Waves.draw(rng, 4, 150, 3.5),
                _Waves.draw(rng, 4, 150, 3.5),
                _Waves.draw(rng, 4, 150, 3.5),
            ),
            bowel=_Waves.draw(rng, 14, 52, 1.0),
            gas=_Waves.draw(rng, 4, 45, 1.0),
            rib_phase_mm=rng.uniform(0, 30),
            poses={name: _draw_pose(rng, organ) for name, organ in _ORGANS.items()},
        )

    def to_average(self, grid: Grid) -> FloatArray:
        """Position of each voxel's tissue in the average patient: ``[3, I, J, K]``, mm."""
        pose = np.eye(4)
        pose[:3, :3] = self.rotation
        pose[:3, 3] = -self.rotation @ self.shift
        turned = Grid(grid.shape, pose @ grid.affine)
        return np.stack([_world(turned, axis) + self.warp[axis].on(turned) for axis in range(3)])


def _draw_pose(rng: np.random.Generator, organ: _Organ) -> _Pose:
    low = np.min([shape.low for shape in organ.shapes], axis=0)
    high = np.max([shape.high for shape in organ.shapes], axis=0)
    # Long vessels hardly rotate, as their ends are attached.
    turn_deg = min(4.0, 240.0 / float((high - low).max()))
    x, y, z = rng.normal(size=3) * turn_deg
    turn = _rotation((x, y, z))
    scale = np.exp(rng.normal() * 0.06 + rng.normal(size=3) * 0.03)
    return _Pose((low + high) / 2, rng.normal(size=3) * (2.5, 2.5, 3.5), turn / scale[:, None])


# --- painting -------------------------------------------------------------------------------------


class _Canvas:
    """The scan during painting: one entry per voxel, in the average patient's coordinates."""

    def __init__(self, patient: _Patient, grid: Grid) -> None:
        self.patient = patient
        self.p = patient.to_average(grid).reshape(3, -1)
        self.x, self.y, self.z = self.p
        self.thinnest = 0.7 * max(grid.spacing_mm)
        """Half of the minimum size of a structure visible on a coarse grid."""
        self.hu = np.full(self.x.size, AIR)
        self.texture = np.zeros(self.x.size)
        self.classes = np.zeros(self.x.size, dtype=np.uint8)
        waist = 1 - 0.04 * np.cos(np.clip(self.z, -150, 150) / 60)
        radius = np.hypot(self.x / (patient.half_width * waist), self.y / (patient.half_depth * waist))
        self.depth = np.hypot(self.x, self.y) * (1 / np.maximum(radius, 1e-6) - 1)
        """Millimetres below the skin, along the ray to the body's axis."""
        self.cavity = self.depth > patient.fat_mm + WALL_MM
        side = np.where(self.x > 0, 8.0, 0.0)
        across = ((np.abs(self.x) - 62) / 80) ** 2 + ((self.y - 12) / 92) ** 2
        self.diaphragm = 80 + side + patient.diaphragm_mm - 62 * across
        """Height (z, mm) of the diaphragm above each point of the axial plane."""

    def paint(self, where: npt.NDArray[np.generic], hu: float, texture_hu: float = 0.0) -> None:
        """``where`` is a mask or a list of voxel numbers."""
        self.hu[where] = hu
        self.texture[where] = texture_hu
        self.classes[where] = 0


def _paint_body(c: _Canvas, grid: Grid) -> None:
    fat = c.patient.fat_mm
    x = _world(grid, 0).ravel()
    under_table = -c.patient.half_depth - 10 + x * x / 2500 - _world(grid, 1).ravel()
    c.paint((under_table > 0) & (under_table < 18) & (np.abs(x) < 150), -900)
    c.paint((under_table > 0) & (under_table < 5) & (np.abs(x) < 150), 100)
    c.paint(c.depth > 0, 0)
    c.paint(c.depth > 3, FAT, 8)
    c.paint(c.depth > fat, MUSCLE, 8)
    c.paint(c.cavity, FAT, 10)
    abdomen = c.cavity & (c.depth > fat + WALL_MM + 5) & (c.y > -30) & (c.z < c.diaphragm - 20)
    bowel, gas = c.patient.bowel.on(grid).ravel(), c.patient.gas.on(grid).ravel()
    loops = abdomen & (bowel > 0.35) & (c.z < 20)
    c.paint(loops, 38, 10)
    c.paint(loops & (bowel > 1.1) & (gas > 0.2) & (c.y > 20), -800, 40)


def _paint_chest(c: _Canvas) -> None:
    lungs = c.cavity & (c.z > c.diaphragm) & (np.abs(c.x) > 14)
    c.paint(lungs, -850, 45)
    c.paint(c.cavity & (c.z > c.diaphragm) & (np.abs(c.x) <= 14), FAT, 8)
    heart = _Ellipsoid((-28, 28, 122), (58, 50, 46), (0, -20, 25)).depth(c.p, 0)
    c.paint(c.cavity & (heart > 0), 60 + 80 * c.patient.contrast, 5)
    c.paint(c.cavity & (np.abs(c.z - c.diaphragm) < 2) & (c.y > -80), MUSCLE, 4)


def _paint_skeleton(c: _Canvas) -> None:
    """Back muscles, psoas, vertebrae with discs, spinal canal, processes, ribs."""
    inner = c.depth > c.patient.fat_mm
    x, y, z = np.abs(c.x), c.y, c.z
    c.paint(inner & (np.hypot((x - 34) / 28, (y + 84) / 20) < 1), MUSCLE, 10)
    psoas = 16 + 8 * np.clip(-z / 120, -1, 1)
    c.paint((z < 10) & (np.hypot(x - 38 - 0.05 * z, y + 56) < psoas), MUSCLE, 8)
    level = np.mod(z + c.patient.rib_phase_mm, 32)
    body = np.hypot(c.x / 22, (y + 54) / 17)
    c.paint(body < 1, 85, 8)
    c.paint((body < 1) & (level > 6), 420, 30)
    c.paint((body < 0.85) & (level > 9) & (level < 29), 190, 45)
    process = (level > 8) & (level < 26)
    c.paint(process & (x < 34) & (np.abs(y + 74) < 5), 350, 40)
    c.paint(process & (x < 4.5) & (y < -74) & (y > -102), 380, 40)
    c.paint(np.hypot(c.x / 16, (y + 79) / 13) < 1, 330, 40)
    c.paint(np.hypot(c.x / 11, (y + 79) / 8) < 1, 25, 4)
    _paint_ribs(c)


def _paint_ribs(c: _Canvas) -> None:
    """Arcs in the wall that start at the spine and come down towards the front, above the costal arch."""
    angle = np.arctan2(np.abs(c.x), -c.y)
    in_wall = np.abs(c.depth - c.patient.fat_mm - 8) < 4.5
    band = np.abs(np.mod(c.z + 30 * angle + c.patient.rib_phase_mm, 30) - 15) < 5.5
    arch = -75 + 34 * np.maximum(angle - 1.2, 0) ** 2 + 10 * angle
    c.paint(in_wall & band & (c.z > arch) & (angle > 0.3) & (angle < 2.7), 420, 30)


def _paint_organ(c: _Canvas, name: str, organ: _Organ) -> None:
    pose = c.patient.poses[name]
    low = np.min([shape.low for shape in organ.shapes], axis=0) - c.thinnest
    high = np.max([shape.high for shape in organ.shapes], axis=0) + c.thinnest
    slack = 0.25 * (high - low) + 12  # more than a pose can move, enlarge or rotate an organ's box
    box = c.depth > c.patient.fat_mm
    for axis in range(3):
        box &= (c.p[axis] > low[axis] - slack[axis]) & (c.p[axis] < high[axis] + slack[axis])
    near = np.flatnonzero(box)
    p = pose.to_average(c.p[:, near])
    inside = np.max([shape.depth(p, c.thinnest) for shape in organ.shapes], axis=0) > 0
    for cut in organ.hollow:
        inside &= cut.depth(p, 0.0) < 0
    if organ.below_diaphragm:
        inside &= c.cavity[near] & (c.z[near] < c.diaphragm[near] - 3)
    where = near[inside]
    hu = organ.hu
    if hu > _ENHANCED_HU:
        hu = _ENHANCED_HU + (hu - _ENHANCED_HU) * c.patient.contrast
    c.paint(where, hu, organ.texture_hu)
    if name in PHANTOM_SCHEMA.names:
        c.classes[where] = PHANTOM_SCHEMA.class_of(name)


def _paint_stomach_gas(c: _Canvas) -> None:
    """The gas bubble at the front of the stomach of a supine patient."""
    pose = c.patient.poses["stomach"]
    x, y, z = pose.centre + pose.shift
    stomach = np.flatnonzero(c.hu == _ORGANS["stomach"].hu)
    bubble = _Ellipsoid((x, y + 12, z), (30, 14, 32)).depth(c.p[:, stomach], 0.0) > 0
    c.paint(stomach[bubble], -900, 10)


def _expose(c: _Canvas, grid: Grid, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Tissue texture, the scanner's blur, correlated noise; whole Hounsfield units."""
    sigma = 0.55
    texture = gaussian_filter(rng.normal(size=grid.shape), 1.2)
    scan = (c.hu + c.texture * (texture / texture.std()).ravel()).reshape(grid.shape)
    noise = gaussian_filter(rng.normal(size=grid.shape), (0.7, 0.7, 0.4))
    scan = gaussian_filter(scan, sigma) + noise * (NOISE_HU / noise.std())
    out: npt.NDArray[np.int16] = np.clip(np.rint(scan), -1024, 3071).astype(np.int16)
    return out


# --- cases ----------------------------------------------------------------------------------------


def phantom_grid(size: Size) -> Grid:
    """The torso, about 340 x 290 x 256 mm, centred on the origin."""
    shape, spacing = _GRIDS[size]
    x, y, z = (-(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True))
    return Grid.from_spacing(shape, spacing, (x, y, z))


def phantom_case(seed: int, size: Size | Grid = "demo") -> Case:
    """A patient's CT (HU, one channel) with labels of ``PHANTOM_SCHEMA``.

    The same seed gives the same patient on every grid, and the same voxels on every machine.
    Structures thinner than 1.4 voxels are thickened to that, so that a coarse grid has all labels.
    """
    grid = size if isinstance(size, Grid) else phantom_grid(size)
    anatomy, voxels = np.random.SeedSequence(seed).spawn(2)
    canvas = _Canvas(_Patient.draw(np.random.Generator(np.random.PCG64(anatomy))), grid)
    _paint_body(canvas, grid)
    _paint_chest(canvas)
    soft = [name for name in _ORGANS if name not in PHANTOM_SCHEMA.groups["vessels"]]
    for name in soft:
        _paint_organ(canvas, name, _ORGANS[name])
    _paint_stomach_gas(canvas)
    _paint_skeleton(canvas)
    for name in PHANTOM_SCHEMA.groups["vessels"]:
        _paint_organ(canvas, name, _ORGANS[name])
    scan = _expose(canvas, grid, np.random.Generator(np.random.PCG64(voxels)))
    labels = LabelMap(canvas.classes.reshape(grid.shape), grid, PHANTOM_SCHEMA)
    return Case(f"phantom_{seed:04d}", Volume(scan[None].astype(np.float32, copy=False), grid), labels)


def write_phantom_dataset(
    path: Path,
    cases: int,
    seed: int = 0,
    size: Size | Grid = "demo",
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write phantoms ``seed .. seed + cases - 1`` as a data set in nnU-Net raw layout (int16 NIfTI).

    ``on_progress`` is called with (cases written, total cases). ``dataset.json`` comes last: without it the
    folder is not a data set.

    Raises:
        OutputError: no permission, full disk.
    """
    images, labels = writable_directory(path / "imagesTr"), writable_directory(path / "labelsTr")
    for done in range(cases):
        if on_progress is not None:
            on_progress(done, cases)
        case = phantom_case(seed + done, size)
        assert case.labels is not None
        write_array(images / f"{case.id}_0000.nii.gz", case.image.data[0].astype(np.int16), case.image.grid)
        write_labels(labels / f"{case.id}.nii.gz", case.labels)
    if on_progress is not None:
        on_progress(cases, cases)
    write_text_atomic(path / "dataset.json", json.dumps(_description(cases), indent=1))


def _description(cases: int) -> dict[str, object]:
    text = "Synthetic patients, for testing software; not for research or clinical use."
    written = dataset_description("Phantom torso CT", ("CT",), PHANTOM_SCHEMA, cases)
    return written | {"description": text}
