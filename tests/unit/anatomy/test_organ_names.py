from __future__ import annotations

import pytest

from zoomseg.anatomy.organ_names import OrganMatch, alike, find_organ, label_of, organ_words
from zoomseg.core.labels import LabelSchema

TABLE = {organ_words(name): name for name in ("kidney", "left atrium", "gallbladder", "brain stem", "rib 3")}


@pytest.mark.parametrize(
    ("name", "row", "side"),
    [
        ("right_kidney", "kidney", "right"),
        ("LKidney", "kidney", "left"),
        ("kidney", "kidney", None),
        ("Gall Bladder", "gallbladder", None),
        ("Brainstem", "brain stem", None),
        ("rib_left_3", "rib 3", "left"),
        ("left atrium of the heart", None, None),
        ("atrium_left", "left atrium", None),  # a row of its own side
        ("right atrium", None, None),
        ("left right kidney", None, None),
        ("kidney tumour", None, None),
        ("bladder", None, None),
        ("", None, None),
    ],
)
def test_organs_are_found_in_any_spelling(name: str, row: str | None, side: str | None) -> None:
    assert find_organ(name, TABLE) == (None if row is None else OrganMatch(row, side))


FLARE_ORGANS = (
    "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland",
    "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney",
)  # fmt: skip
LACKING_DUODENUM = tuple(organ for organ in FLARE_ORGANS if organ != "duodenum")
DATASETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # The labels of a data set, in its own spelling and order; which of FLARE's 13 organs it has, in FLARE's.
    "BTCV": (
        ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
         "inferior vena cava", "portal vein and splenic vein", "pancreas", "right adrenal gland",
         "left adrenal gland"),
        LACKING_DUODENUM,
    ),
    "BTCV as MONAI abbreviates it": (
        ("spleen", "rkid", "lkid", "gall", "eso", "liver", "sto", "aorta", "IVC", "veins", "pancreas", "rad",
         "lad"),
        LACKING_DUODENUM,
    ),
    "BTCV as papers abbreviate it": (
        ("Spl", "RKid", "LKid", "Gall", "Eso", "Liv", "Sto", "Aor", "IVC", "Veins", "Pan", "RAG", "LAG"),
        LACKING_DUODENUM,
    ),
    "FLARE 2022": (
        ("Liver", "Right kidney", "Spleen", "Pancreas", "Aorta", "Inferior vena cava (IVC)",
         "Right adrenal gland (RAG)", "Left adrenal gland (LAG)", "Gallbladder", "Esophagus", "Stomach",
         "Duodenum", "Left kidney"),
        FLARE_ORGANS,
    ),
    "FLARE 2022's evaluation": (
        ("Liver", "RK", "Spleen", "Pancreas", "Aorta", "IVC", "RAG", "LAG", "Gallbladder", "Esophagus",
         "Stomach", "Duodenum", "LK"),
        FLARE_ORGANS,
    ),
    "AMOS": (
        ("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota",
         "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
         "prostate/uterus"),
        FLARE_ORGANS,
    ),
    "TotalSegmentator": (
        ("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas",
         "adrenal_gland_right", "adrenal_gland_left", "esophagus", "duodenum", "urinary_bladder", "aorta",
         "inferior_vena_cava", "portal_vein_and_splenic_vein"),
        FLARE_ORGANS,
    ),
    "CHAOS": (
        ("liver", "right kidney", "left kidney", "spleen"),
        ("liver", "right kidney", "spleen", "left kidney"),
    ),
    "VISCERAL": (
        ("Liver", "Spleen", "Pancreas", "Gallbladder", "Urinary bladder", "Aorta", "Right kidney",
         "Left kidney", "Right adrenal gland", "Left adrenal gland", "First lumbar vertebra",
         "Muscle body of right rectus abdominis"),
        ("liver", "right kidney", "spleen", "pancreas", "aorta", "right adrenal gland", "left adrenal gland",
         "gallbladder", "left kidney"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_flare_s_organs_are_found_in_every_data_set_s_spelling(name: str) -> None:
    labels, has = DATASETS[name]
    schema = LabelSchema.consecutive(labels)
    found = {organ: label_of(organ, schema) for organ in FLARE_ORGANS}
    assert tuple(organ for organ, own in found.items() if own) == has
    owners = [own for own in found.values() if own]
    assert len(set(owners)) == len(owners)


@pytest.mark.parametrize(
    ("organ", "labels", "own"),
    [
        ("left_adrenal_gland", ("RAG", "LAG"), "LAG"),
        ("left adrenal gland", ("rad", "lad"), "lad"),
        ("left adrenal gland", ("LAD", "RCA", "LCX"), None),  # coronary arteries
        ("inferior vena cava", ("superior vena cava", "postcava"), "postcava"),
        ("IVC", ("inferior_vena_cava",), "inferior_vena_cava"),
        ("right kidney", ("LK", "RK"), "RK"),
        ("kidney", ("LK", "RK"), None),
        ("bladder", ("gall bladder", "urinary_bladder"), "urinary_bladder"),
        ("gallbladder", ("bladder", "GB"), "GB"),
        ("portal vein and splenic vein", ("Veins",), "Veins"),
        ("portal vein", ("Veins",), None),
        (
            "right rectus abdominis",
            ("Muscle body of right rectus abdominis",),
            "Muscle body of right rectus abdominis",
        ),
        ("vertebra L1", ("First lumbar vertebra",), "First lumbar vertebra"),
        ("IVC", ("postcava", "IVC"), "IVC"),  # its own spelling comes first
        ("muscle", ("gland",), None),
    ],
)
def test_a_label_is_found_by_its_synonyms(organ: str, labels: tuple[str, ...], own: str | None) -> None:
    assert label_of(organ, LabelSchema.consecutive(labels)) == own


@pytest.mark.parametrize(
    ("own", "other", "found"),
    [
        (
            ("liver", "kidney_right"),
            ("right kidney", "liver"),
            {"liver": "liver", "kidney_right": "right kidney"},
        ),
        (("postcava", "IVC"), ("IVC",), {"IVC": "IVC"}),
        (("kidney_right", "RK"), ("right kidney",), {}),
        (("right kidney",), ("kidney_right", "RK"), {}),
        (("kidney_right", "RK"), ("RK", "right kidney"), {"RK": "RK", "kidney_right": "right kidney"}),
        (("rad", "lad"), ("RAG", "LAG"), {"rad": "RAG", "lad": "LAG"}),
        (("RAG", "LAG"), ("rad", "lad"), {"RAG": "rad", "LAG": "lad"}),
        (("kidney", "tumour"), ("left kidney",), {}),
    ],
)
def test_labels_of_two_data_sets_are_matched_where_it_is_unambiguous(
    own: tuple[str, ...], other: tuple[str, ...], found: dict[str, str]
) -> None:
    assert alike(LabelSchema.consecutive(own), LabelSchema.consecutive(other)) == found


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_s_labels_are_its_own(name: str) -> None:
    schema = LabelSchema.consecutive(DATASETS[name][0])
    assert alike(schema, schema) == {label: label for label in schema.names}
