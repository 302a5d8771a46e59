"""A clean base answers a batch in which each row has its own active adapter.

One forward hook per module adds, for each row, that row's LoRA product and the difference of its trained bias to the
base's. Nothing of the base is changed, rows of the base are not touched, and leaving the context removes every hook.
Adapters that are more than that, or linears that do not see the rows apart, are computed by PEFT in lanes of their own.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from qlora_gui.errors import UserError
from qlora_gui.inference import beyond_lora
from qlora_gui.inference.adapter_file import Adapter
from qlora_gui.inference.peft_lane import Lane

BASE = -1  # the adapter number of a row without an active adapter
_LOOK = 16  # tokens per row, to find out how modules see a batch


@dataclass(frozen=True)
class _Stack:
    """All adapters at one module, in fp32: a [n, in, rank], b [n, rank, out] with the scaling in it, bias [n, 1, out].

    An adapter that leaves the module alone has zeros; lower ranks are padded with zeros. Laid out as a single token
    reads it: `a` a view of [n, rank, in], `b` as it is.
    """

    a: torch.Tensor | None
    b: torch.Tensor | None
    bias: torch.Tensor | None

    def select(self, adapters: slice) -> "_Stack":
        """The stack of neighbouring adapters: a view, for a copy would double what adapters take."""
        return _Stack(*(None if part is None else part[adapters] for part in (self.a, self.b, self.bias)))


class MultiLora:
    """Adapters of one base, ready to be activated row by row.

    `apart` are those that cannot share a batch, by number, and why; they are activated through their `lanes`, which the
    self-test makes. Raises UserError when an adapter does not fit the base's modules.
    """

    def __init__(self, model: Any, adapters: Sequence[Adapter]):
        self.model = model
        self.modules: dict[str, torch.nn.Module] = dict(model.named_modules())
        self.head = model.get_output_embeddings()
        for adapter in adapters:
            _check_shapes(self.modules, adapter)
            beyond_lora.check(model, adapter.name, adapter.beyond)
        seen = _look(model, {name for adapter in adapters for name in (*adapter.loras, *adapter.biases)})
        self.flat = {name for name, kinds in seen.items() if "flat" in kinds}
        self.apart = {
            number: reason for number, adapter in enumerate(adapters) if (reason := _apart(self.modules, seen, adapter))
        }
        self.lanes: dict[int, Lane] = {}
        sharing = [None if number in self.apart else adapter for number, adapter in enumerate(adapters)]
        names = sorted({name for adapter in sharing if adapter for name in (*adapter.loras, *adapter.biases)})
        self.stacks = {name: _stack(self.modules[name], name, sharing) for name in names}

    def batches(self, adapters: Sequence[int]) -> list[list[int]]:
        """Adapters grouped as they can share a batch."""
        shared = [adapter for adapter in adapters if adapter not in self.apart]
        return ([shared] if shared else []) + [[adapter] for adapter in adapters if adapter in self.apart]

    def activate(self, rows: Sequence[int]) -> AbstractContextManager[None]:
        """Within this context adapter number rows[i] is active on row i of every batch, or none where that is BASE.

        Neighbouring rows of one adapter are computed as one block: keep an adapter's rows side by side.
        """
        if rows and rows[0] in self.apart:
            assert len(set(rows)) == 1, "an adapter in a lane of its own shares no batch"
            return self.lanes[rows[0]].activate()
        return self._hooked(rows, self.stacks)

    def activate_on_head(self, rows: Sequence[int]) -> AbstractContextManager[None]:
        """As `activate`, on the model's output layer alone, for states [rows, tokens, width] that are given to it."""
        if rows and rows[0] in self.apart:
            return self.activate(rows)
        return self._hooked(rows, {name: self.stacks[name] for name in self.stacks if self.modules[name] is self.head})

    @contextmanager
    def _hooked(self, rows: Sequence[int], stacks: dict[str, _Stack]) -> Iterator[None]:
        blocks = _blocks(rows)
        handles: list[Any] = []
        batch = _Batch(len(rows))
        try:
            if blocks and stacks:
                handles += batch.watch(self.model)
            for name, stack in stacks.items() if blocks else ():
                module = self.modules[name]
                active = [(block, stack.select(block.adapters)) for block in blocks]
                handles.append(module.register_forward_hook(_hook(name, active, batch, name in self.flat)))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _Batch:
    """The batch that is read: how many rows, and how many tokens each has in this forward pass."""

    rows: int
    tokens: int = 0

    def watch(self, model: Any) -> list[Any]:
        """Note the tokens of every forward pass, of a causal LM or of its decoder alone; returns the hooks' handles."""

        def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
            self.tokens = ids.shape[1] if ids is not None else self.tokens

        # the decoder is not always called by the causal LM: OPT's is one level further down
        return [part.register_forward_pre_hook(note, with_kwargs=True) for part in {model, model.base_model}]

    def kind(self, x: torch.Tensor) -> str:
        """How x [..., in] lays out the batch: `rows` [rows, ..., in], `flat` [rows * tokens, in], or `mixed`."""
        if x.ndim >= 3 and x.shape[0] == self.rows:
            return "rows"
        return "flat" if x.numel() == self.rows * self.tokens * x.shape[-1] else "mixed"


