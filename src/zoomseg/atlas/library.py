"""Atlases: labelled scans kept on a coarse grid, and the spatial prior they give for another scan.

On disk an atlas library is a folder of two files, of which nothing is ever executed:

```
atlases.json                   what there is: cases, grids, labels, and the other file's SHA-256
atlases-<sha>.safetensors      images (float16) and class indices (uint8)
```
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from zoomseg.atlas import register as registration
from zoomseg.atlas.fuse import VERSION as FUSION_VERSION
from zoomseg.atlas.fuse import fuse
from zoomseg.core.arrays import AnyNumpy, to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import DatasetError, GeometryError, LabelError, ModelError, ZoomSegError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.resample import resample, resample_labels
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.bundle import ATLASES_MANIFEST, MAX_WEIGHTS_BYTES, read_tensors
from zoomseg.io.files import read_file, write_bytes_atomic
from zoomseg.io.manifests import first_problem, read_manifest, write_content
from zoomseg.recipe.spec import ATLAS, AtlasSpec

FORMAT = 1
MANIFEST = ATLASES_MANIFEST


@dataclass(frozen=True, eq=False)
class Atlas:
    """One labelled scan on its atlas grid: normalised image ``[1, I, J, K]`` (float16) and labels.

    Raises:
        DatasetError: the image is not finite in float16, or the labels hold more than the schema's classes.
    """

    id: str
    image: Volume
    labels: LabelMap

    def __post_init__(self) -> None:
        if not self.image.grid.same_as(self.labels.grid) or self.image.channels != 1:
            raise GeometryError(f"atlas {self.id}: image and labels must share one grid, with one channel")
        if not bool(np.isfinite(self.image.data).all()):
            raise DatasetError(f"atlas {self.id}: its normalised image is not finite in float16")
        highest, classes = int(self.labels.data.max()), self.labels.schema.classes
        if highest >= classes:
            raise DatasetError(
                f"atlas {self.id}: class {highest} is beyond the {classes} classes;"
                " leave out cases in which not every label is annotated"
            )


def atlas_grid(grid: Grid, spec: AtlasSpec) -> Grid:
    """The grid of registration and fusion over a scan: the recipe's spacing; an axis that is coarser keeps
    its own."""
    wanted = [max(own, asked) for own, asked in zip(grid.spacing_mm, spec.spacing_mm, strict=True)]
    return grid.with_spacing((wanted[0], wanted[1], wanted[2]))


@dataclass(frozen=True, eq=False)
class AtlasLibrary:
    """Labelled scans that can be registered to another one. All have the same schema."""

    spec: AtlasSpec
    schema: LabelSchema
    atlases: tuple[Atlas, ...]

    def __post_init__(self) -> None:
        ids = [atlas.id for atlas in self.atlases]
        if not ids or len(set(ids)) != len(ids):
            raise DatasetError(f"an atlas library needs distinct cases, at least one; got {ids[:10]}")
        if any(atlas.labels.schema != self.schema for atlas in self.atlases):
            raise LabelError("all atlases must have the same labels")

    @classmethod
    def build(cls, spec: AtlasSpec, cases: Iterable[tuple[str, Volume, LabelMap]]) -> AtlasLibrary:
        """Resample cases (id, normalised image, labels; canonical orientation) to the atlas grid. Of several
        channels the first is kept. Cases should be annotated completely: voxels not annotated in an atlas
        count as a vote for background.

        Raises:
            DatasetError: no case, a case twice, or one with classes beyond the schema's.
            LabelError: the cases' labels differ.
        """
        atlases = []
        for id, image, labels in cases:
            grid = atlas_grid(image.grid, spec)
            coarse = resample(_first_channel(image), grid)
            atlases.append(Atlas(id, _in_half(coarse), resample_labels(labels, grid)))
        if not atlases:
            raise DatasetError("atlas priors need labelled cases; there is none")
        return cls(spec, atlases[0].labels.schema, tuple(atlases))

    def chosen(self, exclude: str | None = None) -> tuple[Atlas, ...]:
        """The ``number`` atlases used for a scan, evenly spread over all but the case ``exclude``."""
        others = [atlas for atlas in self.atlases if atlas.id != exclude]
        number = min(self.spec.number, len(others))
        return tuple(others[(2 * i + 1) * len(others) // (2 * number)] for i in range(number))

    def reduced(self) -> AtlasLibrary:
        """Only the atlases used for a scan that is none of them."""
        return AtlasLibrary(self.spec, self.schema, self.chosen())

    def prior(
        self,
        image: Volume,
        *,
        exclude: str | None = None,
        cache: Path | None = None,
        on_warning: Callable[[str], None] = lambda message: None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> StagePrediction:
        """Register the chosen atlases to a scan and fuse their labels.

        Args:
            image: the scan, normalised like the atlases, canonical orientation.
            exclude: the case of this scan, if it is one of the atlases.
            cache: folder in which registered atlases, and fused labels, are kept for later.
            on_warning: called for every atlas that is dropped.
            on_progress: ``(done, total)`` after every atlas, and after fusion.

        Returns:
            Probabilities on the atlas grid over the scan, of all labels of the schema.

        Raises:
            RegistrationError: no atlas could be registered.
            MissingPackageError: the registration library is not installed.
        """
        atlases = self.chosen(exclude)
        if not atlases:
            raise registration.RegistrationError(f"the only atlas is the scan '{exclude}' itself; add cases")
        grid = atlas_grid(image.grid, self.spec)
        target = resample(_first_channel(image), grid)
        file = None if cache is None else cache / f"{_fused_key(target, atlases, self.spec)}.safetensors"
        known = None if file is None else _read_fused(file, (self.schema.classes, *grid.shape))
        if known is not None:
            on_progress(len(atlases) + 1, len(atlases) + 1)
            return StagePrediction(known, grid, self.schema.names, Region.whole(grid), ATLAS)
        images, labels = [], []
        for done, atlas in enumerate(atlases, start=1):
            try:
                moved = _registered(target, atlas, self.spec, cache)
            except registration.RegistrationError as error:
                on_warning(f"atlas {atlas.id} is left out: {error}")
            else:
                images.append(moved.image.data[0])
                labels.append(moved.labels.data)
            on_progress(done, len(atlases) + 1)
        if not images:
            raise registration.RegistrationError(
                f"none of the {len(atlases)} atlases could be registered to the scan; is it of the same "
                "kind as the training scans? Otherwise use a recipe without atlas priors"
            )
        stacked = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))
        scan = torch.from_numpy(target.data[0])
        probabilities = fuse(self.spec.fusion, scan, *stacked, self.schema.classes).numpy()
        if file is not None and len(images) == len(atlases):  # else the warning must be repeated
            write_bytes_atomic(file, safetensors.save({"probabilities": np.ascontiguousarray(probabilities)}))
        on_progress(len(atlases) + 1, len(atlases) + 1)
        return StagePrediction(probabilities, grid, self.schema.names, Region.whole(grid), ATLAS)

    def save(self, folder: Path) -> None:
        """Write the library, to be read by ``load``.

        Raises:
            OutputError: no permission, full disk; an earlier library in the folder is still usable.
        """
        tensors: dict[str, AnyNumpy] = {}
        for i, atlas in enumerate(self.atlases):
            tensors |= {f"image.{i}": atlas.image.data, f"labels.{i}": atlas.labels.data}
        content = safetensors.save({name: np.ascontiguousarray(t) for name, t in tensors.items()})
        file, digest = write_content(folder, "atlases", ".safetensors", content)
        manifest = _Manifest(
            format=FORMAT,
            spec=self.spec.model_dump(mode="json"),
            names=list(self.schema.names),
            values=list(self.schema.values),
            groups={name: list(members) for name, members in self.schema.groups.items()},
            atlases=[
                _Entry(id=a.id, shape=list(a.image.grid.shape), affine=a.image.grid.affine.tolist())
                for a in self.atlases
            ],
            file=file,
            sha256=digest,
        )
        write_bytes_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        for other in folder.glob("atlases-*.safetensors"):
            if other.name != file:
                other.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> AtlasLibrary:
        """Read a library.

        Raises:
            ModelError: missing or damaged files, voxels that differ from ``atlases.json``, or a format of a
                later ZoomSeg.
        """
        manifest = _read_manifest(folder)
        try:
            tensors = read_tensors(folder, manifest.file, manifest.sha256, MANIFEST)
        except ValueError as error:
            raise _damaged(folder, str(error)) from error
        try:
            groups = {name: tuple(members) for name, members in manifest.groups.items()}
            schema = LabelSchema(tuple(manifest.names), tuple(manifest.values), groups)
            spec = AtlasSpec.model_validate(manifest.spec)
            atlases = tuple(_atlas(entry, tensors, i, schema) for i, entry in enumerate(manifest.atlases))
            return cls(spec, schema, atlases)
        except ValidationError as error:
            raise _damaged(folder, f"{MANIFEST}: {first_problem(error)}") from error
        except ZoomSegError as error:
            raise _damaged(folder, str(error)) from error


def _first_channel(image: Volume) -> Volume:
    return Volume(to_numpy(image.data[:1, ...]).astype(np.float32), image.grid)


def _in_half(image: Volume) -> Volume:
    """The image in float16, with infinite values outside its range, which ``Atlas`` refuses."""
    with np.errstate(over="ignore"):
        return Volume(image.data.astype(np.float16), image.grid)


# --- registered atlases, on disk -------------------------------------------------------------------


def _registered(target: Volume, atlas: Atlas, spec: AtlasSpec, cache: Path | None) -> Atlas:
    """The atlas on the scan's atlas grid, from the cache if it is there."""
    file = None if cache is None else cache / f"{_key(target, atlas, spec)}.safetensors"
    if file is not None:
        found = _read_registered(file, target.grid, atlas)
        if found is not None:
            return found
    moving = Volume(atlas.image.data.astype(np.float32), atlas.image.grid)
    warp = registration.register(target, moving, spec.registration)
    moved = Atlas(atlas.id, _in_half(warp.image(moving)), warp.labels(atlas.labels))
    if file is not None:
        content = {
            "image": np.ascontiguousarray(moved.image.data),
            "labels": np.ascontiguousarray(moved.labels.data),
        }
        write_bytes_atomic(file, safetensors.save(content))
    return moved


