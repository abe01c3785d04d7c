"""Put the client's modules into the small distribution: from ../stoker, or from the source archive's own copy."""

# ruff: noqa: INP001  # run by hatchling, imported by nobody

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ClientFiles(BuildHookInterface[Any]):
    """The files of the small distribution, by the list in its pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add each module under the name that it has in the repository."""
        del version
        here = Path(self.root)
        source = here if (here / "stoker").is_dir() else here.parent
        names = [f"stoker/{name}.py" for name in self.config["modules"]]
        chosen = {str(source / name): name for name in [*names, "stoker/py.typed"]}
        if source != here:
            # In a source archive the licence lies where hatchling finds it by itself.
            chosen[str(source / "LICENSE")] = "LICENSE" if self.target_name == "sdist" else self._license()
        build_data["force_include"].update(chosen)

    def _license(self) -> str:
        metadata = self.metadata
        return f"{metadata.name.replace('-', '_')}-{metadata.version}.dist-info/licenses/LICENSE"
