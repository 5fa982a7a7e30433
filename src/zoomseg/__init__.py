"""ZoomSeg: coarse-to-fine organ segmentation of CT and MR. Research software, not for diagnosis.

```python
import zoomseg

model = zoomseg.load("my-model")  # once
result = model.predict("scan.nii.gz")  # any number of times; a path, or what nibabel, SimpleITK ... loaded
result.save("labels.nii.gz")
result.labels, result.schema, result.probabilities, result.summary
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


# Torch takes seconds to import, so that nothing heavy is imported before it is used.


def load(model: str | PathLike[str], device: str = "auto") -> Model:
    """Load a model for any number of predictions.

    Args:
        model: folder that ``train`` wrote, or the name of a model that comes with ZoomSeg: ``abdomen-ct``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ModelError: no such model, or one that is not complete.
    """
    from zoomseg.api import load_model

    return load_model(Path(model), device)


def train(
    dataset: str | PathLike[str],
    out: str | PathLike[str],
    recipe: str | None = None,
    *,
    seconds: float | None = None,
    epochs: int | None = None,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 0,
    init: str | PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Model:
    """Train a recipe on a data set folder, write the model to ``out`` and return it loaded.

    Args:
        recipe: name or path; None: that of ``init``, else ``default``.
        seconds: time budget; ``epochs`` as long as the recipe's (100 steps, if it does not say) instead;
            neither: the recipe's own length.
        folds: keep fold ``fold`` of so many back for validation.
        init: folder of a model to fine-tune, also to other labels, with a tenth of the learning rate.
        resume: go on with the training that ``out`` holds.

    Raises:
        DatasetError, ModelError, RecipeError, TrainingError: what is wrong, in one line.
        MissingPackageError: of the base installation, which cannot train.
    """
    from zoomseg.core.extras import require

    require("torch", "training")
    from zoomseg.api import train_model
    from zoomseg.training.training_run import TrainingRequest

    initial = None if init is None else Path(init)
    request = TrainingRequest(recipe, seconds, epochs, folds, fold, seed, initial)
    return train_model(Path(dataset), Path(out), request, resume, device)


def evaluate(
    predictions: str | PathLike[str],
    reference: str | PathLike[str],
    out: str | PathLike[str],
    tolerance_mm: float = 1.0,
    tolerance: str | None = None,
) -> Evaluation:
    """Score predictions against references; write ``metrics.csv``, ``summary.json``, ``report.html``.

    Args:
        tolerance: instead of ``tolerance_mm``, each organ's own: ``flare22``, or a table's path.

    Raises:
        DatasetError: nothing to score.
        ScanError: no such table, or a damaged one.
    """
    from zoomseg.evaluation.evaluate import evaluate as score
    from zoomseg.evaluation.tolerances import read_tolerances

    rules = tolerance_mm if tolerance is None else read_tolerances(tolerance)
    return score(Path(predictions), Path(reference), Path(out), rules)
