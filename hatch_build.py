"""Puts NiiVue, the viewer of ``zoomseg serve`` and ``zoomseg view``, into the wheel.

NiiVue comes as the front end of ipyniivue, which would install some twenty packages of Jupyter with it. So
ipyniivue is needed where the wheel is built, and only its one JavaScript module and its licence are taken
(docs/decisions/0011-niivue-and-the-server.md).
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TAKEN = {"ipyniivue/static/widget.js": "niivue.js", "licenses/LICENSE": "LICENSE"}
"""Ends of paths in ipyniivue, and what they are called in ``zoomseg_niivue``."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling looks for the hook by the base class."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the wheel; to that of an editable installation, too."""
        included = build_data["force_include_editable" if version == "editable" else "force_include"]
        distribution = importlib.metadata.distribution("ipyniivue")
        for end, name in TAKEN.items():
            found = [file for file in distribution.files or () if str(file).endswith(end)]
            if len(found) != 1:
                raise RuntimeError(f"ipyniivue has {len(found)} files '{end}', not one")
            included[str(found[0].locate())] = f"zoomseg_niivue/{name}"
