"""The adapter's files: PEFT's own, the tokenizer with its template, and a model card. Made aside, then moved in."""

import hashlib
import json
import shutil
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.data.chat import Chat
from qlora_gui.models import chats
from qlora_gui.models.base import Base
from qlora_gui.runs.event_text import loss_of
from qlora_gui.runs.events import Eval
from qlora_gui.runs.store import Run
from qlora_gui.system import files
from qlora_gui.training import distributed

_LAST = "adapter_config.json"  # its presence says that the adapter is whole


def save_adapter(run: Run, config: RunConfig, base: Base, model: Any, chat: Chat) -> dict[str, Any]:
    """Save everything into the run's folder; returns the weights' SHA-256 and size for the `saved` event.

    Of several processes rank 0 does it; {} for the others.
    """
    if distributed.rank():
        return {}
    aside = run.path / ".saving"
    shutil.rmtree(aside, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = base.path if base.revision is None else base.name
    model.peft_config["default"].revision = base.revision
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}  # not all biases are
    model.save_pretrained(str(aside), state_dict=trained, save_embedding_layers=False)
    chat.tokenizer.save_pretrained(str(aside))
    if settings := chats.settings_of(chat):
        (aside / chats.SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    (aside / "README.md").write_text(model_card(run, config, base), encoding="utf-8")
    weights = aside / "adapter_model.safetensors"
    saved = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "bytes": weights.stat().st_size}
    for file in sorted(aside.iterdir(), key=lambda path: path.name == _LAST):
        files.replace(file, run.path / file.name)
    shutil.rmtree(aside)
    return saved


def model_card(run: Run, config: RunConfig, base: Base) -> str:
    """The card, in the hub's format: YAML header, then Markdown. Losses come from the run's events."""
    evals = run.history().all(Eval)
    rows = "\n".join(f"| {event.step} | {loss_of(event)} |" for event in evals)
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
