"""Row adapters: a clean base answers a batch whose rows wear different adapters.

One forward hook a module adds, for each row, that row's LoRA product and the difference of its trained bias to the
base's. Nothing of the base is changed, rows of the base are not touched, and leaving the context removes every hook.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from qlora_gui.compare.adapter_file import Adapter
from qlora_gui.errors import UserError

BASE = -1  # the adapter number of a row that wears none


@dataclass(frozen=True)
class _Stack:
    """All adapters at one module, in fp32: a [n, in, rank], b [n, rank, out] with the scaling in it, bias [n, 1, out].

    An adapter that leaves the module alone has zeros; lower ranks are padded with zeros. Laid out as a single token
    reads it: `a` a view of [n, rank, in], `b` as it is.
    """

    a: torch.Tensor | None
    b: torch.Tensor | None
    bias: torch.Tensor | None

    def of(self, adapters: torch.Tensor) -> "_Stack":
        """The stack of some adapters, in this order."""
        a = None if self.a is None else self.a.transpose(1, 2)[adapters].transpose(1, 2)
        b, bias = (None if part is None else part[adapters] for part in (self.b, self.bias))
        return _Stack(a, b, bias)


class RowAdapters:
    """Adapters of one base, ready to be worn by rows.

    Raises UserError when an adapter does not fit the base's modules.
    """

    def __init__(self, model: torch.nn.Module, adapters: Sequence[Adapter]):
        self.modules = dict(model.named_modules())
        for adapter in adapters:
            _check_shapes(self.modules, adapter)
        names = sorted({name for adapter in adapters for name in (*adapter.loras, *adapter.biases)})
        self.stacks = {name: _stack(self.modules[name], name, adapters) for name in names}

    @contextmanager
    def worn(self, rows: Sequence[int]) -> Iterator[None]:
        """While this lasts, row i of every batch wears adapter number rows[i], or none where that is BASE.

        Rows of one adapter side by side are computed as one: let them be, where an adapter has many.
        """
        blocks = _blocks(rows)
        handles: list[Any] = []
        try:
            for name, stack in self.stacks.items() if blocks else ():
                module = self.modules[name]
                device = next(module.parameters()).device
                worn = [(block, stack.of(torch.tensor(block.adapters, device=device))) for block in blocks]
                handles.append(module.register_forward_hook(_hook(name, worn, len(rows))))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class _Block:
    """Rows side by side: `each` of the first adapter, then as many of the next, and so on."""

    place: slice
    each: int
    adapters: list[int]


def _blocks(rows: Sequence[int]) -> list[_Block]:
    """Neighbouring runs of rows with one adapter each, joined as long as they are equally long."""
    blocks: list[_Block] = []
    start = 0
    for adapter, run in groupby(rows):
        each = len(list(run))
        if adapter != BASE:
            last = blocks[-1] if blocks else None
            if last and last.place.stop == start and last.each == each:
                blocks[-1] = _Block(slice(last.place.start, start + each), each, [*last.adapters, adapter])
            else:
                blocks.append(_Block(slice(start, start + each), each, [adapter]))
        start += each
    return blocks


def _hook(name: str, worn: "Sequence[tuple[_Block, _Stack]]", count: int) -> Any:
    """Add to the rows of every block, in fp32 and in the output itself: x is [rows, tokens, in], it [rows, tokens, out]."""

    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        if x.ndim != 3 or x.shape[0] != count:
            raise UserError(
                f"This base mixes the rows of a batch in '{name}', so adapters cannot share one batch on it."
            )
        for block, stack in worn:
            part = output[block.place]
            together = len(block.adapters), block.each * x.shape[1]
            rows = part.reshape(*together, -1).float()
            if stack.a is not None and stack.b is not None:
                rows.baddbmm_(torch.bmm(x[block.place].reshape(*together, -1).float(), stack.a), stack.b)
            if stack.bias is not None:
                rows += stack.bias
            if rows.data_ptr() != part.data_ptr():  # else `rows` is a view of the output
                part.copy_(rows.view_as(part))

    return add


def _stack(module: torch.nn.Module, name: str, adapters: Sequence[Adapter]) -> _Stack:
    device = next(module.parameters()).device
    found = [adapter.loras.get(name) for adapter in adapters]
    a = b = bias = None
    some = next((lora for lora in found if lora), None)
    if some:
        rank = max(lora.a.shape[0] for lora in found if lora)
        a = torch.zeros(len(adapters), rank, some.a.shape[1])
        b = torch.zeros(len(adapters), rank, some.b.shape[0])
        for number, lora in enumerate(found):
            if lora:
                a[number, : lora.a.shape[0]] = lora.a
                b[number, : lora.b.shape[1]] = (lora.b * lora.scaling).T
        a, b = a.to(device).transpose(1, 2), b.to(device)
    if any(name in adapter.biases for adapter in adapters):
        base = module.bias.detach().float()  # type: ignore[operator, union-attr]
        rows = [
            adapter.biases[name].to(device) - base if name in adapter.biases else torch.zeros_like(base)
            for adapter in adapters
        ]
        bias = torch.stack(rows)[:, None]
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
