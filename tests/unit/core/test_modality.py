"""What channels' names say of how a scan was made."""

from __future__ import annotations

import pytest

from zoomseg.core.modality import modality_of


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
    ],
)
def test_modality_by_name(names: list[str], expected: str | None) -> None:
    assert modality_of(names) == expected
