"""The parts of TotalSegmentator's public tasks: data set numbers, trainers and labels, by task.

Facts from its repository (github.com/wasserth/TotalSegmentator, Apache-2.0, August 2026):
``map_tasks_config.py``, ``map_to_binary.py`` and ``nnunet.py``. Not included are tasks that first search for
an organ and crop to it, that need a licence (except ``vertebrae_body``), or whose result is mostly
post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass

ORGANS = (
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "liver",
    "stomach",
    "pancreas",
    "adrenal_gland_right",
    "adrenal_gland_left",
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
    "esophagus",
    "trachea",
    "thyroid_gland",
    "small_bowel",
    "duodenum",
    "colon",
    "urinary_bladder",
    "prostate",
    "kidney_cyst_left",
    "kidney_cyst_right",
)
_THORACIC_AND_CERVICAL = (
    *(f"vertebrae_T{n}" for n in range(12, 0, -1)),
    *(f"vertebrae_C{n}" for n in range(7, 0, -1)),
)
_LUMBAR = tuple(f"vertebrae_L{n}" for n in range(5, 0, -1))
VERTEBRAE = ("sacrum", "vertebrae_S1", *_LUMBAR, *_THORACIC_AND_CERVICAL)
VERTEBRAE_V3 = ("sacrum", "vertebrae_L6", *_LUMBAR, *_THORACIC_AND_CERVICAL)
CARDIAC = (
    "heart",
    "aorta",
    "pulmonary_vein",
    "brachiocephalic_trunk",
    "subclavian_artery_right",
    "subclavian_artery_left",
    "common_carotid_artery_right",
    "common_carotid_artery_left",
    "brachiocephalic_vein_left",
    "brachiocephalic_vein_right",
    "atrial_appendage_left",
    "superior_vena_cava",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    "iliac_artery_left",
    "iliac_artery_right",
    "iliac_vena_left",
    "iliac_vena_right",
)
_LIMBS = (
    "humerus_left",
    "humerus_right",
    "scapula_left",
    "scapula_right",
    "clavicula_left",
    "clavicula_right",
    "femur_left",
    "femur_right",
    "hip_left",
    "hip_right",
)
_MUSCLES = (
    "gluteus_maximus_left",
    "gluteus_maximus_right",
    "gluteus_medius_left",
    "gluteus_medius_right",
    "gluteus_minimus_left",
    "gluteus_minimus_right",
    "autochthon_left",
    "autochthon_right",
    "iliopsoas_left",
    "iliopsoas_right",
    "brain",
)
MUSCLES = (*_LIMBS, "spinal_cord", *_MUSCLES, "skull")
RIBS = (
    *(f"rib_left_{n}" for n in range(1, 13)),
    *(f"rib_right_{n}" for n in range(1, 13)),
    "sternum",
    "costal_cartilages",
)
TOTAL = (*ORGANS, *VERTEBRAE, *CARDIAC, *MUSCLES, *RIBS)
TOTAL_V3 = (*ORGANS, *VERTEBRAE_V3, *CARDIAC, *MUSCLES, *RIBS)
MR_ORGANS = (
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "liver",
    "stomach",
    "pancreas",
    "adrenal_gland_right",
    "adrenal_gland_left",
    "lung_left",
    "lung_right",
    "esophagus",
    "small_bowel",
    "duodenum",
    "colon",
    "urinary_bladder",
    "prostate",
    "sacrum",
    "vertebrae",
    "intervertebral_discs",
    "spinal_cord",
    "heart",
    "aorta",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    "iliac_artery_left",
    "iliac_artery_right",
    "iliac_vena_left",
    "iliac_vena_right",
)
MR_MUSCLES = (*_LIMBS, *_MUSCLES)
TOTAL_MR = (*MR_ORGANS, *MR_MUSCLES)
BODY = ("body_trunc", "body_extremities")

_NO_MIRRORING = "nnUNetTrainerNoMirroring"
_LONG = "nnUNetTrainer_4000epochs_NoMirroring"
_LONG_MR = "nnUNetTrainer_2000epochs_NoMirroring"
_BOTH_ORDERS = "nnUNetTrainer_DASegOrd0"


@dataclass(frozen=True)
class Part:
    """One nnU-Net model: its data set's number, and its labels in the order of their values."""

    dataset: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """``parts`` in the order in which they are written to the label map; their labels one after the other are
    the task's, with values 1, 2, 3 and so on."""

    parts: tuple[Part, ...]
    trainer: str
    """Prefix of a model's folder."""
    overlap: float = 0.5
    """Of tiles: 1 minus TotalSegmentator's ``step_size``."""
    largest_component: tuple[str, ...] = ()
    """Labels of which only the largest component is kept."""

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.labels)


def _total(first: int, labels: tuple[tuple[str, ...], ...], trainer: str) -> Task:
    parts = tuple(Part(first + n, own) for n, own in enumerate(labels))
    return Task(parts, trainer, overlap=0.2)


TASKS = {
    "total": _total(291, (ORGANS, VERTEBRAE, CARDIAC, MUSCLES, RIBS), _NO_MIRRORING),
    "total_fast": _total(297, (TOTAL,), _LONG),
    "total_fastest": _total(298, (TOTAL,), _LONG),
    "total_v3": _total(831, (ORGANS, VERTEBRAE_V3, CARDIAC, MUSCLES, RIBS), _NO_MIRRORING),
    "total_v3_fast": _total(836, (TOTAL_V3,), _LONG),
    "total_v3_fastest": _total(837, (TOTAL_V3,), _LONG),
    "total_mr": _total(850, (MR_ORGANS, MR_MUSCLES), _LONG_MR),
    "total_mr_fast": _total(852, (TOTAL_MR,), _LONG_MR),
    "total_mr_fastest": _total(853, (TOTAL_MR,), _LONG_MR),
    "body": Task((Part(299, BODY),), "nnUNetTrainer", largest_component=("body_trunc",)),
    "body_fast": Task((Part(300, BODY),), "nnUNetTrainer", largest_component=("body_trunc",)),
    "body_mr": Task((Part(597, BODY),), _BOTH_ORDERS),
    "body_mr_fast": Task((Part(598, BODY),), _BOTH_ORDERS),
    "vertebrae_mr": Task(
        (Part(756, ("sacrum", *_LUMBAR, *_THORACIC_AND_CERVICAL)),), f"{_BOTH_ORDERS}_NoMirroring"
    ),
    "vertebrae_body": Task((Part(305, ("vertebrae_body", "intervertebral_discs")),), _BOTH_ORDERS),
    "breasts": Task((Part(527, ("breast",)),), f"{_BOTH_ORDERS}_NoMirroring"),
    "trunk_cavities": Task(
        (Part(343, ("abdominal_cavity", "thoracic_cavity", "pericardium", "mediastinum")),), "nnUNetTrainer"
    ),
}
"""By TotalSegmentator's name, with ``--fast`` and ``--fastest`` as suffixes."""
