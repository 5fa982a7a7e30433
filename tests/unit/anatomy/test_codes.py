"""Codes are compared with pydicom's dictionary of DICOM's context groups."""

from __future__ import annotations

import itertools

import pytest
from pydicom.sr.codedict import codes

from zoomseg.anatomy.codes import BOTH_SIDES, PRIVATE_SCHEME, SIDES, Code, coded, short_text

LEFT, RIGHT = SIDES["left"], SIDES["right"]


def known(keyword: str) -> str:
    """A SNOMED CT value by pydicom's keyword."""
    return str(getattr(codes.SCT, keyword).value)


@pytest.mark.parametrize(
    ("name", "keyword", "side"),
    [
        ("spleen", "Spleen", None),
        ("right kidney", "Kidney", RIGHT),
        ("left kidney", "Kidney", LEFT),
        ("gallbladder", "Gallbladder", None),
        ("Gall Bladder", "Gallbladder", None),
        ("esophagus", "Esophagus", None),
        ("Oesophagus", "Esophagus", None),
        ("liver", "Liver", None),
        ("stomach", "Stomach", None),
        ("aorta", "Aorta", None),
        ("inferior vena cava", "InferiorVenaCava", None),
        ("pancreas", "Pancreas", None),
        ("right adrenal gland", "AdrenalGland", RIGHT),
        ("adrenal_gland_left", "AdrenalGland", LEFT),
        ("duodenum", "Duodenum", None),
        ("Brainstem", "BrainStem", None),
        ("SpinalCord", "SpinalCord", None),
        ("RightParotid", "ParotidGland", RIGHT),
        ("Parotid_L", "ParotidGland", LEFT),
        ("Larynx", "Larynx", None),
        ("Mandible", "Mandible", None),
        ("urinary_bladder", "Bladder", None),
        ("prostate", "Prostate", None),
        ("heart_atrium_left", "LeftAtrium", None),
        ("heart_ventricle_right", "RightVentricle", None),
        ("lung_upper_lobe_left", "UpperLobeOfLung", LEFT),
        ("lung_middle_lobe_right", "MiddleLobeOfRightLung", None),
        ("lungs", "Lung", BOTH_SIDES),
        ("iliac_vena_right", "CommonIliacVein", RIGHT),
        ("femur_left", "Femur", LEFT),
        ("clavicula_right", "Clavicle", RIGHT),
        ("vertebrae_L3", "L3Vertebra", None),
        ("vertebrae_T12", "T12Vertebra", None),
        ("vertebra C1", "C1Vertebra", None),
        ("small_bowel", "SmallIntestine", None),
    ],
)
def test_organs_are_coded_as_dicom_has_them(name: str, keyword: str, side: Code | None) -> None:
    organ = coded(name)
    assert (organ.type.value, organ.type.scheme) == (known(keyword), "SCT")
    assert organ.side == side
    assert organ.category.value == known("AnatomicalStructure")


def test_sides_and_categories_are_dicoms() -> None:
    assert (LEFT.value, RIGHT.value, BOTH_SIDES.value) == (
        known("Left"),
        known("Right"),
        known("RightAndLeft"),
    )
    assert coded("kidney_cyst_left").category.value == known("MorphologicallyAbnormalStructure")
    assert (coded("kidney_cyst_left").type.meaning, coded("kidney_cyst_left").side) == ("Cyst", LEFT)


BODY = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right
adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right
lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum
colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1 heart aorta
pulmonary_vein brachiocephalic_trunk subclavian_artery_right common_carotid_artery_left
brachiocephalic_vein_left atrial_appendage_left superior_vena_cava inferior_vena_cava
portal_vein_and_splenic_vein iliac_artery_left iliac_vena_left humerus_left scapula_left
clavicula_left femur_left hip_left spinal_cord gluteus_maximus_left gluteus_medius_left
gluteus_minimus_left autochthon_left iliopsoas_left brain skull sternum costal_cartilages
"""
TOTAL = (
    *BODY.split(),
    *(f"vertebrae_{x}{n}" for x, count in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, count + 1)),
    *(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)),
)


def test_all_of_a_model_of_the_whole_body_are_coded_and_told_apart() -> None:
    found = {name: coded(name) for name in TOTAL}
    assert {organ.type.scheme for organ in found.values()} == {"SCT"}
    for one, other in itertools.combinations(TOTAL, 2):
        assert (found[one].type.value, found[one].side) != (found[other].type.value, found[other].side)


def test_values_and_meanings_fit_their_fields() -> None:
    for name in (*TOTAL, "tumour", "a name with blanks", "x" * 100, "Läsion \\ 1", "\\"):
        organ = coded(name)
        assert 1 <= len(organ.type.value) <= 16
        assert 1 <= len(organ.type.meaning) <= 64
        assert "\\" not in organ.type.value + organ.type.meaning


def test_unknown_names_are_coded_by_themselves() -> None:
    assert coded("tumour").type == Code("tumour", "tumour", PRIVATE_SCHEME)
    long = coded("tumour in the left kidney")
    assert (long.type.value, long.type.meaning) == ("ORGAN-1C5E13F7", "tumour in the left kidney")
    assert long.side is None


def test_text_holds_nothing_that_divides_values() -> None:
    assert short_text(" a\\b\x00\nc ", 4) == "a b"
    assert short_text("abcdef", 3) == "abc"
