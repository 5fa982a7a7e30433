"""Prediction within a memory limit: the memory of each stage is determined before it runs, and its tiles are
reduced until it fits.

Large arrays are counted: the scan, the label map, a stage's image, the planes of the prediction that are
held. The memory of a network for a tile cannot be counted: it depends on the processor, the precision and the
threads, as these determine which of the libraries' algorithms runs, and in which layout it copies its input.
It is measured, by computing tiles of increasing size, none of which may exceed the limit. Nothing is measured
only if many times the counted amount is free. All amounts are in bytes.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from zoomseg.backends.device import KEPT_FREED, Device, give_back_memory, keep_memory, trim_memory
from zoomseg.core.arrays import Array
from zoomseg.core.errors import MemoryLimitError, ZoomSegError
from zoomseg.core.geometry import Grid, Index3
from zoomseg.core.memory import UNITS, format_bytes, free_ram, used_ram
from zoomseg.core.resample import PIECE_VOXELS
from zoomseg.core.tiling import logit_planes
from zoomseg.inference.resource_usage import rise
from zoomseg.pipeline.stage_input import StageView
from zoomseg.recipe import network_shapes
from zoomseg.recipe.network_shapes import Padding
from zoomseg.recipe.spec import NetworkSpec

OVERHEAD = 1.3
"""Ratio of used to counted memory: freed blocks do not fit later allocations. For unmeasured networks, it
includes copies in other layouts."""

UNMEASURED_FACTOR = 16
"""If this many times the counted memory of a tile is free, it is not measured. Ratios of two to three were
observed (oneDNN without AVX2 or with emulated bfloat16), and of ten where torch unfolds patches to rows for
small tiles."""

REUSE_OVERHEAD = 1.15
"""Ratio of a tile's memory during a scan to the measured one: freed blocks are reused for other purposes."""

PIECES = 3 * 4 * PIECE_VOXELS
"""Memory for resampling a large scan piece by piece."""

FIRST_USE_BYTES = 64 * 1024**2
"""Memory of libraries loaded and code compiled at first use."""

COPIES_OF_LABELS = 3
"""At the end: the label map as computed, in the scan's orientation, and with the file's values."""


def parse_bytes(text: str) -> int:
    """``4G``, ``2.5GB``, ``800M``, ``1073741824``: units of 1024.

    Raises:
        ZoomSegError: not an amount of memory.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    amount = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 1 <= amount < 2**63:
        raise ZoomSegError(f"'{text}' is not an amount of memory; write it like 800M or 4G")
    return int(amount)


@dataclass(frozen=True)
class StageWork:
    """The memory-related properties of a stage."""

    activation_bytes: Callable[[Index3], int]
    """The maximum memory of feature maps alive at once while the network computes a tile in float32."""
    channels: int
    """Number of channels that the network reads: image and priors."""
    image_channels: int
    classes: int
    output_channels: int
    """Channels of a tile's output: classes, or features of a ``SplitNetwork``."""
    compute: Callable[[Array], object]
    """Compute a batch of tiles ``[B, channels, *tile]`` with all networks of the stage."""


@dataclass(frozen=True)
class _Step:
    """Tiles to be measured, and whether the stage may be computed with them."""

    tile: Index3
    together: int
    usable: bool


_Key = tuple[str, Index3, int]
"""Stage, tile and number of tiles."""


def _key(view: StageView, step: _Step) -> _Key:
    return (view.stage.name, step.tile, step.together)


def no_wait() -> None:
    """Wait function for a process that does nothing but the prediction."""


