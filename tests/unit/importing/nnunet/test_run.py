"""From nnU-Net's folder to a model that predicts: compared with nnU-Net's steps, written with scipy and
torch."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from helpers import nnunet_models
from helpers.tiny_dataset import CPU, tiny_dataset
from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.volume import Volume
from zoomseg.importing.nnunet import checkpoint as checkpoints
from zoomseg.importing.nnunet.run import import_models
from zoomseg.inference.load import PredictionSettings, load_predictor, ready_predictor
from zoomseg.io import bundle
from zoomseg.training import loop, training_run
from zoomseg.training.log import NullObserver
from zoomseg.training.requested_recipe import TrainingRequest

Floats = npt.NDArray[np.float64]
PEER = "ZOOMSEG_NNUNET_PYTHON"
"""Names the Python of an environment with nnunetv2."""


def scan(
    spacing: tuple[float, float, float] = (1.5, 1.0, 2.0), shape: tuple[int, int, int] = (22, 26, 14)
) -> Volume:
    """Smooth noise in the range of CT with a margin of zeros; stored left to right reversed."""
    rng = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 900 + 60
    data = np.zeros((shape[0] + 4, shape[1] + 2, shape[2] + 3), dtype=np.float32)
    data[2:-2, 1:-1, 3:] = smooth
    return Volume(data[None], Grid(data.shape, np.diag([-spacing[0], spacing[1], spacing[2], 1.0])))


def resized(data: Floats, shape: tuple[int, ...], order: int) -> Floats:
    """``skimage.transform.resize`` with ``mode="edge"`` and no anti-aliasing."""
    factors = [after / before for before, after in zip(data.shape, shape, strict=True)]
    out = ndimage.zoom(data, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(out, data.min(), data.max())


def resampled(data: Floats, shape: tuple[int, int, int], order: int, apart: bool) -> Floats:
    """``resample_data_or_seg`` of one channel, k, j, i; ``apart``: slices along k separately."""
    if not apart:
        return resized(data, shape, order)
    slices = np.stack([resized(plane, shape[1:], order) for plane in data])
    at = (np.arange(shape[0]) + 0.5) * len(data) / shape[0] - 0.5
    return slices[np.floor(at + 0.5).astype(int).clip(0, len(data) - 1)]


def one_hot(labels: npt.NDArray[np.int64], shape: tuple[int, int, int], apart: bool) -> Floats:
    """``resample_data_or_seg`` of a segmentation with order 1, and ``convert_labelmap_to_one_hot``."""
    shares = np.stack(
        [resampled((labels == label).astype(np.float64), shape, 1, apart) for label in (0, 1, 2)]
    )
    nearest = resampled(labels.astype(np.float64), shape, 0, apart).astype(int)
    tied = np.take_along_axis(shares, nearest[None], axis=0)[0] == shares.max(axis=0)
    won = np.where(tied, nearest, shares.argmax(axis=0))
    return np.stack([won == label for label in (1, 2)]).astype(np.float64)


def asked(network: torch.nn.Module, tile: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """``_internal_maybe_mirror_and_predict``."""
    axes = range(2, tile.ndim) if mirrored else ()
    found = [
        torch.flip(network(torch.flip(tile, subset)), subset)
        for n in range(len(axes) + 1)
        for subset in itertools.combinations(axes, n)
    ]
    return torch.stack(found).mean(dim=0)


def windowed(image: Floats, network: torch.nn.Module, patch: list[int], mirrored: bool = False) -> Floats:
    """Logits ``[C, K, J, I]``: tiles overlap by half, weights are Gaussian; padded with zeros. A patch of two
    axes is one of a slice."""
    sides = image.shape[1:]
    if len(patch) < len(sides):
        slices = [windowed(image[:, k], network, patch, mirrored) for k in range(sides[0])]
        return np.stack(slices, axis=1)
    lacking = [max(0, p - n) for p, n in zip(patch, sides, strict=True)]
    padded = np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in lacking)])
    sizes = padded.shape[1:]
    counts = [int(np.ceil((n - p) / (p / 2))) + 1 for n, p in zip(sizes, patch, strict=True)]
    starts = [
        [int(np.round((n - p) / max(1, c - 1) * m)) for m in range(c)]
        for n, p, c in zip(sizes, patch, counts, strict=True)
    ]
    delta = np.zeros(patch)
    delta[tuple(p // 2 for p in patch)] = 1
    weight = ndimage.gaussian_filter(delta, [p / 8 for p in patch], mode="constant")
    weight = (10 * weight / weight.max()).astype(np.float16).astype(np.float64)
    weight[weight == 0] = weight[weight > 0].min()
    classes = network.decoder.seg_layers[-1].out_channels  # type: ignore[union-attr]
    total, weights = np.zeros((classes, *sizes)), np.zeros(sizes)
    for start in itertools.product(*starts):
        box = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        with torch.no_grad():
            tile = torch.from_numpy(padded[(slice(None), *box)][None]).float()
            logits = asked(network, tile, mirrored)[0].double().numpy()
        total[(slice(None), *box)] += logits * weight
        weights[box] += weight
    crop = tuple(slice(n // 2, n // 2 + size) for n, size in zip(lacking, sides, strict=True))
    return (total / weights)[(slice(None), *crop)]


def by_hand(
    image: Volume,
    network: torch.nn.Module,
    spacing: list[float],
    zscore: bool,
    painted: tuple[int, ...] | None = None,
    mirrored: bool = False,
    before: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """nnU-Net's prediction, ``[I, J, K]``; ``painted`` are the values of its regions, if it has regions, and
    ``before`` the prediction of the model whose cascade it is."""
    data = image.data[0].T.astype(np.float64)
    own_mm = image.grid.spacing_mm[::-1]
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(data))
    crop = data[box]
    crop = (crop - crop.mean()) / crop.std() if zscore else (crop.clip(-100, 200) - 60) / 50
    shape = tuple(round(own / new * n) for own, new, n in zip(own_mm, spacing, crop.shape, strict=True))
    apart = max(own_mm) / min(own_mm) > 3 or max(spacing) / min(spacing) > 3
    i, j, k = shape
    patch = nnunet_models.PATCH[-2 if isinstance(network.decoder.seg_layers[0], torch.nn.Conv2d) else -3 :]
    seen = resampled(crop, (i, j, k), 3, apart)[None]
    if before is not None:
        seen = np.concatenate([seen, one_hot(before.T[box], (i, j, k), apart)])
    logits = windowed(seen, network, patch, mirrored)
    back = np.stack([resampled(one, crop.shape, 1, apart) for one in logits])  # type: ignore[arg-type]
    labels = np.zeros(data.shape, dtype=np.int64)
    labels[box] = back.argmax(axis=0) if painted is None else regions(back, painted)
    return labels.T


def regions(logits: Floats, painted: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """``LabelManager.convert_logits_to_segmentation`` of regions."""
    out = np.zeros(logits.shape[1:], dtype=np.int64)
    for own, value in zip(logits, painted, strict=True):
        out[1 / (1 + np.exp(-own)) > 0.5] = value
    return out


@pytest.mark.parametrize(
    ("residual", "scheme", "spacing", "scan_mm", "backend"),
    [
        (False, "CTNormalization", [3.0, 1.5, 1.25], (1.5, 1.0, 2.0), "openvino"),
        (True, "ZScoreNormalization", [1.6, 1.2, 0.9], (1.0, 1.0, 1.5), "torch"),
        (False, "CTNormalization", [6.0, 1.5, 1.25], (1.5, 1.0, 2.0), "torch"),  # the grid's slices lie apart
        (
            False,
            "ZScoreNormalization",
            [2.5, 1.5, 1.25],
            (1.0, 1.0, 4.0),
            "onnxruntime",
        ),  # the scan's slices do
    ],
)
def test_label_maps_are_those_of_nnunets_steps(
    residual: bool,
    scheme: str,
    spacing: list[float],
    scan_mm: tuple[float, float, float],
    backend: str,
    tmp_path: Path,
) -> None:
    network = nnunet_models.random_network(residual)
    known = nnunet_models.plans(residual, scheme)
    known["configurations"]["3d_fullres"]["spacing"] = spacing
    import_models([nnunet_models.write(tmp_path / "given", network, known)], tmp_path / "model")
    image = scan(scan_mm)
    predictor = ready_predictor(bundle.load(tmp_path / "model"), Device("cpu"), PredictionSettings(backend))
    expected = by_hand(image, network, spacing, scheme.startswith("Z"))
    assert np.bincount(expected.ravel()).max() < 0.95 * expected.size
    for keep in (False, True):
        found = predictor.predict(Case("a", image), keep=keep).labels.data
        # Where two logits are equal within float32 precision, either label is correct.
        assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_slices_are_those_of_nnunets_steps(backend: str, tmp_path: Path) -> None:
    network = nnunet_models.random_network(False, seed=5, dimensions=2)
    given = nnunet_models.write(tmp_path / "given", network, configuration="2d")
    import_models([given], tmp_path / "model")
    image = scan()
    predictor = ready_predictor(bundle.load(tmp_path / "model"), Device("cpu"), PredictionSettings(backend))
    found = predictor.predict(Case("a", image)).labels.data
    expected = by_hand(image, network, [2.0, 1.5, 1.25], False)  # the scan's own across slices
    assert np.bincount(expected.ravel()).max() < 0.95 * expected.size
    assert (found != expected).mean() < 1e-3


def test_scans_may_be_brought_into_the_orientation_of_the_training_scans(tmp_path: Path) -> None:
    given = nnunet_models.write(tmp_path / "given")
    import_models([given], tmp_path / "model", orientation="LAS")
    import_models([given], tmp_path / "stored")
    model, stored = (load_predictor([tmp_path / name], "cpu") for name in ("model", "stored"))
    image = scan()
    assert image.grid.axes == "LAS"
    as_dicom = image.reoriented(Orientation.towards("LPS", image.grid))
    expected = stored.predict(Case("a", image)).labels
    found = model.predict(Case("a", as_dicom)).labels
    assert found.grid.axes == "LPS"
    back = found.reoriented(Orientation.towards("LAS", found.grid))
    assert np.array_equal(back.data, expected.data)
    assert (stored.predict(Case("a", as_dicom)).labels.data != found.data).mean() > 0.01


def test_no_orientation_is_given_twice_or_unknown(tmp_path: Path) -> None:
    known = nnunet_models.plans() | {"image_reader_writer": "NibabelIOWithReorient"}
    given = nnunet_models.write(tmp_path / "given", known=known)
    with pytest.raises(ModelError, match=r"brings them to RAS\+: leave --orientation out"):
        import_models([given], tmp_path / "model", orientation="LAS")
    plain = nnunet_models.write(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"--orientation LLS: orientation: .* such as LAS:"):
        import_models([plain], tmp_path / "model", orientation="LLS")


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_regions_are_written_over_one_another_as_in_nnunet(backend: str, tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3, "ignore": 4}
    network = nnunet_models.random_network(False, seed=4)
    known = nnunet_models.plans()
    known["configurations"]["3d_fullres"]["spacing"] = [2.5, 1.5, 1.25]
    given = nnunet_models.write(tmp_path / "given", network, known, labels=labels, order=[1, 3, 2])
    import_models([given], tmp_path / "model")
    image = scan()
    predictor = ready_predictor(bundle.load(tmp_path / "model"), Device("cpu"), PredictionSettings(backend))
    assert predictor.bundle.schema.value_of == {"whole": 1, "core": 3, "rim": 2}
    expected = by_hand(image, network, [2.5, 1.5, 1.25], False, (1, 3, 2))
    assert np.unique(expected).tolist() == [0, 1, 2, 3]
    for keep in (False, True):
        found = predictor.predict(Case("a", image), keep=keep)
        values = predictor.bundle.schema.decode(found.labels.data)
        assert (values != expected).mean() < 1e-3
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.probabilities.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(("backend", "dimensions"), [("openvino", 3), ("torch", 3), ("onnxruntime", 2)])
def test_mirrored_tiles_are_averaged_as_in_nnunet(backend: str, dimensions: int, tmp_path: Path) -> None:
    network = nnunet_models.random_network(False, seed=5 if dimensions == 2 else 1, dimensions=dimensions)
    name = "2d" if dimensions == 2 else "3d_fullres"
    import_models([nnunet_models.write(tmp_path / "given", network, configuration=name)], tmp_path / "model")
    image = scan()
    model = bundle.load(tmp_path / "model")
    plain = ready_predictor(model, Device("cpu"), PredictionSettings(backend)).predict(Case("a", image))
    mirroring = PredictionSettings(backend, mirror=True)
    both = ready_predictor(model, Device("cpu"), mirroring).predict(Case("a", image))
    spacing = [3.0, 1.5, 1.25] if dimensions == 3 else [2.0, 1.5, 1.25]
    expected = by_hand(image, network, spacing, False, mirrored=True)
    assert (both.labels.data != expected).mean() < 1e-3
    assert (plain.labels.data != expected).mean() > 0.01
    assert both.records[0].flops == 2**dimensions * plain.records[0].flops


def cascade(folder: Path) -> tuple[Path, torch.nn.Module, torch.nn.Module]:
    """nnU-Net's folder of a cascade, next to that of the model that it reads; and both networks."""
    low = nnunet_models.random_network(False, seed=1)
    full = nnunet_models.random_network(True, channels=3, seed=6)
    known = nnunet_models.plans()
    known["configurations"]["3d_lowres"] = known["configurations"]["3d_fullres"] | {
        "spacing": [3.0, 2.5, 2.4]
    }
    known["configurations"]["3d_fullres"]["architecture"] = nnunet_models.architecture(True)
    known["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
        "spacing": [2.5, 1.5, 1.25],
    }
    for name, network in (("3d_lowres", low), ("3d_cascade_fullres", full)):
        own = folder / f"nnUNetTrainer__nnUNetPlans__{name}"
        nnunet_models.write(own, network, known, configuration=name)
    return own, low, full


