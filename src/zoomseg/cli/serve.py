"""``zoomseg serve``: a web page and an HTTP interface for models."""

from __future__ import annotations

from pathlib import Path

import click

from zoomseg.cli.options import models_option


@click.command(name="serve")
@models_option("With several models, users choose one; the first is the default.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 for a free one.",
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="Further host name to accept, for example that of a reverse proxy.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Folder for scans and results [default: zoomseg/serve in the user's state folder].",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--queue",
    default=8,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Maximum number of waiting scans.",
)
@click.option(
    "--max-upload", metavar="SIZE", default="2GB", show_default=True, help="Maximum size of an uploaded file."
)
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
    """Segment in the browser: drop a scan on a page, inspect its organs in three planes and in 3D, download
    the results. Also provides an HTTP interface, described at /openapi.json.

    The page is accessible from this machine only, unless --host or --allow-host is given. A token is then
    required, which is printed, or taken from the environment variable ZOOMSEG_TOKEN. Jobs survive a restart.
    """
    import os

    from zoomseg.backends.device import resolve
    from zoomseg.inference.memory_limits import parse_bytes
    from zoomseg.serve import server

    limit = parse_bytes(max_upload)
    resolve(device)  # refused now, not with the first job
    token = server.token_for(host, names, os.environ)
    with server.listening(host, port) as sock:
        place = folder or server.default_folder()

        def print_address() -> None:
            click.echo(f"Open {server.address(sock, token)}")
            click.echo(
                f"Scans and results are stored in {place}. For research, not for diagnosis. Ctrl-C stops."
            )

        server.serve(models, sock, names, token, place, device, queue, limit, print_address)
