"""Prediction within the memory that the user allows: what a stage will need is counted before it runs, and
its tiles are made smaller until it fits.

The count is of what is large: the scan, the label map, a stage's image, a batch of tiles with what the
network makes of them, the planes of the answer that are held. All in bytes.
"""

from __future__ import annotations

import gc
import math
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from zoomseg.core.errors import MemoryLimitError, ZoomSegError
from zoomseg.core.geometry import Grid, Index3
from zoomseg.core.resample import PIECE_VOXELS
from zoomseg.engine.device import Device, give_back_memory, trim_memory
from zoomseg.engine.look import View
from zoomseg.networks import build as networks
from zoomseg.recipe.spec import Stage

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

FRAMEWORK = 1.3
"""Measured over counted: convolutions keep copies of their own in other layouts, freed blocks do not fit what
comes next."""

PIECES = 3 * 4 * PIECE_VOXELS
"""What resampling a large scan piece by piece takes."""

LEAVE_FREE = 0.9
"""Of the memory that is free so much may be taken where nothing is said: the system ends who takes all."""

FIRST_USE = 64 * 1024**2
"""What libraries load and compile when they are first used."""

COPIES_OF_LABELS = 3
"""At the end: the label map as it was made, turned as the scan is, and with the file's values."""


def parse_bytes(text: str) -> int:
    """``4G``, ``2.5GB``, ``800M``, ``1073741824``: units of 1024.

    Raises:
        ZoomSegError: not an amount of memory.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    amount = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= amount < 2**63:
        raise ZoomSegError(f"'{text}' is not an amount of memory; write it like 800M or 4G")
    return int(amount)


def spoken(amount: float) -> str:
    """For people: ``1.34 GB`` (2^30 bytes)."""
    return (
        f"{amount / _UNITS['G']:.2f} GB" if amount >= 0.1 * _UNITS["G"] else f"{amount / _UNITS['M']:.0f} MB"
    )


def free_ram() -> int:
    """What this process may grow to before the machine is short of memory."""
    own = psutil.Process().memory_info().rss
    return int(own + LEAVE_FREE * psutil.virtual_memory().available)


@dataclass(frozen=True)
class Work:
    """What a stage does, as far as memory is concerned."""

    module: nn.Module
    channels: int
    """That the network reads: image and priors."""
    image_channels: int
    classes: int


class Limits:
    """At most ``ram`` bytes of main memory and ``vram`` of the GPU's, for the whole process; None: any."""

    def __init__(self, device: Device, ram: int | None = None, vram: int | None = None) -> None:
        self._device = device
        self._place = device.place
        self._ram = ram
        self._vram = vram if device.place.type == "cuda" else None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self._ram is not None or self._vram is not None

    def admit(self, grid: Grid, reading: int) -> None:
        """Refuse a scan before it is read, which will take ``reading`` bytes.

        Raises:
            MemoryLimitError: scan and label map alone are too large.
        """
        labels = grid.box.voxels
        needed = reading + max(labels + PIECES, COPIES_OF_LABELS * labels)
        self._refuse_over(self._used_ram() + needed, self._ram, "main memory", "the scan and its label map")

    def fit(self, view: View, work: Work, whole: bool, still_to_fill: int) -> tuple[View, int]:
        """The view with tiles that fit: the recipe's own, if they do. And how many are computed together.

        Args:
            whole: whether the answer is kept as a whole.
            still_to_fill: bytes of the label map, which is there already but not touched by all yet.

        Raises:
            MemoryLimitError: not even the smallest tiles fit.
        """
        needed = math.inf
        together = self._device.tiles_at_once(math.prod(view.stage.grid.tile))
        for tile, count in ((view.stage.grid.tile, together), *((tile, 1) for tile in _tiles(view))):
            fitting = _with_tile(view, tile)
            needed = stage_bytes(fitting, work, whole, count)
            if self._room(still_to_fill) >= needed:
                return fitting, count
            give_back_memory()  # short of it, hoarding freed blocks for speed is no longer wise
        limit, what = (self._vram, "GPU memory") if self._vram is not None else (self._ram, "main memory")
        used = self._used_vram() if self._vram is not None else self._used_ram() + still_to_fill
        self._refuse_over(used + needed, limit, what, f"stage '{view.stage.name}' with its smallest tiles")
        return view, 1

    def _room(self, still_to_fill: int) -> float:
        """Bytes that the work on this device may take."""
        if self._vram is not None:
            return self._vram - self._used_vram()
        if self._ram is None or self._place.type == "cuda":
            return math.inf
        return self._ram - self._used_ram() - still_to_fill

    def _refuse_over(self, needed: float, limit: int | None, kind: str, what: str) -> None:
        if limit is not None and needed > limit:
            option = "--max-vram" if kind == "GPU memory" else "--max-ram"
            raise MemoryLimitError(
                f"{what} would need about {spoken(needed)} of {kind}, {spoken(limit)} are allowed; allow "
                f"more with {option}, crop the scan, or use a model with a coarser grid"
            )

    def _used_ram(self) -> int:
        gc.collect()
        trim_memory()  # freed memory that is kept for later would count as used
        return int(psutil.Process().memory_info().rss)

    def _used_vram(self) -> int:
        return int(torch.cuda.memory_allocated(self._place))


