from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.errors import LabelError
from zoomseg.core.labels import MAX_CLASSES, MAX_VALUE, LabelSchema

ABDOMEN = LabelSchema(
    ("spleen", "right kidney", "left kidney", "liver"),
    (1, 2, 30, 700),
    {"kidneys": ("right kidney", "left kidney")},
)


def test_pairs_come_once_in_schema_order() -> None:
    assert ABDOMEN.pairs == (("right kidney", "left kidney"),)
    many = LabelSchema.consecutive(["L_eye", "liver", "lung left", "R_eye", "lung right"])
    assert many.pairs == (("L_eye", "R_eye"), ("lung left", "lung right"))


def test_a_name_that_two_names_mirror_pairs_with_one_of_them_only() -> None:
    schema = LabelSchema.consecutive(["left kidney", "right kidney", "Right_Kidney"])
    assert schema.pairs == (("left kidney", "right kidney"),)
    assert schema.unpaired == ("Right_Kidney",)


def test_unpaired_names_a_side_without_its_counterpart() -> None:
    assert ABDOMEN.unpaired == ()
    assert LabelSchema.consecutive(["liver", "left kidney", "right lung"]).unpaired == (
        "left kidney",
        "right lung",
    )
    # Labels of both sides are their own mirror image only if the name states this, which cannot be decided.
    assert LabelSchema.consecutive(["left and right lung"]).unpaired == ("left and right lung",)


def test_pairs_as_left_and_right_in_any_language() -> None:
    schema = LabelSchema.consecutive(["ren dexter", "ren sinister", "R_eye", "L_eye"])
    assert schema.pairs == (("ren dexter", "ren sinister"), ("R_eye", "L_eye"))
    assert schema.left_right == (("ren sinister", "ren dexter"), ("L_eye", "R_eye"))


def test_labels_that_may_have_a_side_are_unpaired() -> None:
    schema = LabelSchema.consecutive(["liver", "RK", "LK", "left lung", "right lung"])
    assert schema.doubtful == (("LK", "RK"),)
    assert schema.pairs == (("left lung", "right lung"),)
    assert schema.unpaired == ("RK", "LK")


def test_chambers_of_the_heart_are_pairs_but_not_mirror_images() -> None:
    schema = LabelSchema.consecutive(["atrium_left", "left lung", "atrium_right", "right lung"])
    assert schema.left_right == (("atrium_left", "atrium_right"), ("left lung", "right lung"))
    assert schema.unpaired == ("atrium_left", "atrium_right")


