"""Common parts of the peers' rows: arguments, device, counting of tiles, and the record."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from account import Account, Clock, write_account
from networks import Features


@dataclass(frozen=True)
class Job:
    scan: Path
    out: Path
    """Folder for the label map and the row's record (``account.json``)."""
    features: Features
    classes: int
    spacing_mm: float
    device: torch.device


def parse(description: str | None) -> Job:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", type=int, nargs="+", required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--spacing", type=float, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    given = parser.parse_args()
    return Job(given.scan, given.out, tuple(given.features), given.classes, given.spacing, given.device)


def clock_of(job: Job) -> Clock:
    """A clock whose steps end when the device has finished its work."""
    return Clock(torch.cuda.synchronize) if job.device.type == "cuda" else Clock()


class Counted(torch.nn.Module):
    """A network that counts the tiles that it computes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.tiles = 0

    def forward(self, x_BCIJK: torch.Tensor) -> torch.Tensor:
        self.tiles += len(x_BCIJK)
        logits: torch.Tensor = self.network(x_BCIJK)
        return logits


def finish(job: Job, program: str, clock: Clock, tiles: int) -> None:
    vram = torch.cuda.max_memory_allocated(job.device) / 1024**2 if job.device.type == "cuda" else 0.0
    write_account(Account(program, tuple(clock.segments), tiles, vram), job.out / "account.json")
