"""``python -m zoomseg``: the command line where ``zoomseg`` is not on the path, and for ``torchrun -m``."""

from __future__ import annotations

from zoomseg.cli.main import main

if __name__ == "__main__":
    main()
