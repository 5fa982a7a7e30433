"""Memory limits: counted memory, reduced tiles, refusals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.limited_prediction import BUNDLED
from helpers.limited_prediction import untrained as limited_bundle
from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_recipe
from helpers.untrained_models import untrained_bundle, valid_bundle
from zoomseg.backends.device import Device, fast_bfloat16
from zoomseg.backends.torch_costs import TorchCosts
from zoomseg.backends.torch_networks import build_network
from zoomseg.core.case import Case
from zoomseg.core.errors import MemoryLimitError, ZoomSegError
from zoomseg.core.geometry import Grid
from zoomseg.core.region import Region
from zoomseg.inference import memory_limits
from zoomseg.inference.memory_limits import MemoryLimits, StageWork
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.pipeline.stage_input import StageView
from zoomseg.recipe.spec import BodyMask, UNet3D, ZScore

FINE = tiny_recipe(together=True).stages[1]
MB = 1024**2
PATIENCE = 120.0
"""Timeout in seconds for threads that wait for each other."""
ABOVE_LEAST = 100 * MB
"""Additional memory for tiles larger than the smallest, with which the test would take minutes."""


def view(tile: tuple[int, int, int] = (32, 32, 16), **grid: object) -> StageView:
    stage = FINE.model_copy(update={"grid": FINE.grid.model_copy(update={"tile": tile, **grid})})
    lattice = Grid.from_spacing((64, 64, 64), (2.0, 2.0, 3.0))
    return StageView(stage, lattice, Region.whole(lattice))


def valid_view() -> StageView:
    grid = FINE.grid.model_copy(update={"tile": (44, 44, 44), "padding": "valid"})
    stage = FINE.model_copy(update={"network": UNet3D(channels=(8, 16)), "grid": grid})
    return StageView(stage, view().grid, view().region)


def work() -> StageWork:
    counted = TorchCosts(weightless, 3).activation_bytes
    return StageWork(
        counted, channels=3, image_channels=1, classes=3, output_channels=3, compute=weightless()
    )


def weightless() -> nn.Module:
    with torch.device("meta"):
        return build_network(FINE, tiny_recipe(together=True), SCHEMA, 1).eval()


def limits(monkeypatch: pytest.MonkeyPatch, ram: int, used: int = 0) -> MemoryLimits:
    monkeypatch.setattr(memory_limits, "used_ram", lambda: used)
    monkeypatch.setattr(memory_limits, "give_back_memory", lambda: None)
    monkeypatch.setattr(memory_limits.gc, "collect", lambda: 0)  # slow in a process that has run many tests
    return MemoryLimits(CPU, ram)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4G", 4 * 1024**3),
        ("2.5GB", 2684354560),
        (" 800m ", 800 * MB),
        ("1KiB", 1024),
        ("1073741824", 1 << 30),
    ],
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert memory_limits.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1G", "0", "4X", "4G4", "1e9", "99999999999T", "nan"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ZoomSegError, match="is not an amount of memory; write it like 800M or 4G"):
        memory_limits.parse_bytes(text)


def needs(
    seen: StageView, shown: StageWork | None = None, full_prediction: bool = False, together: int = 1
) -> int:
    return memory_limits.stage_bytes(seen, shown or work(), full_prediction, together)


def test_more_classes_more_voxels_more_tiles_and_a_kept_answer_need_more() -> None:
    base = needs(view())
    many = replace(work(), classes=100, output_channels=100)
    assert needs(view(), many) > base + 97 * 4 * 64 * 64 * 16
    assert needs(view(), full_prediction=True) > base + 2 * 3 * 4 * 64**3
    assert needs(view((64, 64, 64))) > base
    fewer = 4 * 70 * (66 * 66 * 16 + 32 * 32 * 16)
    logits = 2 * 4 * 100 * 66 * 66 * 66
    found = needs(view(), replace(many, output_channels=30)) - needs(view(), many)
    assert found == pytest.approx(1.3 * (logits - fewer), abs=2)
    tile = 4 * 2 * 3 * 32 * 32 * 16 + work().activation_bytes((32, 32, 16)) + 4 * 3 * 32 * 32 * 16
    assert needs(view(), together=3) == pytest.approx(base + 1.3 * 2 * tile, abs=2)


class Tiles:
    """Replaces a network and its measurement: a tile takes ``each`` times the counted memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: float = 1.0) -> None:
        self.measured: list[tuple[int, ...]] = []
        self._each = each
        monkeypatch.setattr(memory_limits, "rise", self._rise)

    def bytes(self, seen: StageView, together: int = 1) -> int:
        return round(self._each * together * memory_limits.counted_bytes(seen, work()))

    def needs(self, seen: StageView, together: int = 1) -> int:
        """Main memory, where it is measured."""
        tiles = memory_limits.REUSE_OVERHEAD * self.bytes(
            seen, together
        ) + together * memory_limits.input_bytes(seen, work())
        counted = (
            memory_limits.OVERHEAD
            * max(1.0, self._each)
            * together
            * memory_limits.counted_bytes(seen, work())
        )
        return memory_limits.other_bytes(seen, work(), False) + math.ceil(max(tiles, counted)) + 1

    def _rise(self, compute: Callable[[], object]) -> int:
        compute()
        *_, i, j, k = shape = self.measured[-1]
        return self.bytes(view((i, j, k)), shape[0])

    def work(self) -> StageWork:
        return replace(work(), compute=lambda x_BCIJK: self.measured.append(tuple(x_BCIJK.shape)))


