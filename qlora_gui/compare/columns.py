"""The columns: the base first, then its adapters; what each is, and what it answers."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qlora_gui.compare import clean_base, generate, selftest
from qlora_gui.compare.adapter_file import Adapter, read
from qlora_gui.compare.clean_base import CleanBase, Key
from qlora_gui.compare.rows import BASE, RowAdapters
from qlora_gui.compare.settings import MAX_ADAPTERS, Decoding
from qlora_gui.data import literal
from qlora_gui.errors import UserError, first_line
from qlora_gui.model import device as devices
from qlora_gui.model import template

Say = Callable[[str], None]


class Columns:
    """One clean base and the adapters that its rows can wear."""

    def __init__(self) -> None:
        self.key: Key | None = None
        self.base: CleanBase | None = None
        self.adapters: list[Adapter] = []
        self.rows: RowAdapters | None = None

    def load(self, key: Key, folders: Sequence[Path], say: Say) -> list[dict[str, Any]]:
        """Make the columns ready; a base that is loaded already stays. Gives one proof a column, the base's first.

        Raises UserError when the base cannot be had or an adapter does not belong to it; then there are no columns.
        """
        self.adapters, self.rows = [], None
        if len(folders) > MAX_ADAPTERS:
            raise UserError(f"{len(folders)} adapters are too many to compare at once: choose {MAX_ADAPTERS} at most.")
        adapters = [read(folder) for folder in folders]  # before the base: reading is quick, and may refuse
        if self.key != key or self.base is None:
            self.base = self.key = None
            gc.collect()  # the old base's memory first
            self.base = clean_base.load(key, say)
            self.key = key
        for adapter in adapters:
            check_base(self.base, adapter)
        rows = RowAdapters(self.base.model, adapters)
        proofs = [self._proof(None)]
        for number, adapter in enumerate(adapters):
            say(f"Testing {adapter.name} against PEFT")
            proofs.append(self._proof(adapter) | {"self_test": self._test(rows, number, adapter)})
        self.adapters, self.rows = adapters, rows
        return proofs

    def _test(self, rows: RowAdapters, number: int, adapter: Adapter) -> str:
        assert self.base is not None
        try:
            found = selftest.run(self.base, rows, number, adapter)
        except UserError:
            raise
        except Exception:
            self.base = self.key = None  # whether it is still clean is not known: load it anew
            raise
        return (
            f"equals PEFT's logits within {found.difference:.1e} of the largest; "
            f"the adapter moves them by {found.effect:.1e}"
        )

    def answer(
        self,
        conversations: Sequence[list[dict[str, str]]],
        decoding: Decoding,
        emit: generate.Emit,
        cancelled: Callable[[], bool],
    ) -> None:
        """Answer one conversation a column, all in one batch. Raises UserError."""
        if self.base is None or self.rows is None:
            raise UserError("No base is loaded: choose one first.")
        if len(conversations) != len(self.adapters) + 1:
            raise UserError(f"There are {len(self.adapters) + 1} columns but {len(conversations)} conversations.")
        templates = [self._template(adapter) for adapter in (None, *self.adapters)]
        prompts = [
            self._prompt(messages, chat, decoding.control_tokens)
            for messages, chat in zip(conversations, templates, strict=True)
        ]
        for column, prompt in enumerate(prompts):
            emit({"kind": "prompt", "column": column, "prompt": prompt.text})
        stops = [template.stop_strings(chat) for chat in templates]
        try:
            with self.rows.worn([BASE, *range(len(self.adapters))]):
                generate.answer(self.base, prompts, stops, decoding, emit, cancelled)
        except (RuntimeError, MemoryError) as error:
            if not devices.ran_out(error):
                raise
            raise UserError(
                "There is not memory enough for so long a conversation in so many columns: shorten it, or take fewer."
            ) from None

    def _template(self, adapter: Adapter | None) -> str:
        assert self.base is not None
        own = adapter.template if adapter else None
        return str(own or self.base.tokenizer.chat_template)

    def _prompt(self, messages: list[dict[str, str]], chat: str, control: bool) -> literal.Text:
        assert self.base is not None
        try:
            return literal.prompt(messages, self.base.tokenizer, control, chat_template=chat)
        except Exception as error:  # templates are programs; they raise what they like on turns they dislike
            raise UserError(f"The chat template refuses this conversation: {first_line(error)}") from error

    def _proof(self, adapter: Adapter | None) -> dict[str, Any]:
        assert self.base is not None
        proof = {
            "name": adapter.name if adapter else "base",
            "adapter": str(adapter.folder) if adapter else None,
            **self.base.proof,
            "template": template.digest(self._template(adapter)),
        }
        if adapter:
            config = adapter.config
            proof |= {
                "sha256": adapter.sha256,
                "lora": f"rank {config.get('r', 8)}, alpha {config.get('lora_alpha', 8)}, {len(adapter.loras)} linears",
                "biases": f"{config.get('bias')}, {len(adapter.biases)} trained",
            }
            if warnings := self._warnings(adapter):
                proof["warning"] = "; ".join(warnings)
        return proof

    def _warnings(self, adapter: Adapter) -> list[str]:
        """What does not forbid a comparison, but has to be known to read it."""
        assert self.base is not None and self.key is not None
        found, told = [], adapter.trained_on
        modules = dict(self.base.model.named_modules())
        on_biases = any(getattr(modules[name], "bias", None) is not None for name in adapter.loras)
        if adapter.config.get("bias") == "lora_only" and not adapter.biases and on_biases:
            found.append("trained lora_only, but its biases are not in the file: an old PEFT lost them on saving")
        if "fingerprint" not in told:
            found.append("that it belongs to this base is known by name and shapes only")
        trained, here = (told.get("quant_type"), told.get("double_quant")), self.key[2:]
        if trained[0] is not None and trained != here:
            found.append(f"trained on {_quantization(*trained)}, answers on {_quantization(*here)}")
        return found


def _quantization(quant_type: Any, double: Any) -> str:
    return f"{quant_type} {'with' if double else 'without'} double quantization"


def check_base(base: CleanBase, adapter: Adapter) -> None:
    """Raise UserError unless the adapter was trained on this base, as far as its folder says."""
    told = adapter.trained_on.get("fingerprint")
    if told is not None:
        if told != base.located.fingerprint:
            was = adapter.trained_on.get("name")
            raise UserError(
                f"The adapter '{adapter.name}' was trained on another base, {was} ({told}), "
                f"not on {base.located.name} ({base.located.fingerprint}): compare it with its own."
            )
        return
    was = str(adapter.config.get("base_model_name_or_path") or "")
    if was and Path(was).name != Path(base.located.name).name and was != base.located.path:
        raise UserError(
            f"The adapter '{adapter.name}' was trained on {was}, not on {base.located.name}: compare it with its own base."
        )
