"""Results that earlier or simultaneous runs wrote to a folder: ``run.json`` and ``summary.csv`` of a later
run continue to list their label maps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoomseg.inference.batch import result_name
from zoomseg.inference.journal import OF_A_RUN, Recorded
from zoomseg.inference.summary import OrganRow, read_summary
from zoomseg.io.files import parse_json, read_file


@dataclass(frozen=True)
class EarlierResults:
    """Cases as in ``run.json``, with their rows of ``summary.csv``."""

    cases: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    rows: tuple[OrganRow, ...] = ()

    def besides(self, own: Collection[str], out: Path) -> EarlierResults:
        """The results whose label map is still in ``out``, without the cases of ``own``."""
        kept = {
            case: account
            for case, account in self.cases.items()
            if case not in own and _label_map_is_there(out, case)
        }
        return EarlierResults(kept, tuple(row for row in self.rows if row.case in kept))

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
    written. None if the file is damaged, or not written by ZoomSeg."""
    try:
        before = parse_json(read_file(out / "run.json"))
        rows = read_summary(out / "summary.csv")
    except (OSError, ValueError):
        return EarlierResults()
    if not isinstance(before, dict) or not isinstance(before.get("labels"), dict):
        return EarlierResults()
    told = before.get("cases")
    kept = {
        case: of_its_run(account, before, run)
        for case, account in (told.items() if isinstance(told, dict) else ())
        if _is_done(account)
    }
    return EarlierResults(kept, tuple(rows))


def _is_done(account: object) -> bool:
    if not isinstance(account, dict) or account.get("status") != "done":
        return False
    return isinstance(account.get("run", {}), dict)


def _label_map_is_there(out: Path, case: str) -> bool:
    return Path(case).name == case and (out / result_name(case)).is_file()


def of_its_run(account: dict[str, Any], before: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A case's entry with everything that differed when it was computed."""
    known = {**{key: before[key] for key in OF_A_RUN if key in before}, **account.get("run", {})}
    other = {key: value for key, value in known.items() if value != run[key]}
    return {**{key: value for key, value in account.items() if key != "run"}, "run": other}