def fit(monkeypatch: pytest.MonkeyPatch, room: int, tiles: Tiles, seen: StageView) -> tuple[StageView, int]:
    return limits(monkeypatch, room + 8 * MB, used=5 * MB).fit(seen, tiles.work(), False, 3 * MB)


def test_where_many_times_the_count_is_free_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tiles = view(), Tiles(monkeypatch)
    # Eight tiles of 32x32x16 voxels together keep a CPU busy.
    ample = memory_limits.other_bytes(
        seen, work(), False
    ) + memory_limits.UNMEASURED_FACTOR * 8 * memory_limits.counted_bytes(seen, work())
    assert fit(monkeypatch, ample, tiles, seen) == (seen, 8)
    assert tiles.measured == []
    assert fit(monkeypatch, ample - 1, tiles, seen) == (seen, 8)
    assert tiles.measured[-1] == (8, 3, 32, 32, 16)


def test_what_fits_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tiles = view(), Tiles(monkeypatch)
    assert fit(monkeypatch, tiles.needs(seen, 8), tiles, seen) == (seen, 8)


def test_tiles_are_computed_alone_before_they_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tiles = view(), Tiles(monkeypatch)
    assert fit(monkeypatch, tiles.needs(seen, 8) - 2, tiles, seen) == (seen, 1)


@pytest.mark.parametrize("each", [0.5, 1.0, 3.0])
def test_tiles_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch, each: float) -> None:
    seen, tiles = view(), Tiles(monkeypatch, each)
    assert tiles.needs(view((16, 32, 16))) < tiles.needs(seen)
    fitted, together = fit(monkeypatch, tiles.needs(view((16, 32, 16))), tiles, seen)
    assert fitted.stage.grid.tile == (16, 32, 16)
    assert fitted.region is seen.region
    assert together == 1


