"""``zoomseg node``: a DICOM node."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="node")
@click.argument("settings", type=click.Path(path_type=Path))
@click.option(
    "--dry-run", is_flag=True, help="Receive, and say what would be done; segment and send nothing."
)
def command(settings: Path, dry_run: bool) -> None:
    """Receive CT and MR series by C-STORE, segment those that a rule of SETTINGS (a YAML file) asks for, and
    send SEG, RTSTRUCT and a structured report back to where the file says. What has been received survives
    a restart and a power cut; what arrives twice is done once.

    Only the listed peers are answered. How the node is shows a page at its own port; others than this
    machine's users need the token that is printed, or taken from the environment variable ZOOMSEG_TOKEN.
    """
    import logging
    import os

    from zoomseg.backends.device import resolve
    from zoomseg.node.run import Node
    from zoomseg.node.settings import read_settings
    from zoomseg.node.status import create_app
    from zoomseg.serve import server
    from zoomseg.serve.access import access

    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("zoomseg.node").setLevel(logging.INFO)
    found = read_settings(settings)
    resolve(found.device)  # refused now, not by the first job
    page = found.page
    token = server.token_for(page.host, page.allow_hosts, os.environ)
    with server.listening(page.host, page.port) as sock:
        node = Node(found, dry_run)
        try:
            node.start()
            click.echo(f"Open {server.address(sock, token)}")
            click.echo(
                f"Receiving as {found.ae_title} at port {node.receiver.port}; series and results are kept in "
                f"{found.folder}. For research, not for diagnosis. Ctrl-C stops."
            )
            app = create_app(node, access(page.host, page.allow_hosts, token))
            server.run(app, sock, "stopping; what waits is done after the next start", "the node has stopped")
        finally:
            node.stop()
