"""SNOMED CT codes of organ names.

Values are those of the DICOM context groups (PS3.16, mostly CID 7151 and CID 4) where they contain the organ;
ribs, gluteal muscles and a few others are further SNOMED CT codes. The side is given by a modifier (CID 244),
except where each side has its own anatomical name (left and right atrium). A name that is not in the table
gets a code of ZoomSeg's own scheme that contains the name itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zoomseg.anatomy.organ_names import find_organ, organ_words

PRIVATE_SCHEME = "99ZOOMSEG"


@dataclass(frozen=True)
class Code:
    """A coded concept: the triple of DICOM."""

    value: str
    meaning: str
    scheme: str = "SCT"


SIDES: Mapping[str, Code] = {"left": Code("7771000", "Left"), "right": Code("24028007", "Right")}
BOTH_SIDES = Code("51440002", "Right and left")
ANATOMICAL = Code("91723000", "Anatomical Structure")
ABNORMAL = Code("49755003", "Morphologically Abnormal Structure")


@dataclass(frozen=True)
class CodedOrgan:
    """``type`` is one of ``category``; ``side`` qualifies it, or is None where the organ has no side."""

    category: Code
    type: Code
    side: Code | None


def coded(name: str) -> CodedOrgan:
    """The code of an organ, for any spelling of its name (``right_kidney``, ``RightKidney``, ``kidney R``).
    Unknown names get a code of ``PRIVATE_SCHEME``."""
    found = find_organ(name, _TABLE)
    if found is None:
        return CodedOrgan(ANATOMICAL, _private(name), None)
    category = ABNORMAL if found.row.value in _ABNORMAL_VALUES else ANATOMICAL
    side = BOTH_SIDES if organ_words(name) in _PAIRS else None
    return CodedOrgan(category, found.row, side if found.side is None else SIDES[found.side])


def _private(name: str) -> Code:
    """A code value has at most 16 characters, a meaning at most 64, and neither may contain a backslash."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    value = plain if plain == name and len(name) <= 16 else f"ORGAN-{zlib.crc32(name.encode()):08X}"
    return Code(value, short_text(name) or value, PRIVATE_SCHEME)


def short_text(text: str, longest: int = 64) -> str:
    """Text as a DICOM value of limited length: without backslashes, which separate values, and control
    characters."""
    return re.sub(r"[\\\x00-\x1f\x7f-\x9f]+", " ", text).strip()[:longest].rstrip()


# --- table ----------------------------------------------------------------------------------------

