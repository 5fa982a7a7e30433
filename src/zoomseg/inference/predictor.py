"""One scan through a trained cascade: look, compute the tiles that touch the region, stitch, fuse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from zoomseg.anatomy.positions import OrganPlaces
from zoomseg.backends.device import Device
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.components import largest_component, without_islands
from zoomseg.core.errors import GeometryError, ModelError, RecipeError
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.placing import Tile
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap
from zoomseg.inference import atlas_priors, memory_limits
from zoomseg.inference.atlas_priors import AtlasOf
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.inference.scan_likeness import compare
from zoomseg.io.bundle import Bundle
from zoomseg.io.training_domain import Likeness
from zoomseg.networks import build as networks
from zoomseg.pipeline import fusion, inputs, roi_expansion, stage_input
from zoomseg.pipeline.grid import stage_grid
from zoomseg.pipeline.sliding_window import (
    OnProgress,
    SlidingWindow,
    StageNetwork,
    StageNetworkOf,
    StageRecord,
    ignore_progress,
)
from zoomseg.pipeline.uncertainty import Uncertainty, UncertaintyEstimator
from zoomseg.recipe import graph
from zoomseg.recipe.spec import ATLAS, Recipe, Stage


@dataclass(frozen=True)
class OrganUncertainty:
    """Signs of how right the answer is about one organ."""

    own: Uncertainty
    """Of the stage that answers for it."""
    cut: bool
    """Whether it reaches the end of where the stage looked, even if it looked farther."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """``labels`` on the scan's own grid and orientation; ``priors`` on the canonical stage grids, of the
    stages that had somewhere to look, if they were to be kept."""

    case: str
    labels: LabelMap
    signs: Mapping[str, OrganUncertainty]
    """Of every organ that the last stage which answers for it has found."""
    priors: Mapping[str, StagePrediction]
    records: tuple[StageRecord, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    """What the user should know: of how the scan was read, how unlike the training scans it is, what was
    taken out of the label map; one line each."""
    trust: float = 1.0
    """0 to 1: how like the training scans the scan is (see ``planning.training_domain``)."""
    misplaced: tuple[str, ...] = ()
    """Organs that lie far from where training had them, and nowhere else."""

    @property
    def schema(self) -> LabelSchema:
        return self.labels.schema

    @property
    def confidence(self) -> dict[str, float]:
        """The Dice that the probabilities promise, 0 to 1, by organ; how far such promises are kept by this
        model is for its calibration to say, and for ``trust`` in this scan."""
        return {organ: found.own.expected_dice for organ, found in self.signs.items()}

    @property
    def probabilities(self) -> StagePrediction | None:
        """The last answer's probabilities, on that stage's grid; None if no stage had anywhere to look."""
        return list(self.priors.values())[-1] if self.priors else None


def input_channels(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> int:
    """How many channels a stage's network reads.

    Raises:
        RecipeError: it wants an image channel that the scans do not have.
    """
    shown = inputs.image_channels(stage.inputs, channels)
    for channel in shown:
        if not 0 <= channel < channels:
            raise RecipeError(
                f"stage '{stage.name}', inputs: scans have no channel {channel}; allowed: 0 to {channels - 1}"
            )
    count = len(shown)
    for spec in inputs.prior_specs(stage.inputs):
        count += len(inputs.prior_names(spec, graph.prior_labels(recipe, spec.of, schema)))
    return count


def build_network(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> nn.Module:
    classes = 1 + len(graph.resolve_labels(stage, schema))
    return networks.build(
        stage.network, input_channels(stage, recipe, schema, channels), classes, stage.grid.padding
    )


def check_tile(stage: Stage) -> None:
    """Refuse a stage whose network cannot read its tiles.

    Raises:
        RecipeError: naming the nearest shapes allowed.
    """
    try:
        networks.check_input_shape(stage.network, stage.grid.padding, stage.grid.tile)
    except RecipeError as error:
        raise RecipeError(f"stage '{stage.name}', grid.tile: {error}") from error


def trained_network(bundle: Bundle, stage: Stage) -> nn.Module:
    """A stage's network with the model's weights, in float32; both share them.

    Raises:
        ModelError: the weights do not fit the network.
        RecipeError: the network cannot read the stage's tiles.
    """
    check_tile(stage)
    module = _weightless(bundle, stage)  # what the recipe asks for takes no memory before there are weights
    try:  # assigned: a copy would be held twice
        module.load_state_dict(dict(bundle.weights[stage.name]), assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ModelError(f"weights of stage '{stage.name}' do not fit its network ({detail})") from error
    return module.float()


def _weightless(bundle: Bundle, stage: Stage) -> nn.Module:
    """A stage's network on the meta device: shapes alone."""
    with networks.without_memory():
        return build_network(stage, bundle.recipe, bundle.schema, len(bundle.channel_names))


