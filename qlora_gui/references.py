"""What a run names as its base and its data: the demo, a file or folder of this machine, or a name on the hub."""

from dataclasses import dataclass
from pathlib import Path

from qlora_gui import hub
from qlora_gui.errors import UserError

DEMO = "demo"
NO_REVISION = "revision belongs to a hub model: leave it empty for demo or a local folder"


def local(named: str) -> Path | None:
    """The file or folder that a setting names; None for the demo, whatever lies here under that name, and where none is."""
    return None if named in ("", DEMO) else hub.local(named)


@dataclass(frozen=True)
class ModelRef:
    """A base: the demo, a `folder` of this machine, or else a name on the hub, at a revision. Made by `find`."""

    name: str
    revision: str = ""
    folder: Path | None = None

    @classmethod
    def find(cls, name: str, revision: str = "") -> "ModelRef":
        """Look for a base on this machine, and on no other."""
        path = local(name)
        return cls(name, revision, path if path is not None and path.is_dir() else None)

    @property
    def is_demo(self) -> bool:
        return self.name == DEMO

    @property
    def may_be_on_hub(self) -> bool:
        """Whether it is neither the demo nor a folder, and spelled as names on the hub are."""
        return not self.is_demo and self.folder is None and hub.looks_like_id(self.name)

    def check_revision(self) -> None:
        """Raise UserError for a revision of what has none."""
        if self.revision and (self.is_demo or self.folder is not None):
            raise UserError(f"{NO_REVISION}.")

    def check(self) -> None:
        """Raise UserError unless it is the demo, a folder with a model, or something the hub has; the hub may be asked."""
        if self.is_demo:
            return
        if self.folder is not None:
            if not (self.folder / "config.json").is_file():
                raise UserError(
                    f"The base model folder '{self.name}' has no config.json: choose a transformers model folder."
                )
            return
        if self.name.startswith((".", "/", "~")):
            raise UserError(f"The base model folder '{self.name}' does not exist: check the path.")
        hub.require("models", self.name, self.revision)


@dataclass(frozen=True)
class DataRef:
    """A data set: the demo, a file or folder at `path` on this machine, or else a name on the hub. Made by `find`."""

    name: str
    path: Path | None = None

    @classmethod
    def find(cls, name: str) -> "DataRef":
        """Look for a data set on this machine, and on no other."""
        return cls(name, local(name))

    @property
    def is_demo(self) -> bool:
        return self.name == DEMO
