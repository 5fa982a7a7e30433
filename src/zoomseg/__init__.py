"""ZoomSeg: coarse-to-fine organ segmentation of CT and MR. Research software, not for diagnosis.

```python
import zoomseg

model = zoomseg.load("my-model")  # once
result = model.predict("scan.nii.gz")  # any number of times; a path, or what nibabel, SimpleITK ... loaded
result.save("labels.nii.gz")
result.labels, result.schema, result.summary
```
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoomseg.api import Model, Result
    from zoomseg.core.errors import ZoomSegError
    from zoomseg.core.geometry import Grid
    from zoomseg.core.labels import LabelSchema
    from zoomseg.core.volume import LabelMap, Volume
    from zoomseg.evaluation.result import Evaluation
    from zoomseg.inference.summary import OrganRow

    __version__: str

__all__ = [
    "Evaluation",
    "Grid",
    "LabelMap",
    "LabelSchema",
    "Model",
    "OrganRow",
    "Result",
    "Volume",
    "ZoomSegError",
    "__version__",
    "evaluate",
    "load",
    "train",
]

_PLACES = {
    "Evaluation": "zoomseg.evaluation.result",
    "Grid": "zoomseg.core.geometry",
    "LabelMap": "zoomseg.core.volume",
    "LabelSchema": "zoomseg.core.labels",
    "Model": "zoomseg.api",
    "OrganRow": "zoomseg.inference.summary",
    "Result": "zoomseg.api",
    "Volume": "zoomseg.core.volume",
    "ZoomSegError": "zoomseg.core.errors",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("zoomseg")
    if name not in _PLACES:
        raise AttributeError(f"module 'zoomseg' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# Torch takes seconds to import, so heavy packages are imported only when they are used.


def load(model: str | PathLike[str], device: str = "auto", any_scan: bool = False) -> Model:
    """Load a model for any number of predictions.

    Args:
        model: folder written by ``train``, or the name of an included model: ``abdomen-ct``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        any_scan: whether scans that are plainly unlike those of the training are segmented, too.

    Raises:
        ModelError: the model does not exist, or is incomplete or damaged.
        BackendError: no library can compute its networks.
        ZoomSegError: no such device.
    """
    from zoomseg.api import load_model

    return load_model(Path(model), device, any_scan)


def train(
    dataset: str | PathLike[str],
    out: str | PathLike[str],
    recipe: str | None = None,
    *,
    seconds: float | None = None,
    epochs: int | None = None,
    folds: int | None = None,
    fold: int = 0,
    split: str | PathLike[str] | None = None,
    seed: int = 0,
    init: str | PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Model:
    """Train a recipe on a data set, write the model to ``out`` and return it loaded.

    Args:
        dataset: data set folder (nnU-Net raw, Decathlon, or ``images/`` and ``labels/``).
        out: folder for the model.
        recipe: name or path of a recipe; by default that of ``init``, or ``default``.
        seconds: time budget, in place of ``epochs``; with neither, the recipe's own length.
        epochs: length in epochs (of the recipe's ``steps_per_epoch``, or 100 steps).
        folds: number of folds, of which ``fold`` is held out; by default none. At the end, the held-out cases
            are segmented and scored, in ``validation`` in the model's folder, and calibrate its confidence.
        fold: index of the held-out fold, from 0.
        split: JSON file with lists ``train``, ``validation`` and ``test`` of cases, or nnU-Net's
            ``splits_final.json`` (of which ``fold`` is used), in place of ``folds``.
        seed: on the CPU and with ``epochs``, equal seeds give equal models.
        init: folder of a model to fine-tune, possibly to other labels, with a tenth of the learning rate.
        resume: continue the training in ``out``; ``seconds`` or ``epochs`` change its length, and other
            settings may be given again, but not changed.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DatasetError, ModelError, RecipeError, TrainingError: with the reason in one line.
        ScanError: no held-out case could be segmented; the model in ``out`` is complete. If some could not,
            each is a warning.
        MissingPackageError: in the base installation, which cannot train.
    """
    from zoomseg.core.extras import require

    require("torch", "training")
    from zoomseg.api import train_model
    from zoomseg.training.requested_recipe import TrainingRequest

    initial = None if init is None else Path(init)
    request = TrainingRequest(recipe, seconds, epochs, folds, fold, seed, initial)
    return train_model(
        Path(dataset), Path(out), request, resume, device, None if split is None else Path(split)
    )


def evaluate(
    predictions: str | PathLike[str],
    reference: str | PathLike[str],
    out: str | PathLike[str],
    tolerance_mm: float | None = None,
    tolerance: str | None = None,
) -> Evaluation:
    """Score predictions against references; write ``metrics.csv``, ``summary.json`` and ``report.html``.

    Args:
        predictions: folder of label maps, ``<case>.nii.gz``.
        reference: folder of label maps with the same names, or a data set.
        out: folder for the results.
        tolerance_mm: surface tolerance of the NSD for all organs; by default 1 mm.
        tolerance: a tolerance for each organ instead: ``flare22``, or the path of a table.

    Raises:
        DatasetError: there is nothing to score, or both tolerances are given.
        ScanError: the table does not exist or is damaged.
    """
    from zoomseg.core.errors import DatasetError
    from zoomseg.evaluation.evaluate import evaluate as score
    from zoomseg.evaluation.tolerances import read_tolerances

    if tolerance_mm is not None and tolerance is not None:
        raise DatasetError("tolerance_mm and tolerance exclude each other; give one of them")
    same = 1.0 if tolerance_mm is None else tolerance_mm
    rules = same if tolerance is None else read_tolerances(tolerance)
    return score(Path(predictions), Path(reference), Path(out), rules)
