"""Gather the results of any number of processes in a folder: ``summary.csv``, ``review.csv`` and
``run.json``, from their journals."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoomseg.core.errors import OutputError
from zoomseg.inference import earlier_results, journal, result_page
from zoomseg.inference.batch import Failed, result_name
from zoomseg.inference.efficiency import measures_of_entry, summarise
from zoomseg.inference.journal import STARTED_FORMAT, Recorded, Run
from zoomseg.inference.outputs import write_account
from zoomseg.inference.summary import OrganRow
from zoomseg.io.locks import waiting_for


@dataclass(frozen=True)
class Gathered:
    """The contents of a folder of results."""

    done: int
    failed: tuple[Failed, ...]
    missing: int
    """Number of scans of all commands with the settings of the last one that are ``missing``."""
    rows: tuple[OrganRow, ...]


def gather(out: Path, order: Sequence[str] = ()) -> Gathered:
    """Write the summaries of everything in ``out``; processes may continue meanwhile.

    Args:
        order: ids of cases; those not in it come last, sorted.

    Raises:
        OutputError: there is no journal, or a file cannot be written.
    """
    place = {case: number for number, case in enumerate(order)}
    with waiting_for(out):
        found = journal.read(out)
        if not found:
            raise OutputError(
                f"{out}: there is nothing to gather; `zoomseg predict` keeps a journal of what it writes here"
            )
        last = max(found.values(), key=lambda one: (one.entry.done, one.entry.finished)).run
        kept = [
            one
            for one in sorted(
                found.values(), key=lambda one: (place.get(one.entry.case, len(place)), one.entry.case)
            )
            if _lies_there(out, one)
        ]
        run = _together(kept, last)
        rows = tuple(row for one in kept for row in one.entry.rows)
        before = earlier_results.of_journal((one.before for one in kept if one.before is not None), run)
        earlier = before.over(earlier_results.read(out, run)).besides(run["cases"], out)
        write_account(out, run, earlier, rows)
        result_page.write(out)
    failed = tuple(
        Failed(one.entry.case, str(one.entry.account["error"])) for one in kept if not one.entry.done
    )
    lists = {one.run.scans for one in found.values() if one.run.same_results(last)}
    asked = {case for scans in lists for case in journal.requested(out, scans)}
    return Gathered(len(kept) - len(failed), failed, missing(out, asked, last, found), rows)


def missing(out: Path, asked: Iterable[str], run: Run, found: Mapping[str, Recorded]) -> int:
    """Number of scans, of those asked for, without a journal entry of the same settings as ``run``: not
    started, or not finished. Scans of which the label map was removed are missing, too."""
    there = {case for case, one in found.items() if one.run.same_results(run) and _lies_there(out, one)}
    return len(set(asked) - there)


def _lies_there(out: Path, one: Recorded) -> bool:
    return not one.entry.done or (out / result_name(one.entry.case)).is_file()


def _together(kept: Iterable[Recorded], last: Run) -> dict[str, Any]:
    """``run.json``: processes with the same settings count as one run, from the start of the first to the end
    of the last."""
    same = [one for one in kept if one.run.same_results(last)]
    started = min((str(one.run.run["started"]) for one in same), default=str(last.run["started"]))
    ended = max((one.entry.finished for one in same), default=_seconds(started))
    head = {**last.run, "started": started}
    costs = [measures_of_entry(one.entry.account) for one in same if one.entry.done]
    return {
        **head,
        "seconds": round(max(0.0, ended - _seconds(started)), 3),
        "efficiency": summarise(costs),
        "notes": list(dict.fromkeys(note for one in same for note in one.run.run["notes"])),
        "cases": {one.entry.case: _account(one, head) for one in kept},
    }


def _account(one: Recorded, head: Mapping[str, Any]) -> dict[str, Any]:
    """A case's entry with everything that differed when it was computed; for a failed one, only the
    reason."""
    if not one.entry.done:
        return one.entry.account
    account = earlier_results.of_its_run(one.entry.account, {**one.run.run, "started": head["started"]}, head)
    return account if account["run"] else {key: value for key, value in account.items() if key != "run"}


def _seconds(started: str) -> float:
    return calendar.timegm(time.strptime(started, STARTED_FORMAT))
