from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from zoomseg.core import memory
from zoomseg.core.errors import MemoryLimitError, ModelError, OutputError
from zoomseg.core.labels import LabelSchema
from zoomseg.io import bundle, files, manifests
from zoomseg.io.bundle import JSON, Bundle, find, load, save
from zoomseg.io.calibration import Calibration
from zoomseg.recipe.spec import AtlasSpec, Downsample, Recipe, Stage, Training, UNet3D, Window


def recipe(*names: str) -> Recipe:
    stages = tuple(
        Stage(
            name=name,
            grid=Downsample(tile=(8, 8, 8), factor=(2.0, 2.0, 2.0)),
            network=UNet3D(channels=(4, 8)),
            training=Training(patch=(8, 8, 8), iterations=1),
        )
        for name in names
    )
    return Recipe(
        name="small", description="Two stages.", intensity=Window(lower=-100, upper=300), stages=stages
    )


def make(seed: int = 0) -> Bundle:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        stage: {
            "conv.weight": torch.randn(4, 1, 3, 3, 3, generator=generator),
            "norm.num_batches_tracked": torch.tensor(7),
        }
        for stage in ("coarse", "fine")
    }
    schema = LabelSchema(
        ("liver", "left kidney", "right kidney"), (1, 5, 9), {"kidneys": ("left kidney", "right kidney")}
    )
    provenance: dict[str, JSON] = {
        "data_set": "phantoms",
        "cases": {"train": ["a", "b"]},
        "seed": seed,
    }
    return Bundle(recipe("coarse", "fine"), schema, ("CT",), weights, provenance)


def assert_same(a: Bundle, b: Bundle) -> None:
    assert a.recipe == b.recipe
    assert a.schema == b.schema
    assert a.channel_names == b.channel_names
    assert a.provenance == b.provenance
    assert a.calibration == b.calibration
    assert set(a.weights) == set(b.weights)
    for stage in a.weights:
        assert set(a.weights[stage]) == set(b.weights[stage])
        for name in a.weights[stage]:
            np.testing.assert_array_equal(a.weights[stage][name], b.weights[stage][name])


def test_a_saved_model_comes_back_exactly(tmp_path: Path) -> None:
    save(make(), tmp_path / "model")
    assert_same(load(tmp_path / "model"), make())


def test_a_calibration_comes_back_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    known = Calibration(offset=-0.5, slope=0.9, organs={"liver": 0.1}, cases=5, residuals=(-1.5, 0.5))
    save(dataclasses.replace(make(), calibration=known), tmp_path / "model")
    assert_same(load(tmp_path / "model"), dataclasses.replace(make(), calibration=known))
    file = tmp_path / "model" / "model.json"
    for key, value in (("slope", "1.0"), ("cases", 0), ("offset", None), ("residuals", ["a"]), ("more", 1)):
        manifest = json.loads(file.read_text())
        manifest["calibration"][key] = value
        other = tmp_path / "other"
        shutil.copytree(tmp_path / "model", other, dirs_exist_ok=True)
        (other / "model.json").write_text(json.dumps(manifest))
        with pytest.raises(ModelError, match=f"damaged .*calibration.{key}"):
            load(other)


def test_a_model_is_found_by_its_path_or_by_the_name_it_comes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, work = tmp_path / "models", tmp_path / "work"
    save(make(), shipped / "torso-ct")
    work.mkdir()
    monkeypatch.setattr(bundle, "INCLUDED_MODELS", shipped)
    monkeypatch.chdir(work)
    assert find("torso-ct") == shipped / "torso-ct"
    assert load("torso-ct").schema == make().schema
    reason = r"^no model folder at torso-mr, and no included model of that name \(included: torso-ct\)$"
    with pytest.raises(ModelError, match=reason):
        load("torso-mr")
    assert find("elsewhere/torso-ct") == Path("elsewhere/torso-ct")  # a path is not a name
    (work / "torso-ct").mkdir()
    assert find("torso-ct") == Path("torso-ct")  # a folder of the working directory takes precedence


def test_a_folder_is_a_model_by_its_manifest(tmp_path: Path) -> None:
    save(make(), tmp_path / "model")
    assert bundle.is_model(tmp_path / "model")
    (tmp_path / "model" / bundle.MANIFEST).unlink()
    assert not bundle.is_model(tmp_path / "model")
    assert not bundle.is_model(tmp_path / "nowhere")