def _key(target: Volume, atlas: Atlas, spec: AtlasSpec) -> str:
    """A hash of everything on which the registered atlas depends."""
    digest = hashlib.sha256(f"{registration.VERSION} {spec.registration}".encode())
    for volume in (target, atlas.image):
        digest.update(repr((volume.grid.shape, volume.grid.affine.tolist())).encode())
        digest.update(np.ascontiguousarray(volume.data).tobytes())
    digest.update(np.ascontiguousarray(atlas.labels.data).tobytes())
    return digest.hexdigest()[:32]


def _fused_key(target: Volume, atlases: Sequence[Atlas], spec: AtlasSpec) -> str:
    """A hash of everything on which the fused labels depend."""
    keys = [_key(target, atlas, spec) for atlas in atlases]
    parts = [str(FUSION_VERSION), spec.fusion.model_dump_json(), *keys]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read_fused(file: Path, shape: tuple[int, ...]) -> AnyNumpy | None:
    """Probabilities from the cache; None if there are no valid ones."""
    try:
        probabilities = safetensors.load(read_file(file, MAX_WEIGHTS_BYTES))["probabilities"]
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    sound = tuple(probabilities.shape) == shape and probabilities.dtype == np.float32
    return probabilities if sound and bool(np.isfinite(probabilities).all()) else None


