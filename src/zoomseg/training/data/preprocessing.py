"""Prepare every case of a training group, one after the other, before the group's first step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from zoomseg.backends.device import Device
from zoomseg.backends.torch_networks import as_network
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import TrainingError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.datasets.layouts import Dataset
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.cascade import AtlasPriorOf
from zoomseg.pipeline.sliding_window import SlidingWindow, as_prior
from zoomseg.recipe import graph
from zoomseg.recipe.spec import ATLAS, Recipe, WholeVolume
from zoomseg.training.data import packed_cases
from zoomseg.training.log import TrainingObserver
from zoomseg.training.stage_group import StageGroup

Finished = Callable[[str], Mapping[str, nn.Module]]
"""Returns the finished stages' networks for a case, by stage name."""


def check_annotated(dataset: Dataset, ids: Sequence[str], stage: str, labels: Sequence[str]) -> None:
    """Refuse a label that is annotated in no case: the network could predict it anywhere.

    Args:
        ids: cases on which ``stage`` is trained.
        labels: labels of the stage.

    Raises:
        TrainingError: names the label.
    """
    wanted = frozenset(ids)
    annotated = [case.annotated for case in dataset.cases if case.id in wanted]
    for label in labels:
        if all(own is not None and label not in own for own in annotated):
            raise TrainingError(
                f"label '{label}' is annotated in none of the {len(ids)} cases that stage '{stage}' learns "
                "from; add a case in which it is, or take it out of the labels"
            )


@dataclass(frozen=True, eq=False)
class PackedCases:
    """By stage name, the cases in the same order."""

    train: Mapping[str, Sequence[packed_cases.PackedCase]]
    validation: Mapping[str, Sequence[packed_cases.PackedCase]]


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """The settings common to all groups of a run. ``labels`` are those that every stage predicts, ``cache``
    is the folder for packed cases."""

    dataset: Dataset
    recipe: Recipe
    labels: Mapping[str, tuple[str, ...]]
    cache: Path
    seed: int
    device: Device
    observer: TrainingObserver
    atlas_of: AtlasPriorOf | None

    def packs(
        self,
        group: StageGroup,
        train: Sequence[str],
        validation: Sequence[str],
        finished: Finished,
        stop: threading.Event,
    ) -> PackedCases:
        """Sample every case on the grids of the group's stages.

        Stages that are trained separately have regions from the predictions of the finished stages before
        them, or their reference boxes; stages that run together have regions from the reference. Cases in
        which none of the group's labels is annotated are left out.

        Raises:
            InterruptedTrainingError: ``stop`` was set.
            TrainingError: a stage has an empty region in all training cases.
        """
        ids = [*train, *validation]
        kept: dict[str, dict[str, packed_cases.PackedCase]] = {}
        learned = {label for name in group.trained for label in self.labels[name]}
        annotated = {case.id: case.annotated for case in self.dataset.cases}
        for done, case_id in enumerate(ids):
            if stop.is_set():
                raise InterruptedTrainingError("stopped while preparing the data; continue with --resume")
            self.observer.preparing(group.last_stage.name, done, len(ids))
            if learned.isdisjoint(learned if (own := annotated[case_id]) is None else own):
                self.observer.message(
                    f"{case_id}: no label of stage '{group.last_stage.name}' is annotated; left out"
                )
                continue
            packed = self._pack_case(group, case_id, finished(case_id), len(kept))
            if packed is None:
                self.observer.message(
                    f"{case_id}: stage '{group.last_stage.name}' has an empty region; left out"
                )
            else:
                kept[case_id] = packed
        self.observer.preparing(group.last_stage.name, len(ids), len(ids))
        if not any(i in kept for i in train):
            raise TrainingError(f"stage '{group.last_stage.name}' has an empty region in all training cases")
        parts = [
            {s.name: [kept[i][s.name] for i in part if i in kept] for s in group.stages}
            for part in (train, validation)
        ]
        return PackedCases(*parts)

    def _pack_case(
        self, group: StageGroup, case_id: str, finished: Mapping[str, nn.Module], number: int
    ) -> dict[str, packed_cases.PackedCase] | None:
        case = next(case for case in self.dataset.cases if case.id == case_id)
        scan = stage_input.prepare(self.dataset.load(case), self.recipe)
        priors = self._priors(group, scan, finished)
        live = {s.name for s in group.stages}
        out: dict[str, packed_cases.PackedCase] = {}
        for stage in group.stages:
            rng = np.random.default_rng([self.seed, group.index, number])
            specs = tuple(
                spec for spec in stage.inputs if not (spec.kind == "prior" and spec.of in live)
            )  # live priors are computed in every step, not stored
            shown = stage.model_copy(update={"inputs": specs})
            labels = self.labels[stage.name]
            packed = packed_cases.pack(shown, self.recipe, scan, priors, labels, self.cache, rng)
            if packed is None:
                return None
            out[stage.name] = packed
        return out

    def _without_reference_boxes(self, trained: Sequence[str]) -> Recipe:
        """The recipe in which stages trained in reference boxes do not take their regions from other
        stages."""
        stages = tuple(
            stage.model_copy(update={"roi": WholeVolume()})
            if stage.name in trained and stage.reference_margin_mm is not None
            else stage
            for stage in self.recipe.stages
        )
        return self.recipe.model_copy(update={"stages": stages})

    def _priors(
        self, group: StageGroup, scan: stage_input.PreparedScan, finished: Mapping[str, nn.Module]
    ) -> dict[str, StagePrediction]:
        """The priors of the group's stages: the reference for those that run together, the predictions of the
        finished stages before them."""
        together = tuple(s.name for s in group.stages)
        shown = self._without_reference_boxes(together)
        read = {name for stage in together for name in graph.ancestors(shown, stage)}
        priors = packed_cases.reference_priors(self.recipe, together, scan)
        looking = [s for s in self.recipe.stages if s.name in read or s.name in together]
        if self.atlas_of is not None and any(graph.uses_atlas(stage) for stage in looking):
            priors[ATLAS] = self.atlas_of(scan)
        for stage in self.recipe.stages:
            if stage.name in read and stage.name not in together:
                seen = stage_input.view(stage, self.recipe, scan, priors)
                labels = self.labels[stage.name]
                if seen is None:
                    priors[stage.name] = stage_input.background_prediction(stage, scan, labels)
                    continue
                network = as_network(finished[stage.name], self.device)
                window = SlidingWindow(seen, scan, priors, labels, network, self.device)
                priors[stage.name] = as_prior(window.predict(), scan.grid)
        return priors
