"""``zoomseg gather``: one summary of the predictions of several jobs in one folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="gather")
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def command(out: Path) -> int:
    """Write summary.csv, review.csv, run.json and report.html of OUT from what several `zoomseg predict
    --part I/N`, or the workers of `--cluster`, recorded in its journal.

    May be run at any time, also while they are running. The exit code is 1 if scans failed or are missing.
    """
    from zoomseg.cli.predict import say_least_certain
    from zoomseg.core.errors import quoted
    from zoomseg.inference.gather import gather

    found = gather(out)
    for failed in found.failed:
        click.echo(f"failed: {quoted(f'{failed.case}: {failed.reason}', 1000)}", err=True)
    click.echo(f"{found.done} scans in {out}, {len(found.failed)} failed, {found.missing} missing")
    if found.missing:
        click.echo("the same `zoomseg predict` with --resume processes the missing scans", err=True)
    say_least_certain(found.rows)
    return 1 if found.failed or found.missing else 0
