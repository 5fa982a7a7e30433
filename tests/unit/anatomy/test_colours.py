from __future__ import annotations

import itertools
import math

import pytest

from zoomseg.anatomy import codes, colours
from zoomseg.anatomy.colours import organ_colour

ABDOMEN = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta")
ABDOMEN += ("inferior vena cava", "portal vein and splenic vein", "pancreas")
ABDOMEN += ("right adrenal gland", "left adrenal gland", "duodenum")
HEAD_AND_NECK = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")


@pytest.mark.parametrize("names", [ABDOMEN, HEAD_AND_NECK])
def test_organs_of_one_model_are_told_apart(names: tuple[str, ...]) -> None:
    for one, other in itertools.combinations(map(organ_colour, names), 2):
        assert math.dist(one, other) > 40


def test_spelling_does_not_matter_and_left_is_darker() -> None:
    spellings = ("right_kidney", "RightKidney", "kidney R", "Kidney (right)")
    assert {organ_colour(name) for name in spellings} == {(206, 124, 66)}
    assert organ_colour("left_kidney") == (164, 99, 52)
    assert organ_colour("left atrium") != organ_colour("right atrium")


def test_every_component_is_of_one_byte() -> None:
    rows = [
        f"vertebra {letter}{n}" for letter, count in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, count)
    ]
    for name in (*ABDOMEN, *HEAD_AND_NECK, *rows, *(f"rib_left_{n}" for n in range(1, 13)), "tumour", ""):
        assert all(0 <= c <= 255 for c in organ_colour(name))


def test_unknown_names_have_colours_of_their_own() -> None:
    assert organ_colour("tumour") == organ_colour("tumour") == (120, 76, 217)
    assert len({organ_colour(f"lesion {n}") for n in range(20)}) == 20


def test_organs_with_a_code_are_those_with_a_colour() -> None:
    assert set(colours._TABLE) == set(codes._TABLE)
