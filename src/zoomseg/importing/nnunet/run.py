"""nnU-Net's trained model to a model folder: read, checked, converted, and written with its ONNX graph."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from zoomseg.backends import onnx_graph
from zoomseg.core.errors import ModelError, RecipeError
from zoomseg.importing.body import within_body
from zoomseg.importing.combined import combined
from zoomseg.importing.nnunet import checkpoint as checkpoints
from zoomseg.importing.nnunet import files, plans
from zoomseg.importing.nnunet.convert import Converted, converted
from zoomseg.importing.nnunet.network import weights_of
from zoomseg.io import bundle
from zoomseg.io.bundle import JSON, Bundle
from zoomseg.io.files import write_json_atomic
from zoomseg.recipe import network_shapes


def import_model(source: Path, out: Path, folds: tuple[str, ...] | None = None) -> tuple[Path, ...]:
    """``import_models`` of one."""
    return import_models((source,), out, folds)


def import_models(
    sources: Sequence[Path], out: Path, folds: tuple[str, ...] | None = None, body: bool = False
) -> tuple[Path, ...]:
    """Make a ZoomSeg model of a trained nnU-Net v2 model, or of several: one with the labels of all.

    Args:
        sources: folders that nnU-Net's training wrote (``plans.json`` is in them), or zips of them. Where two
            models found something in the same voxel, the later one's label stays.
        out: the model folder to write. Of several folds it holds one model each, which predict together.
        folds: those wanted; None: all that were trained.
        body: whether only the body is looked at.

    Returns:
        The folders of the models written, one per fold.

    Raises:
        ModelError: what came cannot be imported or does not go together; the line says what can.
        OutputError: no permission, full disk.
    """
    require_free(out)
    models = _together([read_models(source, folds) for source in sources], sources)
    if body:
        models = {fold: within_body(model) for fold, model in models.items()}
    return write_models(models, out)


def read_models(source: Path, folds: tuple[str, ...] | None = None) -> dict[str, Bundle]:
    """A trained model in a folder or zip, by fold.

    Raises:
        ModelError: as ``import_models``.
    """
    with files.opened(source) as folder:
        given = files.read(folder, folds)
        return {fold: _model(given, fold) for fold in given.checkpoints}


def _together(models: Sequence[Mapping[str, Bundle]], sources: Sequence[Path]) -> Mapping[str, Bundle]:
    """By fold, one model of all."""
    if len(models) == 1:
        return models[0]
    names = [
        str(next(iter(own.values())).provenance["data_set"]) or source.name
        for own, source in zip(models, sources, strict=True)
    ]
    for own, name in zip(models[1:], names[1:], strict=True):
        if list(own) != list(models[0]):
            raise ModelError(
                f"{names[0]} has folds {', '.join(models[0])}, {name} has {', '.join(own)}; choose such that "
                "all have with --folds"
            )
    return {fold: combined([own[fold] for own in models], names) for fold in models[0]}


def write_models(models: Mapping[str, Bundle], out: Path) -> tuple[Path, ...]:
    """Write one model, or one per fold, with the networks as ONNX graphs; the folders of the models."""
    if len(models) == 1:
        written = {out: next(iter(models.values()))}
    else:
        written = {out / f"fold-{fold}": model for fold, model in models.items()}
    for path, model in written.items():
        bundle.save(model, path)
        onnx_graph.write_graphs(path)
    if len(models) > 1:
        write_json_atomic(out / bundle.FOLDS, {"imported_from": "nnU-Net v2", "folds": list(models)})
    return tuple(written)


def require_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ModelError: it does.
    """
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
        checkpoint.weights,
        own.network,
        own.axes,
        len(own.channel_names),
        own.schema.classes,
        stage.labels_overlap,
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
