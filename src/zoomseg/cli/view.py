"""``zoomseg view``: a scan and its label map in the browser."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="view")
@click.argument("scan", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--no-browser", is_flag=True, help="Print the address without opening a browser.")
def command(scan: Path, labels: Path, no_browser: bool) -> None:
    """Show SCAN with LABELS over it, in three planes and 3D, until Ctrl-C.

    Both are NIfTI, NRRD or MHA files. Organ names are read from labels.json, dataset.json or run.json next to
    LABELS, or in the parent folder of one called labels, labelsTr or labelsTs. LABELS on another grid are
    aligned by world coordinates, with a note. The page is accessible from this machine only.
    """
    import os
    import tempfile
    import threading
    import webbrowser

    from zoomseg.serve import server, view
    from zoomseg.serve.access import access

    token = server.token_for("127.0.0.1", (), os.environ)
    with tempfile.TemporaryDirectory(prefix="zoomseg-view-") as room:
        files = view.prepare(scan, labels, Path(room))
        for note in files.view.notes:
            click.echo(f"note: {note}", err=True)
        with server.listening("127.0.0.1", 0) as sock:
            address = server.address(sock, token)
            click.echo(f"Open {address} (Ctrl-C stops)")
            if not no_browser:  # in a thread: a text browser returns when it is closed, and needs the server
                threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
            app = view.create_app(files, access("127.0.0.1", (), token))
            server.run(app, sock, "closing the page", "the page is closed; both files are unchanged")
