"""Predictions of stages are read back on the scan's own grid, and never those of another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.grids import grids, indices, masks, oriented
from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_recipe
from helpers.untrained_models import predictor, untrained_bundle
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.region import Region
from zoomseg.core.tiling import Tile
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.inference import stage_outputs
from zoomseg.inference.batch import ExtraOutputs, Segmented, segment_batch
from zoomseg.inference.predictor import Predictor
from zoomseg.io.scans import ScanInput, read_label_values, write_image, write_labels
from zoomseg.pipeline import fusion
from zoomseg.pipeline.cascade import Cascade, Prediction
from zoomseg.recipe.spec import BodyMask, BoxAround, FixedSpacing, ProbabilityTimesAtlas, Recipe, Stage

COARSE, FINE = tiny_recipe(together=True).stages


def with_stages(*stages: Stage) -> Recipe:
    return tiny_recipe(together=False).model_copy(update={"stages": stages})


def at_the_brightest() -> Predictor:
    """Untrained; the fine stage's region does not depend on a trained network."""
    bundle = untrained_bundle()
    fine = FINE.model_copy(update={"roi": BodyMask(threshold=35.0)})
    recipe = bundle.recipe.model_copy(update={"stages": (COARSE, fine)})
    return Predictor(replace(bundle, recipe=recipe), CPU)


def certain(grid: Grid, winner: np.ndarray, region: Region, name: str = "fine") -> StagePrediction:
    """A prior with certain class indices ``[I, J, K]``."""
    probabilities = torch.from_numpy(np.stack([winner == c for c in range(3)]).astype(np.float32))
    return StagePrediction(probabilities, grid, SCHEMA.names, region, name)