def test_a_library_that_takes_more_gets_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same free memory, another processor."""
    seen = view()
    room = Tiles(monkeypatch).needs(seen)
    assert fit(monkeypatch, room, Tiles(monkeypatch), seen)[0].stage.grid.tile == (32, 32, 16)
    assert fit(monkeypatch, room, Tiles(monkeypatch, 4.0), seen)[0].stage.grid.tile == (16, 16, 16)


def test_measuring_takes_no_more_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tiles = view(), Tiles(monkeypatch, 10.0)
    room = tiles.needs(view((8, 8, 8)))
    fit(monkeypatch, room, tiles, seen)
    assert tiles.measured
    for count, _, i, j, k in tiles.measured:
        assert tiles.bytes(view((i, j, k)), count) < room - memory_limits.other_bytes(
            view((i, j, k)), work(), False
        )


def test_a_tile_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tiles = view(), Tiles(monkeypatch)
    held = limits(monkeypatch, tiles.needs(seen) + 8 * MB, used=5 * MB)
    first = held.fit(seen, tiles.work(), False, 3 * MB)
    once = list(tiles.measured)
    assert held.fit(seen, tiles.work(), False, 3 * MB) == first
    assert tiles.measured == once
    assert len(set(once)) == len(once) > 1


def test_others_are_awaited_before_a_new_tile_is_measured_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, tiles, awaited = view(), Tiles(monkeypatch), []
    held = limits(monkeypatch, tiles.needs(view((16, 32, 16))) + 8 * MB, used=5 * MB)

    def fit() -> StageView:
        return held.fit(seen, tiles.work(), False, 3 * MB, lambda: awaited.append(len(tiles.measured)))[0]

    assert fit().stage.grid.tile == (16, 32, 16)
    assert awaited == list(range(len(tiles.measured)))  # but not for the tiles that do not fit
    awaited.clear()
    assert fit().stage.grid.tile == (16, 32, 16)
    assert awaited == []


def test_what_others_took_until_they_were_done_is_no_room_for_measuring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiles, used = Tiles(monkeypatch), 0
    held = limits(monkeypatch, tiles.needs(view()))
    monkeypatch.setattr(memory_limits, "used_ram", lambda: used)

    def alone() -> None:
        nonlocal used
        used = tiles.needs(view())

    with pytest.raises(MemoryLimitError):
        held.fit(view(), tiles.work(), False, 0, alone)
    assert tiles.measured == []


def test_valid_tiles_are_measured_from_smaller_ones_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the recipe's own may be used, but smaller ones predict its memory."""
    tiles = [step.tile for step in memory_limits._steps(valid_view(), CPU) if step.together == 1]
    assert tiles[:4] == [(44, 44, 44), (22, 44, 44), (22, 22, 44), (22, 22, 22)]


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        r"^stage 'fine' with its smallest tiles would need about .* of main memory, 100 MB are allowed; "
        r"allow more with --max-ram, crop the scan, or use a model with a coarser grid$"
    )
    tiles = Tiles(monkeypatch)
    with pytest.raises(MemoryLimitError, match=line) as refusal:
        limits(monkeypatch, 100 * MB).fit(view(), tiles.work(), False, 0)
    assert tiles.measured == []
    ram = refusal.value.needed
    fitted, _ = limits(monkeypatch, ram).fit(view(), tiles.work(), False, 0)
    assert fitted.stage.grid.tile == (4, 4, 4)
    with pytest.raises(MemoryLimitError):
        limits(monkeypatch, ram - 1).fit(view(), tiles.work(), False, 0)


def test_freed_memory_is_looked_for_only_where_it_may_be_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than a small scan, and longer with every object of a long run."""
    looked: list[int] = []
    monkeypatch.setattr(memory_limits, "used_ram", lambda: 400 * MB)
    monkeypatch.setattr(memory_limits, "trim_memory", lambda: looked.append(1))
    ample, grid = MemoryLimits(CPU, 64 * 1024 * MB), Grid.from_spacing((100, 100, 100), (2.0, 2.0, 2.0))
    ample.admit(grid, 2 * grid.box.voxels)
    assert ample.fit(view(), work(), False, 0)[0].stage.grid.tile == (32, 32, 16)
    assert looked == []
    with pytest.raises(MemoryLimitError):
        MemoryLimits(CPU, 400 * MB).admit(grid, 2 * grid.box.voxels)
    assert looked == [1]


def test_where_nothing_is_said_it_is_told_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is queried every time, as other programs may start or end."""
    free = iter([3 * 1024 * MB, 3 * 1024 * MB, 64 * 1024 * MB])
    monkeypatch.setattr(memory_limits, "free_ram", lambda: next(free))
    monkeypatch.setattr(memory_limits, "used_ram", lambda: 400 * MB)
    held, grid = MemoryLimits(CPU, "free"), Grid.from_spacing((1000, 1000, 1000), (0.5, 0.5, 0.5))
    line = r" 3\.00 GB are free; close other programs, raise this process's limit, crop the scan, "
    with pytest.raises(MemoryLimitError, match=line):
        held.admit(grid, 2 * grid.box.voxels)
    held.admit(grid, 2 * grid.box.voxels)


