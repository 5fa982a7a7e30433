"""A folder of weights as stored by TotalSegmentator v2, with small random networks."""

from __future__ import annotations

from pathlib import Path

from helpers import nnunet_models
from zoomseg.importing.totalsegmentator.tasks import TASKS


def write(home: Path, task: str, mm: float = 1.5) -> Path:
    """The weights of a task below ``home``, at an isotropic spacing; every part has another seed."""
    for part in TASKS[task].parts:
        folder = (
            home
            / "nnunet"
            / "results"
            / f"Dataset{part.dataset:03d}_TotalSegmentator_part_1559subj"
            / f"{TASKS[task].trainer}__nnUNetPlans__3d_fullres"
        )
        network = nnunet_models.random_network(False, seed=part.dataset, classes=1 + len(part.labels))
        known = nnunet_models.plans()
        known["dataset_name"] = folder.parent.name
        known["configurations"]["3d_fullres"]["spacing"] = [mm] * 3
        labels = {"background": 0} | {name: n for n, name in enumerate(part.labels, start=1)}
        nnunet_models.write(folder, network, known, labels=labels)
    return home
