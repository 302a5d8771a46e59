"""Events in words: the same line in the log, on a terminal and on the page."""

from qlora_gui.runs.events import Event


def describe(event: Event) -> str:
    """One line for one event; empty for those that need none."""
    kind = event["kind"]
    if kind == "stage":
        return str(event["text"])
    if kind == "data":
        return (
            f"Data: {event['used']} rows to learn from, {event['held_out']} held out, {event['truncated']} truncated, "
            f"{event['dropped']} dropped"
            + "".join(f"\n  row {row['row']} dropped: {row['reason']}" for row in event["dropped_rows"])
        )
    if kind == "base":
        return (
            f"Base {event['name']} on {event['device']} in {event['dtype']}: {event['trained']:,} parameters to train"
        )
    if kind == "step":
        return (
            f"step {event['step']}/{event['max_steps']}  loss {event['loss']:.4f}  lr {event['learning_rate']:.2e}  "
            f"grad {event['grad_norm'] or 0:.2f}  {event['tokens_per_second']:.0f} tok/s  "
            f"{event['memory'] / 2**30:.1f} GB  {clock(event['eta'])} left"
        )
    if kind == "eval":
        base = " (the base)" if event["step"] == 0 else ""
        return f"step {event['step']}: held-out loss {event['loss']:.4f}{base}"
    return ""


def clock(seconds: float) -> str:
    """90 -> '1:30'."""
    whole = round(seconds)
    return (
        f"{whole // 60}:{whole % 60:02d}"
        if whole < 3600
        else f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    )
