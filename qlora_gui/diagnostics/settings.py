"""Checks of a run's settings: what they reveal on their own, before anything is loaded."""

from math import sqrt

from qlora_gui import families
from qlora_gui.diagnostics.evidence import Seen
from qlora_gui.diagnostics.finding import (
    QLORA,
    RSLORA,
    UNSLOTH_GUIDE,
    UNSLOTH_TROUBLES,
    WITHOUT_REGRET,
    Check,
    Finding,
    number,
)
from qlora_gui.optimizers import OPTIMIZERS
from qlora_gui.runs.events import Data
from qlora_gui.system import kind

USUAL_RATE = 2e-4
SLOWEST, FASTEST = 5e-5, 1e-3
LEAST_SCALING, MOST_SCALING = 0.5, 4.0
HIGH_RANK = 64
MOST_EPOCHS = 3.0
_RSLORA_ALPHA = 8  # alpha / sqrt(rank) is then 2 at rank 16, as with this program's defaults
_FUSED = ("query_key_value",)  # PEFT's own choice for BLOOM, GPT-NeoX and Falcon, whose layers have four linears


def learning_rate(seen: Seen) -> Finding | None:
    """A learning rate far from those that LoRA learns at."""
    rate = seen.config.learning_rate
    if SLOWEST <= rate <= FASTEST:
        return None
    if rate < SLOWEST:
        why = "LoRA needs about ten times the rate of full fine-tuning: with less, it hardly moves in the steps it has."
    else:
        why = "Steps this large make the loss jump, and overwrite what the base can do."
    return Finding(
        "learning_rate",
        "warn",
        f"The learning rate is {number(rate)}; LoRA is usually trained at {number(SLOWEST)} to {number(FASTEST)}.",
        why,
        f"{UNSLOTH_GUIDE}; {WITHOUT_REGRET}",
        f"Start at {number(USUAL_RATE)}.",
        {"learning_rate": USUAL_RATE},
    )


def slower(seen: Seen) -> tuple[str, dict[str, float]]:
    """What to do about steps that are too large: a sentence, and the knobs, {} where the rate is low already."""
    rate = max(min(seen.config.learning_rate / 2, USUAL_RATE), SLOWEST)
    if rate >= seen.config.learning_rate:
        return "The learning rate is low already: look at the data.", {}
    return f"Train at a learning rate of {number(rate)}.", {"learning_rate": rate}


def few_modules(seen: Seen) -> Finding | None:
    """LoRA on part of the linears only, as PEFT's own choice for BLOOM is."""
    counted = _linears(seen)
    if counted is None or counted[0] >= 0.75 * counted[1]:
        return None
    names = seen.config.target_modules
    named = names if isinstance(names, str) else ", ".join(names)
    return Finding(
        "few_modules",
        "warn" if counted[0] < 0.5 * counted[1] else "note",
        f"LoRA is on {counted[0]} of {counted[1]} linear layers ({named}).",
        "LoRA matches full fine-tuning only on all linear layers; on attention alone it falls short, at a higher rank too.",
        f"{QLORA}; {WITHOUT_REGRET}",
        "Train all linear layers.",
        {"target_modules": "all-linear"},
    )


def _linears(seen: Seen) -> tuple[int, int] | None:
    """(linears with LoRA, linears there are): of the adapter's file, of the base's shape, or of its kind of layer."""
    of_file = seen.part("adapter_facts")
    if of_file.get("linears_available"):
        return of_file["linears"], of_file["linears_available"]
    wanted, shape = seen.config.target_modules, seen.shape
    if isinstance(wanted, str):
        return None
    if shape is None or not shape.exact:  # whose names of linears are not its own
        return (1, 4) if tuple(wanted) == _FUSED else None
    matching = sum(any(f".{linear.name}".endswith(f".{name}") for name in wanted) for linear in shape.linears)
    return (matching * shape.layers, len(shape.linears) * shape.layers) if matching else None


def scaling(seen: Seen) -> Finding | None:
    """An update scaled far from once or twice."""
    config = seen.config
    factor = config.alpha / (sqrt(config.rank) if config.use_rslora else config.rank)
    formula = f"alpha / {'sqrt(rank)' if config.use_rslora else 'rank'}"
    small = factor < LEAST_SCALING and not config.use_rslora  # rsLoRA's is meant to fall as the rank grows
    if not small and factor <= MOST_SCALING:
        return None
    alpha = _RSLORA_ALPHA if config.use_rslora else 2 * config.rank
    return Finding(
        "scaling",
        "warn",
        f"The scaling {formula} is {number(factor)}: alpha {number(config.alpha)}, rank {config.rank}. "
        f"1 to 2 is usual, and {number(LEAST_SCALING)} to {number(MOST_SCALING)} is fine.",
        f"The update is multiplied by {formula}, so this works like a learning rate that is "
        f"{'too small' if small else 'too large'} for the adapter.",
        f"{UNSLOTH_GUIDE}; PEFT's documentation of LoraConfig",
        f"Set alpha to {alpha}.",
        {"alpha": alpha},
    )


