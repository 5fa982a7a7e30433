"""The GPU's prediction equals the CPU's. Skipped without a CUDA GPU."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_dataset import CPU, tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.inference.predictor import Predictor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.mark.parametrize("keep", [True, False])
def test_labels_are_the_cpu_s(keep: bool) -> None:
    bundle, case = untrained_bundle(3), Case("a", tiny_case(0)[0])
    gpu = Device("cuda:0")
    expected = Predictor(bundle, CPU).predict(case, keep=keep)
    found = Predictor(bundle, gpu).predict(case, keep=keep)
    assert found.labels.data.device.type == "cpu"
    assert (found.labels.data != expected.labels.data).float().mean() < 1e-3  # near ties
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-3)


def test_a_limit_of_gpu_memory_is_kept() -> None:
    gpu = Device("cuda:0")
    torch.cuda.reset_peak_memory_stats()
    predictor = Predictor(untrained_bundle(3), gpu, limits=MemoryLimits(gpu, vram=1 << 30))
    predictor.predict(Case("a", tiny_case(0)[0]), keep=False)
    assert torch.cuda.max_memory_allocated() < 1 << 30
