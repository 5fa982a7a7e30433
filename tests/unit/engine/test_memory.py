"""Memory limits: what is counted, what is made smaller, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tiny import CPU, SCHEMA, tiny_case, tiny_recipe
from untrained import untrained_bundle
from zoomseg.core.case import Case
from zoomseg.core.errors import MemoryLimitError, ZoomSegError
from zoomseg.core.geometry import Grid
from zoomseg.core.region import Region
from zoomseg.engine import memory
from zoomseg.engine.look import View
from zoomseg.engine.memory import Limits, Work
from zoomseg.engine.predict import Predictor, build_network

FINE = tiny_recipe(together=True).stages[1]
MB = 1024**2


def view(tile: tuple[int, int, int] = (32, 32, 16), **grid: object) -> View:
    stage = FINE.model_copy(update={"grid": FINE.grid.model_copy(update={"tile": tile, **grid})})
    lattice = Grid.from_spacing((64, 64, 64), (2.0, 2.0, 3.0))
    return View(stage, lattice, Region.whole(lattice))


def work() -> Work:
    module = build_network(FINE, tiny_recipe(together=True), SCHEMA, 1).eval()
    return Work(module, channels=3, image_channels=1, classes=3)


def limits(monkeypatch: pytest.MonkeyPatch, ram: int, used: int = 0) -> Limits:
    monkeypatch.setattr(Limits, "_used_ram", lambda self: used)
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)
    return Limits(CPU, ram)


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
    assert memory.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1G", "0", "4X", "4G4", "1e9", "99999999999T", "nan"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ZoomSegError, match="is not an amount of memory; write it like 800M or 4G"):
        memory.parse_bytes(text)


def test_amounts_are_spoken_in_fitting_units() -> None:
    assert memory.spoken(1.34 * 1024**3) == "1.34 GB"
    assert memory.spoken(50 * MB) == "50 MB"


def test_what_is_alive_at_once_is_counted_by_hand() -> None:
    """Of three 1x1x1 convolutions no more than two maps are alive: 4 and 8 channels are the most."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(nn.Conv3d(1, 4, 1), nn.Conv3d(4, 8, 1), nn.Conv3d(8, 3, 1))

        def forward(self, x_BCIJK: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.parts(x_BCIJK),)

    shown = Work(Chain(), channels=1, image_channels=1, classes=3)
    found = memory.activation_bytes(shown, FINE, (8, 8, 8))
    # The input is held by the caller; the convolution's 4 channels go once its 8 are made.
    assert found == 4 * 8**3 * ((1 + 4 + 8) + 3)


def needs(seen: View, shown: Work | None = None, whole: bool = False, together: int = 1) -> int:
    return memory.stage_bytes(seen, shown or work(), whole, together)


def test_more_classes_more_voxels_more_tiles_and_a_kept_answer_need_more() -> None:
    base = needs(view())
    many = Work(work().module, 3, 1, 100)
    assert needs(view(), many) > base + 97 * 4 * 64 * 64 * 16
    assert needs(view(), whole=True) > base + 2 * 3 * 4 * 64**3
    assert needs(view((64, 64, 64))) > base
    tile = 4 * 2 * 3 * 32 * 32 * 16 + memory.activation_bytes(work(), FINE, (32, 32, 16))
    assert needs(view(), together=3) == pytest.approx(base + 1.3 * 2 * tile, abs=2)


def test_what_fits_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view()
    room = needs(seen, together=8)  # of 32x32x16 voxels so many keep a CPU busy
    assert limits(monkeypatch, room + 8 * MB, used=5 * MB).fit(seen, work(), False, 3 * MB) == (seen, 8)


def test_tiles_are_computed_alone_before_they_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view()
    room = needs(seen, together=8) - 1
    assert limits(monkeypatch, room + 8 * MB, used=5 * MB).fit(seen, work(), False, 3 * MB) == (seen, 1)


def test_tiles_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view()
    room = needs(view((16, 32, 16)))
    assert room < needs(seen)
    fitted, together = limits(monkeypatch, room + 8 * MB, used=5 * MB).fit(seen, work(), False, 3 * MB)
    assert fitted.stage.grid.tile == (16, 32, 16)
    assert fitted.region is seen.region
    assert together == 1


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        r"^stage 'fine' with its smallest tiles would need about .* of main memory, 100 MB are allowed; "
        r"allow more with --max-ram, crop the scan, or use a model with a coarser grid$"
    )
    with pytest.raises(MemoryLimitError, match=line):
        limits(monkeypatch, 100 * MB).fit(view(), work(), False, 0)


def test_sizes_that_valid_convolutions_can_read_are_not_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*memory._tiles(view((32, 32, 16), padding="valid"))] == [(32, 32, 16)]
    assert [*memory._tiles(view((8, 8, 4)))] == [(8, 8, 4), (4, 8, 4), (4, 4, 4)]


def test_a_scan_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.from_spacing((512, 512, 1000), (1.0, 1.0, 1.0))
    allowed = limits(monkeypatch, 1024 * MB, used=400 * MB)
    with pytest.raises(MemoryLimitError, match=r"^the scan and its label map would need about 1\.61 GB"):
        allowed.admit(grid, 2 * grid.box.voxels)
    allowed.admit(grid.with_shape((512, 512, 100)), 2 * 512 * 512 * 100)


def test_no_limit_asks_nothing() -> None:
    assert not Limits(CPU).any
    assert not Limits(CPU, vram=1).any  # there is no GPU to limit
    assert Limits(CPU, ram=1).any


def test_a_limit_that_is_no_hindrance_changes_no_voxel() -> None:
    bundle, case = untrained_bundle(3), Case("a", tiny_case(0)[0])
    free = Predictor(bundle, CPU).predict(case, keep=False)
    held = Predictor(bundle, CPU, limits=Limits(CPU, 64 * 1024**3)).predict(case, keep=False)
    assert torch.equal(free.labels.data, held.labels.data)
    assert [r.tile for r in held.records] == [s.grid.tile for s in bundle.recipe.stages]


def test_a_prediction_stays_within_a_hard_limit() -> None:
    """Without a limit the same work takes nearly 900 MB."""
    script = Path(__file__).parents[2] / "limited.py"
    done = subprocess.run([sys.executable, script, "700M"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["peak_mb"] < 700
    assert found["tiles"]["fine"] != [80, 80, 64]
