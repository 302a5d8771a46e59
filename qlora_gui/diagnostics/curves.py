"""Checks of a run's events: is it learning, and does what it learns carry over to held-out rows."""

from statistics import median

from qlora_gui.diagnostics.evidence import Seen
from qlora_gui.diagnostics.finding import UNSLOTH_GUIDE, Check, Finding
from qlora_gui.diagnostics.settings import USUAL_RATE, slower
from qlora_gui.runs.events import Base, Eval, Step

RISEN = 0.03  # of the best held-out loss: above it, it is no wobble
SPIKE = 1.0  # nats above the points before, and twice as high
WIDE_GAP = 0.5  # nats between training and held-out loss
FALLEN = 0.1  # of the training loss: below it, no conclusion is possible yet
HARDLY = 0.01
FP16_END = 65_504
NEAR_OVERFLOW = 0.5  # of it
_BEFORE_SPIKE = 5  # logged points that a spike is held against


def not_a_number(seen: Seen) -> Finding | None:
    """Losses, or gradients in bf16 and fp32, that are NaN or infinite; events hold null for them.

    In fp16 the first infinite gradients are how its loss scaling finds its scale.
    """
    base, steps = seen.history.latest(Base), seen.history.by_step(Step)
    scaled = base is not None and base.dtype == "float16"
    lost = [event.step for event in steps if event.loss is None]
    lost += [event.step for event in seen.history.by_step(Eval) if event.loss is None]
    if not scaled:
        lost += [event.step for event in steps if "grad_norm" in event.nulls]
    if not lost:
        return None
    fix, knobs = slower(seen)
    return Finding(
        "not_a_number",
        "bad",
        f"Loss or gradient is not a number, first at step {min(lost)}.",
        "From the first such step on, the weights of the adapter are not numbers either.",
        "IEEE 754: every sum with NaN is NaN; qlora issue 71 for fp16",
        fix + (" A GPU that has bf16 helps." if scaled else ""),
        knobs,
    )


def no_gradient(seen: Seen) -> Finding | None:
    """A first step without any gradient."""
    steps = seen.history.by_step(Step)
    if not steps or steps[0].grad_norm != 0:
        return None
    return Finding(
        "no_gradient",
        "bad",
        f"The gradient norm is 0 in step {steps[0].step}.",
        "No gradient reaches the adapter, so it stays what it was: nothing. Reentrant checkpointing without input "
        "gradients does that, and rows without anything to learn.",
        "transformers' documentation of enable_input_require_grads",
        "Train without checkpointing; if that helps, report it as a bug in this program.",
        {"gradient_checkpointing": "none"},
    )


def loss_spikes(seen: Seen) -> Finding | None:
    """A training loss that suddenly jumps."""
    steps = [(event.step, event.loss) for event in seen.history.by_step(Step) if event.loss is not None]
    for place in range(_BEFORE_SPIKE, len(steps)):
        usual = median(loss for _, loss in steps[place - _BEFORE_SPIKE : place])
        step, loss = steps[place]
        if loss > max(2 * usual, usual + SPIKE):
            fix, knobs = slower(seen)
            return Finding(
                "loss_spikes",
                "warn",
                f"The training loss jumps to {loss:.2f} at step {step}, from about {usual:.2f}.",
                "Such jumps come from steps that are too large, or from rows unlike all others.",
                UNSLOTH_GUIDE,
                fix,
                knobs,
            )
    return None


def half_precision(seen: Seen) -> Finding | None:
    """A GPU without bf16, which computes in fp16."""
    base = seen.history.latest(Base)
    if base is None or base.dtype != "float16":
        return None
    return Finding(
        "half_precision",
        "note",
        f"{base.device} has no bf16: the base is computed in fp16.",
        "Numbers in fp16 end at 65,504, and bases trained in bf16 can exceed that: then losses become NaN. The trained weights "
        "are fp32 here, so small steps are not lost.",
        "torch's is_bf16_supported without emulation; qlora issue 71",
        "Watch for losses that are NaN; GPUs from Ampere on have bf16.",
    )


