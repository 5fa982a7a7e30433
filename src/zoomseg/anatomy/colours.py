"""Display colours of organs: the same in every viewer, report and file."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterator, Mapping

from zoomseg.anatomy.organ_names import find_organ, organ_words

RGB = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def organ_colour(name: str) -> RGB:
    """The colour of an organ, for any spelling of its name; left ones are darker than right ones. Unknown
    names get a colour of their own, the same on every machine."""
    found = find_organ(name, _TABLE)
    if found is None:
        return _unlike_any(name)
    red, green, blue = found.row
    return (red * 4 // 5, green * 4 // 5, blue * 4 // 5) if found.side == "left" else found.row


def _unlike_any(name: str) -> RGB:
    number = zlib.crc32(name.encode())
    red, green, blue = colorsys.hsv_to_rgb((number % 360) / 360, 0.55 + number // 360 % 4 * 0.1, 0.85)
    return (round(red * 255), round(green * 255), round(blue * 255))


_ARTERY, _VEIN, _BONE = (214, 58, 48), (64, 104, 196), (226, 214, 178)
_MUSCLE, _LUNG, _HEART = (178, 92, 80), (132, 190, 206), (196, 66, 88)

_ORGANS: Mapping[str, RGB] = {
    # Abdomen
    "spleen": (150, 96, 170),
    "kidney": (206, 124, 66),
    "kidneys": (206, 124, 66),
    "gallbladder": (112, 178, 74),
    "liver": (140, 62, 50),
    "stomach": (226, 146, 156),
    "pancreas": (240, 190, 92),
    "adrenal gland": (70, 178, 160),
    "adrenal glands": (70, 178, 160),
    "adrenals": (70, 178, 160),
    "duodenum": (222, 84, 150),
    "small intestine": (204, 150, 104),
    "colon": (158, 128, 82),
    "sigmoid colon": (142, 110, 70),
    "rectum": (126, 98, 62),
    "common bile duct": (88, 148, 58),
    "cyst": (120, 210, 230),
    "kidney cyst": (120, 210, 230),
    # Pelvis
    "urinary bladder": (236, 208, 110),
    "prostate": (216, 136, 120),
    "uterus": (222, 122, 150),
    "ovary": (238, 168, 190),
    "testis": (196, 148, 128),
    "seminal vesicle": (228, 160, 128),
    # Vessels
    "aorta": (224, 68, 58),
    "abdominal aorta": (224, 68, 58),
    "inferior vena cava": (54, 108, 206),
    "superior vena cava": (78, 124, 214),
    "portal vein": (104, 140, 222),
    "splenic vein": (126, 150, 226),
    "portal vein and splenic vein": (104, 140, 222),
    "hepatic vein": _VEIN,
    "celiac axis": _ARTERY,
    "superior mesenteric artery": _ARTERY,
    "iliac artery": _ARTERY,
    "common iliac artery": _ARTERY,
    "iliac vein": _VEIN,
    "common iliac vein": _VEIN,
    "brachiocephalic trunk": _ARTERY,
    "brachiocephalic vein": _VEIN,
    "subclavian artery": _ARTERY,
    "common carotid artery": _ARTERY,
    "carotid artery": _ARTERY,
    # Chest
    "lung": _LUNG,
    "lungs": _LUNG,
    "lung upper lobe": (132, 190, 206),
    "lung middle lobe right": (116, 168, 222),
    "lung lower lobe": (104, 206, 186),
    "trachea": (150, 216, 226),
    "esophagus": (190, 190, 110),
    "heart": _HEART,
    "heart atrium left": (176, 52, 112),
    "atrium left": (176, 52, 112),
    "heart atrium right": (104, 84, 190),
    "atrium right": (104, 84, 190),
    "heart ventricle left": (206, 60, 80),
    "left ventricle": (206, 60, 80),
    "heart ventricle right": (90, 104, 200),
    "right ventricle": (90, 104, 200),
    "heart myocardium": (160, 48, 64),
    "myocardium": (160, 48, 64),
    "atrial appendage left": (190, 80, 130),
    "pulmonary artery": (92, 126, 216),
    "pulmonary vein": (206, 84, 70),
    "breast": (232, 180, 160),
    "thymus": (196, 180, 120),
    # Head and neck
    "brain": (234, 200, 186),
    "brain stem": (220, 160, 90),
    "cerebellum": (206, 176, 150),
    "hippocampus": (96, 180, 120),
    "temporal lobe": (190, 170, 200),
    "spinal cord": (244, 214, 80),
    "parotid gland": (86, 166, 110),
    "submandibular gland": (150, 200, 96),
    "lacrimal gland": (120, 200, 180),
    "larynx": (98, 158, 196),
    "pharynx": (176, 120, 140),
    "mandible": (232, 220, 170),
    "maxilla": _BONE,
    "oral cavity": (206, 110, 130),
    "tongue": (206, 96, 106),
    "eye": (150, 190, 232),
    "lens": (196, 226, 240),
    "optic nerve": (240, 220, 96),
    "optic chiasm": (240, 200, 60),
    "chiasm": (240, 200, 60),
    "pituitary": (214, 120, 190),
    "inner ear": (110, 150, 170),
    "thyroid gland": (198, 96, 116),
    "temporomandibular joint": _BONE,
    "skull": _BONE,
    "face": (226, 186, 160),
    # Bones
    "sternum": _BONE,
    "costal cartilages": (150, 196, 200),
    "clavicle": _BONE,
    "scapula": _BONE,
    "humerus": _BONE,
    "hip": _BONE,
    "femur": _BONE,
    "femoral head": _BONE,
    "sacrum": _BONE,
    "vertebra": _BONE,
    "vertebra S1": _BONE,
    "rib": _BONE,
    "ribs": _BONE,
    # Muscles
    "gluteus maximus": _MUSCLE,
    "gluteus medius": (190, 110, 92),
    "gluteus minimus": (200, 128, 108),
    "iliopsoas": (184, 104, 70),
    "deep back muscle": (168, 84, 70),
    "erector spinae": (168, 84, 70),
    "skin": (236, 200, 176),
}


def _shade(colour: RGB, number: int) -> RGB:
    """Different shades for neighbours in a row of similar bones."""
    return (colour[0] - number % 3 * 34, colour[1] - number % 2 * 28, colour[2] - number % 4 * 24)


def _rows() -> Iterator[tuple[str, RGB]]:
    yield from _ORGANS.items()
    for letter, count in (("C", 7), ("T", 12), ("L", 5)):
        for number in range(1, count + 1):
            yield f"vertebra {letter}{number}", _shade(_BONE, number)
    for number in range(1, 13):
        yield f"rib {number}", _shade(_BONE, number)


_TABLE = {organ_words(name): colour for name, colour in _rows()}
