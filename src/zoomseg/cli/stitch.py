"""``zoomseg stitch``: a scan acquired in overlapping stations, joined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zoomseg.core.stations import IntensityMatch
    from zoomseg.io.scans import ScanInput


@click.command(name="stitch")
@click.argument("stations", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Scan file to write.")
def command(stations: tuple[Path, ...], out: Path) -> None:
    """Join overlapping STATIONS of one scan: files, folders of them, or folders and zips of DICOM series.

    Stations are placed by their affines on the first one's voxel grid, and may be given in any order. Where
    they overlap, intensities are matched to those of the first by gain and offset, and blended. Stations that
    do not overlap, or that differ in the direction of their axes, their channels or their content where they
    overlap, are rejected.
    """
    from zoomseg.core.errors import quoted
    from zoomseg.core.interrupts import interruptible
    from zoomseg.core.stations import stitch
    from zoomseg.io.files import check_name, writable_directory
    from zoomseg.io.scans import find_scans, read_scan, write_image, written_suffix

    def note(text: str) -> None:
        click.echo(f"note: {text}", err=True)

    found = [scan for path in stations for scan in find_scans(path, note)]
    written_suffix(out)
    check_name(out)
    _refuse_overwriting(found, out)
    writable_directory(out.parent)
    with interruptible(lambda: f"{out} was not written"):
        cases = [read_scan(scan, channels_last=True) for scan in found]
        for case in cases:
            for line in case.notes:
                note(f"{quoted(case.id)}: {line}")
        written_suffix(out, one_channel=cases[0].image.channels == 1)
        joined, matches = stitch(cases)
        for match in matches:
            click.echo(_described(match))
        write_image(out, joined)
    shape = " x ".join(str(n) for n in joined.grid.shape)
    click.echo(f"{len(cases)} stations joined to {shape} voxels: {out}")


def _refuse_overwriting(scans: Sequence[ScanInput], out: Path) -> None:
    from zoomseg.core.errors import OutputError
    from zoomseg.io.files import same_file

    if any(same_file(out, path) for scan in scans for path in scan.paths):
        raise OutputError(f"{out}: this is one of the stations; choose another output file")


def _described(match: IntensityMatch) -> str:
    from zoomseg.core.errors import quoted

    fits = ", ".join(
        f"gain {gain:.3g}, offset {offset:.3g}" for gain, offset in zip(match.gain, match.offset, strict=True)
    )
    return f"{quoted(match.station)}: {fits} ({match.voxels} voxels shared with {quoted(match.of)})"
