"""Results that earlier or simultaneous runs wrote to a folder: ``run.json`` and ``summary.csv`` of a later
run continue to list their label maps. What these files no longer tell is taken from the journals."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoomseg.inference import journal
from zoomseg.inference.batch import result_name
from zoomseg.inference.journal import OF_A_RUN, Recorded
from zoomseg.inference.summary import OrganRow, read_summary
from zoomseg.io.files import MAX_RESULTS_BYTES, RUN_JSON, SUMMARY, parse_json, read_file


@dataclass(frozen=True)
class EarlierResults:
    """Cases as in ``run.json``, with their rows of ``summary.csv``."""

    cases: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    rows: tuple[OrganRow, ...] = ()

    def besides(self, own: Mapping[str, Mapping[str, Any]], out: Path) -> EarlierResults:
        """The results whose label map is still in ``out``, without those that the cases of ``own`` replaced:
        a failed one replaces nothing."""
        kept = {
            case: account
            for case, account in self.cases.items()
            if (case not in own or _has_failed(own[case])) and _label_map_is_there(out, case)
        }
        return EarlierResults(kept, tuple(row for row in self.rows if row.case in kept))

    def with_cases(self, own: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The entries of these results and of ``own``. A label map that is here although its case failed in
        ``own`` keeps its entry, with a note: it has the labels and the model of its own run."""
        standing = {
            case: _noting(account, str(own[case]["error"])) if case in own else account
            for case, account in self.cases.items()
        }
        return {**standing, **{case: account for case, account in own.items() if case not in standing}}

    def over(self, other: EarlierResults) -> EarlierResults:
        """The results of both; for a case in both, these."""
        rows = (*self.rows, *(row for row in other.rows if row.case not in self.cases))
        return EarlierResults({**other.cases, **self.cases}, rows)


def of_journal(recorded: Iterable[Recorded], run: Mapping[str, Any]) -> EarlierResults:
    """The finished cases of other processes, from their journals."""
    done = [one for one in recorded if one.entry.done]
    cases = {one.entry.case: of_its_run(one.entry.account, one.run.run, run) for one in done}
    return EarlierResults(cases, tuple(row for one in done for row in one.entry.rows))


def read(out: Path, run: Mapping[str, Any]) -> EarlierResults:
    """The finished cases of ``run.json`` in ``out``; each states what differs from ``run``, which is to be
    written. Those of the journals if the file is gone, damaged, or not written by ZoomSeg."""
    before = _account(out)
    if before is None:
        return of_journal(journal.finished(out).values(), run)
    cases = before.get("cases")
    kept = {
        case: of_its_run(_readable(account), before, run)
        for case, account in (cases.items() if isinstance(cases, dict) else ())
        if _is_done(account)
    }
    return EarlierResults(kept, tuple(_rows(out, kept)))


def notes_on(out: Path) -> list[str]:
    """A note if ``run.json`` in ``out`` cannot be read; otherwise none."""
    path = out / RUN_JSON
    if not os.path.lexists(path) or _account(out) is not None:
        return []
    what = "damaged, or not written by ZoomSeg; it is rewritten, with the cases of OUT/journal"
    return [f"{path}: {what}"]


def known_cases(out: Path) -> frozenset[str]:
    """The ids of all scans that earlier or simultaneous runs were to segment into ``out``: the results of
    others were not written by ZoomSeg."""
    account = _account(out)
    cases = None if account is None else account.get("cases")
    return journal.known(out).union(cases if isinstance(cases, dict) else ())


def _account(out: Path) -> dict[str, Any] | None:
    """The content of ``run.json``; None if it cannot be read, or was not written by ZoomSeg."""
    try:
        found = parse_json(read_file(out / RUN_JSON, MAX_RESULTS_BYTES))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("labels"), dict) else None


def _rows(out: Path, cases: Collection[str]) -> list[OrganRow]:
    """The rows of ``summary.csv``; for cases without any, those of the journals."""
    try:
        rows = read_summary(out / SUMMARY)
    except (OSError, ValueError):
        rows = []
    lacking = set(cases).difference(row.case for row in rows)
    if not lacking:
        return rows
    found = journal.finished(out)
    return [
        *rows,
        *(row for case in cases if case in lacking and case in found for row in found[case].entry.rows),
    ]


def _has_failed(account: Mapping[str, Any]) -> bool:
    return account.get("status") == "failed"


def _noting(account: dict[str, Any], error: str) -> dict[str, Any]:
    earlier, note = account.get("notes"), f"this label map is an earlier run's, a later one failed: {error}"
    notes = earlier if isinstance(earlier, list) else []
    return {**account, "notes": notes if note in notes else [*notes, note]}


def _is_done(account: object) -> bool:
    if not isinstance(account, dict) or account.get("status") != "done":
        return False
    return isinstance(account.get("run", {}), dict)


def _readable(account: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without what ZoomSeg does not write."""
    return {key: value for key, value in account.items() if journal.is_case_entry({key: value})}


def _label_map_is_there(out: Path, case: str) -> bool:
    return Path(case).name == case and (out / result_name(case)).is_file()


def of_its_run(account: dict[str, Any], before: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A case's entry with everything that differed when it was computed."""
    known = {**{key: before[key] for key in OF_A_RUN if key in before}, **account.get("run", {})}
    other = {key: known[key] for key in OF_A_RUN if key in known and known[key] != run[key]}
    return {**{key: value for key, value in account.items() if key != "run"}, "run": other}