def _read_registered(file: Path, grid: Grid, atlas: Atlas) -> Atlas | None:
    """The registered atlas from the cache; None if there is none, or no valid one: it is then computed
    again."""
    try:
        tensors = safetensors.load(read_file(file, MAX_WEIGHTS_BYTES))
        image, labels = tensors["image"], tensors["labels"]
        if image.dtype != np.float16:
            return None
        return Atlas(atlas.id, Volume(image, grid), LabelMap(labels, grid, atlas.labels.schema))
    except (OSError, SafetensorError, ValueError, KeyError, ZoomSegError):
        return None


# --- the library, on disk --------------------------------------------------------------------------


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: Annotated[str, Field(min_length=1)]
    shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    affine: list[list[float]]


class _Manifest(BaseModel):
    """``atlases.json``. The pattern keeps the name inside the folder."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    spec: dict[str, object]
    names: list[str]
    values: list[int]
    groups: dict[str, list[str]]
    atlases: list[_Entry]
    file: Annotated[str, Field(pattern=r"^atlases-[0-9a-f]{12}\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _read_manifest(folder: Path) -> _Manifest:
    file = folder / MANIFEST
    if not os.path.isfile(file):
        raise ModelError(f"{folder} holds no atlases: {MANIFEST} is missing; copy or train the model again")
    return read_manifest(file, _Manifest, FORMAT, f"atlases in {folder} have", partial(_damaged, folder))


def _atlas(entry: _Entry, tensors: Mapping[str, AnyNumpy], number: int, schema: LabelSchema) -> Atlas:
    image, labels = tensors.get(f"image.{number}"), tensors.get(f"labels.{number}")
    if image is None or labels is None or image.dtype != np.float16:
        raise ModelError(f"atlas {entry.id} has no float16 image or no labels")
    if {len(row) for row in entry.affine} != {4} or len(entry.affine) != 4:
        raise ModelError(f"atlas {entry.id} has no 4x4 affine")
    grid = Grid((entry.shape[0], entry.shape[1], entry.shape[2]), np.array(entry.affine))
    return Atlas(entry.id, Volume(image, grid), LabelMap(labels, grid, schema))


def _damaged(folder: Path, reason: str) -> ModelError:
    line = " ".join(reason.split())
    return ModelError(f"atlases in {folder} are damaged ({line}); copy or train the model again")
