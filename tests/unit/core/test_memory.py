"""Free memory: of the machine, of control groups, of resource limits; and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest

from zoomseg.core import memory
from zoomseg.core.errors import MemoryLimitError
from zoomseg.core.memory import format_bytes, free_ram, require_ram, total_ram, used_ram
from zoomseg.io.scans import ScanInput, read_image, read_label_values, reading_bytes

GB = 1024**3
UNLIMITED = 9223372036854771712
"""Value of version 1 for unlimited memory."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GB free, of which this process uses 1."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GB, total=32 * GB))
    monkeypatch.setattr(memory, "used_ram", lambda: GB)


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def may_grow_to(room: int) -> int:
    return int(GB + memory.LEAVE_FREE * room)


def test_amounts_are_spoken_in_fitting_units() -> None:
    assert format_bytes(1.34 * GB) == "1.34 GB"
    assert format_bytes(50 * 1024**2) == "50 MB"


@pytest.mark.usefixtures("machine")
def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert free_ram(tmp_path) == may_grow_to(16 * GB)
    assert total_ram(tmp_path) == 32 * GB


@pytest.mark.usefixtures("machine")
def test_control_groups_of_version_2(tmp_path: Path) -> None:
    """Pages of files that were not read lately are released before an allocation fails; parent groups also
    limit."""
    files: dict[str, object] = {
        "proc/self/cgroup": "0::/jobs/mine",
        "sys/fs/cgroup/jobs/mine/memory.max": "max",
        "sys/fs/cgroup/jobs/mine/memory.current": 2 * GB,
        "sys/fs/cgroup/jobs/memory.max": 6 * GB,
        "sys/fs/cgroup/jobs/memory.high": "max",
        "sys/fs/cgroup/jobs/memory.current": 4 * GB,
        "sys/fs/cgroup/jobs/memory.stat": f"anon 1\nactive_file {2 * GB}\ninactive_file {GB}",
    }
    assert free_ram(tree(tmp_path, files)) == may_grow_to(3 * GB)
    assert total_ram(tmp_path) == 6 * GB
    files["sys/fs/cgroup/jobs/mine/memory.high"] = 4 * GB
    assert free_ram(tree(tmp_path, files)) == may_grow_to(2 * GB)
    assert total_ram(tmp_path) == 4 * GB


@pytest.mark.usefixtures("machine")
def test_control_groups_of_version_1(tmp_path: Path) -> None:
    """In a container the path is the host's, and its own group is mounted."""
    files: dict[str, object] = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/1234\n4:memory:/docker/1234\n1:name=systemd:/",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 3 * GB,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 2 * GB,
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB // 2}",
    }
    assert free_ram(tree(tmp_path, files)) == may_grow_to(GB + GB // 2)
    assert total_ram(tmp_path) == 3 * GB
    files["sys/fs/cgroup/memory/memory.limit_in_bytes"] = UNLIMITED
    assert free_ram(tree(tmp_path, files)) == may_grow_to(16 * GB)
    assert total_ram(tmp_path) == 32 * GB


@pytest.mark.usefixtures("machine")
def test_a_full_control_group_leaves_nothing(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": GB,
        "sys/fs/cgroup/memory.current": GB + 4096,
    }
    assert free_ram(tree(tmp_path, files)) == GB


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "::::", "4:memory"])
@pytest.mark.usefixtures("machine")
def test_what_the_kernel_never_writes_is_passed_over(tmp_path: Path, text: str) -> None:
    assert free_ram(tree(tmp_path, {"proc/self/cgroup": text})) == may_grow_to(16 * GB)


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_resource_limits_count(kind: str) -> None:
    script = (
        "import psutil, resource; from zoomseg.core.memory import free_ram, used_ram\n"
        "now = psutil.Process().memory_info(); used = now.vms if 'AS' in kind else now.data\n"
        "resource.setrlimit(getattr(resource, kind), (used + (64 << 20),) * 2)\n"
        "print(free_ram() - used_ram())"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"kind = {kind!r}\n{script}"], capture_output=True, text=True, check=True
    )
    assert 48 << 20 < int(done.stdout) <= 58 << 20


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A group of 1 GB, if this user may create one."""
    for top, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = top / f"zoomseg-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(GB))
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("no control group can be made here")


def test_a_control_group_of_this_machine(control_group: Path) -> None:
    script = "from zoomseg.core.memory import free_ram; print(free_ram())"
    join = f"open('{control_group}/cgroup.procs', 'w').write('0')\n"
    done = subprocess.run([sys.executable, "-c", join + script], capture_output=True, text=True, check=True)
    assert 0.7 * GB < int(done.stdout) <= GB


def test_what_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_ram", lambda: used_ram() + GB)
    require_ram(GB // 2, "reading a.nii")
    line = r"^reading a\.nii takes about 2\.00 GB of memory, 1\.00 GB are free; close other programs, raise "
    with pytest.raises(MemoryLimitError, match=line) as refusal:
        require_ram(2 * GB, "reading a.nii")
    assert refusal.value.needed == 2 * GB


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """1000^3 voxels of 16 bits, in a sparse file."""
    path = tmp_path / "huge.nii"
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((1000, 1000, 1000))
    header["vox_offset"], header["sform_code"] = 352, 1
    header["srow_x"][0] = header["srow_y"][1] = header["srow_z"][2] = 0.5
    with path.open("wb") as stream:
        stream.write(header.binaryblock + b"\0\0\0\0")
        stream.truncate(352 + 2 * 1000**3)
    return path


@pytest.mark.parametrize("read", [read_image, read_label_values])
def test_no_command_reads_a_file_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, huge: Path, read: object
) -> None:
    monkeypatch.setattr(memory, "free_ram", lambda: used_ram() + GB)
    with pytest.raises(
        MemoryLimitError, match=r"huge\.nii: reading 1000000000 voxels takes about 1\.86 GB of"
    ):
        read(huge)  # type: ignore[operator]


def test_what_reading_takes_is_known_from_the_header(huge: Path) -> None:
    assert reading_bytes(ScanInput("huge", (huge,)))[1] == 2 * 1000**3
