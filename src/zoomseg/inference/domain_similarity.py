"""Comparison of a scan with those of a model's training."""

from __future__ import annotations

from zoomseg.core.case import Case
from zoomseg.io import training_domain
from zoomseg.io.training_domain import DomainSimilarity, TrainingDomain
from zoomseg.pipeline.inputs import window_of
from zoomseg.recipe.spec import IntensitySpec


def compare(
    known: TrainingDomain, case: Case, intensity: IntensitySpec, any_scan: bool = False
) -> DomainSimilarity:
    """How like the training cases a scan is, for a model with this intensity normalisation; ``any_scan`` as
    in ``io.training_domain.compare``.

    Raises:
        ScanError: it is plainly something else; the message states the reason.
    """
    channel = case.image.data[0]
    return training_domain.compare(
        known, channel, case.image.grid, window_of(intensity), case.modality, any_scan
    )
