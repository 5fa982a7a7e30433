"""``augment``: random parameters are drawn first, as data, then applied identically to every stage's image,
labels, region and priors.

A patch is defined in local coordinates: millimetres along the scan's voxel axes, zero at the pivot (the
centre of the largest patch). The spatial change maps local to scan coordinates; each stage converts it to
source indices for ONE resampling that combines crop, rotation, scaling, mirroring and elastic deformation.

Shapes: C channels, I J K voxels of the patch, A B D control points.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import FloatArray, Grid, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.recipe.spec import Augmentation

CPU = torch.device("cpu")
_AXES = {"R": 0, "A": 1, "S": 2}
MIN_SCAN_SHARE = 0.15
"""Minimum share of a scan's height that remains when it is truncated."""


@dataclass(frozen=True, eq=False)
class Elastic:
    """Displacements ``[A, B, D, 3]`` (mm) of a cubic B-spline's control points, ``pitch_mm`` apart,
    the lattice centred on local zero. Roth et al. 2018, Sections 2.3 and 3.1."""

    displacement_mm: npt.NDArray[np.float32]
    pitch_mm: Vector3

    def at(self, axes_mm: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Displacement ``[I, J, K, 3]`` at the lattice of local coordinates ``axes_mm``, on their device."""
        out = torch.from_numpy(self.displacement_mm).to(axes_mm[0].device)
        weights = [
            _bspline_weights(axis / pitch + (n - 1) / 2, n)
            for axis, pitch, n in zip(axes_mm, self.pitch_mm, out.shape[:3], strict=True)
        ]
        return torch.einsum("abdx,ia,jb,kd->ijkx", out, *weights)


def _bspline_weights(position: Tensor, count: int) -> Tensor:
    """Cubic B-spline weights ``[n, count]`` of control points 0..count-1 at fractional positions."""
    distance = (position[:, None] - torch.arange(count, dtype=torch.float32, device=position.device)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


@dataclass(frozen=True, eq=False)
class Spatial:
    """Local point u (mm) comes from scan point ``pivot + matrix @ (u + elastic(u)) + shift``."""

    matrix: FloatArray
    shift_mm: Vector3
    elastic: Elastic | None
    mirrored: bool
    """Whether left and right are swapped, so that paired names must be swapped, too."""
    shown_mm: tuple[FloatArray, FloatArray] | None = None
    """First and last corner of the visible part of the scan, relative to the pivot: beyond, its edge is
    repeated. None: the whole scan."""

    @classmethod
    def identity(cls) -> Spatial:
        return cls(np.eye(3), (0.0, 0.0, 0.0), None, False)

    def coordinates(
        self, patch: Grid, spacing_mm: Vector3, pivot: FloatArray, device: torch.device = CPU
    ) -> Tensor:
        """Source indices ``[I, J, K, 3]`` of every voxel of a patch.

        Args:
            patch: the patch's grid in local coordinates (axis-aligned).
            spacing_mm: spacing of the source grid.
            pivot: fractional source index of local zero.
            device: the device on which they are computed.
        """
        axes = cast(
            "tuple[Tensor, Tensor, Tensor]",
            tuple(
                torch.arange(n, dtype=torch.float32, device=device) * float(patch.affine[a, a])
                + float(patch.affine[a, 3])
                for a, n in enumerate(patch.shape)
            ),
        )
        per_mm = 1 / np.array(spacing_mm)
        start = np.asarray(pivot) + np.array(self.shift_mm) * per_mm
        matrix = torch.from_numpy((self.matrix * per_mm[:, None]).astype(np.float32)).to(device)
        offset = torch.from_numpy(start.astype(np.float32)).to(device)
        out = offset + axes[0][:, None, None, None] * matrix[:, 0]
        out = out + axes[1][None, :, None, None] * matrix[:, 1]
        out = out + axes[2][None, None, :, None] * matrix[:, 2]
        if self.elastic is not None:
            out = out + self.elastic.at(axes) @ matrix.T
        if self.shown_mm is None:
            return out
        first, last = (np.asarray(pivot) + corner * per_mm for corner in self.shown_mm)
        low, high = (torch.from_numpy(v.astype(np.float32)).to(device) for v in (first + 0.5, last - 0.5))
        return out.clamp(torch.minimum(low, high), torch.maximum(low, high))

    def stretched(self, shares: FloatArray, moved_mm: FloatArray) -> Spatial:
        """The change for a scan whose axes are longer by ``1 / shares`` about the pivot, and which is moved:
        a patch shows that part of the previous extent, ``moved_mm`` from the previous middle."""
        shift = cast("Vector3", tuple((np.array(self.shift_mm) * shares + moved_mm).tolist()))
        shown = self.shown_mm
        if shown is not None:
            shown = (shown[0] * shares + moved_mm, shown[1] * shares + moved_mm)
        return replace(self, matrix=np.diag(shares) @ self.matrix, shift_mm=shift, shown_mm=shown)

    def local(self, offset_mm: FloatArray) -> FloatArray:
        """The local point that shows the scan point ``pivot + offset_mm``, ignoring elastic deformation and
        shift (so a patch placed there is shifted off the voxel for which it was drawn, as intended)."""
        out: FloatArray = np.asarray(offset_mm) @ np.linalg.inv(self.matrix).T
        return out


@dataclass(frozen=True)
class Intensity:
    """Changes of a normalised image; by default, all are neutral."""

    brightness: float = 0.0
    contrast: float = 1.0
    shift: float = 0.0
    scale: float = 1.0
    gamma: float = 1.0
    noise: float = 0.0
    blur_vox: float = 0.0
    organs: float = 0.0
    organs_probability: float = 0.0
    seed: int = 0
    """Of the noise, and of the changes of each organ."""

    def organ_factors(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """By class index, 256 entries: factors on the brightness of labels. They follow from the names, so
        that they are the same in all stages."""
        out = np.ones(256, dtype=np.float32)
        for c, name in enumerate(names, start=1):
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            if rng.random() < self.organs_probability:
                out[c] += rng.uniform(-self.organs, self.organs)
        return out


def draw_spatial(
    spec: Augmentation,
    spacing_mm: Vector3,
    reach_mm: Vector3,
    rng: np.random.Generator,
) -> Spatial:
    """Draw a spatial change. Whether labels allow mirroring is checked once by ``check_flips``, before
    training.

    Args:
        spacing_mm: spacing of the stage to which numbers in voxels refer.
        reach_mm: half the largest patch among the stages trained together: the control lattice covers it.
    """
    mirror = np.ones(3)
    for name in spec.flip_axes:
        if rng.random() < 0.5:
            mirror[_AXES[name]] = -1.0
    matrix = np.diag(mirror)
    shift = np.zeros(3)
    elastic: Elastic | None = None
    if rng.random() < spec.probability:
        angles = [rng.uniform(-a, a) for a in np.deg2rad(spec.rotation_deg)]
        zoom = np.exp(rng.uniform(*np.log(spec.scale)))
        matrix = zoom * _rotation(angles) @ matrix
        shift = rng.uniform(-spec.translation_vox, spec.translation_vox, 3) * np.array(spacing_mm)
    if spec.elastic_vox > 0 and rng.random() < spec.probability:
        pitch = cast("Vector3", tuple(spec.elastic_grid_vox * s for s in spacing_mm))
        counts = [2 * int(np.ceil(r / p)) + 3 for r, p in zip(reach_mm, pitch, strict=True)]
        points = _draw_control_points(spec, (*counts, 3), rng) * np.array(spacing_mm)
        elastic = Elastic(points.astype(np.float32), pitch)
    shown = None
    if spec.crop[0] < 1:
        share = np.minimum(rng.uniform(*spec.crop, 3), 1)
        half, whole = share * np.array(reach_mm), np.array(reach_mm)
        middle = rng.uniform(-1, 1, 3) * (whole - half)
        shift, shown = shift + middle, (middle - half, middle + half)
    mirrored = bool(mirror[_AXES["R"]] < 0)
    return Spatial(matrix, cast("Vector3", tuple(shift.tolist())), elastic, mirrored, shown)


def _draw_control_points(
    spec: Augmentation, shape: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Displacements of the control points in voxels."""
    match spec.elastic_distribution:
        case "uniform":
            return rng.uniform(-spec.elastic_vox, spec.elastic_vox, shape)
        case "normal":
            return rng.normal(0.0, spec.elastic_vox, shape)


def draw_extent(
    spec: Augmentation, height_mm: float, keep_mm: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """First and last mm along S of a shorter scan that still shows ``keep_mm``; None: the whole scan is
    shown.

    The length is drawn on a logarithmic scale.
    """
    if spec.shorter_scan == 0 or rng.random() >= spec.shorter_scan:
        return None
    length = height_mm * float(np.exp(rng.uniform(np.log(MIN_SCAN_SHARE), 0)))
    first = rng.uniform(max(0.0, keep_mm - length), max(0.0, min(keep_mm, height_mm - length)))
    return first, first + length


def cut_coordinates(coordinates_IJKx: Tensor, first: float, last: float) -> tuple[Tensor, Tensor]:
    """Source indices for a scan of only the slices ``first`` to ``last``: beyond these, the edge slices are
    repeated. Also returns a mask of these positions, ``[I, J, K]``."""
    along = coordinates_IJKx[..., 2]
    out = coordinates_IJKx.clone()
    out[..., 2] = along.clamp(first, last)
    return out, (along < first - 0.5) | (along > last + 0.5)


def check_flips(spec: Augmentation, schema: LabelSchema, data_set: LabelSchema) -> None:
    """Refuse mirroring along R if a label has a side but its counterpart is not predicted or not symmetric,
    or if labels may have a side.

    Args:
        schema: the labels that a patch contains.
        data_set: the schema of the data set, in which names that differ in one letter indicate doubt.

    Raises:
        RecipeError: names the label.
    """
    if "R" not in spec.flip_axes:
        return
    for one, other in data_set.doubtful:
        if one in schema.names or other in schema.names:
            raise RecipeError(
                f"training.augmentation.flip_axes holds R, but '{one}' and '{other}' may be the left and the "
                "right one; use left and right in their names, or omit R"
            )
    if schema.unpaired:
        raise RecipeError(
            f"training.augmentation.flip_axes holds R, but '{schema.unpaired[0]}' has no symmetric "
            f"counterpart on the other side among {', '.join(schema.names)}; omit R"
        )


def _rotation(angles: list[float]) -> FloatArray:
    out: FloatArray = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def mirror_table(schema: LabelSchema) -> npt.NDArray[np.uint8]:
    """Class index -> class index after swapping left and right; 256 entries, IGNORE is unchanged."""
    table = np.arange(256, dtype=np.uint8)
    for one, other in schema.pairs:
        a, b = schema.class_of(one), schema.class_of(other)
        table[a], table[b] = b, a
    return table


def draw_intensity(spec: Augmentation, rng: np.random.Generator) -> Intensity:
    def happens(strength: float) -> bool:
        return bool(rng.random() < spec.probability) and strength > 0

    bends = happens(spec.gamma[1] - spec.gamma[0])

    # Drawn only if requested, so that the random numbers of other recipes do not change.
    shift = rng.uniform(-1, 1) * spec.shift_intensity if spec.shift_intensity and happens(1) else 0.0
    scale = 1 + rng.uniform(-1, 1) * spec.scale_intensity if spec.scale_intensity and happens(1) else 1.0

    return Intensity(
        shift=shift,
        scale=scale,
        brightness=rng.uniform(-spec.brightness, spec.brightness) if happens(spec.brightness) else 0.0,
        contrast=1 + rng.uniform(-spec.contrast, spec.contrast) if happens(spec.contrast) else 1.0,
        gamma=float(np.exp(rng.uniform(*np.log(spec.gamma)))) if bends else 1.0,
        noise=rng.uniform(0, spec.noise) if happens(spec.noise) else 0.0,
        blur_vox=rng.uniform(0, spec.blur_vox) if happens(spec.blur_vox) else 0.0,
        organs=spec.organ_brightness,
        organs_probability=spec.probability if spec.organ_brightness else 0.0,
        seed=int(rng.integers(2**31)),
    )


def brighten_organs(image_CIJK: Tensor, target_IJK: Tensor, factors: npt.NDArray[np.float32]) -> Tensor:
    """Change the brightness of every organ by its own factor, relative to the patch's darkest voxel, with a
    soft transition over one voxel at its edge. Iron, fat or another sequence may darken one organ of a
    patient and not the next."""
    by_voxel = torch.from_numpy(factors).to(image_CIJK.device)[target_IJK.long()]
    soft = F.avg_pool3d(by_voxel[None, None], 3, stride=1, padding=1, count_include_pad=False)[0]
    low = image_CIJK.amin(dim=(1, 2, 3), keepdim=True)
    return (image_CIJK - low) * soft + low


def apply_intensity(image_CIJK: Tensor, change: Intensity, limits: tuple[float, float] | None) -> Tensor:
    """Apply to a normalised patch; ``limits`` are the window's output range, if there is one."""
    out = image_CIJK
    axes = (1, 2, 3)
    if change.blur_vox > 0.3:
        out = _blur(out, change.blur_vox)
    spread = out.std(dim=axes, keepdim=True)
    if change.contrast != 1 or change.brightness != 0:
        mean = out.mean(dim=axes, keepdim=True)
        out = (out - mean) * change.contrast + mean + change.brightness * spread
    if change.shift != 0 or change.scale != 1:
        out = (out + change.shift) * change.scale
    if change.gamma != 1:
        low = out.amin(dim=axes, keepdim=True)
        width = (out.amax(dim=axes, keepdim=True) - low).clamp_min(1e-6)
        out = ((out - low) / width).clamp(0, 1) ** change.gamma * width + low
    if change.noise > 0:
        generator = torch.Generator(out.device).manual_seed(change.seed)
        noise = torch.randn(out.shape, generator=generator, device=out.device)
        out = out + noise * change.noise * spread
    return out if limits is None else out.clamp(*limits)


def _blur(image_CIJK: Tensor, sigma_vox: float) -> Tensor:
    radius = max(1, int(np.ceil(2 * sigma_vox)))
    tap = torch.arange(-radius, radius + 1, dtype=torch.float32, device=image_CIJK.device)
    kernel = torch.exp(-0.5 * (tap / sigma_vox) ** 2)
    kernel = kernel / kernel.sum()
    out = image_CIJK[:, None]
    for axis in range(3):
        shape, pad = [1, 1, 1], [0, 0, 0, 0, 0, 0]
        shape[axis] = len(kernel)
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        out = F.conv3d(F.pad(out, pad, mode="replicate"), kernel.reshape(1, 1, *shape))
    return out[:, 0]
