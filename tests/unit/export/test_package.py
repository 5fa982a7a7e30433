"""Contents of a package, and models that cannot be exported."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors

from helpers.tiny_dataset import SCHEMA, tiny_recipe
from helpers.untrained_models import untrained
from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.core.errors import ModelError, OutputError, RecipeError
from zoomseg.export import run
from zoomseg.export.modules import SOURCE, needed_by
from zoomseg.export.package import export, libraries, pip_line, refuse
from zoomseg.io import bundle as bundles
from zoomseg.io.bundle import Bundle
from zoomseg.recipe.load import load, names
from zoomseg.recipe.spec import Recipe


@pytest.fixture(scope="module")
def model() -> Bundle:
    return untrained(tiny_recipe(together=True), SCHEMA)


@pytest.fixture(scope="module")
def folder(model: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with ONNX graphs, and with the files that a training writes to its folder."""
    path = tmp_path_factory.mktemp("trained")
    bundles.save(model, path)
    write_graphs(path)
    (path / "checkpoint.pt").write_bytes(b"large")
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_model_and_modules_are_in_it_as_they_are(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "new" / "model.zip")
    files = contents(tmp_path / "new" / "model.zip")
    modules = {file.relative_to(SOURCE).as_posix(): file for file in needed_by(run.__name__).modules.values()}
    weights = {f"model/weights/{file.name}": file for file in (folder / "weights").iterdir()}
    assert len(weights) == 4
    own = {"model/model.json": folder / "model.json", "model/README.md": folder / "README.md"}
    as_it_is = modules | weights | own
    assert set(files) == {"__main__.py", "README.txt", "model.sha256"} | set(as_it_is)
    for name, file in as_it_is.items():
        assert files[name] == file.read_bytes(), name
    digest = hashlib.sha256(files["model/model.json"]).hexdigest()
    assert files["model.sha256"].decode() == f"{digest}  model/model.json\n"


def test_the_readme_says_what_it_needs_and_what_it_finds(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "model.zip")
    files = contents(tmp_path / "model.zip")
    readme = files["README.txt"].decode()
    assert "not for diagnosis" in readme
    assert "     7  right kidney" in readme
    assert pip_line() in readme
    assert pip_line() == f"pip install {' '.join(sorted(libraries().values()))} openvino"
    assert {"numpy", "nibabel", "pydantic", "pyyaml"} < set(libraries().values())
    assert not {"torch", "onnx", "pydicom", "click"} & set(libraries().values())
    assert repr(libraries()) in files["__main__.py"].decode()


def test_the_readme_says_which_orientation_a_scan_must_have(model: Bundle, tmp_path: Path) -> None:
    for orientation, said in (("stored", "whose axes run as those of"), ("LAS", "in any orientation,")):
        recipe = model.recipe.model_copy(update={"orientation": orientation})
        bundles.save(replace(model, recipe=recipe), tmp_path / orientation)
        export(tmp_path / orientation, tmp_path / f"{orientation}.zip")
        readme = contents(tmp_path / f"{orientation}.zip")["README.txt"].decode()
        assert f"SCAN is a NIfTI file {said}" in readme


def test_the_same_model_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        export(folder, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_model_without_graphs_gets_them_in_the_package(model: Bundle, folder: Path, tmp_path: Path) -> None:
    bundles.save(model, tmp_path / "model")
    export(tmp_path / "model", tmp_path / "model.zip")
    assert not list((tmp_path / "model").rglob("*.onnx"))  # the model itself is unchanged
    export(folder, tmp_path / "other.zip")
    assert contents(tmp_path / "model.zip") == contents(tmp_path / "other.zip")


def test_half_stays_half(folder: Path, model: Bundle, tmp_path: Path) -> None:
    export(folder, tmp_path / "half.zip", half=True)
    bundles.save(model, tmp_path / "stored", half=True)
    export(tmp_path / "stored", tmp_path / "again.zip")  # even if not requested
    for name in ("half.zip", "again.zip"):
        files = contents(tmp_path / name)
        found = {n: safetensors.load(c) for n, c in files.items() if n.endswith(".safetensors")}
        assert len(found) == 2
        real = [t for tensors in found.values() for t in tensors.values() if t.dtype.kind == "f"]
        assert {t.dtype for t in real} == {np.dtype(np.float16)}
        named = json.loads(files["model/model.json"])["weights"].values()
        assert {f"model/{entry['file']}" for entry in named} == set(found)


def test_a_weight_that_half_cannot_hold_is_refused(model: Bundle, tmp_path: Path) -> None:
    fine = {**model.weights["fine"], "heads.0.bias": np.float32([1e6, 0, 0])}
    bundles.save(replace(model, weights={**model.weights, "fine": fine}), tmp_path / "model")
    with pytest.raises(ModelError, match=r"'heads.0.bias' of stage 'fine' is too large for half precision"):
        export(tmp_path / "model", tmp_path / "model.zip", half=True)
    assert not (tmp_path / "model.zip").exists()


@pytest.mark.parametrize("name", names())
def test_only_shipped_recipes_with_an_atlas_cannot_be_exported(name: str) -> None:
    recipe = load(name)
    if not isinstance(recipe, Recipe):
        return  # planned from the data; never with an atlas
    if name != "valindria2018-small-organs":
        refuse(recipe)
        return
    with pytest.raises(RecipeError, match=r"needs an atlas prior.*use 'zoomseg predict'") as error:
        refuse(recipe)
    assert "\n" not in str(error.value)


def test_another_suffix_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"ends in \.zip"):
        export(folder, tmp_path / "model.onnx")


def test_weights_of_another_network_are_refused(model: Bundle, tmp_path: Path) -> None:
    other = replace(model, weights={**model.weights, "fine": {"x": torch.zeros(1)}})
    bundles.save(other, tmp_path / "model")
    with pytest.raises(ModelError, match="does not fit its network"):
        export(tmp_path / "model", tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()
