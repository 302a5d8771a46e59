"""The device's numbers against the CPU's in fp32: what rounding explains, and what it does not."""

import math
from collections.abc import Iterator

import torch

from qlora_gui.check.lines import Line, State
from qlora_gui.check.numbers import Numbers

# The largest relative differences that rounding explains, by what the device computes in: of losses, and of all
# gradients together (their norm). Three to ten times what CPUs give for these bases.
_LOSS = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2}
_GRADS = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1.5e-1}
_CHOICE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # as in inference/selftest.py
_FEW_BYTES = 1e-3  # 4-bit values that may lie on the other side of a border
_FP16_LARGEST, _FP16_NEAR = 65504.0, 0.1
_REPORT = "The numbers of this device are wrong: report this, with the lines above."


def relative(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of two sets of tensors as a share of the second's; infinity where names differ."""
    if one.keys() != other.keys():
        return float("inf")
    square = sum(float((one[name] - part).square().sum()) for name, part in other.items())
    whole = sum(float(part.square().sum()) for part in other.values())
    return (square / max(whole, 1e-30)) ** 0.5


def _apart(ours: list[float], theirs: list[float]) -> float:
    if len(ours) != len(theirs) or not ours or not all(map(math.isfinite, [*ours, *theirs])):
        return float("inf")
    return max(abs(one - other) / max(abs(other), 1e-9) for one, other in zip(ours, theirs, strict=True))


def lines(name: str, here: Numbers, cpu: Numbers, choices: list[float]) -> Iterator[Line]:
    """What is found about one base; `choices` are `numbers.choice_apart` of base and adapter."""
    called, dtype = name.capitalize(), here.dtype
    losses = _apart([*here.steps, *here.held_out], [*cpu.steps, *cpu.held_out])
    yield _judged(
        f"{name}-losses",
        losses <= _LOSS[dtype],
        f"{called}: three steps in {dtype}, losses within {losses:.1e} of the CPU's (fp32); held-out loss "
        f"{' → '.join(f'{loss:.3f}' for loss in here.held_out)}.",
    )
    again, grads = _apart([here.loss], [cpu.loss]), relative(here.grads, cpu.grads)
    yield _judged(
        f"{name}-gradients",
        again <= _LOSS[dtype] and grads <= _GRADS[dtype],
        f"{called}: saved and reloaded, loss within {again:.1e} and {len(here.grads)} gradients within {grads:.1e} of the CPU's.",
    )
    worst = max(choices)
    same = here.answers == cpu.answers
    yield _judged(
        f"{name}-text",
        same or worst <= _CHOICE[dtype],
        f"{called}: greedy answers of base and adapter are "
        + (
            "the CPU's." if same else f"the CPU's up to near ties (a lead of {worst:.1e} of the largest logit at most)."
        ),
    )


def _judged(key: str, good: bool, text: str) -> Line:
    return Line(key, "ok", text) if good else Line(key, "failed", text, _REPORT)


def kernels(here: dict[str, Numbers], cpu: dict[str, Numbers], kind: str) -> Iterator[Line]:
    """What only the device can tell: same bits twice, same 4-bit bytes as on a CPU, room in fp16's range."""
    twice = all(one.repeats for one in here.values())
    text = "A second pass gives the same to the bit." if twice else "A second pass differs in the last bits."
    fix = "" if twice else "A run is not repeatable to the bit here; report it if a run says that its base changed."
    yield Line("repeats", "ok" if twice else "warning", text, fix)
    if kind != "cpu":
        differ, count = _packed_apart(here, cpu)
        share = differ / max(count, 1)
        state: State = "ok" if share <= _FEW_BYTES else "failed"
        said = "are the CPU's to the bit" if not differ else f"differ from the CPU's in {differ:,} of {count:,} bytes"
        yield Line("quantized", state, f"4-bit values made here {said}.", "" if state == "ok" else _REPORT)
    largest = max(one.largest for one in here.values())
    if any(one.dtype == "float16" for one in here.values()):
        near = largest > _FP16_NEAR * _FP16_LARGEST
        told = f"fp16 is computed in: between layers of these small bases numbers reach {largest:,.0f} of 65,504."
        fix = "Real bases are larger: Gemma's and some of Qwen's may overflow; a run says when steps are skipped."
        yield Line("fp16", "warning" if near else "ok", told, fix)


def _packed_apart(here: dict[str, Numbers], cpu: dict[str, Numbers]) -> tuple[int, int]:
    differ = count = 0
    for name, one in here.items():
        for linear, part in one.packed.items():
            other = cpu[name].packed.get(linear)
            count += part.numel()
            differ += part.numel() if other is None or other.shape != part.shape else int((part != other).sum())
    return differ, count