def test_a_header_tells_what_the_first_stage_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its region is the whole scan: its image and its prediction have the size in the header."""
    monkeypatch.setattr(memory_limits, "used_ram", lambda: 0)
    model = untrained_bundle()
    grid = Grid.from_spacing((300, 300, 300), (3.0, 3.0, 3.0))
    alone = 2 * grid.box.voxels + 3 * grid.box.voxels
    with pytest.raises(MemoryLimitError) as refusal:
        Predictor(model, CPU, limits=MemoryLimits(CPU, alone)).admit(grid, 2 * grid.box.voxels)
    assert refusal.value.needed > alone
    Predictor(model, CPU, limits=MemoryLimits(CPU, refusal.value.needed)).admit(grid, 2 * grid.box.voxels)


def test_a_header_is_judged_while_the_networks_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread: no network runs there, and everything computed meanwhile is counted."""
    model, case = valid_bundle(), Case("a", tiny_case(0)[0])
    expected = [record.flops for record in Predictor(model, CPU).predict(case).records]
    made = Predictor(model, CPU, limits=MemoryLimits(CPU, 64 * 1024**3))
    threads: set[str] = set()
    begun, computed, least = threading.Event(), threading.Event(), memory_limits.least_bytes

    def late(*given: Any) -> int:
        begun.set()
        assert computed.wait(PATIENCE)
        return least(*given)

    def computing(*_: object) -> None:
        threads.add(threading.current_thread().name)
        computed.set()
        if threading.current_thread() is not judging:
            judging.join(PATIENCE)

    monkeypatch.setattr(memory_limits, "least_bytes", late)
    network = made._networks["coarse"]

    def computed_by(x_BCIJK: object, tiles: object) -> object:
        computing()
        return network(x_BCIJK, tiles)

    made._networks["coarse"] = computed_by
    judged: list[bool] = []

    def judge() -> None:
        made.admit(case.image.grid, 1)
        judged.append(True)

    judging = threading.Thread(target=judge, name="judging")
    judging.start()
    assert begun.wait(PATIENCE)
    assert [record.flops for record in made.predict(case).records] == expected
    assert not judging.is_alive()
    assert judged
    assert threads == {threading.current_thread().name}


def test_sizes_that_valid_convolutions_can_read_are_not_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def usable(seen: StageView) -> list[tuple[int, ...]]:
        return [step.tile for step in memory_limits._steps(seen, CPU) if step.usable and step.together == 1]

    assert usable(valid_view()) == [(44, 44, 44)]
    assert usable(view((8, 8, 4))) == [(8, 8, 4), (4, 8, 4), (4, 4, 4)]


def test_a_scan_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.from_spacing((512, 512, 1000), (1.0, 1.0, 1.0))
    allowed = limits(monkeypatch, 1024 * MB, used=400 * MB)
    with pytest.raises(MemoryLimitError, match=r"^the scan and its label map would need about 1\.61 GB"):
        allowed.admit(grid, 2 * grid.box.voxels)
    allowed.admit(grid.with_shape((512, 512, 100)), 2 * 512 * 512 * 100)


def test_no_limit_asks_nothing() -> None:
    assert not MemoryLimits(CPU).any
    assert not MemoryLimits(CPU, vram=1).any  # there is no GPU to limit
    assert MemoryLimits(CPU, ram=1).any


