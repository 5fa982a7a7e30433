"""Convert nnU-Net's trained model to a model folder: read, checked, converted, and written with its ONNX
graph."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from zoomseg.backends import onnx_graph
from zoomseg.core.arrays import AnyNumpy
from zoomseg.core.errors import ModelError, RecipeError, listed, quoted
from zoomseg.importing.body import within_body
from zoomseg.importing.combined import combined
from zoomseg.importing.nnunet import checkpoint as checkpoints
from zoomseg.importing.nnunet import files, plans
from zoomseg.importing.nnunet.convert import LOWRES, Converted, converted
from zoomseg.importing.nnunet.network import weights_of
from zoomseg.inference.atlas_priors import warn
from zoomseg.io import bundle
from zoomseg.io.bundle import JSON, Bundle
from zoomseg.io.files import write_json_atomic
from zoomseg.io.manifests import first_problem
from zoomseg.pipeline.inputs import input_channels
from zoomseg.recipe import network_shapes
from zoomseg.recipe.spec import Recipe


def import_models(
    sources: Sequence[Path],
    out: Path,
    folds: tuple[str, ...] | None = None,
    lowres: Path | None = None,
    body: bool = False,
    orientation: str | None = None,
    configuration: str | None = None,
    on_warning: Callable[[str], None] = warn,
) -> tuple[Path, ...]:
    """Create a ZoomSeg model from a trained nnU-Net v2 model, or from several: one with the labels of all.

    Args:
        sources: folders written by nnU-Net's training (with ``plans.json``), or zips of them. Where two
            models label the same voxel, the later one's label is used.
        out: the model folder to write. For several folds it contains one model each, which form an ensemble.
        folds: requested ones; None: all that were trained.
        lowres: for a cascade among them, the model whose label map it reads, as a folder or zip; None: it is
            beside the cascade's, with nnU-Net's name.
        body: whether the region is restricted to the body.
        orientation: of the training scans, as in ``Grid.axes``, if the models' reader leaves scans as stored:
            scans are then brought into it. None: scans are read as stored, too.
        configuration: of the models to import, where a source holds several; None: there is only one, or a
            cascade.
        on_warning: called for folds that are left out.

    Returns:
        The folders of the models written, one per fold.

    Raises:
        ModelError: the models cannot be imported or combined; the message states what can.
        OutputError: no permission, full disk.
    """
    require_new_folder(out)
    found = [read_models(source, folds, lowres, configuration, on_warning) for source in sources]
    if lowres is not None and not any(_is_cascade(model) for own in found for model in own.values()):
        raise ModelError(
            f"--lowres {lowres} is for cascades, and {listed([str(source) for source in sources])} reads no "
            "other model: leave --lowres out"
        )
    if body:  # before they are combined: each has its own channel names
        found = [{fold: within_body(model) for fold, model in own.items()} for own in found]
    models = _together(found, sources)
    if orientation is not None:
        models = {fold: _oriented(model, orientation) for fold, model in models.items()}
    return write_models(models, out)


def _oriented(model: Bundle, axes: str) -> Bundle:
    """The model for scans with these axes.

    Raises:
        ModelError: its reader reorients scans, or there are no such axes.
    """
    if model.recipe.orientation != "stored":
        raise ModelError(
            "--orientation is for models whose reader leaves scans as they are stored; the reader of this "
            "one brings them to RAS+: leave --orientation out"
        )
    try:
        recipe = Recipe.model_validate(model.recipe.model_dump() | {"orientation": axes})
    except ValidationError as error:
        raise ModelError(f"--orientation {quoted(axes)}: {first_problem(error)}") from None
    return replace(model, recipe=recipe)


def read_models(
    source: Path,
    folds: tuple[str, ...] | None = None,
    lowres: Path | None = None,
    configuration: str | None = None,
    on_warning: Callable[[str], None] = warn,
) -> dict[str, Bundle]:
    """A trained model in a folder or zip, by fold; arguments as in ``import_models``.

    Raises:
        ModelError: as ``import_models``.
    """
    with files.opened(source, configuration, folds) as folder:
        given = files.read(folder, folds)
        if given.left_out:
            on_warning(
                f"{source}: fold {', '.join(given.left_out)} is left out: it has no {files.CHECKPOINTS[0]}, "
                "without which nnU-Net does not predict with it either; train it to the end to include it"
            )
        if given.no_folds:
            on_warning(
                f"{source}: fold_{', fold_'.join(given.no_folds)} is left out: nnU-Net's folds are numbers, "
                "or all"
            )
        first_fold, path = next(iter(given.checkpoints.items()))
        first = checkpoints.read(path)  # once: a file may have gigabytes
        own = first.configuration
        read = plans.configuration_of(plans.parse(given.plans), own).previous_stage
        if configuration not in (None, own):
            raise ModelError(f"{source} holds a model of {quoted(own)}, not of {quoted(configuration)}")

        def model(fold: str, low: files.ModelFiles | None = None) -> Bundle:
            checkpoint = first if fold == first_fold else checkpoints.read(given.checkpoints[fold])
            return _model(given, fold, checkpoint, low)

        if read is None:
            return {fold: model(fold) for fold in given.checkpoints}
        own_folds = tuple(given.checkpoints)
        with files.opened(lowres or files.neighbouring_model(folder, read), read, own_folds) as other:
            low = files.read(other, own_folds)
            return {fold: model(fold, low) for fold in own_folds}


def _is_cascade(model: Bundle) -> bool:
    return any(stage.name == LOWRES for stage in model.recipe.stages)


def _together(models: Sequence[Mapping[str, Bundle]], sources: Sequence[Path]) -> Mapping[str, Bundle]:
    """By fold, one model combined from all."""
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
    """Write one model, or one per fold, with the networks as ONNX graphs; returns the folders of the
    models."""
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


def require_new_folder(out: Path) -> None:
    """Refuse a folder that is not empty.

    Raises:
        ModelError: it is not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists already; choose another folder, or remove it first")


