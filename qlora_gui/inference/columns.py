"""The columns: the base first, then its adapters; what each is, and what it answers."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import __version__ as PEFT

from qlora_gui.data import chat_template, special_tokens
from qlora_gui.data.chat import Chat
from qlora_gui.errors import UserError, first_line
from qlora_gui.inference import base_match, clean_base, generate, protocol, regex_limits, selftest
from qlora_gui.inference.adapter_file import Adapter, for_text, read, unknown_settings
from qlora_gui.inference.clean_base import CleanBase, Key
from qlora_gui.inference.multi_lora import BASE, MultiLora
from qlora_gui.inference.sampling import MAX_ADAPTERS, Decoding
from qlora_gui.inference.whole_model import WholeModel
from qlora_gui.models import chats, text_part
from qlora_gui.models import device as devices
from qlora_gui.runs import elsewhere, fetched

Say = Callable[[str], None]


class Columns:
    """One clean base and the adapters that can be active on its rows."""

    def __init__(self) -> None:
        self.key: Key | None = None
        self.base: CleanBase | None = None
        self.adapters: list[Adapter] = []
        self.multi_lora: MultiLora | None = None
        self.wholes: dict[int, WholeModel] = {}  # by column
        self._again: Callable[[Say], object] | None = None  # loads what was loaded last
        self._chats: dict[tuple[str, bool | None, bool], Chat] = {}

    def load(self, key: Key, folders: Sequence[Path], say: Say, chosen: bool = False) -> list[dict[str, Any]]:
        """Make the columns ready; a base that is loaded already stays. Returns one proof per column, the base's first.

        Folders are adapters of the base, or whole models of their own, which are loaded when they are first asked.
        `chosen` says that a person named the base, so that it may differ from the base that the adapters name.
        Raises UserError when the base cannot be had or an adapter does not belong to it; then there are no columns.
        """
        self.adapters, self.multi_lora, self.wholes, self._again = [], None, {}, None
        if len(folders) > MAX_ADAPTERS:
            raise UserError(f"{len(folders)} adapters are too many to compare at once: choose {MAX_ADAPTERS} at most.")
        # before the base: reading is quick, and may refuse
        wholes = {place: WholeModel(folder) for place, folder in enumerate(folders, 1) if elsewhere.is_whole(folder)}
        adapters = [read(folder) for place, folder in enumerate(folders, 1) if place not in wholes]
        if self.key != key or self.base is None:
            self.base = self.key = None
            self._chats.clear()
            gc.collect()  # the old base's memory first
            self.base = clean_base.load(key, say)
            self.key = key
        names = [base_match.check(self.base, adapter, chosen) for adapter in adapters]
        left_off = text_part.left_off(self.base.model)
        adapters = [for_text(adapter, left_off) for adapter in adapters]
        self._check_patterns(adapters)
        multi_lora = MultiLora(self.base.model, adapters)
        tested = []
        for number, adapter in enumerate(adapters):
            say(f"Testing {adapter.name} against PEFT")
            trained_on = {"trained_on": names[number]} if names[number] else {}
            tested.append({"self_test": self._test(multi_lora, number, adapter)} | trained_on)
        self.adapters, self.multi_lora, self.wholes = adapters, multi_lora, wholes
        self._again = lambda say: self.load(key, folders, say, chosen)
        own = iter([self._proof(adapter) | test for adapter, test in zip(adapters, tested, strict=True)])
        for whole in wholes.values():
            whole.takes_turns = not whole.fits()
        places = range(1, len(folders) + 1)
        return [self._proof(None), *(wholes[place].proof() if place in wholes else next(own) for place in places)]

    def _check_patterns(self, adapters: Sequence[Adapter]) -> None:
        """Raise UserError for patterns on which PEFT would never end, or would run out of memory."""
        assert self.base is not None
        modules = dict(self.base.model.named_modules())
        linears = {
            name: (module.in_features, module.out_features)
            for name, module in modules.items()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }
        for adapter in adapters:
            regex_limits.check(adapter.name, adapter.config, modules)
            regex_limits.check_memory(adapter.name, adapter.config, linears)

    def _test(self, multi_lora: MultiLora, number: int, adapter: Adapter) -> str:
        assert self.base is not None
        try:
            result = selftest.run(self.base, multi_lora, number, adapter)
        except UserError:
            raise
        except Exception:
            self.base = self.key = None  # whether it is still clean is not known: load it anew
            raise
        if reason := multi_lora.apart.get(number):
            return f"computed by PEFT in a lane of its own, as {reason}; the adapter moves the logits by {result.effect:.1e}"
        return (
            f"equals PEFT's logits within {result.difference:.1e} of the largest; "
            f"the adapter moves them by {result.effect:.1e}"
        )

    def answer(
        self,
        conversations: Sequence[protocol.Conversation],
        decoding: Decoding,
        emit: generate.Emit,
        cancelled: Callable[[], bool],
        tools: Sequence[Any] | None = None,
    ) -> None:
        """Answer one conversation per column, base and adapters in one batch, then whole models one after the other.

        `tools` are those that all may call. Raises UserError.
        """
        if self.base is None and self._again:  # a whole model has taken its turn
            self._again(lambda text: emit(protocol.Stage(text)))
        if self.base is None or self.multi_lora is None:
            raise UserError("No base is loaded: choose one first.")
        count = len(self.adapters) + len(self.wholes) + 1
        if len(conversations) != count:
            raise UserError(f"There are {count} columns but {len(conversations)} conversations.")
        chats_of = self._chats_by_column(decoding)
        prompts = [prompt_of(chat, messages, tools) for messages, chat in zip(conversations, chats_of, strict=True)]
        for column, prompt in enumerate(prompts):
            emit(protocol.Prompt(column, prompt.text))
        shared = [column for column in range(count) if column not in self.wholes]
        stops = [chats_of[column].stops for column in shared]
        base = replace(self.base, eos=frozenset().union(*(chats_of[column].ends for column in shared)))
        try:
            batches = self.multi_lora.batches([BASE, *range(len(self.adapters))])
            rows = [[adapter + 1 for adapter in batch] for batch in batches]  # row 0 is the base
            asked = [prompts[column] for column in shared]
            generate.answer(
                base, asked, stops, decoding, generate.renumbered(emit, shared), cancelled, self._activate, rows
            )
            del base
            for column, whole in self.wholes.items():
                self._answer_alone(column, whole, prompts[column], chats_of[column], decoding, emit, cancelled)
        except (RuntimeError, MemoryError) as error:
            if not devices.ran_out(error):
                raise
            raise UserError(
                "There is not memory enough for so long a conversation in so many columns: shorten it, or take fewer."
            ) from None

    def _chats_by_column(self, decoding: Decoding) -> list[Chat]:
        own = iter([self.chat(adapter, decoding) for adapter in (None, *self.adapters)])
        count = len(self.adapters) + len(self.wholes) + 1
        return [self.wholes[column].chat(decoding) if column in self.wholes else next(own) for column in range(count)]

    def _answer_alone(
        self,
        column: int,
        whole: WholeModel,
        prompt: special_tokens.Text,
        chat: Chat,
        decoding: Decoding,
        emit: generate.Emit,
        cancelled: Callable[[], bool],
    ) -> None:
        """A whole model's answer. Where it does not fit beside the others, they leave; the base comes back when it is asked."""
        if whole.model is None and not whole.fits():
            for other in self.wholes.values():
                other.leave()
            if not whole.fits():
                self.base = self.multi_lora = None
                gc.collect()
                devices.release()
        model = replace(whole.load(lambda text: emit(protocol.Stage(text))), eos=chat.ends)
        own = decoding if decoding.same_dice else decoding.model_copy(update={"seed": (decoding.seed + column) % 2**32})
        generate.answer(model, [prompt], [chat.stops], own, generate.renumbered(emit, [column]), cancelled)

    def _activate(self, columns: Sequence[int]) -> AbstractContextManager[None]:
        """Within this context, row i of every batch is column columns[i]; 0 is the base."""
        assert self.multi_lora is not None
        return self.multi_lora.activate([column - 1 for column in columns])

    def chat(self, adapter: Adapter | None, decoding: Decoding | None = None) -> Chat:
        """The chat of a column: an adapter's own template and thinking, or the base's, which thinks as the adapters do."""
        assert self.base is not None
        asked = decoding or Decoding()
        thinking = {"on": True, "off": False}.get(asked.thinking, self._trained_thinking(adapter))
        own = (adapter.template if adapter else None) or self.base.tokenizer.chat_template
        key = (own, thinking, asked.control_tokens)
        if key not in self._chats:
            ends = chats.base_ends(self.base.located.path)
            whose = f"the adapter '{adapter.name}'" if adapter and adapter.template else "the base"
            self._chats[key] = Chat(
                self.base.tokenizer, own, thinking, ends, asked.control_tokens, f"The chat template of {whose}"
            )
        return self._chats[key]

    def _trained_thinking(self, adapter: Adapter | None) -> bool | None:
        settings = {each.thinking for each in ([adapter] if adapter else self.adapters)}
        return settings.pop() if len(settings) == 1 else None

    def _proof(self, adapter: Adapter | None) -> dict[str, Any]:
        assert self.base is not None
        proof = {
            "name": adapter.name if adapter else "base",
            "adapter": str(adapter.folder) if adapter else None,
            **self.base.proof,
            "template": chat_template.digest(self.chat(adapter).template),
            "thinking": {True: "on", False: "off", None: "as the template does"}[self.chat(adapter).thinking],
        }
        if adapter:
            config = adapter.config
            proof |= {
                "sha256": adapter.sha256,
                "lora": f"rank {config.get('r', 8)}, alpha {config.get('lora_alpha', 8)}, {len(adapter.loras)} linears"
                + adapter.beyond.more,
                "biases": f"{config.get('bias')}, {len(adapter.biases)} trained",
            }
            if source := fetched.source(adapter.folder):
                proof["source"] = source
            if warnings := self._warnings(adapter):
                proof["warning"] = "; ".join(warnings)
        return proof

    def _warnings(self, adapter: Adapter) -> list[str]:
        """What does not rule out a comparison, but matters for reading it."""
        assert self.base is not None
        warnings, trained_on = [], adapter.trained_on
        modules = dict(self.base.model.named_modules())
        on_biases = any(getattr(modules[name], "bias", None) is not None for name in adapter.loras)
        if adapter.config.get("bias") == "lora_only" and not adapter.biases and on_biases:
            warnings.append("trained lora_only, but its biases are not in the file: an old PEFT lost them on saving")
        if adapter.unasked:
            s = "s" * (len(adapter.unasked) != 1)
            warnings.append(
                f"what it trained in {len(adapter.unasked):,} module{s} of the vision part is left out: no images are asked "
                "about"
            )
        if unknown := unknown_settings(adapter.config):
            warnings.append(
                f"its config has settings that this PEFT ({PEFT}) does not know and leaves out: {', '.join(unknown)}; if they "
                "change what the adapter computes, it is not what is shown here"
            )
        if "fingerprint" not in trained_on:
            warnings.append("that it belongs to this base is known by name and shapes only")
        trained, here = clean_base.trained_in(self.base, trained_on), self.base.quantization
        if trained not in (None, here):
            warnings.append(f"trained on {trained}, answers on {here}")
        return warnings


def prompt_of(chat: Chat, messages: protocol.Conversation, tools: Sequence[Any] | None) -> special_tokens.Text:
    """A conversation up to where the answer begins, in a chat's template. Raises UserError where the template refuses it."""
    try:
        return chat.prompt(messages, None if tools is None else list(tools))
    except UserError:  # a template without an end
        raise
    except Exception as error:  # templates are programs; they raise what they like on turns they dislike
        raise UserError(f"The chat template refuses this conversation: {first_line(error)}") from error
