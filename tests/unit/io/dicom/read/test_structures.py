"""Structures may overlap, labels may not; names are found in any spelling and kept separate."""

from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.errors import LabelError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.read.structures import Structures, unused_name

GRID = Grid.from_spacing((2, 3, 4), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0))


def drawn(**voxels: list[int]) -> Structures:
    """Structures with spaces in their names instead of underscores."""
    return Structures(GRID, {n.replace("_", " "): np.array(v, dtype=np.int64) for n, v in voxels.items()})


def all_labels(structures: Structures) -> tuple[LabelMap, frozenset[str]]:
    return structures.label_map(LabelSchema.consecutive(structures.names))


def test_voxels_are_counted_along_k_first() -> None:
    labels, names = all_labels(drawn(Liver=[0, 5, 23], Spleen=[12]))
    assert {tuple(at): int(labels.data[tuple(at)]) for at in np.argwhere(labels.data).tolist()} == {
        (0, 0, 0): 1,
        (0, 1, 1): 1,
        (1, 2, 3): 1,
        (1, 0, 0): 2,
    }
    assert labels.grid == GRID
    assert (labels.schema.names, labels.schema.values) == (("Liver", "Spleen"), (1, 2))
    assert names == {"Liver", "Spleen"}


@pytest.mark.parametrize(
    "names", [("body", "liver", "cyst"), ("cyst", "liver", "body"), ("liver", "body", "cyst")]
)
def test_the_smaller_is_on_top_whatever_the_order(names: tuple[str, ...]) -> None:
    voxels = {"body": list(range(24)), "liver": [3, 4, 5, 6], "cyst": [6, 7]}
    labels, _ = all_labels(drawn(**{name: voxels[name] for name in names}))
    at = ["", *labels.schema.names]
    found = [at[c] for c in labels.data.flatten().tolist()]
    assert found == ["body"] * 3 + ["liver"] * 3 + ["cyst"] * 2 + ["body"] * 16


def test_what_counts_is_the_size_of_what_means_one_label() -> None:
    """Two halves of the liver are each smaller than the mass in it, but together larger."""
    schema = LabelSchema.consecutive(["mass", "liver"])
    structures = drawn(Liver=[0, 1], mass=[1, 2, 3], LIVER=[1, 2, 4, 5])
    assert structures.named(schema)["liver"].tolist() == [0, 1, 2, 4, 5]
    labels, names = structures.label_map(schema)
    assert labels.data.flatten().tolist()[:6] == [2, 1, 1, 1, 2, 2]
    assert names == {"mass", "liver"}


def test_names_are_the_schemas_and_what_it_does_not_know_is_left_out() -> None:
    schema = LabelSchema(("spleen", "right kidney", "left kidney"), (3, 5, 9))
    structures = drawn(Kidney_Right=[2], Couch=[2, 3, 8], SPLEEN=[7])
    assert {n: v.tolist() for n, v in structures.named(schema).items()} == {
        "right kidney": [2],
        "spleen": [7],
    }
    labels, names = structures.label_map(schema)
    assert labels.schema is schema
    assert names == {"right kidney", "spleen"}, "the left kidney may be there, undrawn"
    assert np.flatnonzero(labels.data).tolist() == [2, 7]
    assert labels.data.flatten()[[2, 7]].tolist() == [2, 1]


def test_names_with_other_symbols_are_other_structures() -> None:
    schema = LabelSchema.consecutive(["Brain", "GTV Lung"])
    voxels = {"Brain": [1], "Brain~": [2], "Lung-GTV": [3], "lung gtv": [4]}
    assert {n: v.tolist() for n, v in drawn(**voxels).named(schema).items()} == {
        "Brain": [1],
        "GTV Lung": [4],
    }


def test_spellings_that_are_labels_of_their_own_stay_apart() -> None:
    structures = drawn(liver=[1], Liver=[2, 3], 肝=[4], 脾=[5])
    assert structures.names == ("liver", "Liver", "肝", "脾")
    labels, names = all_labels(structures)
    assert labels.data.flatten().tolist()[:6] == [0, 1, 2, 2, 3, 4]
    assert names == set(structures.names)


def test_a_name_in_other_letters_means_no_label_that_it_is_not() -> None:
    assert drawn(肝=[4]).named(LabelSchema.consecutive(["脾"])) == {}


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(
        LabelError, match=r"^none of the labels spleen, liver was drawn; there are: Couch, Kidney$"
    ):
        drawn(Couch=[1], Kidney=[2]).label_map(LabelSchema.consecutive(["spleen", "liver"]))


@pytest.mark.parametrize(
    ("name", "taken", "found"),
    [
        ("liver", (), "liver"),
        ("  left \t\n kidney ", (), "left kidney"),
        ("liver", ("liver",), "liver 2"),
        ("liver", ("liver", "liver 2", "liver 4"), "liver 3"),
        ("liver 2", ("liver 2",), "liver 2 2"),
        ("Liver", ("liver",), "Liver"),
        (" \n", (), "unnamed"),
        ("", ("unnamed",), "unnamed 2"),
        ("background", (), "background structure"),
        ("background", ("background structure",), "background structure 2"),
    ],
)
def test_a_name_is_one_that_a_label_may_have(name: str, taken: tuple[str, ...], found: str) -> None:
    assert unused_name(name, taken) == found
    assert LabelSchema.consecutive([*taken, found]).class_of(found) == len(taken) + 1
