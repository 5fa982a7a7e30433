"""Run one scan through a cascade: every stage determines its region and predicts; the predictions are
fused."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from zoomseg.anatomy.measurements import measure
from zoomseg.anatomy.plausibility import plausibility_flags
from zoomseg.anatomy.positions import TypicalPosition
from zoomseg.core.arrays import to_numpy
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.morphology import largest_component, without_islands
from zoomseg.core.volume import LabelMap
from zoomseg.pipeline import fusion, roi_expansion, stage_input
from zoomseg.pipeline.sliding_window import (
    ComputeDevice,
    OnProgress,
    SlidingWindow,
    StageNetworkOf,
    StageRecord,
    as_prior,
    ignore_progress,
)
from zoomseg.pipeline.stage_input import PreparedScan, StageView
from zoomseg.pipeline.uncertainty import Uncertainty, UncertaintyEstimator
from zoomseg.recipe import graph
from zoomseg.recipe.spec import ATLAS, Recipe, Stage

AtlasPriorOf = Callable[[PreparedScan], StagePrediction]
"""Computes the atlas prior of a scan."""
FitTiles = Callable[[StageView, bool], tuple[StageView, int | None]]
"""Reduces tiles if memory is short, given the view and whether the prediction is held as a whole; also
returns how many are computed together (None: as many as keep the device busy)."""


def as_planned(view: StageView, full_prediction: bool) -> tuple[StageView, int | None]:
    """``FitTiles`` without a memory limit."""
    return view, None


@dataclass(frozen=True)
class OrganUncertainty:
    """The uncertainty of the prediction of one organ."""

    own: Uncertainty
    """That of the stage that predicts the organ."""
    cut: bool
    """Whether the organ reaches the end of the stage's region, even after the region was widened."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """``labels`` on the scan's own grid and orientation; ``stages`` are the predictions of all stages that
    had a region, as they were fused, on the stages' grids, if they were to be kept. Their axes run as the
    recipe's ``orientation`` says, which need not be canonical. Those of overlapping labels have odds relative
    to background."""

    case: str
    labels: LabelMap
    uncertainty: Mapping[str, OrganUncertainty]
    """Of every organ that was found, by the last stage that predicts it."""
    stages: Mapping[str, StagePrediction]
    records: tuple[StageRecord, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    """What the user should know: how the scan was read, how unlike the training scans it is, what was removed
    from the label map; one line each."""
    confidence_factor: float = 1.0
    """Similarity of the scan to the training scans, 0 to 1 (see ``inference.domain_similarity``)."""
    misplaced: tuple[str, ...] = ()
    """Organs that lie far from their positions in training, and nowhere else."""
    implausible: Mapping[str, tuple[str, ...]] | None = None
    """Flags of organs in implausible positions, if ``labels`` does not contain all organs by which these are
    judged (see ``anatomy.plausibility``)."""
    atlas: StagePrediction | None = None
    """The scan's atlas prior, if the recipe has one and predictions of the stages were to be kept."""
    last: Stage | None = None
    """The recipe's last stage."""

    @property
    def schema(self) -> LabelSchema:
        return self.labels.schema

    @property
    def confidence(self) -> dict[str, float]:
        """The Dice expected from the probabilities, 0 to 1, by organ. The model's calibration and
        ``confidence_factor`` state how far this expectation is met."""
        return {organ: found.own.expected_dice for organ, found in self.uncertainty.items()}

    @property
    def probabilities(self) -> StagePrediction | None:
        """The last stage's probabilities, on its grid; None if it had no region, or if predictions were not
        to be kept."""
        if self.last is None or self.last.name not in self.stages:
            return None
        return fusion.as_probabilities(self.stages[self.last.name], self.last)