def as_network(module: nn.Module, device: Device, *others: nn.Module) -> StageNetwork:
    """A trained module as the callable that ``SlidingWindow`` drives; of several, their mean probabilities."""

    def compute(x_BCIJK: Tensor, tiles: tuple[Tile, ...]) -> Tensor:
        with torch.inference_mode(), device.autocast():
            data = x_BCIJK.to(device.place)
            answer = _softmax(module(data)[0].float())
            for other in others:
                answer += _softmax(other(data)[0].float())
            return answer.div_(1 + len(others)) if others else answer

    return compute


def _softmax(logits_BCIJK: Tensor) -> Tensor:
    """In place, as torch's own over an axis that is not the last takes twice as long."""
    logits_BCIJK -= logits_BCIJK.amax(dim=1, keepdim=True)
    return logits_BCIJK.exp_().div_(logits_BCIJK.sum(dim=1, keepdim=True))


class Predictor:
    """A loaded model, ready for any number of scans."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        atlas_of: AtlasOf | None = None,
        limits: MemoryLimits | None = None,
        others: Sequence[Bundle] = (),
        any_scan: bool = False,
    ) -> None:
        """
        Args:
            atlas_of: what gives a scan's atlas prior, instead of the model's own atlases.
            limits: how much memory the process may take.
            others: models of the same recipe (of other folds, say) that answer together with this one: in
                every stage, the probabilities of all are averaged.
            any_scan: whether scans that are plainly unlike those of the training are segmented, too.

        Raises:
            ModelError: the weights do not fit the networks, the model's atlases are missing, or ``others``
                look elsewhere or for something else.
            RecipeError: the recipe does not fit the model's labels and channels.
        """
        graph.validate_labels(bundle.recipe, bundle.schema)
        for other in others:
            _check_alike(bundle, other)
        self.bundle = bundle
        self.folders = tuple(model.folder for model in (bundle, *others) if model.folder is not None)
        """Of the models that answer, if they came from disk."""
        self.device = device
        self._atlas_of = atlas_of or atlas_priors.of_model(bundle)
        self.limits = limits or MemoryLimits(device)
        self._any_scan = any_scan
        self._modules = {
            name: nn.ModuleList(ready_network(model, name, device) for model in (bundle, *others))
            for name in (stage.name for stage in bundle.recipe.stages)
        }
        self._counters = {name: networks.FlopCounter(modules) for name, modules in self._modules.items()}
        self._networks = {
            name: as_network(first, device, *rest) for name, (first, *rest) in self._modules.items()
        }
        self._works = {stage.name: self._work(stage) for stage in bundle.recipe.stages}

    @property
    def channels(self) -> int:
        """How many channels a scan must have."""
        return len(self.bundle.channel_names)

    def predict(
        self,
        case: Case,
        organs: tuple[str, ...] | None = None,
        keep: bool = True,
        on_progress: OnProgress = ignore_progress,
        alone: Callable[[], None] = memory_limits.alone,
    ) -> Prediction:
        """Segment one scan; ``keep`` and ``on_progress`` as in ``cascade``, ``alone`` as in ``MemoryLimits.fit``.

        Raises:
            GeometryError: the scan has not as many channels as the model.
            ScanError: the model's window shows nothing of the scan, or it is plainly unlike those that the
                model was trained on.
            MemoryLimitError: not even the smallest tiles fit into the memory allowed.
        """
        if case.image.channels != self.channels:
            raise GeometryError(
                f"scan {case.id} has {case.image.channels} channel(s), the model needs {self.channels}: "
                f"{', '.join(self.bundle.channel_names)}"
            )

        def fit(view: stage_input.StageView, whole: bool) -> tuple[stage_input.StageView, int | None]:
            if not self.limits.any:
                return view, None
            work, labels = self._works[view.stage.name], case.image.grid.box.voxels
            with self._counters[view.stage.name].paused():  # tiles that are measured are no part of the scan
                return self.limits.fit(view, work, whole, labels, alone)

        bundle = self.bundle
        likeness = self._likeness(case)
        result = cascade(
            case,
            bundle.recipe,
            bundle.schema,
            self._network,
            self.device,
            organs,
            self._atlas_of,
            keep,
            on_progress,
            fit,
            look_farther=True,
            known=None if bundle.domain is None else bundle.domain.organs,
        )
        records = tuple(replace(r, flops=self._counters[r.stage].take()) for r in result.records)
        return replace(
            result,
            records=records,
            notes=(*case.notes, *likeness.warnings, *result.notes),
            trust=likeness.trust,
        )

    def _likeness(self, case: Case) -> Likeness:
        """How like the training scans a scan is; where nothing is known of these, it is taken to be."""
        known, intensity = self.bundle.domain, self.bundle.recipe.intensity
        if known is None:
            return Likeness()
        return compare(known, case, intensity, self._any_scan)

    def admit(self, grid: Grid, reading: int, keep: bool = True) -> None:
        """Refuse a scan by its header alone; reading it will take ``reading`` bytes. ``keep`` as in
        ``cascade``. Nothing is computed with the networks, so that another thread may predict meanwhile.

        Raises:
            MemoryLimitError: it cannot fit into the memory allowed.
        """
        self.limits.admit(grid, reading, self._first_bytes(grid, keep))

    def _first_bytes(self, grid: Grid, keep: bool) -> int:
        """What the first stage takes at least of a scan on this grid."""
        recipe = self.bundle.recipe
        stage = recipe.stages[0]
        if stage.roi.kind != "whole_volume":
            return 0  # only the voxels tell where it looks
        lattice = stage_grid(stage.grid, Orientation.to_canonical(grid).grid(grid))
        view = stage_input.StageView(stage, lattice, Region.whole(lattice))
        return memory_limits.least_bytes(
            view, self._works[stage.name], _whole(stage, recipe, keep), self.device
        )

    def _network(self, view: stage_input.StageView) -> StageNetwork:
        return self._networks[view.stage.name]

    def _work(self, stage: Stage) -> memory_limits.StageWork:
        bundle, answering = self.bundle, self._networks  # no cycle: with the predictor its networks go
        seen = len(inputs.image_channels(stage.inputs, self.channels))
        read = input_channels(stage, bundle.recipe, bundle.schema, self.channels)
        classes = 1 + len(graph.resolve_labels(stage, bundle.schema))
        return memory_limits.StageWork(
            lambda: _weightless(bundle, stage).eval(),
            read,
            seen,
            classes,
            lambda x_BCIJK: answering[stage.name](x_BCIJK, ()),
        )


def ready_network(bundle: Bundle, name: str, device: Device) -> nn.Module:
    """A model's network of the stage of this name, as it predicts: on the device, in evaluation mode."""
    stage = graph.stage_of(bundle.recipe, name)
    return networks.laid_out(stage.network, trained_network(bundle, stage).to(device.place)).eval()


