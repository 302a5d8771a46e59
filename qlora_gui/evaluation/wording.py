"""An evaluation in words: the same figures under the same names on a terminal, in the page and in a report."""

from typing import Any

# What is counted in answers: key, name, and how its value is written.
TEXTS = (
    ("ended_by_eos", "answers that end by themselves", ".0%"),
    ("ended_by_length", "answers cut at the length limit", ".0%"),
    ("empty", "empty answers", ".0%"),
    ("tokens", "length, tokens", ".1f"),
    ("rep4", "repetition (rep-4)", ".3f"),
    ("distinct2", "distinct-2", ".3f"),
    ("compression", "compression ratio", ".2f"),
    ("copied", "copied from the training answers", ".1%"),
    ("chrf", "chrF against the references", ".1f"),
    ("rouge_l", "ROUGE-L", ".3f"),
    ("exact", "exact matches", ".0%"),
    ("json_valid", "valid JSON where the reference is", ".0%"),
)


def lines(found: dict[str, Any]) -> list[str]:
    """An evaluation in words: the verdict, then its figures, base against adapter."""
    told = [f"{found['adapter']['name']}: {found['verdict']['text']}"]
    told += [f"  {name:44} {base:>10} {adapter:>10}" for name, base, adapter in (("", "base", "adapter"), *rows(found))]
    drift = found["drift"]
    told.append(
        f"  drift from the base: KL {drift['kl']:.3f} nats a token; {drift['same']:.0%} of the answers are the same"
    )
    return told


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, base, adapter) of every figure of an evaluation that was measured."""
    loss, texts = found["loss"], found["texts"]
    values = [("held-out loss, nats a token", loss["base"], loss["adapter"], ".3f")]
    if found.get("dependence"):
        told = found["dependence"]
        values.append(("what the prompt says of the answer, nats", told["base"], told["adapter"], ".3f"))
    if found["eos"]:
        values.append(("P(end mark) where the reference ends", found["eos"]["base"], found["eos"]["adapter"], ".2f"))
    if found["general"]:
        values.append(("loss on general text", found["general"]["base"], found["general"]["adapter"], ".3f"))
    for key, name, style in TEXTS if texts else ():
        sides = texts["base"].get(key), texts["adapter"].get(key)
        if None not in sides:
            values.append((name, *sides, style))
    return [(name, format(base, style), format(adapter, style)) for name, base, adapter, style in values]
