"""Packages that only some commands need, and how to install them.

The base installation predicts, evaluates, checks, displays and serves. Training, planning, comparing and GPUs
need the extra ``train``.
"""

from __future__ import annotations

import importlib.util

from zoomseg.core.errors import ZoomSegError

EXTRAS = {
    "train": ("blosc2", "matplotlib", "onnx", "onnxscript", "scipy", "tensorboardX", "torch"),
    "atlas": ("ants",),
    "dicom-extra": ("gdcm",),
    "cluster": ("distributed",),
    "pacs": ("dicomweb_client", "prometheus_client", "pynetdicom"),
}
"""Extra -> the modules that it installs."""


class MissingPackageError(ZoomSegError):
    """A requested operation needs a package that is not installed."""


def installed(module: str) -> bool:
    """Whether a module could be imported; it is not imported."""
    return importlib.util.find_spec(module) is not None


def how_to_install(module: str) -> str:
    """The command that installs a module, by the extra that contains it."""
    extra = next(name for name, modules in EXTRAS.items() if module in modules)
    return f"pip install 'zoomseg[{extra}]'"


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