def near_overflow(seen: Seen) -> Finding | None:
    """Layers that hand on numbers near the end of fp16."""
    measured = seen.history.by_step(Eval)
    largest = max((event.largest_activation or 0.0 for event in measured), default=0.0)
    over = any("largest_activation" in event.nulls for event in measured)
    if not over and largest < NEAR_OVERFLOW * FP16_END:
        return None
    reached = "went beyond it" if over else f"reached {largest:,.0f}"
    return Finding(
        "near_overflow",
        "bad" if over else "warn",
        f"Numbers in fp16 end at {FP16_END:,}, and the base's layers {reached} on the held-out rows.",
        "Anything larger, in a longer row or as the adapter grows, is infinite: the loss is then NaN, and the loss scaling "
        "skips step after step.",
        "IEEE 754, binary16; the T5 and Gemma ports of transformers clamp for it",
        "Train on a GPU that has bf16 (Ampere or newer), or choose a base that stays smaller.",
    )


def does_not_carry_over(seen: Seen) -> Finding | None:
    """The training loss falls, and the held-out loss is no better than the base's."""
    ends, held = seen.history.training_ends(), seen.history.held_out()
    if ends is None or len(held) < 2 or held[0][0] != 0:
        return None
    (_, base), (step, now) = held[0], held[-1]
    if ends[1] > (1 - FALLEN) * ends[0] or now < base:
        return None
    return Finding(
        "does_not_carry_over",
        "warn",
        f"The training loss fell from {ends[0]:.2f} to {ends[1]:.2f}, but the held-out loss is {now:.3f} at step {step} "
        f"and was {base:.3f} with the base alone.",
        "What is learned from these rows does not help with others. That happens when answers do not belong to their "
        "prompts (a shifted column, shuffled rows), when rows have nothing in common, or at too high a learning rate; "
        "the curves alone do not tell which.",
        "Understanding deep learning requires rethinking generalization (1611.03530): shuffled labels are learned by heart",
        "Read some rows under 'What it will learn from', and see that each answer belongs to its prompt.",
    )


def overfit(seen: Seen) -> Finding | None:
    """A held-out loss that rises again, or is far above the training loss."""
    held, ends = seen.history.held_out(), seen.history.training_ends()
    if len(held) < 2 or does_not_carry_over(seen):
        return None
    best_step, best = min(held, key=lambda point: point[1])
    step, now = held[-1]
    if best_step > 0 and now > (1 + RISEN) * best:
        return Finding(
            "overfit",
            "warn",
            f"The held-out loss was {best:.3f} at step {best_step} and is {now:.3f} at step {step}.",
            "From that lowest point on, the adapter memorizes its rows and gets worse at others.",
            UNSLOTH_GUIDE,
            f"Train until about step {best_step}.",
            {"max_steps": best_step},
        )
    if ends and seen.history.epochs_done() > 1 and now - ends[1] > WIDE_GAP and now > 2 * ends[1]:
        return Finding(
            "overfit",
            "note",
            f"The training loss is {ends[1]:.2f}, the held-out loss {now:.2f}, after {seen.history.epochs_done():.1f} epochs.",
            "Such a wide gap means that rows are memorized; while the held-out loss still falls, it does no harm.",
            UNSLOTH_GUIDE,
            "Stop when the held-out loss stops falling; more data helps more than more epochs.",
        )
    return None


def hardly_learns(seen: Seen) -> Finding | None:
    """Neither loss has moved, though half of the run is over."""
    ends, held, steps = seen.history.training_ends(), seen.history.held_out(), seen.optimizer_steps()
    if ends is None or steps is None or len(held) < 2 or held[-1][0] < steps / 2:
        return None
    moved = abs(held[-1][1] - held[0][1]) / max(held[0][1], 1e-9)
    if moved > HARDLY or ends[1] < (1 - FALLEN) * ends[0]:
        return None
    rate = seen.config.learning_rate
    return Finding(
        "hardly_learns",
        "note",
        f"After step {held[-1][0]} of {steps} the held-out loss is {held[-1][1]:.3f} and was "
        f"{held[0][1]:.3f}; the training loss went from {ends[0]:.2f} to {ends[1]:.2f}.",
        "Either the base can do the task already, or the steps are too small or too few.",
        UNSLOTH_GUIDE,
        "Train at a higher learning rate, or longer.",
        {"learning_rate": USUAL_RATE} if rate < USUAL_RATE else {},
    )


CHECKS: tuple[Check, ...] = (
    not_a_number,
    no_gradient,
    loss_spikes,
    does_not_carry_over,
    overfit,
    hardly_learns,
    half_precision,
    near_overflow,
)