@dataclass(frozen=True, eq=False)
class _Fold:
    """One configuration's plans and one fold's checkpoint."""

    plans: plans.Plans
    file: str
    """Name of the checkpoint's file."""
    checkpoint: checkpoints.Checkpoint
    converted: Converted

    @classmethod
    def of(
        cls,
        given: files.ModelFiles,
        fold: str,
        checkpoint: checkpoints.Checkpoint,
        before: _Fold | None = None,
    ) -> _Fold:
        known = plans.parse(given.plans)
        name = checkpoint.configuration
        configuration = plans.configuration_of(known, name)
        _check_read(name, configuration.previous_stage, before)
        earlier = None if before is None else before.converted
        try:
            own = converted(known, name, configuration, given.dataset, checkpoint.mirror_axes, earlier)
            grid = own.stage.grid
            network_shapes.check_input_shape(own.network, grid.padding, grid.tile)
        except ValidationError as error:
            raise ModelError(f"plans.json: {first_problem(error)}") from None
        except RecipeError as error:
            raise ModelError(f"plans.json: {error}") from None
        return cls(known, given.checkpoints[fold].name, checkpoint, own)

    @property
    def weights(self) -> dict[str, AnyNumpy]:
        own = self.converted
        channels = input_channels(own.stage, own.recipe, own.schema, len(own.channel_names))
        return weights_of(
            self.checkpoint.weights,
            own.network,
            own.axes,
            channels,
            own.schema.classes,
            own.stage.labels_overlap,
            self.checkpoint.trainer,
        )


def _check_read(name: str, read: str | None, before: _Fold | None) -> None:
    """Refuse another model than the one whose label map a configuration reads."""
    if before is None and read is not None:
        raise ModelError(
            f"the model that the cascade is to read is of {quoted(name)}, which itself reads {quoted(read)}: "
            f"give that of {quoted(read)} with --lowres"
        )
    if before is not None and before.checkpoint.configuration != read:
        raise ModelError(
            f"{quoted(name)} reads {quoted(read)}, and the model that it is given is of "
            f"{quoted(before.checkpoint.configuration)}: give that of {quoted(read)} with --lowres"
        )


def _model(
    given: files.ModelFiles,
    fold: str,
    checkpoint: checkpoints.Checkpoint,
    low: files.ModelFiles | None,
) -> Bundle:
    """The model of a fold, and of the same fold of the one whose label map it reads."""
    before = None if low is None else _Fold.of(low, fold, checkpoints.read(low.checkpoints[fold]))
    last = _Fold.of(given, fold, checkpoint, before)
    own = last.converted
    weights = {own.stage.name: last.weights}
    if before is not None:
        weights = {own.recipe.stages[0].name: before.weights} | weights
    return Bundle(own.recipe, own.schema, own.channel_names, weights, _provenance(last, fold))


def _provenance(own: _Fold, fold: str) -> dict[str, JSON]:
    return {
        "imported_from": "nnU-Net v2",
        "data_set": own.plans.dataset_name,
        "plans": own.plans.plans_name,
        "configuration": own.checkpoint.configuration,
        "trainer": own.checkpoint.trainer,
        "fold": fold,
        "checkpoint": own.file,
        "zoomseg": importlib.metadata.version("zoomseg"),
    }