@dataclass(eq=False)
class MemoryLimits:
    """At most ``ram`` bytes of main memory and ``vram`` of GPU memory, for the whole process; None:
    unlimited; ``"free"``: the free memory at each query."""

    device: Device
    ram: int | Literal["free"] | None = None
    vram: int | None = None
    _measured: dict[_Key, int] = field(default_factory=dict)
    """Bytes."""

    def __post_init__(self) -> None:
        if self._on_gpu:
            return
        self.vram = None

    @property
    def _on_gpu(self) -> bool:
        return self.device.is_gpu

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.ram is not None or self.vram is not None

    def admit(self, grid: Grid, reading: int, first: int = 0, masking: int = 0) -> None:
        """Refuse a scan that is too large before it is read, which will need ``reading`` bytes.

        Args:
            first: minimum memory of its first stage, if it is known by then.
            masking: memory of the mask of its normalisation.

        Raises:
            MemoryLimitError: it is too large.
        """
        labels = grid.box.voxels
        stage = 0 if self._on_gpu else first
        needed = reading + max(labels + max(PIECES, stage, masking), COPIES_OF_LABELS * labels)
        if self._fits_untrimmed(needed):
            return
        self._refuse_over(self._used_ram() + needed, self._ram(), "main memory", "the scan and its label map")

    def fit(
        self,
        view: StageView,
        work: StageWork,
        full_prediction: bool,
        unwritten_bytes: int,
        wait_for_others: Callable[[], None] = no_wait,
    ) -> tuple[StageView, int]:
        """The view with tiles that fit: the recipe's own, if they do; and the number computed together.

        Args:
            full_prediction: whether the prediction is kept as a whole.
            unwritten_bytes: bytes of the label map that are allocated but not yet written.
            wait_for_others: called before anything is measured; returns once no other thread
                allocates memory.

        Raises:
            MemoryLimitError: not even the smallest tiles fit.
        """
        if self._on_gpu:
            if full_prediction:
                self._admit_held(view, work, unwritten_bytes)
            return self._fit_counted(view, work, full_prediction)
        together = self.device.tiles_at_once(math.prod(view.stage.grid.tile))
        ample = other_bytes(view, work, full_prediction) + UNMEASURED_FACTOR * together * counted_bytes(
            view, work
        )
        if self._fits_untrimmed(unwritten_bytes + ample) or self._free_bytes(unwritten_bytes) >= ample:
            keep_memory()  # an earlier scan may have been short of it
            return view, together
        return self._fit_measured(view, work, full_prediction, unwritten_bytes, wait_for_others)

    def _admit_held(self, view: StageView, work: StageWork, unwritten_bytes: int) -> None:
        """Predictions that are kept as a whole are held in main memory."""
        needed = unwritten_bytes + held_bytes(view, work)
        if not self._fits_untrimmed(needed):
            what = f"the prediction of stage '{view.stage.name}' as a whole"
            self._refuse_over(self._used_ram() + needed, self._ram(), "main memory", what)

    def _fit_counted(self, view: StageView, work: StageWork, full_prediction: bool) -> tuple[StageView, int]:
        """On a GPU, where a failed allocation does no harm."""
        if self.vram is None:
            return view, self.device.tiles_at_once(math.prod(view.stage.grid.tile))
        needed = 0
        for step in _steps(view, self.device):
            if step.usable:
                fitting = _with_tile(view, step.tile)
                needed = stage_bytes(fitting, work, full_prediction, step.together)
                if self.vram - self._used_vram() >= needed:
                    return fitting, step.together
        self._refuse_over(self._used_vram() + needed, self.vram, "GPU memory", _smallest(view))
        return view, 1

    def _fit_measured(
        self,
        view: StageView,
        work: StageWork,
        full_prediction: bool,
        unwritten_bytes: int,
        wait_for_others: Callable[[], None],
    ) -> tuple[StageView, int]:
        """From the smallest tiles up: the memory of one size predicts how much the next may need."""
        give_back_memory()  # with little memory left, keeping freed blocks for speed is no longer sensible
        found: tuple[StageView, int] | None = None
        needed, taken, spare = 0.0, 1.0, 0.0
        free = self._free_bytes(unwritten_bytes)
        for step in reversed(_steps(view, self.device)):
            fitting = _with_tile(view, step.tile)
            others = other_bytes(fitting, work, full_prediction)
            counted = step.together * counted_bytes(fitting, work)
            needed = OVERHEAD * counted * max(1.0, taken)
            if needed <= free - others and _key(fitting, step) not in self._measured:
                wait_for_others()  # memory of others would be attributed to the network, for every later scan
                # Freed memory is returned first: if it were reused, it would not be counted.
                free = self._free_bytes(unwritten_bytes)
            room = free - others
            if needed <= room:
                measured = self._measure(fitting, work, step)
                needed = REUSE_OVERHEAD * measured + step.together * input_bytes(fitting, work)
                taken = measured / counted
            if needed > room:
                break
            if step.usable:
                found, spare = (fitting, step.together), room - 2 * needed - KEPT_FREED
        if found is None:
            used = self._used_ram() + unwritten_bytes + others
            self._refuse_over(used + needed, self._ram(), "main memory", _smallest(view))
            return view, 1
        if spare > 0:
            keep_memory()
        return found

    def _measure(self, view: StageView, work: StageWork, step: _Step) -> int:
        key = _key(view, step)
        if key not in self._measured:

            def compute() -> None:
                tiles = np.zeros((step.together, work.channels, *step.tile), dtype=np.float32)
                work.compute(self.device.put(tiles))

            self._measured[key] = rise(compute)
        return self._measured[key]

    def _ram(self) -> int | None:
        return free_ram() if self.ram == "free" else self.ram

    def _fits_untrimmed(self, needed: float) -> bool:
        """Whether so much main memory may still be used, even if no freed memory is given back: to look for
        that takes longer than a small scan."""
        ram = self._ram()
        return ram is None or ram - used_ram() >= needed

    def _free_bytes(self, unwritten_bytes: int) -> float:
        """Bytes of main memory that may still be used."""
        ram = self._ram()
        return math.inf if ram is None else ram - self._used_ram() - unwritten_bytes

    def _refuse_over(self, needed: float, limit: int | None, kind: str, what: str) -> None:
        if limit is None or needed <= limit:
            return
        option = "--max-vram" if kind == "GPU memory" else "--max-ram"
        allowed, more = (
            ("free", "close other programs, raise this process's limit")
            if self.ram == "free" and kind != "GPU memory"
            else ("allowed", f"allow more with {option}")
        )
        raise MemoryLimitError(
            f"{what} would need about {format_bytes(needed)} of {kind}, {format_bytes(limit)} are {allowed}; "
            f"{more}, crop the scan, or use a model with a coarser grid",
            math.ceil(needed),
        )

    def _used_ram(self) -> int:
        gc.collect()
        trim_memory()  # freed memory that is kept for later would count as used
        return used_ram()

    def _used_vram(self) -> int:
        import torch

        return int(torch.cuda.memory_allocated(self.device.torch_device))


