"""A lane of its own: an adapter computed by PEFT itself, put on a base that is clean before and after.

For what rows of one batch cannot share: LoRA on the parameters of experts, DoRA, whole modules that take the place of the base's,
or linears that do not see the rows apart.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel

from qlora_gui.inference.adapter_file import Adapter

_NAME = "ad0"
_MISSING = "missing adapter keys"  # PEFT only warns, and would go on with fresh tensors


def wrapped(model: Any, folder: Path, name: str = "default") -> Any:
    """The model in PEFT's wrapper with the adapter of a folder. Raises whatever PEFT raises, and ValueError for tensors that lack."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = PeftModel.from_pretrained(model, str(folder), adapter_name=name).eval()
    if missing := next((str(warning.message) for warning in caught if _MISSING in str(warning.message)), None):
        raise ValueError(missing)
    return found


class Lane:
    """An adapter in PEFT's wrapper, which is on the base only within `activate`.

    The constructor raises whatever PEFT raises for an adapter that it cannot load; the base is unchanged then, too.
    """

    def __init__(self, model: Any, adapter: Adapter):
        children = [(part, name, child) for part in model.modules() for name, child in part.named_children()]
        modules = dict(model.named_modules())
        self._own = {name: modules[name].bias.detach().clone() for name in adapter.biases}
        self._biases = {name: modules[name].bias for name in adapter.biases}
        self._children: list[tuple[Any, str, Any, Any]] = []  # of which module, under which name, the base's, PEFT's
        try:
            wrapped(model, adapter.folder, _NAME)
            self._children = [
                (part, name, child, new) for part, name, child in children if (new := getattr(part, name)) is not child
            ]
            self._trained = {name: bias.detach().clone() for name, bias in self._biases.items()}
        finally:
            # By hand and not by `unload()`: where from_pretrained fails half-way there is no wrapper to unload.
            for part, name, child in children:
                setattr(part, name, child)
            self._set_biases(self._own)
            for bias in self._biases.values():
                bias.requires_grad_(False)
            if hasattr(model, "peft_config"):
                del model.peft_config

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Within this context the base has this adapter, for all rows of every batch."""
        try:
            for part, name, _, theirs in self._children:
                setattr(part, name, theirs)
            self._set_biases(self._trained)
            yield
        finally:
            for part, name, child, _ in self._children:
                setattr(part, name, child)
            self._set_biases(self._own)

    def _set_biases(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._biases[name].data.copy_(value)
