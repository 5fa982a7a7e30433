"""A data set and recipes for training within seconds: two organs in a box of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoomseg.backends.device import Device
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.io.files import write_json_atomic
from zoomseg.io.scans import write_image, write_labels
from zoomseg.recipe.load import dump, from_dict, load
from zoomseg.recipe.spec import PlannedRecipe, Recipe

SCHEMA = LabelSchema(("left kidney", "right kidney"), (3, 7))
CPU = Device("cpu")


def tiny_case(seed: int, nan: bool = False) -> tuple[Volume, LabelMap]:
    """A scan of 24x20x16 voxels: noise around 0, a bright ball on one side, a brighter one on the other."""
    rng = np.random.default_rng(seed)
    grid = Grid.from_spacing((24, 20, 16), (2.0, 2.0, 3.0), (-24.0, -20.0, -24.0))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    classes = np.zeros(grid.shape, dtype=np.uint8)
    for label, side in ((1, 6), (2, 17)):
        centre = np.array([side, 10, 8]) + rng.uniform(-1.5, 1.5, 3)
        distance = (index - centre) * np.array([2.0, 2.0, 3.0])
        classes[np.linalg.norm(distance, axis=-1) < 7.5] = label
    image = rng.normal(0, 10, grid.shape) + np.choose(classes, [0.0, 70.0, 160.0])
    return (
        Volume(image[None].astype(np.float32), grid),
        LabelMap(classes, grid, SCHEMA),
    )


def tiny_dataset(root: Path, cases: int = 4) -> Dataset:
    """The data set in nnU-Net raw layout."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for seed in range(cases):
        image, labels = tiny_case(seed)
        write_image(root / "imagesTr" / f"case_{seed}_0000.nii.gz", image)
        write_labels(root / "labelsTr" / f"case_{seed}.nii.gz", labels)
    write_json_atomic(
        root / "dataset.json",
        {
            "name": "tiny",
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "left kidney": 3, "right kidney": 7},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        },
    )
    return open_dataset(root)


def tiny_recipe(together: bool, iterations: int = 20, lr: float = 3e-3) -> Recipe:
    """A recipe with a coarse and a fine stage, whose networks have a few thousand weights."""
    network = {
        "kind": "resenc_unet",
        "channels": [8, 16],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "kernels": [[3, 3, 3], [3, 3, 3]],
        "blocks": [1, 1],
    }

    def training(patch: list[int]) -> dict[str, object]:
        return {
            "patch": patch,
            "batch": 2,
            "iterations": iterations,
            "steps_per_epoch": 5,
            "optimiser": {"kind": "adamw", "lr": lr},
            "augmentation": {
                "rotation_deg": [10, 10, 10],
                "elastic_vox": 1,
                "elastic_grid_vox": 6,
                "noise": 0.1,
            },
            "ema_decay": 0.9,
        }

    return from_dict(
        {
            "name": "tiny",
            "intensity": {"kind": "window", "lower": -150, "upper": 200},
            "train_together": [["coarse", "fine"]] if together else [],
            "prior_from": "live" if together else "predictions",
            "stages": [
                {
                    "name": "coarse",
                    "grid": {"kind": "spacing", "mm": [4, 4, 4], "tile": [12, 12, 12]},
                    "network": network,
                    "training": training([12, 12, 12]),
                },
                {
                    "name": "fine",
                    "roi": {"kind": "dilated_foreground", "of": "coarse", "radius_vox": 2},
                    "grid": {"kind": "spacing", "mm": [2, 2, 3], "tile": [16, 16, 12], "overlap": 0.25},
                    "inputs": [{"kind": "image"}, {"kind": "prior", "of": "coarse"}],
                    "network": network,
                    "training": training([16, 16, 12]),
                },
            ],
        }
    )  # type: ignore[return-value]


def retrained(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with these changes in every stage's training section."""
    stages = tuple(
        s.model_copy(update={"training": s.training.model_copy(update=changes)}) for s in recipe.stages
    )
    return recipe.model_copy(update={"stages": stages})


def small_plan(path: Path, **other: float) -> str:
    """The default recipe with few steps, and with channels and patches that fit the tiny data set; ``other``
    replaces these values."""
    small = {
        "base_channels": (4, 4),
        "max_channels": 8,
        "fine_patch_voxels": 1000,
        "coarse_voxels": 300,
        "fine_voxels": 3000,
        "iterations": 2,
    }
    planned = load("default")
    assert isinstance(planned, PlannedRecipe)
    path.write_text(dump(planned.model_copy(update=small | other)))
    return str(path)
