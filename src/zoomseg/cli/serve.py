"""``zoomseg serve``: a web page and an HTTP interface for models."""

from __future__ import annotations

from pathlib import Path

import click

from zoomseg.cli.options import models_option


@click.command(name="serve")
@models_option("Given several times, users choose; the first is theirs if they do not.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: all.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="Also answer to this name, by which a reverse proxy is reached.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where scans and results are kept [default: zoomseg/serve in the user's state folder].",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--queue", default=8, show_default=True, type=click.IntRange(1, 10_000), help="So many scans may wait."
)
@click.option("--max-upload", metavar="SIZE", default="2GB", show_default=True, help="Largest file taken.")
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    names: tuple[str, ...],
    folder: Path | None,
    device: str,
    queue: int,
    max_upload: str,
) -> None:
    """Segment in the browser: drop a scan on a page, see the organs in three planes and 3D, download the
    results. The same as an HTTP interface, described at /openapi.json.

    Only this machine reaches the page, unless --host or --allow-host says otherwise; then a token is needed,
    which is printed, or taken from the environment variable ZOOMSEG_TOKEN. Jobs survive a restart.
    """
    import os

    from zoomseg.backends.device import resolve
    from zoomseg.inference.memory_limits import parse_bytes
    from zoomseg.serve import server

    limit = parse_bytes(max_upload)
    resolve(device)  # refused now, not by the first job
    token = server.token_for(host, names, os.environ)
    with server.listening(host, port) as sock:
        place = folder or server.default_folder()

        def tell() -> None:
            click.echo(f"Open {server.address(sock, token)}")
            click.echo(
                f"Scans and results are kept in {place}. For research, not for diagnosis. Ctrl-C stops."
            )

        server.serve(models, sock, names, token, place, device, queue, limit, tell)