def _tiles(view: View) -> Iterator[Index3]:
    """The recipe's tile, then ever smaller ones that the network can read, the longest side halved."""
    spec = view.stage.grid
    tile: Index3 = spec.tile
    yield tile
    divisor = networks.divisor(view.stage.network)
    if spec.padding == "valid" or spec.kind == "shape":
        return  # sizes of their own: one pass over the box, or what valid convolutions can read
    while True:
        sides = [n for n in range(3) if tile[n] >= 4 * divisor[n]]
        if not sides:
            return
        axis = max(sides, key=lambda n: tile[n])
        half = tile[axis] // 2 // divisor[axis] * divisor[axis]
        i, j, k = (half if n == axis else tile[n] for n in range(3))
        tile = (i, j, k)
        yield tile


def _with_tile(view: View, tile: Index3) -> View:
    if tile == view.stage.grid.tile:
        return view
    grid = view.stage.grid.model_copy(update={"tile": tile})
    return View(view.stage.model_copy(update={"grid": grid}), view.grid, view.region)


def stage_bytes(view: View, work: Work, whole: bool, together: int) -> int:
    """What a stage takes beside what is there already; ``whole`` if its answer is kept as a whole. So many
    tiles are computed ``together``."""
    spec, box = view.stage.grid, view.region.box
    halo = networks.halo(view.stage.network, spec.padding)
    inner = [n - 2 * h for n, h in zip(spec.tile, halo, strict=True)]
    wide = [max(n, t) + 2 * h for n, t, h in zip(box.shape, inner, halo, strict=True)]
    image = 4 * 2 * work.image_channels * math.prod(wide)
    tile = 4 * 2 * work.channels * math.prod(spec.tile) + activation_bytes(work, view.stage, spec.tile)
    plane = 4 * (work.classes + 1) * (box.shape[0] + 2) * (box.shape[1] + 2)
    held = plane * min(inner[2], box.shape[2] + 2) + (2 * plane * (box.shape[2] + 2) if whole else 0)
    mask = 4 * box.voxels if view.region.mask is not None else 0
    return round(FRAMEWORK * (image + together * tile + held + mask) + PIECES + FIRST_USE)


def activation_bytes(work: Work, stage: Stage, tile: Index3) -> int:
    """The most that is alive at once while the network computes a tile, and its probabilities; counted in
    float32 on a smaller tile, and scaled."""
    smaller = _smaller(stage, tile)
    x_BCIJK = torch.zeros(1, work.channels, *smaller, device=next(work.module.parameters()).device)
    with torch.inference_mode(), _Alive(work.module) as alive:
        work.module(x_BCIJK)
    return math.ceil(alive.most * math.prod(tile) / math.prod(smaller)) + 4 * work.classes * math.prod(tile)


def _smaller(stage: Stage, tile: Index3) -> Index3:
    """A tile that the network can read in no time; the tile itself for valid convolutions, whose answers
    shrink by a fixed margin, so that nothing scales."""
    divisor = networks.divisor(stage.network)
    if stage.grid.padding == "valid":
        return tile
    i, j, k = (min(n, d) for n, d in zip(tile, divisor, strict=True))
    return (min(tile[0], 2 * i), j, k)  # instance norm needs two voxels where there are fewest


class _Alive:
    """Counts the bytes of what the parts of a module read and answer, as long as these are alive."""

    def __init__(self, module: nn.Module) -> None:
        self.most = 0
        self._now = 0
        self._met: set[int] = set()
        self._users: dict[int, int] = {}
        leaves = [part for part in module.modules() if not list(part.children())]
        self._hooks = [part.register_forward_hook(self._watch) for part in leaves]

    def __enter__(self) -> _Alive:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, part: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        for tensor in (*given, answer):
            if id(tensor) not in self._met:
                self._meet(tensor)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._met.add(id(tensor))
        self._users[key] = self._users.get(key, 0) + 1
        if self._users[key] == 1:
            self._now += size
            self.most = max(self.most, self._now)
        weakref.finalize(tensor, self._part, id(tensor), key, size)

    def _part(self, tensor: int, key: int, size: int) -> None:
        self._met.discard(tensor)
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            self._now -= size