@pytest.mark.parametrize(
    ("scan_mm", "shape", "mirror"),
    [
        ((1.5, 1.0, 2.0), (22, 26, 14), False),
        ((1.0, 1.0, 4.0), (22, 26, 14), True),
        ((1.25, 1.5, 2.5), (7, 6, 3), False),  # smaller than a patch
    ],
)
def test_a_cascade_reads_the_label_map_of_the_one_before(
    scan_mm: tuple[float, float, float], shape: tuple[int, int, int], mirror: bool, tmp_path: Path
) -> None:
    given, low, full = cascade(tmp_path / "given")
    import_models([given], tmp_path / "model")
    image = scan(scan_mm, shape)
    predictor = ready_predictor(
        bundle.load(tmp_path / "model"), Device("cpu"), PredictionSettings(mirror=mirror)
    )
    assert [stage.name for stage in predictor.bundle.recipe.stages] == ["lowres", "fullres"]
    before = by_hand(image, low, [3.0, 2.5, 2.4], False, mirrored=mirror)
    expected = by_hand(image, full, [2.5, 1.5, 1.25], False, mirrored=mirror, before=before)
    alone = by_hand(image, full, [2.5, 1.5, 1.25], False, mirrored=mirror, before=0 * before)
    assert (alone != expected).mean() > 0.01
    for keep in (False, True):
        found = predictor.predict(Case("a", image), keep=keep).labels.data
        assert (
            found != expected
        ).mean() < 5e-3  # voxels of the prior that are decided differently affect others


