"""Convert a folder of TotalSegmentator's weights to a model folder: parts of a task are found by data set
number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zoomseg.core.errors import ModelError, listed
from zoomseg.core.labels import LabelSchema
from zoomseg.importing.body import within_body
from zoomseg.importing.combined import combined
from zoomseg.importing.nnunet.files import FOLDER_DEPTHS
from zoomseg.importing.nnunet.run import read_models, require_new_folder, write_models
from zoomseg.importing.totalsegmentator.tasks import TASKS, Part, Task
from zoomseg.io.bundle import Bundle
from zoomseg.recipe import graph

FOLD = "0"
"""The fold of TotalSegmentator's weights, or the one with which it predicts."""

SOURCE = (
    "Wasserthal et al. 2023, TotalSegmentator: robust segmentation of 104 anatomic structures in CT images"
)


def import_task(folder: Path, out: Path, task: str = "total", body: bool = False) -> Path:
    """Create a ZoomSeg model from a task's weights.

    Args:
        folder: TotalSegmentator's own (``~/.totalsegmentator``), or one with ``Dataset291_...`` and so on.
        out: the model folder to write.
        task: one of ``TASKS``.
        body: whether the region is restricted to the body.

    Raises:
        ModelError: no such task, a part of it is missing, or differs from the task's part.
        OutputError: no permission, full disk.
    """
    if task not in TASKS:
        raise ModelError(f"unknown task '{task}'; supported: {', '.join(TASKS)}")
    require_new_folder(out)
    wanted = TASKS[task]
    folders = [_folder(folder, task, part, wanted.trainer) for part in wanted.parts]
    models = [_model(source, part, wanted) for source, part in zip(folders, wanted.parts, strict=True)]
    if body:
        models = [within_body(model) for model in models]
    names = [source.parent.name for source in folders]
    model = (
        models[0] if len(models) == 1 else combined(models, names, wanted.labels, f"totalsegmentator-{task}")
    )
    recipe = model.recipe.model_copy(
        update={
            "name": f"totalsegmentator-{task.replace('_', '-')}",
            "description": f"TotalSegmentator's task {task}, of its data sets "
            f"{', '.join(str(part.dataset) for part in wanted.parts)}.",
            "source": SOURCE,
            "largest_component": wanted.largest_component,
        }
    )
    (written,) = write_models({FOLD: replace(model, recipe=recipe)}, out)
    return written


def _folder(folder: Path, task: str, part: Part, trainer: str) -> Path:
    """The folder of a part's model.

    Raises:
        ModelError: there is none, or more than one.
    """
    name = f"Dataset{part.dataset:03d}_*"
    found = sorted(
        plans.parent
        for depth in FOLDER_DEPTHS
        for plans in folder.glob(f"{depth}{name}/{trainer}__*/plans.json")
    )
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(
            f"{folder} holds {len(found)} models of data set {part.dataset} "
            f"({listed([path.parent.name for path in found])}); give a folder with one"
        )
    needed = ", ".join(str(own.dataset) for own in TASKS[task].parts)
    raise ModelError(
        f"{folder} has no {name}/{trainer}__.../plans.json; task '{task}' needs the weights of data set "
        f"{needed}, which TotalSegmentator has stored once it ran the task (nothing is downloaded here)"
    )


def _model(source: Path, part: Part, task: Task) -> Bundle:
    model = read_models(source, (FOLD,))[FOLD]
    if len(model.schema.names) != len(part.labels):
        raise ModelError(
            f"{source.parent.name} has {len(model.schema.names)} labels, data set {part.dataset} of "
            f"TotalSegmentator has {len(part.labels)}; is it of another version?"
        )
    # TotalSegmentator reorients scans to RAS+ before it passes them to nnU-Net.
    recipe = model.recipe.model_copy(update={"orientation": "canonical"})
    if task.overlap < 0.5:
        recipe = graph.with_less_overlap(recipe, task.overlap)
    return replace(model, recipe=recipe, schema=LabelSchema.consecutive(part.labels))
