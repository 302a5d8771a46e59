"""What the parts of the Compare tab share: the choice of base and adapters, the settings, the columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs.store import Run, RunStore, check_base
from qlora_gui.ui.compare import offers
from qlora_gui.ui.compare.columns import View
from qlora_gui.ui.compare.session import Session
from qlora_gui.ui.runs import index


@dataclass
class Room:
    """The store of runs, the compare worker, and the components that chat and blind votes both read or draw."""

    store: RunStore
    session: Session
    base: gr.Dropdown
    chosen: gr.Dropdown
    blind: gr.Checkbox
    system: gr.Textbox
    fields: dict[str, Any]  # of Decoding
    shown: list[View]

    def inputs(self) -> set[Any]:
        """What a listener takes to see the choices and settings, as one dict by component."""
        return {self.base, self.chosen, self.system, *self.fields.values()}

    def parts(self) -> list[Any]:
        """The components of all columns."""
        return [part for view in self.shown for part in view.parts()]

    def decoding(self, given: Mapping[Any, Any]) -> Decoding:
        """The settings. Raises UserError for one that is out of bounds."""
        return configs.checked(Decoding, {name: given[field] for name, field in self.fields.items()})

    def asked(self, given: Mapping[Any, Any]) -> tuple[RunConfig, list[Run]]:
        """A config that names the base, and the chosen runs. Raises UserError when one is gone.

        A base that no run names was typed: it is taken in place of the one that the runs name.
        """
        runs = [self.store.get(run_id) for run_id in given[self.chosen]]
        base = (given[self.base] or "").strip()
        if not runs or offers.key(runs[0].config()) == base:
            return (runs[0].config() if runs else self._any_config(base)), runs
        self.store.check_allowed(base)
        check_base(base)
        return runs[0].config().model_copy(update={"base_model": base, "revision": ""}), runs

    def _any_config(self, base: str) -> RunConfig:
        found = (one.config for one in index.now(self.store).found if one.config and offers.key(one.config) == base)
        config = next(found, None)
        if config is None:
            raise UserError("No run of this base is left: choose another base.")
        return config