def test_the_model_that_a_cascade_reads_is_found_given_or_asked_for(tmp_path: Path) -> None:
    given, _, _ = cascade(tmp_path / "given")
    archive = shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path / "given")
    low = (given.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ModelError, match=r"no nnUNetTrainer__nnUNetPlans__3d_lowres beside it; give .*--lowres"
    ):
        import_models([given], tmp_path / "model")
    import_models([given], tmp_path / "model", lowres=low)
    import_models([Path(archive)], tmp_path / "zipped")
    one, other = bundle.load(tmp_path / "model"), bundle.load(tmp_path / "zipped")
    assert one.recipe == other.recipe
    with pytest.raises(
        ModelError, match=r"--lowres .* is for cascades, and .*elsewhere reads no other model"
    ):
        import_models([low], tmp_path / "third", lowres=given)
    with pytest.raises(ModelError, match=r"is of 3d_cascade_fullres, which itself reads 3d_lowres: give"):
        import_models([given], tmp_path / "third", lowres=given)
    shutil.rmtree(low / "fold_0")
    (low / "fold_1").mkdir()
    with pytest.raises(ModelError, match=r"elsewhere has no fold_\*/checkpoint_final\.pth"):
        import_models([given], tmp_path / "third", lowres=low)


def test_the_configuration_asked_for_is_the_one_imported(tmp_path: Path) -> None:
    given, _, _ = cascade(tmp_path / "given")
    import_models([tmp_path / "given"], tmp_path / "low", configuration="3d_lowres")
    assert bundle.load(tmp_path / "low").provenance["configuration"] == "3d_lowres"
    import_models([tmp_path / "given"], tmp_path / "both", configuration="3d_cascade_fullres")
    assert len(bundle.load(tmp_path / "both").recipe.stages) == 2
    with pytest.raises(ModelError, match="holds a model of 3d_cascade_fullres, not of 3d_lowres"):
        import_models([given], tmp_path / "other", configuration="3d_lowres")