@torch.no_grad()
def _look(model: Any, names: set[str]) -> dict[str, set[str]]:
    """How each of these modules sees a batch of two rows, as `_Batch.kind` says it; `other` gives more than a tensor.

    `silent` are those that are not called, though the module that they are part of is: their weights are used in
    another way than by a call.
    """
    kinds: dict[str, set[str]] = {}
    batch = _Batch(2)
    handles: list[Any] = []

    def hook(name: str) -> Any:
        def note(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            plain = bool(inputs) and isinstance(output, torch.Tensor)
            kinds.setdefault(name, set()).add(batch.kind(inputs[0]) if plain else "other")

        return note

    modules = dict(model.named_modules())
    outer = {name.rpartition(".")[0] for name in names} - names
    try:
        if names:
            handles += batch.watch(model)
            handles += [modules[name].register_forward_hook(hook(name)) for name in names | outer]
            vocabulary = model.get_input_embeddings().weight.shape[0]
            ids = torch.arange(1, 2 * _LOOK + 1, device=model.device).view(2, _LOOK) % vocabulary
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    called = {name for name in outer if name in kinds}
    silent = {name: {"silent"} for name in names - kinds.keys() if name.rpartition(".")[0] in called}
    return {name: seen for name, seen in kinds.items() if name in names} | silent


def _apart(modules: dict[str, Any], seen: dict[str, set[str]], adapter: Adapter) -> str:
    """Why an adapter cannot share a batch with others; "" where it can."""
    if adapter.beyond:
        return adapter.beyond.reason
    for name in (*adapter.loras, *adapter.biases):
        kinds = seen.get(name, set())
        if "mixed" in kinds or len(kinds) > 1:
            return f"this base mixes the rows of a batch in '{name}'"
    for name in adapter.biases:
        if seen.get(name, set()) & {"silent", "other"} or modules[name].weight.ndim > 2:
            return f"it trains the bias of '{name}', which is no addend of a linear's or a norm's output"
    return ""


@dataclass(frozen=True)
class _Block:
    """Neighbouring rows: `each` of the first of neighbouring adapters, then as many of the next, and so on."""

    place: slice
    each: int
    adapters: slice


def _blocks(rows: Sequence[int]) -> list[_Block]:
    """Neighbouring runs of rows of one adapter each, joined while they are equally long and adapters count upwards."""
    blocks: list[_Block] = []
    start = 0
    for adapter, run in groupby(rows):
        each = len(list(run))
        if adapter != BASE:
            last = blocks[-1] if blocks else None
            if last and last.place.stop == start and last.each == each and last.adapters.stop == adapter:
                place, adapters = slice(last.place.start, start + each), slice(last.adapters.start, adapter + 1)
                blocks[-1] = _Block(place, each, adapters)
            else:
                blocks.append(_Block(slice(start, start + each), each, slice(adapter, adapter + 1)))
        start += each
    return blocks


def _hook(name: str, active: "Sequence[tuple[_Block, _Stack]]", batch: _Batch, flat: bool) -> Any:
    """Add to the rows of every block, in fp32 and in the output itself.

    x is [rows, ..., in] and it [rows, ..., out], or, of modules that are `flat`, [rows * tokens, in] and out.
    """

    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        kind = batch.kind(x)
        if kind != "rows" and not (flat and kind == "flat"):
            raise UserError(
                f"This base mixes the rows of a batch in '{name}', so adapters cannot share one batch on it."
            )
        x = x.reshape(batch.rows, -1, x.shape[-1])  # [rows, tokens, in]
        whole = output.view(batch.rows, -1, output.shape[-1])  # [rows, tokens, out]
        for block, stack in active:
            part = whole[block.place]  # [rows of the block, tokens, out], a view of the output
            grouped = block.adapters.stop - block.adapters.start, block.each * x.shape[1]
            rows = part.reshape(*grouped, -1).float()  # [n, each * tokens, out], of n adapters
            if stack.a is not None and stack.b is not None:  # [n, each * tokens, in] @ [n, in, rank] @ [n, rank, out]
                rows.baddbmm_(torch.bmm(x[block.place].reshape(*grouped, -1).float(), stack.a), stack.b)
            if stack.bias is not None:
                rows += stack.bias  # [n, 1, out]
            if rows.data_ptr() != part.data_ptr():  # else `rows` is a view of the output
                part.copy_(rows.view_as(part))

    return add


def _stack(module: torch.nn.Module, name: str, adapters: Sequence[Adapter | None]) -> _Stack:
    device = next(module.parameters()).device
    loras = [adapter.loras.get(name) if adapter else None for adapter in adapters]
    a = b = bias = None
    some = next((lora for lora in loras if lora), None)
    if some:
        rank = max(lora.a.shape[0] for lora in loras if lora)
        a = torch.zeros(len(adapters), rank, some.a.shape[1])
        b = torch.zeros(len(adapters), rank, some.b.shape[0])
        for number, lora in enumerate(loras):
            if lora:
                a[number, : lora.a.shape[0]] = lora.a
                b[number, : lora.b.shape[1]] = (lora.b * lora.scaling).T
        a, b = a.to(device).transpose(1, 2), b.to(device)  # [n, in, rank], [n, rank, out]
    biases = [adapter.biases.get(name) if adapter else None for adapter in adapters]
    if any(trained is not None for trained in biases):
        base = module.bias.detach().float()  # type: ignore[operator, union-attr]
        rows = [torch.zeros_like(base) if trained is None else trained.to(device) - base for trained in biases]
        bias = torch.stack(rows)[:, None]  # [n, 1, out]
    return _Stack(a, b, bias)


def _check_shapes(modules: dict[str, torch.nn.Module], adapter: Adapter) -> None:
    """Raise UserError unless every tensor has its place in the base."""

    def refuse(reason: str) -> None:
        raise UserError(f"The adapter '{adapter.name}' was trained on another base: {reason}.")

    for name, lora in adapter.loras.items():
        module: Any = modules.get(name)
        if module is None or not hasattr(module, "in_features"):
            refuse(f"this one has no linear '{name}'")
        if (lora.a.shape[1], lora.b.shape[0]) != (module.in_features, module.out_features):
            refuse(
                f"'{name}' is {module.in_features} x {module.out_features} here, {lora.a.shape[1]} x {lora.b.shape[0]} there"
            )
        if lora.a.shape[0] != lora.b.shape[1]:
            raise UserError(
                f"The adapter '{adapter.name}' is damaged: the LoRA pair of '{name}' does not fit together."
            )
    for name, bias in adapter.biases.items():
        have = getattr(modules.get(name), "bias", None)
        if have is None or have.shape != bias.shape:
            refuse(f"this one has no such bias in '{name}'")
