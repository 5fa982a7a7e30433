"""Registration of one scan to another with ANTs: affine, then symmetric diffeomorphic (SyN).

ANTs (the optional extra ``atlas``) estimates the transform; ``core.resample`` resamples the voxels, as
everywhere else.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoomseg.core.errors import GeometryError, ZoomSegError
from zoomseg.core.extras import missing
from zoomseg.core.geometry import LPS_TO_RAS, FloatArray, Grid
from zoomseg.core.resample import Float32Array, sample_linear, sample_nearest
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.files import reason_of

VERSION = 1
"""Incremented whenever the registration of the same two scans changes: cached results are then outdated."""

SEED = 1
_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"

# For scans of about 80 x 80 x 110 voxels: 15 to 20 seconds on one core (see decision 0007). The finest level
# is omitted, as it takes most of the time and gains little for voxels that are already large.
_AFFINE = {
    "aff_iterations": (200, 60),
    "aff_shrink_factors": (4, 2),
    "aff_smoothing_sigmas": (2, 1),
    "aff_random_sampling_rate": 0.5,
}
_DEFORMABLE = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (60, 10, 0)}


class RegistrationError(ZoomSegError):
    """One scan could not be registered to another."""


@dataclass(frozen=True, eq=False)
class Warp:
    """The point of ``moving`` that corresponds to each voxel of ``fixed``: fractional voxel indices ``[I, J,
    K, 3]`` of the moving grid, float32.

    Raises:
        RegistrationError: they are not finite.
    """

    fixed: Grid
    moving: Grid
    coordinates: Float32Array

    def __post_init__(self) -> None:
        if tuple(self.coordinates.shape) != (*self.fixed.shape, 3):
            raise GeometryError(
                f"warp of shape {tuple(self.coordinates.shape)} for a grid of shape {self.fixed.shape}"
            )
        if not np.isfinite(self.coordinates).all():
            raise RegistrationError("no transform was found between the two scans (it is not finite)")

    def image(self, volume: Volume) -> Volume:
        """A moving image on the fixed grid, linear; beyond it its edge voxels are repeated."""
        self._check(volume.grid)
        return Volume(sample_linear(volume.data, self.coordinates), self.fixed)

    def labels(self, labels: LabelMap) -> LabelMap:
        """A moving label map on the fixed grid, nearest neighbour; background beyond it."""
        self._check(labels.grid)
        moved = sample_nearest(labels.data[None], self.coordinates, outside=0)[0]
        return LabelMap(moved, self.fixed, labels.schema)

    def _check(self, grid: Grid) -> None:
        if not self.moving.same_as(grid):
            raise GeometryError("a warp moves only what lies on the grid it was found for")


def register(fixed: Volume, moving: Volume, kind: Literal["affine", "deformable"]) -> Warp:
    """Find the positions of the voxels of ``fixed`` in ``moving``, by their first channels: mutual
    information for the affine transform, local cross-correlation for the deformation.

    Runs on one thread, independent of torch's setting: only then are results reproducible bit for bit.

    Raises:
        MissingPackageError: ANTs is not installed.
        RegistrationError: it finds no transform between these two scans.
    """
    ants = library()
    for volume, name in ((fixed, "fixed"), (moving, "moving")):
        _check_content(volume, name)
    with tempfile.TemporaryDirectory(prefix="zoomseg-register-") as folder:
        try:
            displacement = _displacement(ants, _image(ants, fixed), _image(ants, moving), kind, folder)
        except Exception as error:  # the library raises RuntimeError, ValueError and its own exceptions
            message = f"no transform was found between the two scans ({reason_of(error)})"
            raise RegistrationError(message) from error
    return Warp(fixed.grid, moving.grid, _coordinates(fixed.grid, moving.grid, displacement))


def library() -> Any:
    """ANTsPy, imported when first needed.

    Raises:
        MissingPackageError: it is not installed.
    """
    # Read once, when the library first runs a filter. There is no other setting, and with more than one
    # thread its sums, and hence its results, differ between runs.
    os.environ[_THREADS] = "1"
    try:
        import ants
    except ImportError as error:
        raise missing("ants", "an atlas prior") from error
    return ants


def _check_content(volume: Volume, name: str) -> None:
    channel = volume.data[0]
    if not bool(np.isfinite(channel).all()):
        raise RegistrationError(f"the {name} scan holds values that are not finite")
    if float(channel.min()) == float(channel.max()):
        raise RegistrationError(f"the {name} scan has the same value everywhere; nothing to register")


def _displacement(ants: Any, fixed: Any, moving: Any, kind: str, folder: str) -> FloatArray:
    """Displacement that ANTs assigns to each fixed voxel in its world ``[I, J, K, 3]``, mm."""
    ants.config.set_ants_deterministic(on=False, seed_value=SEED)  # its "on" allows only other transforms
    found = ants.registration(fixed, moving, "Affine", outprefix=f"{folder}/affine", **_AFFINE)
    transforms = found["fwdtransforms"]
    if kind == "deformable":
        found = ants.registration(
            fixed,
            moving,
            "SyNOnly",
            initial_transform=transforms,
            outprefix=f"{folder}/deformable",
            **_DEFORMABLE,
        )
        transforms = found["fwdtransforms"]
    whole = ants.apply_transforms(fixed, moving, transforms, compose=f"{folder}/whole")
    field: FloatArray = ants.image_read(str(Path(whole))).numpy().astype(np.float64)
    return field.reshape(*fixed.shape, 3)


def _image(ants: Any, volume: Volume) -> Any:
    world = _itk_world(volume.grid)
    spacing = np.array(volume.grid.spacing_mm)
    # ANTs starts from the centres of mass, which are arbitrary for a z-scored scan, whose values sum to about
    # zero. Measured from the lowest value, they are in the tissue.
    data = volume.data[0].astype(np.float32)
    return ants.from_numpy(
        np.ascontiguousarray(data - data.min(), dtype=np.float32),
        origin=world[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=world[:3, :3] / spacing,
    )


def _itk_world(grid: Grid) -> FloatArray:
    """The affine for ANTs: LPS instead of RAS, and with perpendicular axes. A sheared grid (gantry tilt) gets
    the nearest such axes, as ITK's files cannot store others; since only indices are returned
    (``_coordinates``), this adds a shear to the affine transform and no error."""
    spacing = np.array(grid.spacing_mm)
    u, _, v = np.linalg.svd(grid.affine[:3, :3] / spacing)
    world = grid.affine.copy()
    world[:3, :3] = (u @ v) * spacing
    return LPS_TO_RAS @ world


def _coordinates(fixed: Grid, moving: Grid, displacement: FloatArray) -> Float32Array:
    """Moving indices of the fixed voxels, via the worlds in which the displacement was estimated."""
    here, there = _itk_world(fixed), np.linalg.inv(_itk_world(moving))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in fixed.shape), indexing="ij"), axis=-1)
    points = index @ here[:3, :3].T + here[:3, 3] + displacement
    out: Float32Array = (points @ there[:3, :3].T + there[:3, 3]).astype(np.float32)
    return out