@settings(max_examples=60, deadline=None)
@given(grid=grids(low=2, oblique=True), spacing=st.floats(0.5, 8), data=st.data())
def test_a_region_is_where_voxel_centres_fall_on_it(grid: Grid, spacing: float, data: st.DataObject) -> None:
    scan = Orientation.to_canonical(grid).grid(grid)
    stage = scan.with_spacing((spacing, spacing, spacing))
    mask = data.draw(masks(stage.shape))
    region = Region.of_mask(stage, mask)
    assert region is not None
    found = stage_outputs.region_of(certain(stage, np.zeros(stage.shape), region), scan)
    at = stage.index(scan.world(indices(scan)))
    sure = (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(axis=-1)  # not halfway between two voxels
    nearest = np.rint(at).astype(int)
    held = ((nearest >= 0) & (nearest < stage.shape)).all(axis=-1)
    expected = mask[tuple(np.moveaxis(np.clip(nearest, 0, np.array(stage.shape) - 1), -1, 0))] & held
    assert np.array_equal(found[sure], expected[sure])


@pytest.mark.parametrize("masked", [True, False])
def test_a_region_is_the_same_in_blocks(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Grid.from_spacing((20, 18, 16), (1.0, 1.0, 2.0))
    stage = scan.with_spacing((3.0, 3.0, 3.0))
    region: Region | None = Region(stage, Box((1, 1, 1), (4, 4, 3)))
    if masked:
        region = Region.of_mask(stage, np.random.default_rng(0).random(stage.shape) < 0.3)
    assert region is not None
    prior = certain(stage, np.zeros(stage.shape), region)
    whole = stage_outputs.region_of(prior, scan)
    assert 0 < int(whole.sum()) < whole.size
    assert masked or int(whole.sum()) == 9 * 9 * 3
    blocks = fusion.blocks
    monkeypatch.setattr(fusion, "blocks", lambda box: blocks(box, 400))
    assert np.array_equal(stage_outputs.region_of(prior, scan), whole)


def test_an_answer_alone_ends_where_its_region_does() -> None:
    """For any fusion of the stage: the coarse one's may be ``none``."""
    grid = Grid.from_spacing((6, 4, 4), (1.0, 1.0, 1.0))
    winner = np.zeros(grid.shape)
    winner[:2], winner[3:] = 1, 2
    mask = np.zeros(grid.shape, dtype=np.bool_)
    mask[1:4] = True
    region = Region.of_mask(grid, mask)
    assert region is not None
    stage = FINE.model_copy(update={"fusion": "none"})
    labels = stage_outputs.label_map(stage, certain(grid, winner, region), grid, SCHEMA)
    assert labels.data[:, 0, 0].tolist() == [0, 1, 0, 2, 0, 0]
    assert np.array_equal(labels.data, np.broadcast_to(labels.data[:, :1, :1], (6, 4, 4)))


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": "geometric"},
        {"mean": "geometric", "labels_overlap": True},
        {"grid": FixedSpacing(mm=(6, 4, 4), tile=(12, 12, 12), slices_apart_above=1.2)},
    ],
    ids=["geometric", "overlapping", "slices apart"],
)
def test_an_answer_alone_is_decided_as_in_the_label_map(changes: dict[str, object], tmp_path: Path) -> None:
    """Of a scan that the recipe reads as stored, with slices along its first axis."""
    image = tiny_case(1)[0].reoriented(Orientation((2, 0, 1), (False, True, False)))
    write_image(tmp_path / "a.nii.gz", image)
    logits = np.random.default_rng(0).normal(0, 4, (3, 12, 12, 12))
    shares = np.exp(logits - logits.max(axis=0))
    shares /= shares.sum(axis=0)

    def network(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        return np.stack([shares.astype(np.float32)] * len(tiles))

    recipe = with_stages(COARSE.model_copy(update=changes)).model_copy(update={"orientation": "stored"})
    result = Cascade(recipe, SCHEMA, lambda view: network, CPU).run(Case("a", image))
    scan = ScanInput("a", (tmp_path / "a.nii.gz",))
    stage_outputs.write(tmp_path, scan, image.grid, recipe, result)
    alone = read_label_values(tmp_path / "stages" / "a-coarse.nii.gz")[0]
    assert np.unique(alone).tolist() == [0, 3, 7]
    assert np.array_equal(alone, SCHEMA.decode(result.labels.data))


def test_a_stage_that_had_nowhere_to_look(tmp_path: Path) -> None:
    image, labels = tiny_case(1)
    write_image(tmp_path / "a.nii.gz", image)
    whole = Region.whole(image.grid)
    coarse = certain(image.grid, labels.data, whole, "coarse")
    result = Prediction("a", labels, {}, {"coarse": coarse}, (), {})
    scan = ScanInput("a", (tmp_path / "a.nii.gz",))
    stage_outputs.write(tmp_path, scan, image.grid, with_stages(COARSE, FINE), result)
    folder = tmp_path / "stages"
    assert (read_label_values(folder / "a-coarse.nii.gz")[0] == SCHEMA.decode(labels.data)).all()
    assert not read_label_values(folder / "a-fine.nii.gz")[0].any()
    assert not read_label_values(folder / "a-fine-region.nii.gz")[0].any()
    assert [s.spacing_mm for s in stage_outputs.read(folder, "a").stages] == [(2.0, 2.0, 3.0), None]


@pytest.mark.parametrize("angles_deg", [(0.0, 0.0, 0.0), (10.0, 15.0, -8.0)])
def test_a_prediction_as_a_whole(tmp_path: Path, angles_deg: tuple[float, float, float]) -> None:
    """The scan is permuted, flipped and rotated. The fine stage's region is the brightest object, where it
    replaces the coarse prediction."""
    image = tiny_case(2)[0]
    grid = oriented((16, 24, 20), (3.0, 2.0, 2.0), (0.0, 10.0, -5.0), (2, 0, 1), (1, 0, 1), angles_deg)
    scan = Volume(np.flip(image.data.transpose(0, 3, 1, 2), (1, 3)), grid)
    write_image(tmp_path / "a.nii.gz", scan)
    told: list[object] = []
    model = at_the_brightest()
    scans = (ScanInput("a", (tmp_path / "a.nii.gz",)),)
    segment_batch(scans, tmp_path, model, told.append, extra=ExtraOutputs(stages=True))
    (done,) = told
    assert isinstance(done, Segmented)
    assert done.result.stages == {}  # they are large, and no longer needed
    folder = tmp_path / "stages"
    names = ("a-coarse.nii.gz", "a-fine-region.nii.gz", "a-fine.nii.gz")
    assert {p.name for p in folder.iterdir()} == {"a.json", *names}
    coarse, region, fine = (read_label_values(folder / name) for name in names)
    assert all(g.same_as(grid) and v.dtype == np.uint8 for v, g in (coarse, region, fine))
    final = read_label_values(tmp_path / "a.nii.gz")[0]
    assert set(np.unique(region[0])) == {0, 1}
    assert np.array_equal(np.where(region[0], fine[0], coarse[0]), final)
    assert not fine[0][region[0] == 0].any()
    priors = model.predict(Case("a", scan)).stages
    turn = Orientation.to_canonical(grid)
    canonical = turn.grid(grid)
    expected = stage_outputs.region_of(priors["fine"], canonical)
    back = LabelMap(expected, canonical, SCHEMA).reoriented(turn.inverse)
    assert np.array_equal(region[0], back.data)
    about = stage_outputs.read(folder, "a")
    assert about.deciding == dict.fromkeys(SCHEMA.names, ("fine",))
    stages = [(s.name, s.everywhere, s.placed_by, s.labels) for s in about.stages]
    labels = {"left kidney": 3, "right kidney": 7}
    assert stages == [("coarse", True, None, labels), ("fine", False, None, labels)]
    assert [s.spacing_mm for s in about.stages] == [pytest.approx((4, 4, 4)), pytest.approx((2, 2, 3))]
    file = stage_outputs.json_path(folder, "a")
    assert '"deciding"' in file.read_text()
    file.write_text(file.read_text().replace('"deciding"', '"answering"'))  # as earlier versions wrote it
    assert stage_outputs.read(folder, "a") == about


def test_a_stages_spacing_is_along_canonical_axes() -> None:
    """Of a sagittal file that is read as stored, the first axes run to P and I, the third to R."""
    matrix = np.array([[0.0, 0.0, 4.0, 0.0], [-1.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])
    grid = Grid((6, 4, 4), matrix)
    fine = certain(grid, np.zeros(grid.shape), Region.whole(grid))
    about = stage_outputs.describe(with_stages(COARSE, FINE), SCHEMA, {"fine": fine})
    assert about.stage("fine").spacing_mm == (4.0, 1.0, 2.0)


def test_what_an_earlier_run_kept_is_not_taken_for_this_one(tmp_path: Path) -> None:
    write_image(tmp_path / "in.nii.gz", tiny_case(2)[0])
    scans = (ScanInput("a", (tmp_path / "in.nii.gz",)),)
    segment_batch(scans, tmp_path, predictor(), lambda _: None, extra=ExtraOutputs(stages=True))
    assert stage_outputs.json_path(tmp_path / "stages", "a").is_file()
    segment_batch(scans, tmp_path, predictor(seed=1), lambda _: None)
    assert not stage_outputs.json_path(tmp_path / "stages", "a").exists()


def test_no_description_before_all_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "in.nii.gz", tiny_case(2)[0])

    def stop(path: Path, labels: LabelMap, like: Path) -> None:
        if path.name == "a-fine.nii.gz":
            raise KeyboardInterrupt
        write_labels(path, labels, like)

    monkeypatch.setattr(stage_outputs, "write_labels", stop)
    with pytest.raises(KeyboardInterrupt):
        segment_batch(
            (ScanInput("a", (tmp_path / "in.nii.gz",)),),
            tmp_path,
            predictor(),
            print,
            extra=ExtraOutputs(stages=True),
        )
    assert (tmp_path / "stages" / "a-coarse.nii.gz").exists()
    assert not stage_outputs.json_path(tmp_path / "stages", "a").exists()


def test_regions_that_no_stage_placed_and_those_that_one_did() -> None:
    rois = (BodyMask(), BoxAround(of="coarse"), ProbabilityTimesAtlas(of="coarse"), COARSE.roi)
    stages = [FINE.model_copy(update={"name": f"s{n}", "roi": roi}) for n, roi in enumerate(rois)]
    about = stage_outputs.describe(with_stages(COARSE, *stages), SCHEMA, {}).stages[1:]
    assert [(s.everywhere, s.placed_by) for s in about] == [
        (False, None),
        (False, "coarse"),
        (False, "coarse"),
        (True, None),
    ]


def test_stages_of_one_organ_each_answer_for_it_alone() -> None:
    stages = [
        COARSE.model_copy(update={"name": f"s{n}", "labels": (organ,), "fusion": "most_probable"})
        for n, organ in enumerate(SCHEMA.names)
    ]
    about = stage_outputs.describe(with_stages(*stages), SCHEMA, {})
    assert about.deciding == {"left kidney": ("s0",), "right kidney": ("s1",)}
    assert about.stage("s1").labels == {"right kidney": 7}
