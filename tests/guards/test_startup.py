"""The command starts quickly: heavy packages are imported only by the commands that need them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoomseg.cli.main import COMMANDS
from zoomseg.core.geometry import Grid
from zoomseg.datasets.phantom import phantom_case
from zoomseg.io.scans import write_image

HEAVY = {
    "SimpleITK",
    "blosc2",
    "matplotlib",
    "nibabel",
    "numpy",
    "pandas",
    "pydantic",
    "scipy",
    "tensorboardX",
    "torch",
}
LIMIT_S = 0.5
REPORT = """
import sys
try:
    {code}
except SystemExit:
    pass
print("|", *sorted({heavy} & set(sys.modules)))
"""


def imported_by(code: str) -> set[str]:
    """Heavy packages that are loaded after running ``code`` in a fresh interpreter."""
    script = REPORT.format(code=code, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.rpartition("|")[2].split())


def cpu_seconds(arguments: list[str]) -> float:
    """Processor seconds of one run; wall-clock time would depend on other processes."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_is_fast() -> None:
    assert min(cpu_seconds(["-m", "zoomseg", "--help"]) for _ in range(3)) < LIMIT_S


def test_a_slow_start_is_noticed() -> None:
    assert cpu_seconds(["-c", "import time\nwhile time.process_time() < 0.6: pass"]) > LIMIT_S


def test_importing_the_package_is_light() -> None:
    assert imported_by("import zoomseg") == set()


def test_help_is_light() -> None:
    assert imported_by("from zoomseg.cli.main import main; main(['--help'])") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_is_light(command: str) -> None:
    assert imported_by(f"from zoomseg.cli.main import main; main(['{command}', '--help'])") == set()


def test_prediction_does_not_wait_for_what_it_does_not_use() -> None:
    """blosc2 and TensorBoard are used in training, the others for reports."""
    loaded = imported_by(
        "from zoomseg.cli.main import main; main(['predict', 'nowhere.nii.gz', '-o', 'nowhere'])"
    )
    assert loaded == {"nibabel", "numpy", "pydantic", "scipy"}


def test_on_a_cpu_a_model_with_graphs_predicts_without_torch(tmp_path: Path) -> None:
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    write_image(
        scan, phantom_case(0, Grid.from_spacing((24, 20, 20), (7.0, 7.0, 7.0), (-70.0, -70.0, -70.0))).image
    )
    arguments = ["predict", str(scan), "-o", str(out), "-m", "abdomen-ct", "--device", "cpu", "--any-scan"]
    loaded = imported_by(f"from zoomseg.cli.main import main; main({arguments!r})")
    assert "torch" not in loaded
    assert json.loads((out / "run.json").read_text())["backend"] == "openvino"
    assert (out / "scan.nii.gz").is_file()


def test_a_heavy_import_is_noticed() -> None:
    assert "numpy" in imported_by("import zoomseg.core.geometry")


def test_loading_a_model_does_not_load_torch_s_compiler() -> None:
    """Loading it, together with sympy, takes three seconds."""
    script = (
        "import sys; from zoomseg.io import bundle\n"
        "from zoomseg.backends.torch_networks import trained_network\n"
        "model = bundle.load('abdomen-ct')\n"
        "for stage in model.recipe.stages: trained_network(model, stage)\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
