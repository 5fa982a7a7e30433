"""Spellings of sides, certain and ambiguous ones, and names that only look like sides."""

from __future__ import annotations

import pytest

from zoomseg.core.sides import (
    Side,
    doubtful_pairs,
    has_side,
    is_asymmetric,
    mirror_name,
    name_meaning,
    side_of,
)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left kidney", "right kidney"),
        ("kidney_left", "kidney_right"),
        ("Kidney (Left)", "Kidney (Right)"),
        ("LeftParotid", "RightParotid"),
        ("ParotidLeft", "ParotidRight"),
        ("Parotid_L", "Parotid_R"),
        ("Parotid_Lt", "Parotid_Rt"),
        ("L kidney", "R kidney"),
        ("LKidney", "RKidney"),
        ("IVCLeft", "IVCRight"),
        ("adrenal_gland_left", "adrenal_gland_right"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("rib_left_1", "rib_right_1"),
        ("LEFT-HIP", "RIGHT-HIP"),
        ("lh_hippocampus", "rh_hippocampus"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("hippocampus-lh", "hippocampus-rh"),
        ("lh.bankssts", "rh.bankssts"),
        ("Left-Cerebral-White-Matter", "Right-Cerebral-White-Matter"),
        ("Precentral_L", "Precentral_R"),
        ("A_Carotid_L", "A_Carotid_R"),
        ("OpticNrv_L", "OpticNrv_R"),
        ("LN_Neck_II_L", "LN_Neck_II_R"),
        ("lLung", "rLung"),
        ("Lung L", "Lung R"),
        ("LtKidney", "RtKidney"),
        ("leftkidney", "rightkidney"),
        ("kidneyleft", "kidneyright"),
        ("rib_left1", "rib_right1"),
        ("kidney_sin", "kidney_dex"),
        ("ren sinister", "ren dexter"),
        ("linke Niere", "rechte Niere"),
        ("rein gauche", "rein droit"),
        ("左肾", "右肾"),
        ("kidney_left", "RightKidney"),
    ],
)
def test_mirror_name_swaps_the_side(left: str, right: str) -> None:
    names = ("liver", "left other", left, right, "right other", "L1", "R2")
    assert mirror_name(left, names) == right
    assert mirror_name(right, names) == left


@pytest.mark.parametrize(
    "name",
    [
        "liver",
        "vertebrae_L1",
        "VertebraL1",
        "cleft",
        "bright spot",
        "Brainstem",
        "left and right lung",
        "",
        "rectum",
        "lesion",
        "rib_1",
        "ribs",
        "L1",
        "LK",
        "lung",
        "lens",
        "upright",
        "re",
        "lobe_d",
    ],
)
def test_mirror_name_finds_no_side_where_there_is_none(name: str) -> None:
    assert mirror_name(name, (name, "right", "left", "vertebrae_R1", "bleft", "rung", "RK", "R1")) is None


def test_a_name_with_two_sides_has_no_mirror() -> None:
    assert mirror_name("left lung, right view", ("right lung, right view", "right lung, left view")) is None


def test_mirror_name_needs_the_counterpart_to_exist() -> None:
    assert mirror_name("left kidney", ("left kidney", "right lung")) is None


@pytest.mark.parametrize(
    ("name", "sided"),
    [
        ("left kidney", True),
        ("Parotid_R", True),
        ("left, right", True),
        ("liver", False),
        ("L1", False),
        ("LK", False),
        ("ctx-rh-insula", True),
        ("leftkidney", True),
    ],
)
def test_has_side(name: str, sided: bool) -> None:
    assert has_side(name) is sided


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("Kidney_Lt", "left"),
        ("rh-amygdala", "right"),
        ("dextra", "right"),
        ("left and right lung", None),
        ("liver", None),
    ],
)
def test_side_of(name: str, side: Side | None) -> None:
    assert side_of(name) == side


@pytest.mark.parametrize(
    ("name", "asymmetric"),
    [
        ("heart_atrium_left", True),
        ("LeftVentricle", True),
        ("right ventricular cavity", True),
        ("Atrium_R", True),
        ("left coronary artery", True),
        ("liver_left_lobe", True),
        ("Left-Lateral-Ventricle", False),
        ("Ventricle_Lateral_R", False),
        ("brain ventricle left", False),
        ("left kidney", False),
        ("lung_upper_lobe_left", False),
        ("Left-VentralDC", False),
    ],
)
def test_parts_that_are_no_mirror_images(name: str, asymmetric: bool) -> None:
    assert is_asymmetric(name) is asymmetric


def test_the_counterpart_that_is_spelled_alike_comes_first() -> None:
    names = ("right kidney", "kidney_left", "kidney_right", "left kidney")
    assert mirror_name("kidney_left", names) == "kidney_right"
    assert mirror_name("left kidney", names) == "right kidney"


def test_a_counterpart_has_the_same_symbols() -> None:
    names = ("Lung_L", "Lung_R", "Lung~_L", "Lung~_R", "GTV_Lung_L", "GTV_Lung_R", "Lung-GTV_L", "Lung-GTV_R")
    assert [mirror_name(name, names) for name in names[::2]] == list(names[1::2])
    assert [mirror_name(name, names) for name in names[1::2]] == list(names[::2])


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("", ()),
        ("--", ()),
        ("LeftKidney", ("kidney", "left")),
        ("kidney-LEFT", ("kidney", "left")),
        ("ctx-lh-insula", ("ctx", "insula", "left")),
        ("-liver-", ("liver",)),
        ("Brain~", ("brain", "~")),
        ("Lung~_L", ("left", "lung", "~")),
        ("PTV!_5040", ("!", "5040", "ptv")),
        ("PTV+5", ("+", "5", "ptv")),
        ("PTV-5", ("ptv", "-", "5")),
        ("Lung-GTV", ("lung", "-", "gtv")),
        ("GTV-Lung", ("gtv", "-", "lung")),
        ("Parotid_L-PTV", ("left", "parotid", "-", "ptv")),
        ("L Parotid - PTV", ("left", "parotid", "-", "ptv")),
        ("Left-Lung-GTV", ("left", "lung", "-", "gtv")),
    ],
)
def test_the_meaning_of_a_name(name: str, meaning: tuple[str, ...]) -> None:
    """Symbols are those of AAPM TG-263: part of, without, with a margin, minus."""
    assert name_meaning(name) == meaning


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("LK", "RK"),
        ("lkid", "rkid"),
        ("kidneyl", "kidneyr"),
        ("LV", "RV"),
        ("rib_L1", "rib_R1"),
        ("L1", "R1"),
        ("ltkidney", "rtkidney"),
        ("insulalh", "insularh"),
        ("Niere_li", "Niere_re"),
        ("rein_g", "rein_d"),
    ],
)
def test_names_that_differ_in_a_letter_may_be_sides(left: str, right: str) -> None:
    assert doubtful_pairs(["heart", right, left]) == ((left, right),)
    assert doubtful_pairs([left, "heart"]) == ()


def test_names_that_are_alike_in_other_ways_are_no_sides() -> None:
    names = ["liver", "lung", "rectum", "lesion", "ribs", "rib", "L1", "L2", "L3", "L4", "L5", "T12", "S1"]
    names += [
        "spleen",
        "colon",
        "kidney_left",
        "kidney_right",
        "lobe_c",
        "lobe_d",
        "GTVs",
        "GTVd",
        "gland",
        "dland",
    ]
    assert doubtful_pairs(names) == ()
