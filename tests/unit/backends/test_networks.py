"""All backends give the same predictions."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from helpers.onnx_models import KINDS, converted, one_stage
from helpers.tiny_dataset import CPU
from helpers.untrained_models import untrained
from zoomseg.backends.choice import BACKENDS, Backend
from zoomseg.backends.networks import mean, mirrored, networks_of
from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.core.arrays import Array
from zoomseg.core.errors import ModelError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.tiling import Tile
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle, NetworkFiles
from zoomseg.pipeline.sliding_window import SplitNetwork
from zoomseg.recipe import network_shapes
from zoomseg.recipe.spec import MeanKind

EXACT = 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_all_backends_say_the_same_of_any_batch_and_tile(kind: str, tmp_path: Path) -> None:
    network, padding, tile = KINDS[kind]
    model = converted(kind, tmp_path)
    computed = {backend: networks_of([model], backend, CPU)["coarse"] for backend in BACKENDS}
    rng = np.random.default_rng(0)
    larger = tuple(n + d for n, d in zip(tile, network_shapes.divisor(network), strict=True))
    for batch, shape in ((1, tile), (2, tile), (1, larger)):
        inputs = rng.normal(size=(batch, 2, *shape)).astype(np.float32)
        said = {backend: compute(inputs, ()) for backend, compute in computed.items()}
        answered = network_shapes.check_input_shape(network, padding, shape)
        assert said["torch"].shape == (batch, 3, *answered)
        for backend in ("openvino", "onnxruntime"):
            assert said[backend].dtype == np.float32
            assert np.abs(said[backend] - said["torch"]).max() < EXACT, (backend, shape)


def test_half_precision_on_disk_is_what_all_compute_with(tmp_path: Path) -> None:
    whole, half = converted("unet3d", tmp_path / "whole"), converted("unet3d", tmp_path / "half", half=True)
    inputs = np.random.default_rng(0).normal(size=(1, 2, 8, 12, 4)).astype(np.float32)

    def said(model: Bundle, backend: Backend) -> np.ndarray:
        answer: np.ndarray = networks_of([model], backend, CPU)["coarse"](inputs, ())
        return answer

    rounding = np.abs(said(whole, "torch") - said(half, "torch")).max()
    assert rounding > 1e-5
    for backend in ("openvino", "onnxruntime"):
        assert np.abs(said(half, backend) - said(half, "torch")).max() < rounding / 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_that_answer_together_give_their_mean(backend: Backend, tmp_path: Path) -> None:
    models = [converted("unet3d", tmp_path / str(seed), seed=seed) for seed in (0, 1, 2)]
    inputs = np.random.default_rng(0).normal(size=(1, 2, 8, 12, 4)).astype(np.float32)
    alone = [networks_of([m], "torch", CPU)["coarse"](inputs, ()) for m in models]
    together = networks_of(models, backend, CPU)["coarse"](inputs, ())
    assert np.abs(together - sum(alone) / 3).max() < EXACT
    assert np.abs(together - alone[0]).max() > 100 * EXACT


def test_torch_gives_tensors_for_tensors(tmp_path: Path) -> None:
    compute = networks_of([converted("unet3d", tmp_path)], "torch", CPU)["coarse"]
    inputs = torch.randn(1, 2, 8, 12, 4)
    said = compute(inputs, ())
    assert isinstance(said, torch.Tensor)
    assert np.array_equal(said.numpy(), compute(inputs.numpy(), ()))


def test_the_mean_of_one_is_itself() -> None:
    def network(inputs: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        return inputs

    assert mean([network]) is network


def test_a_geometric_mean_is_that_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 1, 3, 2, 2, 2)).astype(np.float32)
    said = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    networks = [lambda inputs, tiles, own=own: own for own in said]
    found = mean(networks, "geometric")(np.zeros(1), ())
    together = np.exp(logits.mean(axis=0))
    np.testing.assert_allclose(found, together / together.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_stage_without_graph_is_refused(tmp_path: Path) -> None:
    model = dataclasses.replace(converted("unet3d", tmp_path), graphs={})
    with pytest.raises(ModelError, match="no ONNX graph of stage 'coarse', which openvino needs"):
        networks_of([model], "openvino", CPU)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_graph_that_reads_another_file_is_refused(backend: Backend, tmp_path: Path) -> None:
    """Even if model.json contains its hash: an attacker can write the whole folder."""
    model = converted("unet3d", tmp_path / "model")
    files = model.graphs["coarse"]
    (files.weights.parent / "other.safetensors").write_bytes(files.weights.read_bytes())
    graph = onnx.load(files.graph, load_external_data=False)
    for place in graph.graph.initializer[0].external_data:
        if place.key == "location":
            place.value = "other.safetensors"
    content = graph.SerializeToString()
    forged = files.graph.with_name(f"coarse-{hashlib.sha256(content).hexdigest()[:12]}.onnx")
    forged.write_bytes(content)
    model = dataclasses.replace(model, graphs={"coarse": NetworkFiles(forged, files.weights)})
    with pytest.raises(ModelError, match=r"reads 'other.safetensors', and may read coarse-\w+.safetensors"):
        networks_of([model], backend, CPU)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_graph_of_other_channels_than_the_recipe_s_is_refused(backend: Backend, tmp_path: Path) -> None:
    """Not blamed on the first scan."""
    model = converted("unet3d", tmp_path)
    classes = 1 + len(model.schema.names)
    fewer = dataclasses.replace(model, channel_names=model.channel_names[:1])
    with pytest.raises(
        ModelError, match=f"'coarse': the graph turns 2 channels into {classes}, but the recipe 1 "
    ):
        networks_of([fewer], backend, CPU)
    more = dataclasses.replace(model, schema=LabelSchema.consecutive([f"organ {n}" for n in range(classes)]))
    with pytest.raises(ModelError, match=rf"channels into {classes}, but .* {classes + 1}; obtain it again"):
        networks_of([more], backend, CPU)


def test_a_graph_that_grew_since_it_was_loaded_is_not_read(tmp_path: Path) -> None:
    model = converted("unet3d", tmp_path)
    with model.graphs["coarse"].graph.open("ab") as file:
        file.truncate(10**12)  # of which nothing is stored
    with pytest.raises(ModelError, match=r"stage 'coarse': .*has 1000000000000 bytes, 1048576 at most"):
        networks_of([model], "onnxruntime", CPU)


def of_nine_organs(folder: Path, seed: int = 0, half: bool = False) -> Bundle:
    """A stage ``coarse`` of ten classes and four features, whose mean is geometric."""
    small = one_stage("plain_conv_unet")
    stage = small.recipe.stages[0].model_copy(update={"mean": "geometric", "mirror_axes": ("i", "k")})
    recipe = small.recipe.model_copy(update={"stages": (stage,)})
    schema = LabelSchema.consecutive([f"organ {n}" for n in range(9)])
    bundle.save(untrained(recipe, schema, ("T1", "T2"), seed), folder, half)
    write_graphs(folder)
    return bundle.load(folder)


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_fewer_features_than_classes_are_stitched_before_the_last_layer(
    models: int, half: bool, tmp_path: Path
) -> None:
    found = [of_nine_organs(tmp_path / str(seed), seed, half) for seed in range(models)]
    inputs = np.random.default_rng(0).normal(size=(2, 2, 8, 12, 8)).astype(np.float32)
    network = networks_of(found, "openvino", CPU)["coarse"]
    assert isinstance(network, SplitNetwork)
    assert (network.head.features, network.head.classes) == (4 * models, 10)
    for backend in ("torch", "onnxruntime"):
        whole = networks_of(found, backend, CPU)["coarse"]
        assert not isinstance(whole, SplitNetwork)
        expected = whole(inputs, ())
        assert np.abs(network(inputs, ()) - expected).max() < EXACT
        assert expected.std(axis=1).min() > EXACT


def test_no_fewer_features_than_classes_are_not(tmp_path: Path) -> None:
    found = [of_nine_organs(tmp_path / str(seed), seed) for seed in range(3)]
    assert not isinstance(networks_of(found, "openvino", CPU)["coarse"], SplitNetwork)


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
def test_mirror_images_are_answered_mirrored_back_and_averaged(kind: MeanKind) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 6, 4, 5))

    def network(x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
        logits = np.asarray(x_BCIJK)[:, :1] * weights
        share = np.exp(logits)
        return share / share.sum(axis=1, keepdims=True)

    image = np.random.default_rng(1).normal(size=(2, 1, 6, 4, 5))
    subsets = ((), (2,), (4,), (2, 4))
    parts = [np.flip(network(np.flip(image, axes), ()), axes) for axes in subsets]
    if kind == "arithmetic":
        expected = np.mean(parts, axis=0)
    else:
        expected = np.exp(np.mean(np.log(parts), axis=0))
        expected /= expected.sum(axis=1, keepdims=True)
    found = mirrored(network, (0, 2), kind)(image, ())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert mirrored(network, (), kind) is network