def test_half_rounds_to_float16_and_loads_as_float32(tmp_path: Path) -> None:
    save(make(), tmp_path, half=True)
    loaded = load(tmp_path).weights["fine"]
    original = make().weights["fine"]
    assert loaded["conv.weight"].dtype == np.float32
    assert np.array_equal(
        loaded["conv.weight"], original["conv.weight"].astype(np.float16).astype(np.float32)
    )
    assert np.array_equal(loaded["norm.num_batches_tracked"], original["norm.num_batches_tracked"])
    small, large = tmp_path / "weights", tmp_path / "full"
    save(make(), large)
    assert sum(f.stat().st_size for f in small.iterdir()) < sum(
        f.stat().st_size for f in (large / "weights").iterdir()
    )


def test_a_weight_too_large_for_half_is_refused(tmp_path: Path) -> None:
    big = dataclasses.replace(make(), weights={s: {"w": torch.tensor([1e6])} for s in ("coarse", "fine")})
    save(big, tmp_path / "full")
    with pytest.raises(ModelError, match=r"^weight 'w' of stage 'coarse' is too large for half precision$"):
        save(big, tmp_path / "half", half=True)


def test_views_of_one_tensor_are_saved_as_values(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    weights = {s: {"a": shared[:3], "b": shared.view(2, 3).T} for s in ("coarse", "fine")}
    save(dataclasses.replace(make(), weights=weights), tmp_path)
    loaded = load(tmp_path).weights["coarse"]
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_saving_again_replaces_the_model_and_removes_the_old_weights(tmp_path: Path) -> None:
    save(make(0), tmp_path)
    save(make(1), tmp_path)
    assert_same(load(tmp_path), make(1))
    assert len(list((tmp_path / "weights").iterdir())) == 2


def graph(content: bytes) -> bundle.NetworkGraph:
    return bundle.NetworkGraph(content, flops=20, activation_bytes=30)


def test_graphs_lie_beside_the_weights_until_these_change(tmp_path: Path) -> None:
    save(make(), tmp_path)
    assert load(tmp_path).graphs == {}
    bundle.store_graphs(tmp_path, {"fine": graph(b"first")})
    bundle.store_graphs(tmp_path, {"fine": graph(b"second"), "coarse": graph(b"third")})
    save(dataclasses.replace(make(), provenance={"date": "later"}), tmp_path)
    loaded = load(tmp_path)
    assert loaded.provenance == {"date": "later"}
    assert {stage: network.graph.read_bytes() for stage, network in loaded.graphs.items()} == {
        "fine": b"second",
        "coarse": b"third",
    }
    for stage, network in loaded.graphs.items():
        assert network.weights == bundle.weights_files(tmp_path)[stage] == weights_file(tmp_path, stage)
        assert network.graph.parent == network.weights.parent
        assert (network.flops, network.activation_bytes) == (20, 30)
    assert len(list((tmp_path / "weights").iterdir())) == 4
    save(make(1), tmp_path)
    assert load(tmp_path).graphs == {}
    assert len(list((tmp_path / "weights").iterdir())) == 2


def test_a_graph_of_no_stage_is_not_stored(tmp_path: Path) -> None:
    save(make(), tmp_path)
    with pytest.raises(ModelError, match="has no stage third"):
        bundle.store_graphs(tmp_path, {"third": graph(b"x")})
    assert load(tmp_path).graphs == {}


@pytest.mark.parametrize("writes_done", range(4))
def test_a_kill_while_saving_leaves_a_usable_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes_done: int
) -> None:
    save(make(0), tmp_path)
    count = 0

    def dies(path: Path, data: bytes) -> None:
        nonlocal count
        if count == writes_done:
            raise OutputError("full disk")
        count += 1
        files.write_bytes_atomic(path, data)

    with monkeypatch.context() as patch:
        for module in (bundle, manifests):
            patch.setattr(module, "write_bytes_atomic", dies)
        with pytest.raises(OutputError):
            save(make(1), tmp_path)
    # Writes are: two weights, model.json, README. The new model is used from model.json on.
    assert_same(load(tmp_path), make(1 if writes_done == 3 else 0))


