"""Training shared by several processes that ``torchrun`` started, on one machine or on several.

All processes draw the same batch for a step; each computes its share of the patches, and the loss's sums over
the batch and the weights' gradients are added over the processes. The steps are therefore those of one
process with the whole batch. Only the first process writes, reports and validates.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoomseg.core.errors import TrainingError, ZoomSegError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.io.files import reason_of

# Not needed for training with one process.
if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

STEP_TIMEOUT = timedelta(minutes=30)
"""Maximum time that processes wait for each other within a step, including validation and checkpoints."""
PREPARATION_TIMEOUT = timedelta(hours=24)
"""Maximum time that they wait for the first one to read and sample all cases."""

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Processes:
    """This process, number ``rank`` of ``world``; ``local_rank`` is its number on its machine. All processes
    call the methods in the same order; with a single process, they do nothing."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    _preparation_group: ProcessGroup | None = field(default=None, compare=False, repr=False)
    """All processes, with a timeout for hours of preparation."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Share of a batch's patches."""
        return slice(self.rank, None, self.world)

    def device(self, name: str) -> str:
        """The device for a ``name`` of ``backends.device``: each process of a machine has its own GPU.

        Raises:
            TrainingError: one GPU for all of them.
        """
        if self.world == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if name not in ("auto", "cuda"):
            raise TrainingError(
                f"device '{name}' cannot be shared by {self.world} processes; allowed: auto, cpu, cuda"
            )
        return f"cuda:{self.local_rank}"

    def total(self, part: Tensor) -> Tensor:
        """The sum over the processes; its gradient is that of ``part``. As the total is the same everywhere,
        every process computes the same loss, and the sum of the weights' gradients is the gradient of that
        loss."""
        if self.world == 1:
            return part
        out: Tensor = _Total.apply(part)  # type: ignore[no-untyped-call]
        return out

    def sum_over_processes(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        self._at_once(tensors, _all_reduce)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.world > 1:
            self.sum_over_processes(tensors)
            for tensor in tensors:
                tensor.div_(self.world)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        self._at_once(tensors, _broadcast)

    def broadcast_value(self, value: float) -> float:
        """The first process's value."""
        if self.world == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.float64)
        _broadcast(agreed)
        return float(agreed)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        if self.world == 1:
            return flag
        count = torch.tensor(int(flag))
        _all_reduce(count)
        return bool(count)

    def wait_for_first(self, stop: threading.Event) -> None:
        """Return when all processes are here: the first one calls this after the work for which the others
        wait, which may take hours.

        Raises:
            InterruptedTrainingError: ``stop`` was set.
        """
        if self.world == 1:
            return
        import torch.distributed as dist

        with _lost_process_as_error():
            barrier = dist.barrier(self._preparation_group, async_op=True)
            assert barrier is not None
            while not barrier.is_completed():
                if stop.is_set():
                    raise InterruptedTrainingError("stopped while preparing the data; continue with --resume")
                time.sleep(_POLL_SECONDS)
            barrier.wait()

    def _at_once(self, tensors: Sequence[Tensor], together: Callable[[Tensor], None]) -> None:
        """One message for all tensors of the same type."""
        if self.world == 1 or not tensors:
            return
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            same = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.detach().reshape(-1) for t in same])
            together(flat)
            with torch.no_grad():
                pieces = torch.split_with_sizes(flat, [t.numel() for t in same])
                for tensor, piece in zip(same, pieces, strict=True):
                    tensor.copy_(piece.view(tensor.shape))


SINGLE_PROCESS = Processes()


def by_torchrun() -> bool:
    """Whether torchrun started this process; it starts the same command again when one of its processes
    dies."""
    return "LOCAL_RANK" in os.environ


@contextmanager
def process_group() -> Iterator[Processes]:
    """The group of processes to which this one belongs; ``SINGLE_PROCESS`` if ``torchrun`` did not start it.

    Raises:
        ZoomSegError: they cannot connect to each other.
    """
    world = int(os.environ.get("WORLD_SIZE", "1")) if by_torchrun() else 1
    if world == 1:
        yield SINGLE_PROCESS
        return
    import torch.distributed as dist

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(backend, timeout=STEP_TIMEOUT)
        patient = dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ZoomSegError(
            f"process {rank + 1} of {world} did not find the others ({reason_of(error)}); "
            "start them with torchrun, and let the machines reach each other"
        ) from error
    yield Processes(rank, world, local_rank, patient)
    # Only if all went well: a process that failed must not wait here for the others.
    dist.destroy_process_group()


def _all_reduce(tensor: Tensor) -> None:
    import torch.distributed as dist

    with _lost_process_as_error():
        dist.all_reduce(tensor)


def _broadcast(tensor: Tensor) -> None:
    import torch.distributed as dist

    with _lost_process_as_error():
        dist.broadcast(tensor, src=0)


@contextmanager
def _lost_process_as_error() -> Iterator[None]:
    """Torch's message about a lost process, as one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # this process's own
    except RuntimeError as error:
        raise TrainingError(
            f"another process of this training ended or does not respond ({reason_of(error)}); "
            "its own message gives the reason; continue with --resume"
        ) from error


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.detach().clone()
        _all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]