_ORGANS: Mapping[str, tuple[str, str]] = {
    # Abdomen
    "spleen": ("78961009", "Spleen"),
    "kidney": ("64033007", "Kidney"),
    "kidneys": ("64033007", "Kidney"),
    "gallbladder": ("28231008", "Gallbladder"),
    "liver": ("10200004", "Liver"),
    "stomach": ("69695003", "Stomach"),
    "pancreas": ("15776009", "Pancreas"),
    "adrenal gland": ("23451007", "Adrenal gland"),
    "adrenal glands": ("23451007", "Adrenal gland"),
    "adrenals": ("23451007", "Adrenal gland"),
    "duodenum": ("38848004", "Duodenum"),
    "small intestine": ("30315005", "Small intestine"),
    "colon": ("71854001", "Colon"),
    "sigmoid colon": ("60184004", "Sigmoid colon"),
    "rectum": ("34402009", "Rectum"),
    "common bile duct": ("79741001", "Common bile duct"),
    "cyst": ("367643001", "Cyst"),
    "kidney cyst": ("367643001", "Cyst"),
    # Pelvis
    "urinary bladder": ("89837001", "Bladder"),
    "prostate": ("41216001", "Prostate"),
    "uterus": ("35039007", "Uterus"),
    "ovary": ("15497006", "Ovary"),
    "testis": ("40689003", "Testis"),
    "seminal vesicle": ("64739004", "Seminal Vesicle"),
    # Vessels
    "aorta": ("15825003", "Aorta"),
    "abdominal aorta": ("7832008", "Abdominal aorta"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "superior vena cava": ("48345005", "Superior vena cava"),
    "portal vein": ("32764006", "Portal vein"),
    "splenic vein": ("35819009", "Splenic vein"),
    "portal vein and splenic vein": ("110765007", "Portal vein and splenic vein"),
    "hepatic vein": ("8993003", "Hepatic vein"),
    "celiac axis": ("57850000", "Celiac Axis"),
    "superior mesenteric artery": ("42258001", "Superior mesenteric artery"),
    "iliac artery": ("73634005", "Common iliac artery"),
    "common iliac artery": ("73634005", "Common iliac artery"),
    "iliac vein": ("46027005", "Common iliac vein"),
    "common iliac vein": ("46027005", "Common iliac vein"),
    "brachiocephalic trunk": ("12691009", "Innominate artery"),
    "brachiocephalic vein": ("8887007", "Brachiocephalic vein"),
    "subclavian artery": ("36765005", "Subclavian artery"),
    "common carotid artery": ("32062004", "Common carotid artery"),
    "carotid artery": ("69105007", "Carotid Artery"),
    # Chest
    "lung": ("39607008", "Lung"),
    "lungs": ("39607008", "Lung"),
    "lung upper lobe": ("45653009", "Upper lobe of lung"),
    "lung middle lobe right": ("72481006", "Middle lobe of right lung"),
    "lung lower lobe": ("90572001", "Lower lobe of lung"),
    "trachea": ("44567001", "Trachea"),
    "esophagus": ("32849002", "Esophagus"),
    "heart": ("80891009", "Heart"),
    "heart atrium left": ("82471001", "Left atrium"),
    "atrium left": ("82471001", "Left atrium"),
    "heart atrium right": ("73829009", "Right atrium"),
    "atrium right": ("73829009", "Right atrium"),
    "heart ventricle left": ("87878005", "Left ventricle"),
    "left ventricle": ("87878005", "Left ventricle"),
    "heart ventricle right": ("53085002", "Right ventricle"),
    "right ventricle": ("53085002", "Right ventricle"),
    "heart myocardium": ("74281007", "Myocardium"),
    "myocardium": ("74281007", "Myocardium"),
    "atrial appendage left": ("33626005", "Left auricular appendage"),
    "pulmonary artery": ("81040000", "Pulmonary artery"),
    "pulmonary vein": ("122972007", "Pulmonary vein"),
    "breast": ("76752008", "Breast"),
    "thymus": ("9875009", "Thymus"),
    # Head and neck
    "brain": ("12738006", "Brain"),
    "brain stem": ("119238007", "Brain Stem"),
    "cerebellum": ("113305005", "Cerebellum"),
    "hippocampus": ("5366008", "Hippocampus"),
    "temporal lobe": ("78277001", "Temporal lobe"),
    "spinal cord": ("2748008", "Spinal cord"),
    "parotid gland": ("45289007", "Parotid gland"),
    "submandibular gland": ("54019009", "Submandibular gland"),
    "lacrimal gland": ("13561001", "Lacrimal gland"),
    "larynx": ("4596009", "Larynx"),
    "pharynx": ("54066008", "Pharynx"),
    "mandible": ("91609006", "Mandible"),
    "maxilla": ("70925003", "Maxilla"),
    "oral cavity": ("74262004", "oral cavity"),
    "tongue": ("21974007", "Tongue"),
    "eye": ("79652003", "Eyeball"),
    "lens": ("78076003", "Lens"),
    "optic nerve": ("18234004", "optic nerve"),
    "optic chiasm": ("244453006", "Optic chiasm"),
    "chiasm": ("244453006", "Optic chiasm"),
    "pituitary": ("56329008", "Pituitary"),
    "inner ear": ("22945000", "Inner ear"),
    "thyroid gland": ("69748006", "Thyroid"),
    "temporomandibular joint": ("53620006", "Temporomandibular joint"),
    "skull": ("89546000", "Skull"),
    "face": ("89545001", "Face"),
    # Bones
    "sternum": ("56873002", "Sternum"),
    "costal cartilages": ("50016007", "Costal Cartilage"),
    "clavicle": ("51299004", "Clavicle"),
    "scapula": ("79601000", "Scapula"),
    "humerus": ("85050009", "Humerus"),
    "hip": ("29836001", "Hip"),
    "femur": ("71341001", "Femur"),
    "femoral head": ("2812003", "Head of Femur"),
    "sacrum": ("54735007", "Sacrum"),
    "vertebra": ("51282000", "Vertebra"),
    "vertebra S1": ("65985001", "S1 vertebra"),
    "rib": ("113197003", "Rib"),
    "ribs": ("113197003", "Rib"),
    # Muscles
    "gluteus maximus": ("181674001", "Gluteus maximus muscle"),
    "gluteus medius": ("78333006", "Gluteus medius muscle"),
    "gluteus minimus": ("75297007", "Gluteus minimus muscle"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "deep back muscle": ("244849004", "Deep muscle of back"),
    "erector spinae": ("44947003", "Erector spinae muscle"),
    "skin": ("39937001", "Skin"),
}

_VERTEBRAE: Mapping[str, tuple[str, ...]] = {
    "C": ("14806007", "39976000", "113205007", "5329002", "36978003", "36054005", "87391001"),
    "T": (
        *("64864005", "53733008", "1626008", "73071006", "56401006", "45296009"),
        *("62487009", "11068009", "82687006", "7610001", "12989004", "23215003"),
    ),
    "L": ("66794005", "14293000", "36470004", "11994002", "49668003"),
}
_RIBS = (
    ("48535007", "First"),
    ("78247007", "Second"),
    ("25888004", "Third"),
    ("25523003", "Fourth"),
    ("15339008", "Fifth"),
    ("59558009", "Sixth"),
    ("24915002", "Seventh"),
    ("5953002", "Eighth"),
    ("22565002", "Ninth"),
    ("77644006", "Tenth"),
    ("58830002", "Eleventh"),
    ("43993008", "Twelfth"),
)
_ABNORMAL_VALUES = {"367643001"}


def _rows() -> Iterator[tuple[str, Code]]:
    for name, (value, meaning) in _ORGANS.items():
        yield name, Code(value, meaning)
    for letter, values in _VERTEBRAE.items():
        for number, value in enumerate(values, start=1):
            yield f"vertebra {letter}{number}", Code(value, f"{letter}{number} vertebra")
    for number, (value, ordinal) in enumerate(_RIBS, start=1):
        yield f"rib {number}", Code(value, f"{ordinal} rib")


_TABLE = {organ_words(name): code for name, code in _rows()}
_PAIRS = {organ_words(name) for name in ("kidneys", "lungs", "adrenals", "adrenal glands")}
"""Names of organs that comprise both sides."""
