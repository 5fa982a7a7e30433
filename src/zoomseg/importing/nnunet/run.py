"""nnU-Net's trained model to a model folder: read, checked, converted, and written with its ONNX graph."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from pydantic import ValidationError

from zoomseg.backends import onnx_graph
from zoomseg.core.errors import ModelError, RecipeError
from zoomseg.importing.nnunet import checkpoint as checkpoints
from zoomseg.importing.nnunet import files, plans
from zoomseg.importing.nnunet.convert import Converted, converted
from zoomseg.importing.nnunet.network import weights_of
from zoomseg.io import bundle
from zoomseg.io.bundle import JSON, Bundle
from zoomseg.io.files import write_json_atomic
from zoomseg.recipe import network_shapes


def import_model(source: Path, out: Path, folds: tuple[str, ...] | None = None) -> tuple[Path, ...]:
    """Make a ZoomSeg model of a trained nnU-Net v2 model.

    Args:
        source: the folder that nnU-Net's training wrote (``plans.json`` is in it), or a zip of it.
        out: the model folder to write. Of several folds it holds one model each, which predict together.
        folds: those wanted; None: all that were trained.

    Returns:
        The folders of the models written, one per fold.

    Raises:
        ModelError: what came cannot be imported; the line says what can.
        OutputError: no permission, full disk.
    """
    _require_free(out)
    with files.opened(source) as folder:
        given = files.read(folder, folds)
        models = {fold: _model(given, fold) for fold in given.checkpoints}
    if len(models) == 1:
        (model,) = models.values()
        written = {out: model}
    else:
        written = {out / f"fold-{fold}": model for fold, model in models.items()}
    for path, model in written.items():
        bundle.save(model, path)
        onnx_graph.write_graphs(path)
    if len(models) > 1:
        write_json_atomic(out / bundle.FOLDS, {"imported_from": "nnU-Net v2", "folds": list(models)})
    return tuple(written)


def _require_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists already; choose another folder, or remove it first")


def _model(given: files.ModelFiles, fold: str) -> Bundle:
    known = plans.parse(given.plans)
    checkpoint = checkpoints.read(given.checkpoints[fold])
    configuration = plans.configuration_of(known, checkpoint.configuration)
    try:
        own = converted(known, checkpoint.configuration, configuration, given.dataset)
        stage = own.recipe.stages[0]
        network_shapes.check_input_shape(stage.network, stage.grid.padding, stage.grid.tile)
    except ValidationError as error:
        raise ModelError(f"plans.json: {bundle.first_problem(error)}") from None
    except RecipeError as error:
        raise ModelError(f"plans.json: {error}") from None
    weights = weights_of(
        checkpoint.weights, own.network, own.axes, len(own.channel_names), own.schema.classes
    )
    return Bundle(
        own.recipe,
        own.schema,
        own.channel_names,
        {stage.name: weights},
        _provenance(known, checkpoint, fold, own),
    )


def _provenance(
    known: plans.Plans, checkpoint: checkpoints.Checkpoint, fold: str, own: Converted
) -> dict[str, JSON]:
    axes: list[JSON] = [list(own.axes).index(axis) for axis in checkpoint.mirror_axes if axis in own.axes]
    return {
        "imported_from": "nnU-Net v2",
        "data_set": known.dataset_name,
        "plans": known.plans_name,
        "configuration": checkpoint.configuration,
        "trainer": checkpoint.trainer,
        "fold": fold,
        "mirrored_axes_in_training": axes,
        "zoomseg": importlib.metadata.version("zoomseg"),
    }
