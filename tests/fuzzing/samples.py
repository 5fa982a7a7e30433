"""Valid files from which inputs are made: the tests' tiny scans, series, data set, models and recipes.

They have the same bytes in every process, so that a seed gives the same input everywhere.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
import re
import shutil
import zipfile
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
import yaml

from helpers import dicom_series, nnunet_models
from helpers.tiny_dataset import SCHEMA, tiny_case, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.export.package import export
from zoomseg.io import bundle
from zoomseg.io.dicom.read.series_discovery import the_series
from zoomseg.io.dicom.write.rtstruct import write_rtstruct
from zoomseg.io.dicom.write.seg import write_seg
from zoomseg.io.files import write_json_atomic
from zoomseg.io.scans import write_array, write_image, write_labels
from zoomseg.recipe import load

CASES = 2
SLICES = 8
SERIES_SHAPE = (SLICES, 16, 20)
"""Slices, rows, columns."""

_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}")
_CLOCK = {"DA": "20260102", "TM": "120000", "DT": "20260102120000"}
_INVENTED = ("1.2.826.", "2.25.")
"""Prefixes of UIDs that libraries generate."""


@dataclass(frozen=True)
class Samples:
    """Valid files, made in ``root`` on first use."""

    root: Path

    @cached_property
    def scan(self) -> Path:
        """A scan that is valid for every command."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / "scan.nii.gz"
        write_image(path, tiny_case(0)[0])
        _repack(self.root)
        return path

    @cached_property
    def scans(self) -> dict[str, dict[str, bytes]]:
        """For each kind of file, the files of one scan by name; the first one contains the header."""
        image = tiny_case(0)[0]
        voxels, affine = image.data[0], image.grid.affine
        folder = self.root / "formats"
        folder.mkdir(parents=True, exist_ok=True)
        first, second = nib.Nifti1Image(voxels, affine), nib.Nifti2Image(voxels, affine)
        first.set_qform(affine, code=1)
        found = {"nifti1": {"scan.nii": first.to_bytes()}, "nifti2": {"scan.nii": second.to_bytes()}}
        for kind in ("nrrd", "mha"):
            write_array(folder / f"scan.{kind}", voxels.astype(np.int16), image.grid)
        sitk.WriteImage(sitk.ReadImage(str(folder / "scan.mha")), str(folder / "scan.mhd"))
        for kind in ("nrrd", "mha", "mhd"):
            found[kind] = {f"scan.{kind}": (folder / f"scan.{kind}").read_bytes()}
        found["mhd"]["scan.raw"] = (folder / "scan.raw").read_bytes()
        return found

    @cached_property
    def series(self) -> dict[str, bytes]:
        """A CT series, as objects by file name."""
        values = np.random.default_rng(0).integers(900, 1200, SERIES_SHAPE).astype(np.uint16)
        values[2:6, 4:12, 5:15] = 1150
        objects = dicom_series.stack(values)
        for number, one in enumerate(objects):
            one.SOPInstanceUID = f"{dicom_series.SERIES_UID}.{number + 1}"
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        dicom_series.write(self.root / "series", objects)
        return {file.name: file.read_bytes() for file in sorted((self.root / "series").iterdir())}

    @cached_property
    def drawn(self) -> dict[str, bytes]:
        """A SEG and an RTSTRUCT of ``series``, as objects by file name."""
        assert self.series
        series = the_series(self.root / "series").series
        classes = np.zeros(series.grid.shape, dtype=np.uint8)
        classes[3:9, 3:8, 1:6] = 1
        classes[11:15, 9:13, 2:7] = 2
        labels = LabelMap(classes, series.grid, LabelSchema.consecutive(["liver", "spleen"]))
        found = {}
        for name, write in (("seg.dcm", write_seg), ("rtstruct.dcm", write_rtstruct)):
            path = self.root / name
            write(path, labels, series, "someone", "1")
            found[name] = _same_every_time(path.read_bytes())
        return found

    @cached_property
    def dataset(self) -> Path:
        """Cases in nnU-Net raw layout."""
        tiny_dataset(self.root / "dataset", CASES)
        _repack(self.root / "dataset")
        return self.root / "dataset"

    @cached_property
    def predictions(self) -> Path:
        """Label maps that belong to ``dataset``, with the meaning of their values."""
        folder = self.root / "predictions"
        folder.mkdir(parents=True)
        for seed in range(CASES):
            write_labels(folder / f"case_{seed}.nii.gz", tiny_case(seed)[1])
        _repack(folder)
        labels = {"background": 0} | dict(zip(SCHEMA.names, SCHEMA.values, strict=True))
        write_json_atomic(folder / "run.json", {"labels": labels, "cases": {}})
        return folder

    @cached_property
    def model(self) -> Path:
        """An untrained model."""
        bundle.save(untrained_bundle(), self.root / "model")
        return self.root / "model"

    @cached_property
    def nnunet(self) -> dict[str, bytes]:
        """A trained model of nnU-Net, as content by path in its folder."""
        folder = nnunet_models.write(self.root / "nnunet")
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))
        }

    @cached_property
    def package(self) -> dict[str, bytes]:
        """The exported ``model``, as content by name of the zip's members."""
        export(self.model, self.root / "package.zip")
        with zipfile.ZipFile(self.root / "package.zip") as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    @cached_property
    def recipes(self) -> tuple[object, ...]:
        """A tiny recipe and those included in ZoomSeg, as parsed YAML."""
        tiny = load.dump(tiny_recipe(together=True, iterations=1))
        shipped = [load.dump(load.load(name)) for name in sorted(load.names())]
        return tuple(yaml.safe_load(text) for text in (tiny, *shipped))

    def copied(self, folder: Path, target: Path) -> Path:
        """Copy one of the folders above, so that it can be changed."""
        shutil.copytree(folder, target)
        return target


def _repack(folder: Path) -> None:
    """Compress all gzip files again, without a time stamp."""
    for path in folder.rglob("*.gz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=0))


def _same_every_time(data: bytes) -> bytes:
    """An object in which values that depend on the time or on random numbers are replaced."""
    made = pydicom.dcmread(BytesIO(data))
    uids: dict[str, str] = {}
    for element in made.iterall():
        if element.VR in _CLOCK:
            element.value = _CLOCK[element.VR]
        elif isinstance(element.value, str) and element.VR != "UI":
            element.value = _MOMENT.sub("2026-01-01 10:10:10", element.value)
        elif element.VR == "UI" and str(element.value).startswith(_INVENTED):
            element.value = uids.setdefault(element.value, f"1.2.3.4.{200 + len(uids)}")
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    stream = BytesIO()
    made.save_as(stream)
    return stream.getvalue()
