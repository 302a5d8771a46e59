"""Tokens a second in training with Unsloth, on the same shape, rows and settings as the part `speed`; if it is installed.

Unsloth changes transformers as soon as it is imported, so it has a process of its own. It loads a folder: the base's
random weights are written in 16 bits and quantized by its own loader. BLOOM it does not know.
"""

import statistics
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

ROWS, LENGTH = 4, 1024


def run(dry: bool) -> Iterator[dict[str, Any]]:
    """One line: the median of the steps after the first two."""
    name = "meta-llama/Llama-3.2-1B"
    line = {"base": name, "rows": ROWS, "length": LENGTH, "way": "unsloth", "repeat": 0}
    if find_spec("unsloth") is None:
        yield line | {"skipped": "unsloth is not installed"}
        return
    import unsloth  # before transformers, as it asks  # noqa: I001
    from gpu_parts import bases, steps
    from qlora_gui.models import device as devices
    from qlora_gui.config import make
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = bases.shape_of(name, dry)
    config = make(
        {"base_model": name, "batch_size": ROWS, "max_length": LENGTH, "dropout": 0, "gradient_accumulation": 1}
    )
    config = config.model_copy(update={"gradient_checkpointing": "all"})
    dtype = devices.compute_dtype(steps.device())
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw), dtype=dtype).save_pretrained(folder)
        bases.tokenizer(raw["vocab_size"]).save_pretrained(folder)
        steps.clear()
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            folder, max_seq_length=LENGTH, dtype=dtype, load_in_4bit=True, local_files_only=True
        )
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=config.rank,
            lora_alpha=int(config.alpha),
            lora_dropout=0,
            bias="none",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing="unsloth",
        )
        batch = steps.made_up(ROWS, LENGTH, raw["vocab_size"], supervised=0.5, padded=False)
        found = steps.take(model.train(), config, batch, 3 if dry else 6, autocast=True)
    rate = ROWS * LENGTH / statistics.median(found["seconds"][2:])
    yield line | found | {"checkpointing": "unsloth", "tokens_per_second": rate}
