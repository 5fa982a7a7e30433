"""Commands with forbidden behaviour, to test that it is detected. Each gets ``COMMAND OUT GIVEN``."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path


def nothing_wrong(arguments: Sequence[str]) -> int:
    """A result in the right place."""
    Path(arguments[1]).parent.joinpath("result.txt").write_text("done")
    print("done")
    return 0


def refuses(arguments: Sequence[str]) -> int:
    """One clear line."""
    print("zoomseg: no such file; give another", file=sys.stderr)
    return 2


def raises(arguments: Sequence[str]) -> int:
    raise ValueError("not expected")


def raises_in_thread(arguments: Sequence[str]) -> int:
    thread = threading.Thread(target=raises, args=(arguments,))
    thread.start()
    thread.join()
    return 0


def is_killed(arguments: Sequence[str]) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def leaves_at_once(arguments: Sequence[str]) -> int:
    os._exit(0)


def computes_forever(arguments: Sequence[str]) -> int:
    while True:
        pass


def waits_forever(arguments: Sequence[str]) -> int:
    time.sleep(1e6)
    return 0


def allocates(arguments: Sequence[str]) -> int:
    return len(bytearray(8 * 1024**3)) % 2


def allocates_and_says_so(arguments: Sequence[str]) -> int:
    try:
        return allocates(arguments)
    except MemoryError:
        print("zoomseg: scan.nii: does not fit in memory", file=sys.stderr)
        return 2


def ends_oddly(arguments: Sequence[str]) -> int:
    print("not among the codes", file=sys.stderr)
    return 3


def says_nothing(arguments: Sequence[str]) -> int:
    return 2


def says_too_much(arguments: Sequence[str]) -> int:
    print("line\n" * 100, file=sys.stderr)
    return 2


def repeats_the_input(arguments: Sequence[str]) -> int:
    print("zoomseg: not a name: " + "a" * 65_536, file=sys.stderr)
    return 2


def rules_the_terminal(arguments: Sequence[str]) -> int:
    print("label \x1b[31mred")
    return 0


def writes_elsewhere(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(dir=Path(arguments[2]).parents[1]) as place:
        Path(place, "a").write_text("gone afterwards")
    return 0


def writes_elsewhere_natively(arguments: Sequence[str]) -> int:
    """As C libraries do, which Python's audit does not see."""
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    library.fclose(ctypes.c_void_p(library.fopen(os.fsencode(Path(arguments[2], "new")), b"w")))
    return 0


def changes_its_input(arguments: Sequence[str]) -> int:
    os.truncate(Path(arguments[2], "scan.nii"), 1)
    return 0


def starts_a_process(arguments: Sequence[str]) -> int:
    return subprocess.run(["true"], check=False).returncode


def leaves_a_temporary_file(arguments: Sequence[str]) -> int:
    tempfile.mkstemp()
    return 0


def leaves_a_partial_result(arguments: Sequence[str]) -> int:
    Path(arguments[1]).parent.joinpath(".a.nii.gz.partial-0").touch()
    return 0


def _predicted(out: str, status: str, content: bytes) -> None:
    Path(out).mkdir()
    Path(out, "a.nii.gz").write_bytes(content)
    Path(out, "run.json").write_text(json.dumps({"cases": {"a": {"status": status}}}))


def leaves_a_label_map_that_failed(arguments: Sequence[str]) -> int:
    _predicted(arguments[1], "failed", b"")
    print("failed: a", file=sys.stderr)
    return 2


def leaves_a_label_map_cut_short(arguments: Sequence[str]) -> int:
    _predicted(arguments[1], "done", b"\x1f\x8b")
    return 0


def leaves_a_label_map_without_account(arguments: Sequence[str]) -> int:
    Path(arguments[1]).mkdir()
    Path(arguments[1], "a.nii.gz").touch()
    print("failed", file=sys.stderr)
    return 2


def says_done_without_a_label_map(arguments: Sequence[str]) -> int:
    _predicted(arguments[1], "done", b"")
    Path(arguments[1], "a.nii.gz").unlink()
    return 0


def gives_up_the_batch(arguments: Sequence[str]) -> int:
    """The sound scan is lost with the other."""
    Path(arguments[1]).mkdir()
    print("failed: a", file=sys.stderr)
    return 1


def leaves_a_file(arguments: Sequence[str]) -> int:
    """A planned recipe, a report: where the command failed."""
    Path(arguments[1]).write_text("name: planned")
    print("failed", file=sys.stderr)
    return 2


def leaves_a_report(arguments: Sequence[str]) -> int:
    Path(arguments[1]).mkdir()
    Path(arguments[1], "report.html").touch()
    print("failed", file=sys.stderr)
    return 2
