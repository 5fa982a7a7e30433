"""Packages that only some commands need, and how to install them.

The base installation predicts, evaluates, checks, displays and serves. Training, planning, comparing and GPUs
need the extra ``train``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from zoomseg.core.errors import ZoomSegError

EXTRAS = {
    "train": ("blosc2", "matplotlib", "onnx", "onnxscript", "scipy", "tensorboardX", "torch"),
    "atlas": ("ants",),
    "dicom-extra": ("gdcm",),
    "cluster": ("distributed",),
    "pacs": ("dicomweb_client", "gdcm", "prometheus_client", "pynetdicom"),
}
"""Extra -> the modules that it installs."""


class MissingPackageError(ZoomSegError):
    """A requested operation needs a package that is not installed."""


def installed(module: str) -> bool:
    """Whether a module could be imported; it is not imported."""
    return importlib.util.find_spec(module) is not None


def how_to_install(module: str) -> str:
    """The command that installs a module, by the extra that contains it.

    ``uv tool install`` removes the extras that it does not name, so those that are installed are named, too.
    """
    extra = next(name for name, modules in EXTRAS.items() if module in modules)
    if not _is_uv_tool():
        return f"pip install '.[{extra}]' in a clone of ZoomSeg"
    wanted = [name for name, modules in EXTRAS.items() if name == extra or all(map(installed, modules))]
    return f"uv tool install '.[{','.join(wanted)}]' in a clone of ZoomSeg"


def how_to_reinstall() -> str:
    """The command that installs ZoomSeg again where a file of it is missing."""
    command = "uv tool install --reinstall" if _is_uv_tool() else "pip install --force-reinstall"
    return f"{command} . in a clone of ZoomSeg"


def _is_uv_tool() -> bool:
    """Whether this is an environment that ``uv tool install`` made, which has no pip."""
    return (Path(sys.prefix) / "uv-receipt.toml").is_file()


def missing(module: str, what: str) -> MissingPackageError:
    """The error to raise if ``what`` cannot be done without a module."""
    return MissingPackageError(f"{what} needs {module}, which is not installed: {how_to_install(module)}")


def require(module: str, what: str) -> None:
    """Raise an error if a module that is needed later is missing.

    Raises:
        MissingPackageError: it is not installed.
    """
    if not installed(module):
        raise missing(module, what)


def explained(error: ModuleNotFoundError, what: str) -> MissingPackageError | None:
    """An explanation of a failed import, if an extra contains the module."""
    module = (error.name or "").partition(".")[0]
    known = {module for modules in EXTRAS.values() for module in modules}
    return missing(module, what) if module in known else None
