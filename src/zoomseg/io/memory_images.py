"""Scans and label maps in memory as objects of other libraries, recognised by their attributes: none of those
libraries is required, and none is imported before one of its objects is given.

Affines are converted to RAS+; SimpleITK's geometry is LPS (https://simpleitk.org, "Fundamental Concepts").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import GeometryError, ScanError, ZoomSegError
from zoomseg.core.geometry import LPS_TO_RAS, Grid
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io import nifti_header
from zoomseg.io.header_limits import check_grid
from zoomseg.io.voxel_checks import KEPT_TYPES, check_same_grid, check_scan

KINDS = (
    "a path, a Volume, a nibabel or SimpleITK image, a TorchIO image or subject, a MONAI MetaTensor, or a "
    "numpy array with its affine"
)

_HERE = Path("the scan")


def as_volume(image: Any, affine: npt.ArrayLike | None = None) -> Volume:
    """A scan in memory as ``[C, I, J, K]`` on its grid.

    Args:
        image: one of ``KINDS``. Arrays and tensors are ``[I, J, K]`` or ``[C, I, J, K]``; the fourth axis of
            a nibabel image are its channels; of a TorchIO subject, all intensity images are used, in order.
        affine: of an array, 4x4: voxel index to RAS+ millimetres. Other objects have their own.

    Raises:
        ScanError: another kind of object, an array without affine, another object with one; an implausible
            grid (see ``header_limits``); NaN or infinite voxels, a constant image, a label map.
        GeometryError: an impossible shape or affine; channels on different grids.
    """
    if affine is not None and not isinstance(image, np.ndarray):
        raise ScanError("an affine is given with a numpy array only; other images know their own")
    found = _volume(image, affine)
    check_grid(_HERE, found.grid)
    check_scan([(channel, _HERE) for channel in found.data])
    return found


def _volume(image: Any, affine: npt.ArrayLike | None) -> Volume:
    if isinstance(image, Volume):
        return Volume(_kept(_array(image.data)), image.grid)
    if hasattr(image, "dataobj") and hasattr(image, "affine"):  # nibabel
        data = np.asanyarray(image.dataobj)
        return _on_grid(np.moveaxis(data, -1, 0) if data.ndim == 4 else data, _affine_mm(image))
    if hasattr(image, "GetDirection") and hasattr(image, "GetSpacing"):  # SimpleITK
        return _of_sitk(image)
    if hasattr(image, "get_images") and hasattr(image, "spatial_shape"):  # a subject of TorchIO
        return _together([_volume(one, None) for one in image.get_images(intensity_only=True)])
    if hasattr(image, "affine") and hasattr(image, "spatial_shape"):  # an image of TorchIO
        return _on_grid(_array(image.data), _array(image.affine))
    if hasattr(image, "affine") and hasattr(image, "detach"):  # MONAI
        return _on_grid(_array(image), _array(image.affine))
    if isinstance(image, np.ndarray):
        if affine is None:
            raise ScanError("an array says nothing of its voxels' size and place: give its affine, too")
        return _on_grid(image, affine)
    raise ScanError(f"a scan is {KINDS}; got {type(image).__name__}")


def _affine_mm(image: Any) -> Any:
    """The affine of a nibabel image, which is in the unit of its header."""
    if not isinstance(image.header, nib.Nifti1Header):  # and no NIfTI-2: other formats are in millimetres
        return image.affine
    unit, _ = nifti_header.unit_mm(image.header)
    return np.diag([unit, unit, unit, 1.0]) @ image.affine


def _array(tensor: Any) -> npt.NDArray[Any]:
    """A tensor, on any device, or an array."""
    return np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)


def _kept(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Voxels as float32, or integers of up to 16 bits as they are."""
    if data.dtype.kind not in "iufb":
        raise ScanError(f"a scan's voxels are numbers, got {data.dtype}")
    return data if data.dtype in KEPT_TYPES else data.astype(np.float32, copy=False)


def _on_grid(data: npt.NDArray[Any], affine: Any) -> Volume:
    data = _kept(data)
    four = data if data.ndim == 4 else data[None]
    if four.ndim != 4:
        raise GeometryError(f"a scan is [I, J, K] or [C, I, J, K], got the shape {data.shape}")
    i, j, k = four.shape[1:]
    return Volume(four, Grid((i, j, k), np.asarray(affine, dtype=np.float64)))


def _together(volumes: list[Volume]) -> Volume:
    if not volumes:
        raise ScanError("the subject holds no image with intensities")
    for other in volumes[1:]:
        check_same_grid(volumes[0].grid, other.grid, _HERE, _HERE)
    return Volume(np.concatenate([one.data for one in volumes]), volumes[0].grid)


def _of_sitk(image: Any) -> Volume:
    import SimpleITK

    if image.GetDimension() != 3:
        raise GeometryError(f"a scan has three dimensions, the SimpleITK image has {image.GetDimension()}")
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    # SimpleITK gives [K, J, I], and the components of a pixel last.
    array = SimpleITK.GetArrayFromImage(image)
    return _on_grid(array.T, LPS_TO_RAS @ lps)


def to_nibabel(labels: LabelMap) -> Any:
    """A label map as ``nibabel.Nifti1Image``, with the schema's file values."""
    return nifti_header.image(labels.schema.decode(labels.data), labels.grid, None)


def to_sitk(labels: LabelMap) -> Any:
    """A label map as ``SimpleITK.Image``, with the schema's file values.

    Raises:
        ZoomSegError: SimpleITK is not installed.
    """
    try:
        import SimpleITK
    except ModuleNotFoundError as error:
        raise ZoomSegError("SimpleITK is not installed: pip install SimpleITK") from error
    image: Any = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels.schema.decode(labels.data).T))
    lps = LPS_TO_RAS @ labels.grid.affine
    spacing = labels.grid.spacing_mm
    image.SetSpacing(spacing)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.array(spacing)).ravel().tolist())
    return image