def test_names_that_are_numbers_name_nothing() -> None:
    schema = LabelSchema.consecutive(["label_1", "Label 12", "3", "organ", "rib_3", "L1", "++"])
    assert schema.unnamed == ("label_1", "Label 12", "3", "organ", "++")


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        ((), (), "at least one"),
        (("a", "b"), (1,), "2 label names but 1 values"),
        (("a", "a"), (1, 2), "distinct, non-empty"),
        (("a", ""), (1, 2), "distinct, non-empty"),
        (("a", "background"), (1, 2), "distinct, non-empty"),
        (("a", "b"), (1, 1), "distinct and in"),
        (("a", "b"), (0, 1), "distinct and in"),
        (("a", "b"), (-3, 1), "distinct and in"),
        (("a", "b"), (1, MAX_VALUE + 1), "distinct and in"),
        (tuple(map(str, range(MAX_CLASSES + 1))), tuple(range(1, MAX_CLASSES + 2)), "at most 254"),
    ],
)
def test_refuses_an_impossible_schema(names: tuple[str, ...], values: tuple[int, ...], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        LabelSchema(names, values)


def test_as_many_labels_as_fit_beside_background_and_ignore() -> None:
    assert LabelSchema.consecutive(map(str, range(MAX_CLASSES))).classes == 255


def test_consecutive_counts_from_one() -> None:
    assert LabelSchema.consecutive(["a", "b"]) == LabelSchema(("a", "b"), (1, 2))


def test_a_schema_with_groups_can_be_a_key() -> None:
    assert {ABDOMEN: 1}[LabelSchema(ABDOMEN.names, ABDOMEN.values, ABDOMEN.groups)] == 1


def test_class_of() -> None:
    assert ABDOMEN.class_of("spleen") == 1
    assert ABDOMEN.class_of("liver") == 4
    with pytest.raises(LabelError, match=r"unknown label 'heart'; allowed: spleen, right kidney"):
        ABDOMEN.class_of("heart")


@pytest.mark.parametrize(
    ("meant", "found"),
    [
        ("right kidney", "right kidney"),
        ("right_kidney", "right kidney"),
        ("Kidney Right", "right kidney"),
        ("kidney-LEFT", "left kidney"),
        ("LeftKidney", "left kidney"),
        ("Kidney_L", "left kidney"),
        ("rightkidney", "right kidney"),
        ("kidney", None),
        ("right kidneys", None),
        ("right left kidney", None),
        ("kidneys", None),
        ("", None),
    ],
)
def test_find_does_not_mind_spelling_but_words(meant: str, found: str | None) -> None:
    assert ABDOMEN.find(meant) == found


def test_find_prefers_the_very_name() -> None:
    schema = LabelSchema.consecutive(["kidney_left", "left kidney"])
    assert schema.find("left kidney") == "left kidney"
    assert schema.find("Left_Kidney") == "kidney_left"


def test_find_minds_the_symbols_of_radiotherapy() -> None:
    schema = LabelSchema.consecutive(["Brain", "GTV_Lung", "PTV+5", "Brain stem~"])
    assert [schema.find(name) for name in ("brain~", "Lung-GTV", "PTV-5", "PTV5")] == [None] * 4
    spelled = ("brain", "Lung GTV", "ptv + 5", "stem brain ~")
    assert tuple(schema.find(name) for name in spelled) == schema.names


def test_find_reads_letters_of_all_languages() -> None:
    schema = LabelSchema.consecutive(["脾", "Leber Größe", "++"])
    assert [schema.find(name) for name in ("脾", "肝", "Leber Grüße", "--")] == ["脾", None, None, None]
    assert schema.find("größe_LEBER") == "Leber Größe"


def test_select_resolves_names_and_groups_in_schema_order() -> None:
    assert ABDOMEN.select("all") == ABDOMEN.names
    assert ABDOMEN.select("liver") == ("liver",)
    assert ABDOMEN.select(["liver", "kidneys"]) == ("right kidney", "left kidney", "liver")
    with pytest.raises(LabelError, match="unknown label 'heart'"):
        ABDOMEN.select(["liver", "heart"])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_encode_gives_class_indices(dtype: type) -> None:
    values = np.array([[[0, 700], [30, 1]], [[2, 0], [0, 700]]], dtype=dtype)
    classes = ABDOMEN.encode(values)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[[0, 4], [3, 1]], [[2, 0], [0, 4]]]


@pytest.mark.parametrize("bad", [5, -1, 29.5, np.nan])
def test_encode_refuses_a_value_it_does_not_know(bad: float) -> None:
    with pytest.raises(LabelError, match=r"not in the schema; allowed: \[0, 1, 2, 30, 700\]"):
        ABDOMEN.encode(np.array([0.0, 1.0, bad]))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32), (MAX_VALUE, np.int32)],
)
def test_decode_undoes_encode_in_the_smallest_type(value: int, dtype: type) -> None:
    schema = LabelSchema(("a", "b"), (7, value))
    decoded = schema.decode(np.array([0, 1, 2, 1], dtype=np.uint8))
    assert decoded.dtype == dtype
    assert decoded.tolist() == [0, 7, value, 7]
    assert schema.encode(decoded).tolist() == [0, 1, 2, 1]
