"""Choice of decoders; values are tested with volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder, JPEGLSLosslessDecoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from helpers.dicom_series import ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.series_discovery import find_series, the_series
from zoomseg.io.dicom.read.voxels import read_volume

SLICES = np.random.default_rng(0).integers(0, 200, (3, 32, 40)).astype(np.uint16)


def _fails(source: bytes, runner: object) -> bytes:
    raise RuntimeError("cannot read this")


def test_jpeg_ls_that_its_fastest_decoder_refuses_is_read_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, stack(SLICES), lambda dataset: dataset.compress(JPEGLSLossless))
    monkeypatch.setitem(JPEGLSLosslessDecoder._available, "pyjpegls", _fails)
    found = read_volume(the_series(folder)).data[0].transpose(2, 1, 0)
    assert (found == SLICES.astype(int) - 1024).all()


def test_jpeg_ls_is_read_where_its_fastest_decoder_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, stack(SLICES), lambda dataset: dataset.compress(JPEGLSLossless))
    monkeypatch.delitem(JPEGLSLosslessDecoder._available, "pyjpegls")
    found = read_volume(the_series(folder)).data[0].transpose(2, 1, 0)
    assert (found == SLICES.astype(int) - 1024).all()


@pytest.mark.parametrize("keep", [100, 300, 1000])
def test_damaged_jpeg_ls_is_read_by_none(tmp_path: Path, keep: int) -> None:
    def damage(dataset: Dataset) -> None:
        dataset.compress(JPEGLSLossless)
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        dataset.PixelData = encapsulate([frame[:keep] + bytes(len(frame) - keep)])

    with pytest.raises(ScanError, match="voxels cannot be decoded"):
        read_volume(the_series(write(tmp_path, stack(SLICES), damage)))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_values_that_do_not_fit_into_those_of_the_header_are_not_cut_off(tmp_path: Path, syntax: str) -> None:
    """A frame of 12 bits, of which a decoder would put the lower ones into the 8 that the header states."""

    def narrow(dataset: Dataset) -> None:
        dataset.compress(syntax)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7

    folder = write(tmp_path, stack(SLICES * 20, BitsStored=12, HighBit=11), narrow)
    with pytest.raises(ScanError, match=r"\.dcm: compressed frame of 12 bits, but its header says 8"):
        read_volume(the_series(folder))


def in_syntax(folder: Path, syntax: str) -> Path:
    """A series whose files were compressed by GDCM."""
    gdcm = pytest.importorskip("gdcm")
    write(folder, stack(SLICES, BitsStored=12, HighBit=11))
    for file in folder.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return folder


def test_lossless_jpeg_is_read_with_gdcm(tmp_path: Path) -> None:
    found = read_volume(the_series(in_syntax(tmp_path, JPEGLosslessSV1))).data[0].transpose(2, 1, 0)
    assert (found == SLICES.astype(int) - 1024).all()


def test_without_gdcm_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_syntax(tmp_path, JPEGLosslessSV1)
    monkeypatch.delitem(JPEGLosslessSV1Decoder._available, "gdcm")
    (refused,) = find_series(folder).refused
    assert "\n" not in refused.reason
    assert "its transfer syntax JPEG Lossless, Non-Hierarchical, First-Order Prediction" in refused.reason
    assert refused.reason.endswith(
        "read by GDCM, which is not installed: pip install '.[dicom-extra]' in a clone of ZoomSeg, "
        "or convert it to an uncompressed DICOM file"
    )


def test_a_missing_frame_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp()))
    stack_ = the_series(folder)
    victim = stack_.stored[2].source.path
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(ScanError, match=f"{victim}: truncated; frame 1 is incomplete"):
        read_volume(stack_)