def _smallest(view: StageView) -> str:
    return f"stage '{view.stage.name}' with its smallest tiles"


def _steps(view: StageView, device: Device) -> list[_Step]:
    """The recipe's tiles, first as many together as keep the device busy, then one alone, then smaller ones
    that the network can read, with the longest side halved."""
    spec, network = view.stage.grid, view.stage.network
    # Valid convolutions, and one pass over a box, have fixed sizes; for others, the memory is measured.
    usable = spec.padding != "valid" and spec.kind != "shape"
    together = device.tiles_at_once(math.prod(spec.tile))
    own = [_Step(spec.tile, count, True) for count in sorted({1, together}, reverse=True)]
    return own + [_Step(tile, 1, usable) for tile in _halved(spec.tile, network, spec.padding)]


def _halved(tile: Index3, network: NetworkSpec, padding: Padding) -> Iterator[Index3]:
    divisor = network_shapes.divisor(network)
    halo = network_shapes.halo(network, padding)
    while True:
        sides = [n for n in range(3) if tile[n] >= 4 * (divisor[n] + halo[n])]
        if not sides:
            return
        axis = max(sides, key=lambda n: tile[n])
        i, j, k = (tile[n] // 2 if n == axis else tile[n] for n in range(3))
        tile = network_shapes.readable(network, padding, (i, j, k))
        yield tile


def _with_tile(view: StageView, tile: Index3) -> StageView:
    if tile == view.stage.grid.tile:
        return view
    grid = view.stage.grid.model_copy(update={"tile": tile})
    return StageView(view.stage.model_copy(update={"grid": grid}), view.grid, view.region)


def least_bytes(view: StageView, work: StageWork, full_prediction: bool, device: Device) -> int:
    """The minimum memory of a stage in addition to the current one, as far as it can be counted."""
    usable = [step.tile for step in _steps(view, device) if step.usable]
    return stage_bytes(_with_tile(view, usable[-1]), work, full_prediction, 1)


def stage_bytes(view: StageView, work: StageWork, full_prediction: bool, together: int) -> int:
    """The counted memory of a stage in addition to the current one; ``full_prediction`` if its prediction is
    kept as a whole, with ``together`` tiles computed at once."""
    tiles = OVERHEAD * together * counted_bytes(view, work)
    return round(other_bytes(view, work, full_prediction) + tiles)


def other_bytes(view: StageView, work: StageWork, full_prediction: bool) -> int:
    """The part of ``stage_bytes`` without tiles: the image, the planes of the prediction that are held, the
    region."""
    spec, box = view.stage.grid, view.region.box
    halo = network_shapes.halo(view.stage.network, spec.padding)
    inner = [n - 2 * h for n, h in zip(spec.tile, halo, strict=True)]
    wide = [max(n, t) + 2 * h for n, t, h in zip(box.shape, inner, halo, strict=True)]
    image = 4 * 2 * work.image_channels * math.prod(wide)
    around = _around(view)
    plane = 4 * around[0] * around[1]
    held = plane * (work.output_channels + 1) * min(inner[2], around[2])
    held += 2 * held_bytes(view, work) if full_prediction else 0
    if work.output_channels < work.classes:  # logits, and what is made of them
        held += 2 * plane * work.classes * logit_planes(work.classes, around)
    mask = 4 * box.voxels if view.region.mask is not None else 0
    return round(OVERHEAD * (image + held + mask)) + PIECES + FIRST_USE_BYTES


def held_bytes(view: StageView, work: StageWork) -> int:
    """Memory of a prediction as a whole."""
    return 4 * (work.classes + 1) * math.prod(_around(view))


def _around(view: StageView) -> Index3:
    """The shape of a view's region with a voxel on either side."""
    i, j, k = view.region.box.shape
    return (i + 2, j + 2, k + 2)


def counted_bytes(view: StageView, work: StageWork) -> int:
    """Counted memory of a tile: the network's input twice, as it is assembled from image and priors, and the
    network's feature maps."""
    tile = view.stage.grid.tile
    output = 4 * work.output_channels * math.prod(tile)
    return 2 * input_bytes(view, work) + work.activation_bytes(tile) + output


def input_bytes(view: StageView, work: StageWork) -> int:
    """Memory of the network's input for a tile."""
    return 4 * work.channels * math.prod(view.stage.grid.tile)