def test_the_low_resolution_of_a_cascade_is_found_among_several(tmp_path: Path) -> None:
    given, _, _ = cascade(tmp_path / "given")
    own = shutil.copytree(given, tmp_path / given.name)
    import_models([own], tmp_path / "model", lowres=tmp_path / "given")
    assert len(bundle.load(tmp_path / "model").recipe.stages) == 2


def test_a_cascade_reads_no_other_configuration(tmp_path: Path) -> None:
    """Even if its network has the same shape."""
    given, low, _ = cascade(tmp_path / "given")
    known = json.loads((given / "plans.json").read_text())
    known["configurations"]["3d_other"] = known["configurations"]["3d_lowres"] | {"spacing": [6.0, 2.5, 2.4]}
    other = nnunet_models.write(tmp_path / "other", low, known, configuration="3d_other")
    with pytest.raises(
        ModelError, match=r"3d_cascade_fullres reads 3d_lowres, and .* given is of 3d_other: give"
    ):
        import_models([given], tmp_path / "model", lowres=other)


def test_of_several_models_the_cascade_reads_the_one_given(tmp_path: Path) -> None:
    given, _, _ = cascade(tmp_path / "given")
    low = (given.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres").rename(tmp_path / "elsewhere")
    other = nnunet_models.write(tmp_path / "other", labels={"background": 0, "aorta": 1, "pancreas": 2})
    for number, sources in enumerate(([given, other], [other, given])):
        import_models(sources, tmp_path / f"model {number}", lowres=low)
        assert len(bundle.load(tmp_path / f"model {number}").recipe.stages) == 3


def test_a_cascade_of_other_labels_is_refused(tmp_path: Path) -> None:
    given, _, _ = cascade(tmp_path / "given")
    other = given.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres" / "dataset.json"
    other.write_text(other.read_text().replace("spleen", "kidney"))
    with pytest.raises(ModelError, match="the configuration that the cascade reads has other labels"):
        import_models([given], tmp_path / "model")


def test_axes_that_a_checkpoint_cannot_mirror_are_refused(tmp_path: Path) -> None:
    network = nnunet_models.random_network(False, seed=5, dimensions=2)
    given = nnunet_models.write(tmp_path / "given", network, configuration="2d")
    path = given / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"inference_allowed_mirroring_axes": (0, 2)}, path)
    with pytest.raises(ModelError, match="allows mirroring along axis 2, which a network of 2 axes"):
        import_models([given], tmp_path / "model")


