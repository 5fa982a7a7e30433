"""Training and prediction keep to the device that they are given: see ``other_device``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "simulated_device.py"


@pytest.mark.slow
def test_another_device_computes_what_the_cpu_does(tmp_path: Path) -> None:
    """Also with its data held there, where only the rounding of coordinates differs, and with batches made in
    threads."""
    result = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["mixed"] is False
    assert found["labels"] == 0
    for way in ("together", "apart"):
        assert found[way]["read"] == 0.0
        assert 0.0 < found[way]["held"] < 1e-3
