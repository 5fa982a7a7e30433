"""Corrected label maps become training cases, and other uploads are refused."""

from __future__ import annotations

import gzip
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import tiny_case, tiny_recipe
from zoomseg.core.errors import DatasetError, ScanError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import open_dataset
from zoomseg.io.scans import read_label_values, write_array, write_image, write_labels
from zoomseg.recipe.graph import fit
from zoomseg.serve.corrections import MAX_ARRIVING, Corrections, NotCorrectableError
from zoomseg.serve.job_queue import State
from zoomseg.serve.jobs import Job, QueueFullError

SCHEMA = LabelSchema(("left kidney", "right kidney"), (3, 7))


def job(job_id: str = "0123456789abcdef") -> Job:
    return Job(id=job_id, name="a.nii.gz", suffix=".nii.gz", model="tiny", state=State.FINISHED, created=0.0)


class Case:
    """A scan, its label map, and a corrected one."""

    def __init__(self, folder: Path) -> None:
        image, labels = tiny_case(0)
        self.scan, self.predicted, self.sent = (folder / f"{n}.nii.gz" for n in ("scan", "predicted", "sent"))
        self.grid = labels.grid
        self.values = labels.schema.decode(labels.data).astype(np.uint8)
        write_image(self.scan, image)
        write_labels(self.predicted, labels)

    def add(
        self, corrections: Corrections, values: np.ndarray, of: Job, channels: tuple[str, ...] = ("CT",)
    ) -> None:
        write_array(self.sent, values, self.grid)
        corrections.add(of, self.sent, self.scan, self.predicted, SCHEMA, channels)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture
def corrections(tmp_path: Path) -> Corrections:
    return Corrections(tmp_path / "jobs")


def test_corrected_maps_are_a_data_set_that_train_reads(case: Case, corrections: Corrections) -> None:
    case.values[2:4, 2:4, 2:4] = 7
    case.add(corrections, case.values, job())
    other = job("f" * 16)
    case.add(corrections, np.where(case.values == 3, 0, case.values), other)
    dataset = open_dataset(corrections.data_set("tiny"))
    assert dataset.ids == ("0123456789abcdef", "f" * 16)
    assert (dataset.channel_names, dataset.schema) == (("CT",), SCHEMA)
    loaded = dataset.load(dataset.cases[0])
    assert loaded.labels is not None
    np.testing.assert_array_equal(SCHEMA.decode(loaded.labels.data), case.values)
    np.testing.assert_array_equal(loaded.image.data[0], tiny_case(0)[0].data[0])


def test_a_second_correction_takes_the_place_of_the_first(case: Case, corrections: Corrections) -> None:
    case.add(corrections, case.values, job())
    case.add(corrections, np.zeros_like(case.values), job())
    assert read_label_values(corrections.labels(job()))[0].max() == 0
    assert len(open_dataset(corrections.data_set("tiny")).cases) == 1


def test_a_case_that_is_removed_leaves_nothing_of_the_scan(case: Case, corrections: Corrections) -> None:
    case.add(corrections, case.values, job())
    corrections.remove(job())
    corrections.remove(job())
    assert [p.name for p in corrections.data_set("tiny").rglob("*") if p.is_file()] == ["dataset.json"]
    assert case.scan.is_file()


def test_what_is_no_correction_of_the_map_is_refused(case: Case, corrections: Corrections) -> None:
    with pytest.raises(ScanError, match="holds the value 4, which is none of the model's labels"):
        case.add(corrections, np.full_like(case.values, 4), job())
    shifted = tiny_case(0)[1].grid
    moved = shifted.affine.copy()
    moved[0, 3] += 5
    write_array(case.sent, case.values, type(shifted)(shifted.shape, moved))
    with pytest.raises(ScanError, match="on another grid"):
        corrections.add(job(), case.sent, case.scan, case.predicted, SCHEMA, ("CT",))
    for content in (b"", b"no image", gzip.compress(b"no image" * 100)):
        case.sent.write_bytes(content)
        with pytest.raises(ScanError, match="no label map in NIfTI") as refused:
            corrections.add(job(), case.sent, case.scan, case.predicted, SCHEMA, ("CT",))
        assert str(case.sent.parent) not in str(refused.value)
    with pytest.raises(NotCorrectableError, match="one channel"):
        case.add(corrections, case.values, job(), ("T1", "T2"))
    assert not corrections.labels(job()).exists()


def test_a_result_that_is_gone_is_no_error_of_the_correction(case: Case, corrections: Corrections) -> None:
    case.predicted.unlink()
    with pytest.raises(DatasetError, match="no such file"):
        case.add(corrections, case.values, job())


def test_the_data_set_has_the_models_groups_and_its_number_of_cases(
    case: Case, corrections: Corrections
) -> None:
    """nnU-Net requires ``numTraining``; a recipe may name groups, which a training on the cases must know."""
    schema = LabelSchema(SCHEMA.names, SCHEMA.values, {"kidneys": SCHEMA.names})
    file = corrections.data_set("tiny") / "dataset.json"
    case.add(corrections, case.values, job())
    file.write_text(json.dumps({**json.loads(file.read_text()), "licence": "CC0"}))
    for job_id in ("e" * 16, "f" * 16):
        write_array(case.sent, case.values, case.grid)
        corrections.add(job(job_id), case.sent, case.scan, case.predicted, schema, ("CT",))
    known = json.loads(file.read_text())
    assert (known["numTraining"], known["licence"]) == (3, "CC0")
    dataset = open_dataset(file.parent)
    assert dataset.schema == schema
    recipe = tiny_recipe(together=True).model_copy(update={"largest_component": ("kidneys",)})
    assert fit(recipe, dataset.schema)[0].largest_component == ("kidneys",)
    corrections.remove(job())
    assert json.loads(file.read_text())["numTraining"] == 2


def test_a_map_that_claims_to_be_large_is_not_unpacked(case: Case, corrections: Corrections) -> None:
    content = bytearray(gzip.decompress(case.predicted.read_bytes())[:352])
    content[40:48] = np.array([3, 30_000, 30_000, 30_000], "<i2").tobytes()
    case.sent.write_bytes(gzip.compress(bytes(content) + bytes(10**6)))
    with pytest.raises(ScanError, match=r"on another grid|no label map"):
        corrections.add(job(), case.sent, case.scan, case.predicted, SCHEMA, ("CT",))


def test_cases_of_a_model_with_other_labels_are_not_mixed(case: Case, corrections: Corrections) -> None:
    case.add(corrections, case.values, job())
    write_array(case.sent, case.values, case.grid)
    other = LabelSchema(("liver", "spleen"), (3, 7))
    with pytest.raises(NotCorrectableError, match="corrected/tiny away"):
        corrections.add(job("f" * 16), case.sent, case.scan, case.predicted, other, ("CT",))
    (corrections.data_set("tiny") / "dataset.json").write_text("{")
    with pytest.raises(NotCorrectableError, match="damaged"):
        case.add(corrections, case.values, job())


def test_an_upload_that_a_killed_server_left_is_deleted(tmp_path: Path, corrections: Corrections) -> None:
    with corrections.arriving(job()) as place:
        place.write_bytes(b"x")
        Corrections(tmp_path / "jobs")
        assert not place.exists()


def test_only_so_many_arrive_at_the_same_time(corrections: Corrections) -> None:
    with ExitStack() as arriving:
        for _ in range(MAX_ARRIVING):
            arriving.enter_context(corrections.arriving(job()))
        with pytest.raises(QueueFullError), corrections.arriving(job()):
            pass
    with corrections.arriving(job()):
        pass