def test_predictions_held_in_main_memory_are_limited_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limits, "used_ram", lambda: 5 * MB)
    held = 4 * (work().classes + 1) * 66**3
    enough = 5 * MB + 3 * MB + held
    gpu = Device("cuda:0")
    line = (
        r"^the prediction of stage 'fine' as a whole would need about .* of main memory, .* are allowed; "
        "allow more with --max-ram"
    )
    with pytest.raises(MemoryLimitError, match=line) as refusal:
        MemoryLimits(gpu, enough - 1).fit(view(), work(), True, 3 * MB)
    assert refusal.value.needed == enough
    for ram, whole in ((enough, True), (1, False), (None, True)):
        fitted, _ = MemoryLimits(gpu, ram).fit(view(), work(), whole, 3 * MB)
        assert fitted.stage.grid.tile == (32, 32, 16)


MASKED = ZScore(clip_percentiles=None, within="nonzero")


def with_recipe(**changes: object) -> Bundle:
    model = untrained_bundle()
    return replace(model, recipe=model.recipe.model_copy(update=changes))


def admitted(monkeypatch: pytest.MonkeyPatch, model: Bundle, ram: int) -> None:
    """A scan of 300 x 300 x 300 voxels, of which a byte each is read."""
    monkeypatch.setattr(memory_limits, "used_ram", lambda: 0)
    grid = Grid.from_spacing((300, 300, 300), (3.0, 3.0, 3.0))
    Predictor(model, CPU, limits=MemoryLimits(CPU, ram)).admit(grid, grid.box.voxels)


def test_a_scan_that_is_cropped_is_not_judged_by_its_whole_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the scan and its label map have the size in the header."""
    alone = 4 * 300**3
    with pytest.raises(MemoryLimitError):
        admitted(monkeypatch, with_recipe(), alone)
    for intensity in (ZScore(), MASKED):
        model = with_recipe(crop="nonzero", intensity=intensity)
        admitted(monkeypatch, model, alone)
        with pytest.raises(MemoryLimitError):
            admitted(monkeypatch, model, alone - 1)


def test_the_mask_of_a_normalisation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a small first stage: the scan, the label map, and eight bytes for each voxel."""
    coarse, fine = untrained_bundle().recipe.stages
    small = coarse.model_copy(update={"roi": BodyMask(threshold=0.0)})  # known from the voxels
    model = with_recipe(stages=(small, fine), intensity=MASKED)
    needed = (1 + 1 + 8) * 300**3
    admitted(monkeypatch, model, needed)
    with pytest.raises(MemoryLimitError):
        admitted(monkeypatch, model, needed - 1)


def test_a_limit_that_is_no_hindrance_changes_no_voxel() -> None:
    model, case = untrained_bundle(3), Case("a", tiny_case(0)[0])
    free = Predictor(model, CPU).predict(case, keep=False)
    held = Predictor(model, CPU, limits=MemoryLimits(CPU, 64 * 1024**3)).predict(case, keep=False)
    assert np.array_equal(free.labels.data, held.labels.data)
    assert [r.tile for r in held.records] == [s.grid.tile for s in model.recipe.stages]


CONFIGURATIONS = [
    ("untrained", "float32", 0),
    ("untrained", "float32", 800),  # as with another processor's libraries: 800 bytes per voxel more
    ("bundled", "float32", 0),
    *([("untrained", "bfloat16", 0), ("bundled", "bfloat16", 0)] if fast_bfloat16() else []),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "precision", "workspace"), CONFIGURATIONS)
def test_a_prediction_stays_within_a_hard_limit(model: str, precision: str, workspace: int) -> None:
    """The lowest limit is what the program itself states on this processor; none of the refused ones was
    exceeded. Slightly above it, the tiles are smaller than the recipe's, and the peak is below the limit."""

    def run(*ram: int) -> Any:
        script = Path(__file__).parents[2] / "helpers" / "limited_prediction.py"
        command = [sys.executable, script, model, precision, str(workspace), *map(str, ram)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    least = run()["least"]
    too_little, ram = least * 3 // 4, least + ABOVE_LEAST
    refused, found = run(too_little, ram)
    assert refused["refused"] > too_little
    assert refused["peak"] <= max(too_little, refused["before"])
    assert found["peak"] <= ram
    recipe = (bundle.load(BUNDLED) if model == "bundled" else limited_bundle()).recipe
    assert found["tiles"][recipe.stages[-1].name] != list(recipe.stages[-1].grid.tile)
