from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers import grids
from zoomseg.core.case import Case
from zoomseg.core.errors import OutputError
from zoomseg.core.geometry import Grid
from zoomseg.core.resample import nearest_index
from zoomseg.datasets import phantom
from zoomseg.datasets.layouts import open_dataset
from zoomseg.datasets.phantom import PHANTOM_SCHEMA, phantom_case, phantom_grid, write_phantom_dataset

PINNED_COUNTS = [37171, 226, 268, 322, 54, 1743, 134, 175, 62, 138, 11, 16]
PINNED_SUM = -17461414


def test_one_patient_looks_alike_on_two_grids(demo: Case) -> None:
    coarse = phantom_case(3, "small")
    assert demo.labels is not None
    assert coarse.labels is not None
    sampled = nearest_index(demo.labels.data, demo.image.grid, coarse.image.grid)
    for name, least in (("liver", 0.93), ("spleen", 0.85), ("left_kidney", 0.85), ("right_kidney", 0.85)):
        a, b = mask(coarse, name), sampled == PHANTOM_SCHEMA.class_of(name)
        assert 2 * int((a & b).sum()) / int(a.sum() + b.sum()) > least, name


def test_a_grid_of_ones_own_may_be_oblique() -> None:
    turned = np.array([[0.0, -8, 0, 150], [7.6, 0, 2, -140], [-2, 0, 8.8, -90], [0, 0, 0, 1]])
    case = phantom_case(3, Grid((36, 38, 28), turned))
    straight = phantom_case(3, "small")
    for name in ("liver", "spleen"):
        distance = np.linalg.norm(
            centre_mm(case, mask(case, name)) - centre_mm(straight, mask(straight, name))
        )
        assert distance < 8, name


@pytest.mark.parametrize("seed", range(4))
def test_every_label_is_there_even_on_the_coarse_grid(seed: int) -> None:
    case = phantom_case(seed, "small")
    assert case.labels is not None
    counts = np.bincount(case.labels.data.flatten().astype(np.int64), minlength=PHANTOM_SCHEMA.classes)
    assert int(counts.min()) >= 3, dict(
        zip(("background", *PHANTOM_SCHEMA.names), counts.tolist(), strict=True)
    )


def test_patients_differ_in_size_and_place() -> None:
    cases = [phantom_case(seed, "small") for seed in range(6)]
    for name in ("liver", "left_kidney", "spleen"):
        volumes = np.array([volume_ml(case, name) for case in cases])
        assert volumes.std() / volumes.mean() > 0.03, name
        places = np.array([centre_mm(case, mask(case, name)) for case in cases])
        assert places.std(axis=0).max() > 2, name


def test_right_is_right_and_up_is_up(demo: Case) -> None:
    for pair in PHANTOM_SCHEMA.pairs:
        right, left = (centre_mm(demo, mask(demo, name)) for name in pair)
        assert pair[0].startswith("right")
        assert right[0] > left[0] + 30
    assert centre_mm(demo, mask(demo, "liver"))[0] > 30
    assert centre_mm(demo, mask(demo, "spleen"))[0] < -60
    body = demo.image.data[0, 20:92, 30:70]
    lungs = np.zeros(demo.image.grid.shape, dtype=np.bool_)
    lungs[20:92, 30:70] = (body < -700) & (body > -960)
    assert centre_mm(demo, lungs)[2] > centre_mm(demo, mask(demo, "liver"))[2] + 20


def test_sizes_are_those_of_an_adult(demo: Case) -> None:
    bounds = {
        "liver": (700, 1800),
        "spleen": (60, 300),
        "right_kidney": (80, 220),
        "left_kidney": (80, 220),
        "gallbladder": (10, 60),
        "pancreas": (40, 120),
        "portal_vein": (12, 50),
        "right_adrenal_gland": (1, 6),
        "left_adrenal_gland": (1, 6),
    }
    for name, (low, high) in bounds.items():
        assert low < volume_ml(demo, name) < high, name


def test_intensities_are_those_of_a_contrast_enhanced_ct(demo: Case) -> None:
    image = demo.image.data[0]
    assert float(image[0, -1, 0]) < -900  # air in the corner
    median = {name: float(np.median(image[mask(demo, name)])) for name in PHANTOM_SCHEMA.names}
    assert 80 < median["liver"] < 130
    assert -10 < median["gallbladder"] < 40
    assert median["aorta"] > median["inferior_vena_cava"] > median["liver"] > median["pancreas"]
    assert median["right_kidney"] > median["liver"] + 30


