"""What is in a package, and which recipes cannot become one."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from helpers.export_packages import untrained
from helpers.tiny_dataset import SCHEMA, tiny_recipe
from zoomseg.backends import onnx_graph
from zoomseg.core.errors import ModelError, OutputError, RecipeError
from zoomseg.export import package
from zoomseg.export.package import export, manifest, refuse, resolved
from zoomseg.io.bundle import Bundle
from zoomseg.recipe import graph
from zoomseg.recipe.load import load, names
from zoomseg.recipe.spec import BoxAround, PriorInput, Recipe

SOURCE = Path(package.__file__).parents[1]


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A model whose networks take no time."""
    monkeypatch.setattr(onnx_graph, "to_onnx", lambda module, *_: type(module).__name__.encode())
    return untrained(tiny_recipe(together=True), SCHEMA)


def test_everything_is_in_it_and_carried_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    export(bundle, tmp_path / "new" / "model.zip")
    with zipfile.ZipFile(tmp_path / "new" / "model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert files["networks/coarse.onnx"] == files["networks/fine.onnx"] == b"ResEncUNet"
    for name, content in files.items():
        if name.endswith(".py") and name != "__main__.py":
            assert content in (b"", (SOURCE.parent / name).read_bytes()), name
    readme = files["README.txt"].decode()
    assert "not for diagnosis" in readme
    assert "     7  right kidney" in readme
    data = json.loads(files["pipeline.json"])
    assert data["provenance"] == {"seed": 0}
    assert "not for diagnosis" in data["notice"]
    assert data["labels"] == {"names": list(SCHEMA.names), "values": [3, 7]}
    digest = hashlib.sha256(files["pipeline.json"]).hexdigest()
    assert files["pipeline.sha256"].decode() == f"{digest}  pipeline.json\n"


def test_the_same_model_gives_the_same_file(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        export(bundle, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_carried_modules_import_nothing_that_is_not_carried() -> None:
    runner = sorted(p.relative_to(SOURCE).as_posix() for p in (SOURCE / package.RUNNER).glob("*.py"))
    carried = {*package.CARRIED, *runner}
    allowed = {"numpy", "scipy", "nibabel", "openvino", "onnxruntime", *sys.stdlib_module_names}
    allowed |= {"array_api_compat", "cc3d"}  # inside functions that the runner does not call
    for file in carried:
        for module in imported(SOURCE / file):
            if module.startswith("zoomseg."):
                place = module.removeprefix("zoomseg.").replace(".", "/")
                assert place + ".py" in carried or place == package.RUNNER, f"{file} imports {module}"
            else:
                assert module.split(".")[0] in allowed, f"{file} imports {module}"


def imported(path: Path) -> list[str]:
    """All that a module may ever import: what is meant for type checkers alone is not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    branches = [node for node in tree.body if isinstance(node, ast.If)]
    checked = [branch for branch in branches if ast.unparse(branch.test) == "TYPE_CHECKING"]
    skipped = {id(node) for branch in checked for node in ast.walk(branch)}
    nodes = [node for node in ast.walk(tree) if id(node) not in skipped]
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]


def test_every_label_is_named() -> None:
    whole = load("flare22-whole-volume")
    assert isinstance(whole, Recipe)
    labels = [name for stage in whole.stages if stage.labels != "all" for name in stage.labels]
    schema = type(SCHEMA).consecutive(dict.fromkeys(labels))
    made = resolved(graph.expand(whole, schema), schema)
    for stage in made.stages:
        assert isinstance(stage.labels, tuple)
        assert not isinstance(stage.roi, BoxAround) or isinstance(stage.roi.labels, tuple)
        assert all(isinstance(s.labels, tuple) for s in stage.inputs if isinstance(s, PriorInput))
    refined = next(stage for stage in made.stages if stage.name.startswith("refine-"))
    assert isinstance(refined.roi, BoxAround)
    assert refined.roi.labels == refined.labels


def test_halos_are_in_the_manifest(bundle: Bundle) -> None:
    valid = {"kind": "unet3d", "channels": (4, 8)}
    recipe = bundle.recipe
    first = recipe.stages[0]
    made = type(first).model_validate(
        first.model_dump()
        | {
            "grid": first.grid.model_dump() | {"padding": "valid", "tile": (24, 24, 24)},
            "network": valid,
        }
    )
    changed = untrained(recipe.model_copy(update={"stages": (made, recipe.stages[1])}), SCHEMA)
    found = manifest(changed, {"coarse": b"", "fine": b""})["networks"]
    assert (found["coarse"]["halo"], found["fine"]["halo"]) == ((8, 8, 8), (0, 0, 0))


REFUSED = {"valindria2018-small-organs": "atlas prior", "zhou2016-2d-vote": "fusion 'majority_vote'"}


@pytest.mark.parametrize("name", names())
def test_which_shipped_recipes_can_be_exported(name: str) -> None:
    recipe = load(name)
    if not isinstance(recipe, Recipe):
        return  # planned from the data; never with an atlas or a vote
    if name not in REFUSED:
        refuse(recipe)
        return
    with pytest.raises(RecipeError, match=REFUSED[name]) as error:
        refuse(recipe)
    assert "use 'zoomseg predict'" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_suffix_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"ends in \.zip"):
        export(bundle, tmp_path / "model.onnx")


def test_weights_of_another_network_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle(
        bundle.recipe, SCHEMA, ("CT",), {**bundle.weights, "fine": {"x": torch.zeros(1)}}, bundle.provenance
    )
    with pytest.raises(ModelError, match="stage 'fine' do not fit"):
        export(other, tmp_path / "model.zip")
    assert list(tmp_path.iterdir()) == []
