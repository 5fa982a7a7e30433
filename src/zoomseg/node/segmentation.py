"""The work of a node's worker: one series to label map, measurements and DICOM objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoomseg.core.errors import MemoryLimitError, OutputError, ScanError
from zoomseg.io.files import without_library_messages
from zoomseg.node.jobs import result_path
from zoomseg.node.settings import Output
from zoomseg.node.store import quiet
from zoomseg.serve.job_queue import Step
from zoomseg.serve.worker import Task, TemporaryError, UnexpectedError, one_scan

if TYPE_CHECKING:
    from zoomseg.inference.batch import ScanOutcome
    from zoomseg.inference.predictor import Predictor


def segment_series(task: Task, predictor: Predictor, on_step: Callable[[Step], None]) -> None:
    """Segment a series and write the objects requested by its job.

    Raises:
        ScanError: the series cannot be used.
        TemporaryError: a full disk, or too little free memory.
        UnexpectedError: an error that is none of ours.
        ZoomSegError: any other failure. No message contains those of libraries, which may quote headers.
    """
    with quiet(), without_library_messages():
        try:
            _segment(task, predictor, on_step)
        except (OutputError, MemoryLimitError) as error:
            raise TemporaryError(str(error)) from error


def _segment(task: Task, predictor: Predictor, on_step: Callable[[Step], None]) -> None:
    from zoomseg.core.geometry import Orientation
    from zoomseg.inference.batch import ExtraOutputs, Failed, Segmented
    from zoomseg.inference.organ_pictures import fullest_planes, overview
    from zoomseg.inference.outputs import segment_to_folder
    from zoomseg.inference.summary import OrganRow
    from zoomseg.io.dicom.write.report import ReportedOrgan, write_report
    from zoomseg.io.dicom.write.results import DicomResult
    from zoomseg.io.dicom.write.secondary_capture import write_capture

    notes: list[str] = []
    # The node's page and logs contain no description of a series, which may be any text.
    scan, out = one_scan(Path(task.scan), notes.append, described=False), Path(task.out)
    outputs = [Output(name) for name in task.wanted["outputs"]]
    organs = predictor.bundle.schema.select(task.wanted["organs"] or "all")
    seed = task.wanted["seed"]
    dicom = tuple(kind for kind in DicomResult if kind.name in {output.name for output in outputs})
    if scan.dicom is None:
        raise ScanError(f"{scan.paths[0]}: no DICOM series")
    series = scan.dicom.usable().series
    rows: list[OrganRow] = []

    def on_result(outcome: ScanOutcome) -> None:
        match outcome:
            case Failed(reason=reason, short=True):
                raise TemporaryError(reason)
            case Failed(reason=reason, unexpected=True):
                raise UnexpectedError(reason)
            case Failed(reason=reason):
                raise ScanError(reason)
            case Segmented(_, _, image, result):
                model = predictor.bundle.recipe.name
                if Output.SECONDARY_CAPTURE in outputs and result.labels.data.any():
                    turn = Orientation.to_canonical(image.grid)
                    shown, labels = image.reoriented(turn), result.labels.reoriented(turn)
                    picture = overview(shown, labels, at=fullest_planes(labels.data)).pixels
                    path = result_path(out, Output.SECONDARY_CAPTURE)
                    write_capture(path, picture, series, model, seed)
                if Output.SR in outputs and result_path(out, Output.SEG).is_file():
                    found = [
                        ReportedOrgan(row.organ, row.volume_ml, row.mean_intensity, row.confidence)
                        for row in rows
                        if row.mean_intensity is not None
                    ]
                    seg = result_path(out, Output.SEG)
                    write_report(result_path(out, Output.SR), found, seg, series, model, seed=seed)

    segment_to_folder(
        [replace(scan, id=task.case)],
        out,
        predictor,
        organs,
        on_result=on_result,
        on_progress=lambda _, progress: on_step(Step(progress.stage, progress.done, progress.tiles)),
        extra=ExtraOutputs(dicom=dicom, uid_seed=seed),
        on_organs=rows.extend,
        notes=notes,
    )