def test_folds_become_models_that_predict_together(tmp_path: Path) -> None:
    given = nnunet_models.write(tmp_path / "given", folds=("0", "1"))
    folders = import_models([given], tmp_path / "model")
    assert folders == (tmp_path / "model" / "fold-0", tmp_path / "model" / "fold-1")
    assert bundle.models_in(tmp_path / "model") == folders
    image = scan()
    one = load_predictor([folders[0]], "cpu").predict(Case("a", image)).labels.data
    both = load_predictor(folders, "cpu").predict(Case("a", image)).labels.data
    assert (one != both).mean() < 1e-3  # both folds have the same weights here
    assert import_models([given], tmp_path / "single", ("1",)) == (tmp_path / "single",)


def test_folds_that_are_left_out_are_named(tmp_path: Path) -> None:
    given = nnunet_models.write(tmp_path / "given", folds=("0", "3"))
    (given / "fold_3" / "checkpoint_final.pth").rename(given / "fold_3" / "checkpoint_best.pth")
    notes: list[str] = []
    assert import_models([given], tmp_path / "model", on_warning=notes.append) == (tmp_path / "model",)
    assert [note.partition(": ")[2][:23] for note in notes] == ["fold 3 is left out: it "]
    import_models([given], tmp_path / "other", ("3",), on_warning=notes.append)
    assert len(notes) == 1
    assert bundle.load(tmp_path / "other").provenance["checkpoint"] == "checkpoint_best.pth"


