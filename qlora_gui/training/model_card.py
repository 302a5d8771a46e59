"""README.md of an adapter: what it is, what it was trained on, and what was measured."""

from qlora_gui.config import RunConfig
from qlora_gui.models.base import Base
from qlora_gui.runs.event_text import loss_of
from qlora_gui.runs.store import Run


def model_card(run: Run, config: RunConfig, base: Base) -> str:
    """The card, in the hub's format: YAML header, then Markdown. Losses come from the run's events."""
    evals = [event for event in run.events()[0] if event["kind"] == "eval"]
    rows = "\n".join(f"| {event['step']} | {loss_of(event)} |" for event in evals)
    measured = f"| step | held-out loss |\n|---|---|\n{rows}" if evals else "No rows were held out."
    knobs = "\n".join(f"| {name} | {value} |" for name, value in config.model_dump().items() if value not in ("", None))
    name = base.name if base.revision is not None else base.path
    header = f"base_model: {base.name}\n" if base.revision is not None else ""
    revision = f" (revision {base.revision})" if base.revision else ""
    return f"""---
library_name: peft
{header}tags: [qlora, lora]
---
# {run.id}

A LoRA adapter for `{name}`{revision}, base fingerprint `{base.fingerprint}`, trained with QLoRA by qlora_gui.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{name}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Use the chat template of this tokenizer: it is the one that was trained with.

## Measured

{measured}

Step 0 is the base.

## Settings

| setting | value |
|---|---|
{knobs}
"""