def high_rank(seen: Seen) -> Finding | None:
    """A high rank with LoRA's first scaling, which does not suit it."""
    config = seen.config
    if config.rank < HIGH_RANK or config.use_rslora:
        return None
    factor, stable = config.alpha / config.rank, _RSLORA_ALPHA / sqrt(config.rank)
    return Finding(
        "high_rank",
        "note",
        f"Rank {config.rank} without rsLoRA scales the update by {number(factor)}; falling with the square root of "
        f"the rank, from 2 at rank 16, it would be {number(stable)}.",
        "Divided by the rank, high ranks learn no more than low ones; divided by its square root they do, and one "
        "learning rate suits all ranks.",
        RSLORA,
        f"Use rsLoRA with alpha {_RSLORA_ALPHA}, or a lower rank.",
        {"use_rslora": True, "alpha": _RSLORA_ALPHA},
    )


def many_epochs(seen: Seen) -> Finding | None:
    """Data seen so often that it is learned by heart."""
    epochs = seen.config.epochs
    if seen.config.max_steps:
        each = seen.steps_per_epoch()
        epochs = seen.config.max_steps / each if each else 0.0
    if epochs <= MOST_EPOCHS:
        return None
    return Finding(
        "many_epochs",
        "note",
        f"The data is seen {number(epochs)} times.",
        "After one to three epochs most instruction data is learned; more is mostly learned by heart.",
        UNSLOTH_GUIDE,
        f"Train {number(MOST_EPOCHS)} epochs, and watch the held-out loss.",
        {"epochs": MOST_EPOCHS} | ({"max_steps": 0} if seen.config.max_steps else {}),
    )


def lora_only_biases(seen: Seen) -> Finding | None:
    """Biases that not every PEFT saves; silent once the adapter's file was seen to have them."""
    if seen.config.bias != "lora_only" or seen.part("adapter_facts").get("trained_biases"):
        return None
    return Finding(
        "lora_only_biases",
        "note",
        "Biases are trained as lora_only.",
        "Releases 0.19.1 and 0.20.0 of peft silently drop such biases when saving: the adapter then answers without part of "
        "what it learned. This program saves them with a PEFT that does not; others may not.",
        "Run with peft 0.19.1, 0.20.0 and 0.21.2; fixed in 0.21.0",
        "Train no biases, unless only this program will use the adapter; an evaluation counts those in its file.",
        {"bias": "none"},
    )


def nothing_held_out(seen: Seen) -> Finding | None:
    """No row to measure on, so that overfitting cannot be seen."""
    data = seen.history.latest(Data)
    splits_none = bool(seen.facts.get("splits")) and seen.config.eval_fraction == 0
    if (data is None or data.held_out != 0) and not splits_none:
        return None
    return Finding(
        "nothing_held_out",
        "note",
        "No rows are held out.",
        "The training loss falls even where rows are only learned by heart; held-out rows tell the difference.",
        UNSLOTH_GUIDE,
        "Hold out a tenth of the rows.",
        {"eval_fraction": 0.1},
    )


def does_not_fit(seen: Seen) -> Finding | None:
    """A run that the memory plan says is too large."""
    plan = seen.memory
    if plan is None or plan.fits:
        return None
    return Finding(
        "does_not_fit",
        "warn",
        f"The run is planned to need {plan.figures} ({plan.remark}).",
        "A run that does not fit ends at its longest batch.",
        "The memory plan of this program, an estimate",
        "Apply one of the changes under 'Will it fit'.",
    )


def base_without_template(seen: Seen) -> Finding | None:
    """A base that brings no chat template, so that a plain one is used."""
    of_file = seen.part("adapter_facts")
    known = seen.facts.get("has_template")
    named = known is None and any(
        seen.config.base_model.startswith(family.template_missing)
        for family in families.FAMILIES.values()
        if family.template_missing
    )
    if not (known is False or of_file.get("no_base_template") or named):
        return None
    return Finding(
        "base_without_template",
        "note",
        f"The base {seen.config.base_model} brings no chat template; this program's plain one is used.",
        "Such a base was not made to chat: it has to learn from this data where an answer ends, and answers well only "
        "with the template that it was trained with. In a program that uses another one it seems broken.",
        UNSLOTH_TROUBLES,
        "Use the template saved beside the adapter wherever it answers, or take a base tuned for chat.",
    )


def nothing_is_paged(seen: Seen) -> Finding | None:
    """A paged optimizer on a system whose driver moves nothing out of the GPU."""
    optimizer = OPTIMIZERS[seen.config.optimizer]
    if not optimizer.paged or kind.can_page_gpu_memory():
        return None
    return Finding(
        "nothing_is_paged",
        "note",
        f"The optimizer is {optimizer.name}, and this is {'Windows' if kind.is_windows() else 'WSL'}.",
        "Windows' driver cannot move managed memory out of a full GPU: the optimizer's states stay in it, paged or not.",
        "CUDA on WSL User Guide, known limitations",
        "Use the same optimizer without paging.",
        {"optimizer": optimizer.unpaged},
    )


CHECKS: tuple[Check, ...] = (
    does_not_fit,
    learning_rate,
    few_modules,
    scaling,
    high_rank,
    many_epochs,
    lora_only_biases,
    base_without_template,
    nothing_held_out,
    nothing_is_paged,
)