@dataclass(frozen=True, eq=False)
class Cascade:
    """A recipe with its networks: trained ones, or an oracle."""

    recipe: Recipe
    schema: LabelSchema
    network_of: StageNetworkOf
    device: ComputeDevice
    atlas_of: AtlasPriorOf | None = None
    fit: FitTiles = as_planned
    typical_positions: Mapping[str, TypicalPosition] | None = None
    """Positions of the organs in training; parts far from these are removed, or only noted, as the recipe
    says."""

    def run(
        self,
        case: Case,
        organs: tuple[str, ...] | None = None,
        keep: bool = True,
        on_progress: OnProgress = ignore_progress,
    ) -> Prediction:
        """Segment one scan.

        Args:
            organs: labels of the label map; None: all.
            keep: whether the result contains the predictions of every stage. Otherwise, predictions that no
                later stage reads are written to the label map slab by slab, and never held as a whole.

        Raises:
            ScanError: the scan shows nothing within the recipe's window.
            MemoryLimitError: a stage's region has more voxels than fit into memory.
            ModelError: a network's output is not finite.
        """
        clock = _Clock()
        scan = stage_input.prepare(case, self.recipe, self.device.put)
        clock.lap("prepare")
        priors: dict[str, StagePrediction] = {}
        if self.atlas_of is not None:
            priors[ATLAS] = self.atlas_of(scan)
            clock.lap(ATLAS)
        run = _Run(self, scan, keep, on_progress, priors)
        for stage in self.recipe.stages:
            if run.compute(stage):
                clock.lap(f"stage {stage.name}" if stage.name in STEPS else stage.name)
        run.fuse()
        notes, misplaced = self._clean(run, organs)
        labels = _on_own_grid(run.fused, scan, case)
        implausible: Mapping[str, tuple[str, ...]] | None = None
        if organs is not None and set(organs) != set(self.schema.names):
            # Before organs are dropped that serve as references for the positions of others.
            found = measure(case.id, labels, case.image, self.schema.names)
            implausible = plausibility_flags(self.schema, found)
            fusion.keep_only(run.fused, organs)
            labels = _on_own_grid(run.fused, scan, case)
        clock.lap("fuse")
        return Prediction(
            case.id,
            labels,
            run.uncertainty,
            run.stages,
            tuple(run.records),
            clock.seconds,
            notes=notes,
            implausible=implausible,
            misplaced=misplaced,
            atlas=priors.get(ATLAS) if keep else None,
            last=self.recipe.stages[-1],
        )

    def _clean(self, run: _Run, organs: tuple[str, ...] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Remove false organs, and false parts of organs; returns notes on the absent and the misplaced ones
        of those requested, and organs that are misplaced as a whole."""
        recipe, select, fused = self.recipe, self.schema.select, run.fused
        absent = run.remove_absent()
        fusion.keep_parts(fused, select(recipe.largest_component), largest_component)
        if recipe.islands is not None:
            parts = partial(without_islands, below=recipe.islands.below)
            fusion.keep_parts(fused, select(recipe.islands.labels), parts)
        typical, remove = self.typical_positions, recipe.remove_misplaced
        found = {} if typical is None else fusion.find_misplaced(fused, typical, remove)
        wanted = select("all" if organs is None else organs)
        notes = {name: own.note(name) for name, own in found.items()}
        notes |= {name: _note_on_absent(name, recipe) for name in absent}
        return tuple(note for name, note in notes.items() if name in wanted), tuple(
            name for name, own in found.items() if own.alone
        )


def _note_on_absent(organ: str, recipe: Recipe) -> str:
    assert recipe.presence is not None
    return (
        f"{organ}: removed, as stage '{recipe.presence.of}', which sees the whole scan, finds it nowhere "
        f"with a probability of {recipe.presence.at_least:g} or more"
    )


def _on_own_grid(fused: fusion.FusedLabelMap, scan: PreparedScan, case: Case) -> LabelMap:
    """The label map on the grid of the case's image."""
    labels = LabelMap(to_numpy(fused.labels), scan.grid, fused.schema)
    return _uncropped(labels.reoriented(scan.orientation.inverse), case.image.grid, scan.box)


def _uncropped(labels: LabelMap, grid: Grid, box: Box) -> LabelMap:
    """Labels of a box on the complete grid, with background around it."""
    if box == grid.box:
        return labels
    data = np.zeros(grid.shape[::-1], dtype=np.uint8).T  # plane by plane in memory, as in files
    data[box.slices] = labels.data
    return LabelMap(data, grid, labels.schema)


STEPS = ("read", "waited", "prepare", "fuse", "write", "summary", "report", "total")
"""Keys of ``run.json`` with the seconds of a scan, beside those of its stages."""


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


@dataclass(frozen=True, eq=False)
class _Pass:
    """One computation of a stage; ``prediction`` is None if it was written directly to the label map."""

    view: StageView
    found: dict[str, Uncertainty]
    estimator: UncertaintyEstimator
    prediction: StagePrediction | None
    record: StageRecord


@dataclass(eq=False)
class _Run:
    """The state of one scan during the cascade."""

    cascade: Cascade
    scan: PreparedScan
    keep: bool
    on_progress: OnProgress
    priors: dict[str, StagePrediction]
    """Priors for later stages: the atlas prior, and every stage's prediction so far."""
    stages: dict[str, StagePrediction] = field(default_factory=dict)
    """Predictions that are still to be written to the label map."""
    records: list[StageRecord] = field(default_factory=list)
    uncertainty: dict[str, OrganUncertainty] = field(default_factory=dict)
    """Of every organ, by the last stage that predicted it."""

    def __post_init__(self) -> None:
        cascade = self.cascade
        like = cascade.device.put(np.empty(0, dtype=np.float32))
        self.fused = fusion.FusedLabelMap.blank(self.scan.grid, cascade.schema, like)

    def compute(self, stage: Stage) -> bool:
        """Compute a stage; returns whether it had a region."""
        cascade = self.cascade
        labels = graph.resolve_labels(stage, cascade.schema)
        view = stage_input.view(stage, cascade.recipe, self.scan, self.priors)
        if view is None:
            nothing = stage_input.background_prediction(stage, self.scan, labels)
            self.priors[stage.name] = self._read_by_others(nothing, stage)
            return False
        full_prediction = keeps_full_prediction(stage, cascade.recipe, self.keep)
        if not full_prediction:
            self.fuse()
            self.stages.clear()
        done = self._expanded(self._pass(view, labels, full_prediction), labels, full_prediction)
        if done.prediction is not None:
            self.stages[stage.name] = done.prediction
            self.priors[stage.name] = self._read_by_others(done.prediction, stage)
        self.records.append(done.record)
        if stage.fusion != "none":
            self._assess(labels, done)
        return True

    def _read_by_others(self, prediction: StagePrediction, stage: Stage) -> StagePrediction:
        """The prediction as later stages read it: with probabilities of the final label if labels overlap,
        with background where it ends, and with the label map if one is read."""
        cascade, decided = self.cascade, None
        if graph.label_map_is_read(cascade.recipe, stage.name):
            blank = fusion.FusedLabelMap.blank(self.scan.grid, cascade.schema, self.fused.labels)
            fusion.write_stage_labels(stage, prediction, blank)
            decided = LabelMap(to_numpy(blank.labels), self.scan.grid, cascade.schema)
        read = as_prior(fusion.as_probabilities(prediction, stage), self.scan.grid)
        return replace(read, decided=decided)

    def _pass(self, view: StageView, labels: tuple[str, ...], full_prediction: bool) -> _Pass:
        cascade = self.cascade
        fitting, together = cascade.fit(view, full_prediction)
        network = cascade.network_of(view)
        window = SlidingWindow(
            fitting, self.scan, self.priors, labels, network, cascade.device, together, self.on_progress
        )
        sides = roi_expansion.open_sides(view.grid, self.scan.grid)
        estimator = UncertaintyEstimator(labels, view.region, sides, view.stage.labels_overlap)
        prediction = None
        if full_prediction:
            prediction = window.predict(estimator)
        else:
            window.fuse_into(self.fused, estimator)
        return _Pass(view, estimator.uncertainty(), estimator, prediction, window.record)

    def _expanded(self, done: _Pass, labels: tuple[str, ...], full_prediction: bool) -> _Pass:
        """The pass, repeated with a wider region where the region may have cut organs, if the recipe requests
        this."""
        wanted = self.cascade.recipe.roi_expansion
        cut = roi_expansion.cut_organs(done.view, done.found) if wanted else ()
        if not cut:
            return done
        view, first = roi_expansion.expanded(done.view, self.scan, done.estimator, cut), done.record
        del done  # the first prediction need not be held at the same time as the wider one
        again = self._pass(view, labels, full_prediction)
        return replace(again, record=first.and_then(again.record, cut))

    def _assess(self, labels: tuple[str, ...], done: _Pass) -> None:
        cut = roi_expansion.cut_organs(done.view, done.found)
        for organ in labels:
            self.uncertainty.pop(organ, None)
        for organ, own in done.found.items():
            self.uncertainty[organ] = OrganUncertainty(own, organ in cut)

    def remove_absent(self) -> tuple[str, ...]:
        """Remove organs that the stage which decides about their presence finds nowhere; returns those that
        others had found."""
        presence = self.cascade.recipe.presence
        if presence is None:
            return ()
        decided = self.priors[presence.of]
        highest = to_numpy(decided.probabilities)[1:].max(axis=(1, 2, 3))
        wanted = self.cascade.schema.select(presence.labels)
        absent = [
            label
            for label, share in zip(decided.labels, highest.tolist(), strict=True)
            if label in wanted and share < presence.at_least
        ]
        removed = fusion.remove(self.fused, absent)
        for label in removed:
            self.uncertainty.pop(label, None)
        return removed

    def fuse(self) -> None:
        """Write every prediction to the label map; consecutive ones of one kind are fused together, as they
        may vote. This is done after all predictions, as no stage reads the label map before."""
        recipe = self.cascade.recipe
        entering = itertools.dropwhile(lambda s: _overwritten(s, recipe), recipe.stages)
        for kind, stages in graph.fused_groups(entering):
            found = [
                fusion.FusionInput.of(stage, self.stages[stage.name], self.fused)
                for stage in stages
                if stage.name in self.stages
            ]
            if found:
                fusion.fuse(kind, self.fused, found, self.priors.get(ATLAS))


def keeps_full_prediction(stage: Stage, recipe: Recipe, keep: bool) -> bool:
    """Whether a stage's prediction is held as a whole: to be returned, read by a later stage or for the
    presence of organs, fused together with others, or pasted if its region may still be widened, as other
    organs under what is pasted could not be restored; otherwise it is written to the label map slab by
    slab."""
    pasted_once = stage.fusion == "paste" and not (recipe.roi_expansion and roi_expansion.may_cut(stage))
    by_slabs = stage.fusion == "replace_in_roi" or pasted_once
    decides = recipe.presence is not None and recipe.presence.of == stage.name
    return keep or decides or not by_slabs or graph.is_read(recipe, stage.name)


def _overwritten(stage: Stage, recipe: Recipe) -> bool:
    """Whether a later stage covers and replaces all foreground of this stage: writing it to a blank label map
    would then be useless."""
    later = recipe.stages[recipe.stages.index(stage) + 1 :]
    return stage.fusion == "none" or (
        stage.fusion in ("replace_in_roi", "paste")
        and any(
            s.fusion in ("replace_in_roi", "replace_times_atlas")
            and s.roi.kind == "dilated_foreground"
            and s.roi.of == stage.name
            and s.roi.labels == "all"
            for s in later
        )
    )
