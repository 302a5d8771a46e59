"""Held-out loss of any adapter by one yardstick: `python heldout.py JOB.json`, which lists the adapters.

Plain PEFT on the NF4 base computing in fp32, so that no tool is measured in its own number format. Prints a JSON
object: adapter folder -> mean loss over all assistant tokens; the key "base" is the base without an adapter.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


@torch.no_grad()
def loss_of(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """One row at a time, without padding; each labelled token weighs the same."""
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"][1:])
        total += float(cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        job["base"], quantization_config=quantization, dtype=torch.float32, device_map={"": "cpu"}
    ).eval()
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # otherwise an eval-mode forward repacks the weights
    found = {"base": loss_of(base, job["rows"])}
    model = None
    for number, folder in enumerate(job["adapters"]):
        if model is None:
            model = PeftModel.from_pretrained(base, folder, adapter_name="ad0").eval()
        else:
            model.load_adapter(folder, f"ad{number}")
            model.set_adapter(f"ad{number}")
        found[folder] = loss_of(model, job["rows"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