def test_a_backup_of_a_fold_is_named_and_no_member_of_the_ensemble(tmp_path: Path) -> None:
    given = nnunet_models.write(tmp_path / "given")
    shutil.copytree(given / "fold_0", given / "fold_0_old")
    notes: list[str] = []
    assert import_models([given], tmp_path / "model", on_warning=notes.append) == (tmp_path / "model",)
    assert [note.partition(": ")[2] for note in notes] == [
        "fold_0_old is left out: nnU-Net's folds are numbers, or all"
    ]


def test_every_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _, _ = cascade(tmp_path / "given")
    seen: list[Path] = []
    read = checkpoints.read
    monkeypatch.setattr(checkpoints, "read", lambda path: seen.append(path) or read(path))
    import_models([given], tmp_path / "model")
    assert [path.parents[1].name.rpartition("__")[2] for path in seen] == ["3d_cascade_fullres", "3d_lowres"]


@pytest.mark.parametrize(
    ("labels", "known"),
    [
        (("right kidney", "liver", "left kidney"), {1: 3, 2: 1}),  # in another order, and one label more
        (("spleen", "right kidney"), {2: 2}),
    ],
    ids=["same labels", "others"],
)
def test_an_imported_model_can_be_fine_tuned(
    labels: tuple[str, ...], known: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "convert", lambda *_: None)
    plans = nnunet_models.plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 2.0, 2.0]
    network = nnunet_models.random_network(False, classes=1 + len(labels))
    values = {"background": 0} | {name: n for n, name in enumerate(labels, start=1)}
    import_models(
        [nnunet_models.write(tmp_path / "given", network, plans, labels=values)], tmp_path / "model"
    )
    data = tiny_dataset(tmp_path / "data")
    asked = TrainingRequest(epochs=1, init=tmp_path / "model")
    tuned = training_run.start(data, tmp_path / "tuned", asked, CPU, NullObserver())
    before, after = bundle.load(tmp_path / "model").weights["whole"], tuned.weights["whole"]
    # A hundred steps at a tenth of nnU-Net's learning rate: copied weights are in place, and changed little.
    for key in ("encoder.0.0.0.weight", "up.0.weight"):
        moved = np.abs(after[key] - before[key]).mean()
        assert 0 < moved < 0.1 * np.abs(before[key]).mean()
    rows = {0: 0} | known  # rows of the last layer: class in the new model, class in the old one
    moved = np.abs(after["last.weight"][list(rows)] - before["last.weight"][list(rows.values())])
    assert 0 < moved.mean() < 0.1
    assert tuned.schema.names == ("left kidney", "right kidney")