def _check_alike(one: Bundle, other: Bundle) -> None:
    """Whether two models can answer together: networks and training may differ, all else not.

    Raises:
        ModelError: naming what differs.
    """

    def shown(bundle: Bundle) -> dict[str, object]:
        recipe = bundle.recipe.model_dump(exclude={"name", "description", "source", "stages"})
        for stage in bundle.recipe.stages:
            recipe[f"stage '{stage.name}'"] = stage.model_dump(exclude={"network", "training"})
        return {"labels": bundle.schema, "channels": bundle.channel_names, **recipe}

    ours, theirs = shown(one), shown(other)
    for part in {**ours, **theirs}:
        if ours.get(part) != theirs.get(part):
            raise ModelError(
                f"models that answer together must be of one recipe and have the same labels; the {part} of "
                f"'{one.folder or one.recipe.name}' and '{other.folder or other.recipe.name}' differ"
            )


def cascade(
    case: Case,
    recipe: Recipe,
    schema: LabelSchema,
    network_of: StageNetworkOf,
    device: Device,
    organs: tuple[str, ...] | None = None,
    atlas_of: AtlasOf | None = None,
    keep: bool = True,
    on_progress: OnProgress = ignore_progress,
    fit: Callable[
        [stage_input.StageView, bool], tuple[stage_input.StageView, int | None]
    ] = lambda view, whole: (
        view,
        None,
    ),
    look_farther: bool = False,
    known: Mapping[str, OrganPlaces] | None = None,
) -> Prediction:
    """Drive a recipe over one scan with the networks given (trained ones, or an oracle).

    Args:
        keep: whether every stage's prior is wanted in the result; else the last stage's answer goes into
            the label map slab by slab, and is never held as a whole.
        fit: makes tiles smaller where memory is short, by view and whether the answer is kept as a whole;
            and says how many are computed together (None: as many as keep the device busy).
        look_farther: whether a stage is computed again, once, where its region may have cut an organ.
        known: where training had the organs; parts far from there are taken out.
    """
    clock = _Clock()
    scan = stage_input.prepare(case, recipe, device.place)
    clock.lap("prepare")
    priors: dict[str, StagePrediction] = {}
    if atlas_of is not None:
        priors[ATLAS] = atlas_of(scan)
        clock.lap(ATLAS)
    canvas = fusion.FusedLabelMap.blank(scan.grid, schema, device.place)
    said = _Said()
    for stage in recipe.stages:
        view, labels = stage_input.view(stage, recipe, scan, priors), graph.resolve_labels(stage, schema)
        if view is None:
            priors[stage.name] = stage_input.background_prediction(stage, scan, labels)
            continue
        whole = _whole(stage, recipe, keep)
        if not whole:
            _enter(recipe, said.answers, canvas, priors.get(ATLAS))
            said.answers.clear()

        def compute(
            view: stage_input.StageView, whole: bool = whole, labels: tuple[str, ...] = labels
        ) -> _Pass:
            fitting, together = fit(view, whole)
            course = SlidingWindow(fitting, scan, priors, labels, network_of(view), device, together, on_progress)
            hearing = UncertaintyEstimator(labels, view.region, roi_expansion.open_sides_of(view, scan))
            if not whole:
                course.paint(canvas, hearing)
                return _Pass(view, hearing, None, course.record)
            return _Pass(view, hearing, course.prior(hearing), course.record)

        done = compute(view)
        cut = roi_expansion.cut_organs(view, done.hearing.signs()) if look_farther else ()
        if cut:
            view, first = roi_expansion.expanded(view, scan, done.hearing, cut), done.record
            del done  # its answer need not be held beside the wider one
            done = compute(view)
            done = replace(done, record=first.and_then(done.record, cut))
        if done.prior is not None:
            priors[stage.name] = said.answers[stage.name] = done.prior
        said.hear(stage, labels, done)
        clock.lap(stage.name)
    _enter(recipe, said.answers, canvas, priors.get(ATLAS))
    fusion.keep_parts(canvas, schema.select(recipe.largest_component), largest_component)
    if recipe.islands is not None:
        parts = partial(without_islands, below=recipe.islands.below)
        fusion.keep_parts(canvas, schema.select(recipe.islands.labels), parts)
    # Before organs are left out that others are placed by.
    found = {} if known is None else fusion.take_out_misplaced(canvas, known)
    wanted = schema.select("all" if organs is None else organs)
    if organs is not None:
        fusion.keep_only(canvas, wanted)
    labels_map = LabelMap(canvas.labels.cpu(), canvas.grid, schema).reoriented(scan.orientation.inverse)
    clock.lap("fuse")
    return Prediction(
        case.id,
        labels_map,
        said.signs,
        said.answers,
        tuple(said.records),
        clock.seconds,
        notes=tuple(own.note(name) for name, own in found.items() if name in wanted),
        misplaced=tuple(name for name, own in found.items() if own.alone),
    )


