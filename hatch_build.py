"""Puts NiiVue, the viewer of ``zoomseg serve`` and ``zoomseg view``, into the wheel.

NiiVue comes as the front end of ipyniivue, which would install some twenty packages of Jupyter with it. So
ipyniivue is needed where the wheel is built, and only its one JavaScript module and its licence are taken
(docs/decisions/0011-niivue-and-the-server.md). That module keeps NiiVue's class to itself; one more export is
written at its end, so that our pages use NiiVue by its documented interface.
"""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TAKEN = {"ipyniivue/static/widget.js": "niivue.js", "licenses/LICENSE": "LICENSE"}
"""Ends of paths in ipyniivue, and what they are called in ``zoomseg_niivue``."""

NIIVUE_CLASS = re.compile(r'"Creating new Niivue instance"\);.{0,80}?=new (\w+)\(', re.DOTALL)
"""Where ipyniivue's front end makes its one NiiVue; what a bundler calls the class differs by version."""
LAST_EXPORT = re.compile(r"export\{(\w+ as default)\};?\s*\Z")


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
            file = Path(str(found[0].locate()))
            if name.endswith(".js"):
                file = self._exporting_niivue(file)
            included[str(file)] = f"zoomseg_niivue/{name}"

    def _exporting_niivue(self, module: Path) -> Path:
        """A copy of ipyniivue's module that exports the class ``Niivue``, too."""
        code = module.read_text(encoding="utf-8")
        names = set(NIIVUE_CLASS.findall(code))
        exporting, exports = LAST_EXPORT.subn(rf"export{{\1,{''.join(names)} as Niivue}};\n", code)
        if len(names) != 1 or exports != 1:
            raise RuntimeError(f"{module}: its front end is not built as ipyniivue 2.4's is")
        self._room = tempfile.TemporaryDirectory(prefix="zoomseg-niivue-")
        copy = Path(self._room.name) / "niivue.js"
        copy.write_text(exporting, encoding="utf-8")
        return copy

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the copy once it is in the wheel."""
        self._room.cleanup()
