"""Checks of what an evaluated adapter answers: does it end, repeat itself, depend on its prompt, or forget."""

from qlora_gui.diagnostics.evidence import Seen
from qlora_gui.diagnostics.finding import UNSLOTH_GUIDE, UNSLOTH_TROUBLES, Check, Finding
from qlora_gui.diagnostics.settings import slower

LOW_EOS = 0.5
MORE = 0.2  # a share that differs from the base's by so much
MANY_CUT = 0.1
MUCH_COPIED = 0.3
FORGOTTEN = 0.02  # of the base's loss on a general text
NO_DEPENDENCE = 0.02  # nats per token


def eos_not_learned(seen: Seen) -> Finding | None:
    """Answers that run into the length limit, or an end mark that is not expected where references end."""
    texts, eos = seen.part("texts"), seen.part("eos")
    if not texts:
        return None
    base, adapter = texts["base"].get("ended_by_length"), texts["adapter"].get("ended_by_length")
    if base is None or adapter is None:  # of an older evaluation
        return None
    unlikely = bool(eos) and eos["adapter"] < LOW_EOS and adapter > MANY_CUT
    if not unlikely and adapter <= base + MORE:
        return None
    chance = (
        f" Where references end, it expects the end with {eos['adapter']:.0%} (base {eos['base']:.0%})." if eos else ""
    )
    return Finding(
        "eos_not_learned",
        "warn",
        f"{adapter:.0%} of the adapter's answers end at the length limit (base {base:.0%}).{chance}",
        "An adapter that did not learn where answers end keeps writing: past its answer, in loops, or as the user.",
        f"{UNSLOTH_TROUBLES}; trl issues 976 and 1623",
        "Make sure that rows end with an end mark and are not cut; train longer; or allow longer answers, if yours are long.",
    )


def repeats(seen: Seen) -> Finding | None:
    """Answers in loops."""
    texts = seen.part("texts")
    if not texts:
        return None
    base, adapter = texts["base"]["rep4"], texts["adapter"]["rep4"]
    if adapter <= base + MORE:
        return None
    fix, knobs = slower(seen)
    return Finding(
        "repeats",
        "warn",
        f"{adapter:.0%} of the adapter's four-word sequences repeat earlier ones in the same answer (base {base:.0%}).",
        "Loops come from an end that was not learned, from too large steps, or from data that repeats itself.",
        "Neural text degeneration (1904.09751); rep-n of 1908.04319",
        f"First make sure that ends are learned. {fix}",
        knobs,
    )


def ignores_prompts(seen: Seen) -> Finding | None:
    """Answers that depend less on their prompt than the base's, or not at all."""
    dependence = seen.part("dependence")
    if not dependence or (dependence["high"] >= 0 and dependence["adapter"] >= NO_DEPENDENCE):
        return None
    return Finding(
        "ignores_prompts",
        "warn",
        f"An answer is {dependence['adapter']:.2f} nats per token likelier after its own prompt than after another row's; with "
        f"the base it is {dependence['base']:.2f} (difference {dependence['difference']:+.2f} [{dependence['low']:+.2f}, "
        f"{dependence['high']:+.2f}], {dependence['rows']} rows).",
        "So the adapter learned what answers look like more than what they answer. That is what training on answers "
        "that do not belong to their prompts leads to; a change of style alone can cause some of it.",
        "Mutual information of prompt and answer, as in 1510.03055",
        "Read some rows, and check that each answer belongs to its prompt: the usual cause is a shifted column or a shuffled file.",
    )


def copies(seen: Seen) -> Finding | None:
    """Answers that stand in the training data word for word."""
    texts = seen.part("texts")
    if not texts:
        return None
    base, adapter = texts["base"]["copied"], texts["adapter"]["copied"]
    if adapter < MUCH_COPIED or adapter <= base + MORE:
        return None
    return Finding(
        "copies",
        "note",
        f"{adapter:.0%} of the adapter's words are in long passages that also appear in its training answers (base {base:.0%}).",
        "Where answers should be new, that is memorization; where they are fixed texts, it is the task.",
        "Quantifying memorization across neural language models (2202.07646)",
        "Where answers should be new: fewer epochs, or more and more varied rows.",
        {"epochs": max(seen.config.epochs / 2, 1)} if seen.config.epochs > 1 and not seen.config.max_steps else {},
    )


def forgets(seen: Seen) -> Finding | None:
    """A loss on a general text that rose: the price of the task, or a loss without a gain."""
    general, loss = seen.part("general"), seen.part("loss")
    if not general or not loss or general["adapter"] <= (1 + FORGOTTEN) * general["base"]:
        return None
    better = loss["high"] < 0
    evidence = (
        f"On a general text the loss rose from {general['base']:.2f} to {general['adapter']:.2f} "
        f"({general['tokens']:,} tokens); on the task it changed by {loss['difference']:+.2f}."
    )
    if better:
        return Finding(
            "forgets",
            "note",
            evidence,
            "A trade-off, not a fault: what is learned for a task costs something elsewhere. It matters if the adapter is to do "
            "other things too.",
            "LoRA Learns Less and Forgets Less (2405.09673)",
            "Where it matters: a lower rank or learning rate, fewer epochs, or some general rows among the data.",
        )
    fix, knobs = slower(seen)
    return Finding(
        "forgets",
        "warn",
        evidence,
        "The adapter got worse on general text and shows no measurable gain on its task.",
        f"LoRA Learns Less and Forgets Less (2405.09673); {UNSLOTH_GUIDE}",
        f"Find out why the task was not learned. {fix}",
        knobs,
    )


CHECKS: tuple[Check, ...] = (eos_not_learned, ignores_prompts, repeats, forgets, copies)