def test_a_model_that_is_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving deletes the old weights."""
    save(make(0), tmp_path)
    seeds = [2, 1]
    read = bundle._read_weights

    def overtaken(path: Path, stage: str, entry: Any) -> Any:
        if seeds:
            save(make(seeds.pop()), path)
        return read(path, stage, entry)

    monkeypatch.setattr(bundle, "_read_weights", overtaken)
    assert_same(load(tmp_path), make(2))


def test_the_model_card_names_labels_data_and_use(tmp_path: Path) -> None:
    hostile = dataclasses.replace(make(), channel_names=("CT | `x`\n# <b>",))
    save(hostile, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| 9 | right kidney |" in card
    assert "data set: phantoms" in card
    assert "validation" not in card
    assert "cases: train: a, b" in card
    assert "not for diagnosis" in card
    assert r"CT \| \`x\` # \<b\>." in card


def test_the_card_of_a_model_with_atlases_warns_of_the_patients_in_it(tmp_path: Path) -> None:
    """For any location of the atlases, but only with them: a copy of the weights alone contains no patient
    data."""
    plain = make()
    spec = AtlasSpec(number=10, spacing_mm=(4, 4, 5.5))
    provenance: dict[str, JSON] = {"training_cases": ["a", "b", "c"]}
    bundles = {
        "copy": replaced(plain, atlas=spec, provenance=provenance),
        "few": replaced(plain, atlas=spec, provenance=provenance),
        "unknown": replaced(plain, atlas=spec, provenance={}),
        "plain": plain,
    }
    for name, made in bundles.items():
        if name != "copy":
            (tmp_path / name / bundle.ATLASES).mkdir(parents=True)
        save(made, tmp_path / name)
    cards = {name: " ".join((tmp_path / name / "README.md").read_text().split()) for name in bundles}
    assert "The folder `atlases` holds images of up to 3 training patients, with labels" in cards["few"]
    assert "on coarse grids (4 x 4 x 5.5 mm, or" in cards["few"]
    assert "Share the model only as you may share the scans." in cards["few"]
    assert "up to 10 training patients" in cards["unknown"]
    for name in ("copy", "plain"):
        assert "patients" not in cards[name]


def replaced(made: Bundle, atlas: AtlasSpec, provenance: dict[str, JSON]) -> Bundle:
    recipe = made.recipe.model_copy(update={"atlas": atlas})
    return dataclasses.replace(made, recipe=recipe, provenance=provenance)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"coarse": {"w": torch.ones(1)}}, "its recipe has"),
        ({"coarse": {"w": torch.ones(1)}, "fine": {}}, "has no weights"),
        ({"coarse": {"w": torch.ones(1)}, "fine": {"w": torch.tensor([float("nan")])}}, "not finite"),
        ({"coarse": {"w": torch.ones(1)}, "fine": {"w": torch.ones(1, dtype=torch.complex64)}}, "complex64"),
    ],
)
def test_wrong_weights_never_become_a_model(
    weights: dict[str, dict[str, torch.Tensor]], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(make(), weights=weights)


# --- damaged folders ------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = json.loads((path / "model.json").read_text())
        change(data)
        (path / "model.json").write_text(json.dumps(data))

    return apply


def weights_file(path: Path, stage: str = "fine") -> Path:
    return next((path / "weights").glob(f"{stage}-*.safetensors"))


def graph_file(path: Path) -> Path:
    return next((path / "weights").glob("*.onnx"))


def replace_weights(path: Path, content: bytes) -> None:
    """Damage that the hash does not reveal, as the attacker also wrote model.json."""
    weights_file(path).write_bytes(content)
    edit(lambda d: d["weights"]["fine"].update(sha256=hashlib.sha256(content).hexdigest()))(path)


def in_place_of(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


def truncated_json(path: Path) -> None:
    text = (path / "model.json").read_text()
    (path / "model.json").write_text(text[: len(text) // 2])


def flipped_byte(path: Path) -> None:
    content = bytearray(weights_file(path).read_bytes())
    content[-1] ^= 1
    weights_file(path).write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder gone": (shutil.rmtree, "no model folder"),
    "json gone": (lambda p: (p / "model.json").unlink(), "model.json is missing"),
    "json truncated": (truncated_json, "damaged"),
    "json not utf-8": (lambda p: (p / "model.json").write_bytes(b"\xff\xfe\x00{"), "damaged"),
    "json a list": (lambda p: (p / "model.json").write_text("[]"), "damaged"),
    "seed NaN": (edit(lambda d: d["provenance"].update(seed=float("nan"))), "NaN, an infinite number"),
    "provenance half a character": (
        edit(lambda d: d["provenance"].update(data_set="\ud800")),
        "a lone surrogate",
    ),
    "json bottomless": (lambda p: (p / "model.json").write_text("[" * 100_000), "damaged"),
    "future": (edit(lambda d: d.update(format=2, hologram=[])), "update ZoomSeg"),
    "far future": (edit(lambda d: d.update(format=10**250)), r"has format 10{60,70}\.\.\.0+, this"),
    "format a string": (edit(lambda d: d.update(format="1")), "format"),
    "labels missing": (edit(lambda d: d.pop("labels")), "labels: Field required"),
    "label values text": (edit(lambda d: d["labels"].update(values=["1", "5", "9"])), "labels.values.0"),
    "label names repeated": (edit(lambda d: d["labels"].update(names=["a", "a", "b"])), "distinct"),
    "no channels": (edit(lambda d: d.update(channel_names=[])), "channel_names"),
    "recipe key unknown": (edit(lambda d: d["recipe"].update(colour="red")), "recipe.*colour"),
    "recipe not planned": (edit(lambda d: d["recipe"].update(plan="cascade")), "damaged"),
    "recipe reads a later stage": (
        edit(lambda d: d["recipe"]["stages"][0].update(roi={"kind": "box", "of": "fine"})),
        "coarse.*fine",
    ),
    "recipe empty": (edit(lambda d: d.update(recipe={})), "recipe"),
    "stage added": (edit(lambda d: d["weights"].update(third=d["weights"]["fine"])), "its recipe has"),
    "stage removed": (edit(lambda d: d["weights"].pop("fine")), "its recipe has"),
    "graph gone": (lambda p: graph_file(p).unlink(), "No such file"),
    "graph changed": (lambda p: graph_file(p).write_bytes(b"other"), "onnx is not the file .*SHA-256"),
    "graph leaves folder": (
        edit(lambda d: d["graphs"]["coarse"].update(file="weights/../../x.onnx")),
        "pattern",
    ),
    "graph of no stage": (
        edit(lambda d: d["graphs"].update(third=d["graphs"]["coarse"])),
        "graphs: no stage 'third'",
    ),
    "name leaves folder": (
        edit(lambda d: d["weights"]["fine"].update(file="weights/../../x.safetensors")),
        "pattern",
    ),
    "absolute name": (edit(lambda d: d["weights"]["fine"].update(file="/etc/x.safetensors")), "pattern"),
    "name with newline": (
        edit(lambda d: d["weights"]["fine"].update(file="weights/a.safetensors\n")),
        "pattern",
    ),
    "weights gone": (lambda p: weights_file(p).unlink(), "No such file"),
    "weights flipped": (flipped_byte, "SHA-256"),
    "weights swapped": (lambda p: shutil.copy(weights_file(p, "coarse"), weights_file(p)), "SHA-256"),
    "weights not safetensors": (lambda p: replace_weights(p, b"PK\x03\x04" + bytes(64)), "weights/fine"),
    "weights empty": (lambda p: replace_weights(p, b""), "weights/fine"),
    "weights NaN": (
        lambda p: replace_weights(p, safetensors_bytes({"w": torch.tensor([float("inf")])})),
        "not finite",
    ),
    "weights a pipe": (lambda p: in_place_of(weights_file(p), os.mkfifo), "weights/fine-.*: not a file"),
    "weights without end": (
        lambda p: in_place_of(weights_file(p), lambda w: w.symlink_to("/dev/zero")),
        "weights/fine-.*: not a file",
    ),
    "weights of a terabyte": (lambda p: os.truncate(weights_file(p), 2**40), "at most are read"),
    "graph a pipe": (lambda p: in_place_of(graph_file(p), os.mkfifo), "onnx: not a file"),
    "json of a gigabyte": (
        lambda p: os.truncate(p / "model.json", 2**30),
        r"model\.json: has \d+ bytes, \d+ at most are read\)",
    ),
    "json a pipe": (lambda p: in_place_of(p / "model.json", os.mkfifo), "model.json is missing"),
    "weights boolean": (
        lambda p: replace_weights(p, safetensors_bytes({"w": torch.tensor([True])})),
        "has type bool; allowed: real numbers",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    save(make(), tmp_path / "model")
    bundle.store_graphs(tmp_path / "model", {"coarse": graph(b"a graph")})
    apply, message = DAMAGE[damage]
    apply(tmp_path / "model")
    with pytest.raises(ModelError, match=message) as error:
        load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(make(), tmp_path)
    os.truncate(weights_file(tmp_path), 2**30)
    monkeypatch.setattr(memory, "free_ram", lambda: memory.used_ram() + 2**31)
    with pytest.raises(MemoryLimitError, match=r"fine-.*\.safetensors takes about 3\.00 GB"):
        load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_provenance_that_no_result_could_be_written_with_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match="provenance cannot be written as JSON"):
        dataclasses.replace(make(), provenance={"seed": value})
