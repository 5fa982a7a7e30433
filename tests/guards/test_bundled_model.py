"""The included model: small, in half precision, with a card, and usable on a machine without data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zoomseg.backends import graph_check
from zoomseg.io import bundle

FOLDER = bundle.INCLUDED_MODELS / bundle.ABDOMEN_CT
MADE_BY = Path(__file__).parents[2] / "benchmarks"
ORGANS = (
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior vena cava", "portal vein and splenic vein", "pancreas"),
    *("right adrenal gland", "left adrenal gland"),
)


def test_its_weights_are_half_precision_and_at_most_15_mb() -> None:
    files = list((FOLDER / "weights").glob("*.safetensors"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 15_000_000
    for file in files:
        with safe_open(file, "pt") as tensors:  # type: ignore[no-untyped-call]
            names = list(tensors.keys())
            assert {tensors.get_tensor(name).dtype for name in names} == {torch.float16}


def test_its_networks_are_there_without_torch_and_read_their_own_weights_alone() -> None:
    graphs = bundle.load(bundle.ABDOMEN_CT).graphs
    assert set(graphs) == {"coarse", "fine"}
    for files in graphs.values():
        content = files.graph.read_bytes()
        assert len(content) < 200_000
        graph_check.check(content, files.weights.name, files.weights.stat().st_size)


def test_it_finds_13_organs() -> None:
    assert bundle.load(bundle.ABDOMEN_CT).schema.names == ORGANS


def test_its_card_says_what_it_was_trained_on_and_what_it_is_for() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for said in ("For research", "not for diagnosis", "portal-venous CTs", "terms", "Known limits"):
        assert said in card
    assert all(organ in card for organ in ORGANS)


def test_its_card_is_the_template_with_numbers() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    template = (MADE_BY / "abdomen_ct" / "card.md").read_text(encoding="utf-8")
    parts = re.split(r"\{\w+\}", template)
    assert len(parts) > 5
    assert re.fullmatch("(?s:.+?)".join(map(re.escape, parts)), card)


def test_its_card_names_each_change_that_costs_more_than_a_tenth_of_the_dice() -> None:
    """``as it is`` is the first row of the table of modified scans, and the mean its first column."""
    card = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    (results,) = re.findall(r"benchmarks/(results/[\w-]+\.md)`\), the mean Dice", card)
    rows = re.findall(
        r"^\| ([a-z][\w ]+?) \| (0\.\d{3}) \|",
        (MADE_BY / results).read_text(encoding="utf-8").partition("| as it is |")[2],
        re.MULTILINE,
    )
    (whole,) = re.findall(r"\| as it is \| (0\.\d{3}) ", (MADE_BY / results).read_text(encoding="utf-8"))
    costly = {change: mean for change, mean in rows if float(mean) < float(whole) - 0.1}
    assert set(costly) == {"lower half only"}
    assert [c for c, mean in costly.items() if not re.search(rf"{mean} in the {c}", card)] == []


def test_no_patient_is_named() -> None:
    text = (FOLDER / "model.json").read_text(encoding="utf-8")
    assert json.loads(text)["provenance"]["training_cases"] == 24
    assert "btcv_" not in text


def test_it_is_what_predict_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle.find("abdomen-ct") == FOLDER
