"""Checks of an evaluated adapter: its tensors, and whether it answers on the base and template it was trained with."""

from qlora_gui.diagnostics.evidence import Seen
from qlora_gui.diagnostics.finding import PEFT_TROUBLES, UNSLOTH_TROUBLES, Check, Finding, number
from qlora_gui.diagnostics.settings import USUAL_RATE
from qlora_gui.runs.events import Base

NO_DRIFT = 1e-3  # nats per token
NO_UPDATE = 1e-4  # of the weights' norm


def did_nothing(seen: Seen) -> Finding | None:
    """An adapter that is as good as none."""
    of_file, drift = seen.part("adapter_facts"), seen.part("drift").get("kl")
    if not of_file:
        return None
    zero = of_file["b_zero_share"] == 1 and not of_file["trained_biases"]
    size = of_file["delta_ratio"]  # None where it is not known
    tiny = size is not None and size < NO_UPDATE and not of_file["trained_biases"]
    same = drift is not None and drift < NO_DRIFT
    if not (zero or same or (tiny and drift is None)):
        return None
    evidence = "The update's size is not known, as it is not plain LoRA"
    if size is not None:
        evidence = f"The update is {number(size)} of the weights' norm (median over linears)"
    evidence += ", every LoRA B is zero" if of_file["b_zero_share"] == 1 else ""
    evidence += f", and answers drift {drift:.4f} nats per token from the base's." if drift is not None else "."
    slow = seen.config.learning_rate < USUAL_RATE
    return Finding(
        "did_nothing",
        "bad" if zero else "warn",
        evidence,
        "LoRA starts at zero: an adapter that has not moved answers just like its base.",
        PEFT_TROUBLES,
        f"Train longer, or at a learning rate of {number(USUAL_RATE)}." if slow else "Train longer, and see the log.",
        {"learning_rate": USUAL_RATE} if slow else {},
    )


def biases_lost(seen: Seen) -> Finding | None:
    """A file of an old PEFT, without the biases that were trained."""
    if not seen.part("adapter_facts").get("lora_only_lost"):
        return None
    return Finding(
        "biases_lost",
        "bad",
        "The adapter was trained with lora_only biases, its base has biases, and its file holds none.",
        "The LoRA weights were trained to work together with biases that are gone: this is not the adapter that was "
        "trained, and it cannot be recovered.",
        "Run with peft 0.19.1 and 0.20.0, which drop them; fixed in 0.21.0",
        "Train again with this program, or without biases.",
        {"bias": "none"},
    )


def embeddings_in_file(seen: Seen) -> Finding | None:
    """Embeddings that are saved with the adapter."""
    if not seen.part("adapter_facts").get("embeddings_in_file"):
        return None
    return Finding(
        "embeddings_in_file",
        "warn",
        "The adapter's file holds tensors of the embeddings.",
        "They change every token's meaning for whoever loads the adapter, and make the file large; saved for a "
        "vocabulary that was resized, they fit no other base.",
        PEFT_TROUBLES,
        "Save without embeddings (save_embedding_layers=False) unless tokens were added.",
    )


def different_base(seen: Seen) -> Finding | None:
    """A base that is not quite the one it was trained on."""
    of_file = seen.part("adapter_facts")
    parts = {
        "revision": of_file.get("revision_differs"),
        "quantization": of_file.get("quantization_differs"),
        "vocabulary": of_file.get("vocab_differs"),
    }
    differs = [name for name, set_so in parts.items() if set_so]
    if not differs:
        return None
    trained, here = seen.history.latest(Base), seen.part("base")
    values = []
    if "revision" in differs and trained and trained.revision:
        values.append(f"revision {trained.revision} then, {here.get('revision') or 'unknown'} now")
    if "quantization" in differs:
        in_4_bits = trained if trained and trained.quant_type is not None else seen.config
        kind, double = in_4_bits.quant_type, in_4_bits.double_quant
        then = f"{kind} {'with' if double else 'without'} double quantization"
        values.append(f"{then} then, {here.get('quantization') or 'another'} now")
    return Finding(
        "different_base",
        "warn",
        f"The base differs from the one used in training in {' and '.join(differs)}"
        + (f" ({'; '.join(values)})." if values else "."),
        "An adapter is a change to one set of weights; on top of others, the right change lands in the wrong place.",
        "PEFT's documentation of quantization and of loading adapters",
        "Answer with the base, revision and quantization of the training: run.json and the model card name them.",
    )


def template_differs(seen: Seen) -> Finding | None:
    """Another chat template at the chat than in training."""
    base, here = seen.history.latest(Base), seen.part("base").get("template")
    trained = base.template if base else None
    known = bool(trained and here)
    if not seen.part("adapter_facts").get("template_differs") and not (known and trained != here):
        return None
    named = f" ({trained} in training, {here} of the base)" if known else ""
    return Finding(
        "template_differs",
        "warn",
        f"The chat template used in training is not the one of the base's tokenizer{named}.",
        "Prompts formatted differently than in training are the most common reason for an adapter that answers "
        "badly. Compare and Evaluate use the adapter's own template; other programs may use the base's.",
        UNSLOTH_TROUBLES,
        "Load the tokenizer from the adapter's folder wherever the adapter is used.",
    )


CHECKS: tuple[Check, ...] = (did_nothing, biases_lost, template_differs, different_base, embeddings_in_file)
