"""``zoomseg node``: a DICOM node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zoomseg.node.settings import NodeSettings


@click.command(name="node")
@click.argument("settings", type=click.Path(path_type=Path))
@click.option(
    "--dry-run", is_flag=True, help="Receive and report what would be done, without segmenting or sending."
)
@click.option(
    "--pull",
    "studies",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Request the studies of FILE (one Study Instance UID per line) for the running node, and exit.",
)
@click.option(
    "--from", "source", metavar="NAME", help="Destination in SETTINGS from which --pull requests them."
)
def command(settings: Path, dry_run: bool, studies: Path | None, source: str | None) -> int:
    """Receive CT and MR series by C-STORE, segment those selected by a rule in SETTINGS (a YAML file), and
    send SEG, RTSTRUCT and a structured report to the destinations in that file. Received series survive a
    restart and a power failure; duplicates are processed once.

    Only listed peers are accepted. A page on a separate port shows the state of the node; access from other
    machines requires the token that is printed, or taken from the environment variable ZOOMSEG_TOKEN.
    """
    import logging
    import os
    import warnings

    if source is not None and studies is None:
        raise click.UsageError("--from is for --pull; give both")
    if studies is not None and dry_run:
        raise click.UsageError("--dry-run is for a node, and --pull starts none; give one")
    from zoomseg.backends.device import resolve
    from zoomseg.node.run import Node
    from zoomseg.node.settings import read_settings
    from zoomseg.node.status import create_app
    from zoomseg.serve import server
    from zoomseg.serve.access import access

    logging.basicConfig(format="%(asctime)s %(message)s")
    # Warnings and logs of these libraries contain values, which may be a patient's.
    warnings.simplefilter("ignore")
    for library in ("pydicom", "pynetdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    logging.getLogger("zoomseg.node").setLevel(logging.INFO)
    found = read_settings(settings)
    if studies is not None:
        return _pull(found, studies, source)
    resolve(found.device)  # refused now, not with the first job
    page = found.page
    token = server.token_for(page.host, page.allow_hosts, os.environ)
    with server.listening(page.host, page.port) as sock:
        node = Node(found, dry_run)
        node.start()
        try:
            click.echo(f"Open {server.address(sock, token)}")
            click.echo(
                f"Receiving as {found.ae_title} on port {node.receiver.port}; results are stored in "
                f"{found.folder}. For research, not for diagnosis. Ctrl-C stops."
            )
            app = create_app(node, access(page.host, page.allow_hosts, token))
            server.run(
                app,
                sock,
                "stopping; waiting series are processed after the next start",
                "the node has stopped",
            )
        finally:
            node.stop()
    return 0


def _pull(settings: NodeSettings, studies: Path, source: str | None) -> int:
    from zoomseg.node.pull import pull, read_studies
    from zoomseg.node.settings import SettingsError

    place = settings.destinations.get(source or "")
    if place is None:
        raise SettingsError(f"--from must name a destination: {', '.join(settings.destinations) or 'none'}")
    uids, failed = read_studies(studies), 0
    if not uids:
        raise SettingsError(f"{studies} names no study; write one Study Instance UID per line")
    for one in pull(uids, place, settings):
        failed += one.error is not None
        left = f", {one.left} not taken" if one.left else ""
        click.echo(f"study {one.number} of {len(uids)}: {one.error or f'{one.summary}{left}'}")
    return 0 if not failed else 1 if failed < len(uids) else 2
