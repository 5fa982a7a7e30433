"""Modalities from the names of channels."""

from __future__ import annotations

import pytest

from zoomseg.core.modality import CONE_BEAM, modality_of, named


def test_cone_beams_are_told_from_ct_in_hounsfield_units() -> None:
    assert named("CBCT") == {CONE_BEAM}
    assert named("planning ct") == {"CT"}
    assert named("PET-CT") == {"PT", "CT"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["CT"], "CT"),
        (["portal-venous ct"], "CT"),
        (["CT1", "CT_2"], "CT"),
        (["MRI"], "MR"),
        (["T1", "T2-SPIR", "FLAIR", "t1w"], "MR"),
        (["PET"], "PT"),
        (["CT", "PET"], None),
        (["PET-CT"], None),
        (["channel_0"], None),
        (["reactor", "section", "impress"], None),  # words that hold one of the others
        ([], None),
        (["CT", "channel_1"], None),
        (["CBCT"], "CT"),  # to DICOM
        (["SPECT"], "NM"),
    ],
)
def test_modality_by_name(names: list[str], expected: str | None) -> None:
    assert modality_of(names) == expected
