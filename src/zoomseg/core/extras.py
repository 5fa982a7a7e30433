"""Packages that only some work needs, and what to install where one is not there.

The base installation predicts, evaluates, checks, shows and serves. Training, planning, comparing and GPUs
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
"""Extra -> the modules that come with it."""


class MissingPackageError(ZoomSegError):
    """Something was asked for that needs a package which is not installed."""


def installed(module: str) -> bool:
    """Whether a module could be imported; nothing is."""
    return importlib.util.find_spec(module) is not None


def how_to_install(module: str) -> str:
    """The command that brings a module, by the extra that it comes with."""
    extra = next(name for name, modules in EXTRAS.items() if module in modules)
    return f"pip install 'zoomseg[{extra}]'"


def missing(module: str, what: str) -> MissingPackageError:
    """The error of ``what`` cannot be done without a module."""
    return MissingPackageError(f"{what} needs {module}, which is not installed: {how_to_install(module)}")


def require(module: str, what: str) -> None:
    """Refuse to begin what would end where a module is first imported.

    Raises:
        MissingPackageError: it is not installed.
    """
    if not installed(module):
        raise missing(module, what)


def explained(error: ModuleNotFoundError, what: str) -> MissingPackageError | None:
    """What an import that failed on the way means, if the module comes with an extra."""
    module = (error.name or "").partition(".")[0]
    known = {module for modules in EXTRAS.values() for module in modules}
    return missing(module, what) if module in known else None