def _whole(stage: Stage, recipe: Recipe, keep: bool) -> bool:
    """Whether a stage's answer is held as a whole."""
    return keep or stage is not recipe.stages[-1] or stage.fusion != "replace_in_roi"


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


class _Said:
    """What the stages said so far."""

    def __init__(self) -> None:
        self.answers: dict[str, StagePrediction] = {}
        """Those that are still to be entered into the label map."""
        self.records: list[StageRecord] = []
        self.signs: dict[str, OrganUncertainty] = {}
        """Of every organ, by the last stage that answered for it."""

    def hear(self, stage: Stage, labels: tuple[str, ...], done: _Pass) -> None:
        """What a stage found of its labels."""
        self.records.append(done.record)
        signs = done.hearing.signs()
        if stage.fusion != "none":
            cut = roi_expansion.cut_organs(done.view, signs)
            for organ in labels:
                self.signs.pop(organ, None)
            for organ, own in signs.items():
                self.signs[organ] = OrganUncertainty(own, organ in cut)


@dataclass(frozen=True, eq=False)
class _Pass:
    """A stage computed once; ``prior`` is None if it went straight into the label map."""

    view: stage_input.StageView
    hearing: UncertaintyEstimator
    prior: StagePrediction | None
    record: StageRecord


def _enter(
    recipe: Recipe,
    answers: Mapping[str, StagePrediction],
    canvas: fusion.FusedLabelMap,
    atlas: StagePrediction | None,
) -> None:
    """Every answer into the canvas; neighbours of one kind enter together, as they may vote. Only when all
    have answered, as the canvas is for nobody to read before."""
    entering = list(itertools.dropwhile(lambda s: _overwritten(s, recipe), recipe.stages))
    kinds = itertools.groupby((s for s in entering if s.fusion != "none"), key=lambda s: s.fusion)
    for kind, stages in kinds:
        place = canvas.labels.device
        said = [
            fusion.FusionInput(answers[s.name].to(place), s.argmax_on) for s in stages if s.name in answers
        ]
        if said:
            fusion.fuse(kind, canvas, said, atlas)


def _overwritten(stage: Stage, recipe: Recipe) -> bool:
    """Whether a stage's foreground leaves no trace, as a later one looks at all of it and replaces it: then
    entering it into a blank canvas would be lost work."""
    later = recipe.stages[recipe.stages.index(stage) + 1 :]
    return stage.fusion == "none" or (
        stage.fusion in ("replace_in_roi", "paste")
        and any(
            s.fusion in ("replace_in_roi", "replace_times_atlas")
            and s.roi.kind == "dilated_foreground"
            and s.roi.of == stage.name
            for s in later
        )
    )