def test_an_imported_model_says_where_it_is_from(tmp_path: Path) -> None:
    import_models([nnunet_models.write(tmp_path / "given")], tmp_path / "model")
    said = bundle.load(tmp_path / "model").provenance
    assert said["trainer"] == "nnUNetTrainerOfSomebody"
    assert said["configuration"] == "3d_fullres"
    assert said["checkpoint"] == "checkpoint_final.pth"
    assert (said["imported_from"], said["fold"], said["data_set"]) == ("nnU-Net v2", "0", "Dataset007_Tiny")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists already; choose another folder"):
        import_models([nnunet_models.write(tmp_path / "given")], tmp_path / "model")


def test_a_patch_that_the_network_cannot_read_is_named(tmp_path: Path) -> None:
    known = nnunet_models.plans()
    known["configurations"]["3d_fullres"]["patch_size"] = [4, 9, 12]
    with pytest.raises(ModelError, match=r"plans\.json: plain_conv_unet with same padding cannot take .*9"):
        import_models([nnunet_models.write(tmp_path / "given", known=known)], tmp_path / "model")


PREDICT = """
import sys, torch, numpy as np
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, image, out = sys.argv[1:]
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, ("0",), "checkpoint_final.pth")
data = np.load(image)
labels = predictor.predict_single_npy_array(data["image"], {"spacing": data["spacing"].tolist()})
np.save(out, labels)
"""


def test_label_maps_are_nnunets_own(tmp_path: Path) -> None:
    python = os.environ.get(PEER)
    if not python:
        pytest.skip(f"{PEER} names no Python that has nnunetv2")
    image = scan()
    given = nnunet_models.write(tmp_path / "given")
    content = with_known_trainer(given / "fold_0" / "checkpoint_final.pth")
    torch.save(content, given / "fold_0" / "checkpoint_final.pth")
    np.savez(
        tmp_path / "scan.npz", image=image.data[0].T[None], spacing=np.array(image.grid.spacing_mm[::-1])
    )
    run = [python, "-c", PREDICT, given, tmp_path / "scan.npz", tmp_path / "out.npy"]
    subprocess.run([str(part) for part in run], check=True)
    import_models([given], tmp_path / "model")
    found = load_predictor([tmp_path / "model"], "cpu").predict(Case("a", image)).labels.data
    expected = np.load(tmp_path / "out.npy").T
    for label in (1, 2):
        dice = (
            2
            * ((found == label) & (expected == label)).sum()
            / ((found == label).sum() + (expected == label).sum())
        )
        assert dice > 0.99  # nnU-Net adds its logits up in half precision


def with_known_trainer(path: Path) -> dict[str, object]:
    """A checkpoint with the name of a trainer of nnU-Net."""
    content: dict[str, object] = torch.load(path, weights_only=False)
    return content | {"trainer_name": "nnUNetTrainer"}