def test_noise_is_that_of_a_scanner(demo: Case) -> None:
    """Of the specified strength in a large organ, and shared between neighbours."""
    liver = mask(demo, "liver")
    image = demo.image.data[0]
    pairs = liver[1:] & liver[:-1]
    here, there = image[1:][pairs].copy(), image[:-1][pairs].copy()
    level = np.median(image[liver])
    calm = (np.abs(here - level) < 60) & (np.abs(there - level) < 60)
    here, there = here[calm], there[calm]
    assert phantom.NOISE_HU * 0.8 < float(here.std()) < phantom.NOISE_HU * 1.5
    assert float(np.corrcoef(np.stack([here, there]))[0, 1]) > 0.25


def test_the_aorta_runs_through_every_slice_and_is_thin(demo: Case) -> None:
    per_slice = mask(demo, "aorta").sum(axis=(0, 1)) * demo.image.grid.spacing_mm[0] ** 2
    assert int(per_slice.min()) > 100
    assert int(per_slice.max()) < 800


def test_demo_grid_is_anisotropic_and_holds_the_torso() -> None:
    grid = phantom_grid("demo")
    assert grid.spacing_mm == (3.0, 3.0, 4.0)
    assert grid.extent_mm == (336.0, 288.0, 256.0)
    assert np.allclose(grids.centre_mm(grid), 0)


def test_a_data_set_on_disk_gives_the_cases_back(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_phantom_dataset(tmp_path, 2, seed=7, size="small", on_progress=lambda *a: seen.append(a))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    dataset = open_dataset(tmp_path)
    assert dataset.schema == PHANTOM_SCHEMA
    assert dataset.ids == ("phantom_0007", "phantom_0008")
    loaded, made = dataset.load(dataset.cases[1]), phantom_case(8, "small")
    assert loaded.labels is not None
    assert made.labels is not None
    assert np.array_equal(loaded.image.data, made.image.data)
    assert np.array_equal(loaded.labels.data, made.labels.data)
    assert loaded.image.grid.same_as(made.image.grid, 1e-4)
    file = nib.Nifti1Image.from_filename(tmp_path / "imagesTr" / "phantom_0007_0000.nii.gz")
    assert np.asarray(file.dataobj).dtype == np.int16
    labels = nib.Nifti1Image.from_filename(tmp_path / "labelsTr" / "phantom_0007.nii.gz")
    values = np.unique(np.asarray(labels.dataobj))
    assert values.tolist() == [0, *PHANTOM_SCHEMA.values]
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"]["liver"] == 6


def test_an_interrupted_write_does_not_look_like_a_data_set(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom_dataset(tmp_path, 3, size="small", on_progress=stop)
    assert not (tmp_path / "dataset.json").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_phantom_dataset(tmp_path / "file", 1, size="small")


@pytest.fixture(scope="module")
def demo() -> Case:
    return phantom_case(3)


def mask(case: Case, name: str) -> np.ndarray:
    assert case.labels is not None
    return case.labels.data == PHANTOM_SCHEMA.class_of(name)


def centre_mm(case: Case, where: np.ndarray) -> np.ndarray:
    return case.image.grid.world(np.argwhere(where).astype(np.float64).mean(axis=0))


def volume_ml(case: Case, name: str) -> float:
    return int(mask(case, name).sum()) * case.image.grid.voxel_volume_ml


def test_a_seed_is_one_patient_and_one_only() -> None:
    first, again, other = phantom_case(1, "small"), phantom_case(1, "small"), phantom_case(2, "small")
    assert first.labels is not None
    assert again.labels is not None
    assert np.array_equal(first.image.data, again.image.data)
    assert np.array_equal(first.labels.data, again.labels.data)
    assert not np.array_equal(first.image.data, other.image.data)
    assert first.id == "phantom_0001"


def test_the_same_voxels_on_every_machine() -> None:
    case = phantom_case(0, "small")
    assert case.labels is not None
    counts = np.bincount(case.labels.data.flatten().astype(np.int64), minlength=PHANTOM_SCHEMA.classes)
    assert counts.tolist() == PINNED_COUNTS
    assert int(case.image.data.astype(np.float64).sum()) == PINNED_SUM
