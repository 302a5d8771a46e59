"""What lies beside merged weights: config, the tokens that end an answer, tokenizer with its template, and a card."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_gui.data.chat import Chat
from qlora_gui.files import json_object
from qlora_gui.models import base as bases
from qlora_gui.models import chats

# Of a base's folder nothing else is taken along: weights, their index, and what could run code stay.
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")
_NOT_COPIED = ("model.safetensors.index.json", "adapter_config.json", "source.json")


@dataclass(frozen=True)
class Origin:
    """What a merged model is made of, as its card names it. `adapter` and `base` are names, `data` a sentence or "".

    `source` says where an adapter is from that was trained elsewhere, "" of one of this program.
    """

    adapter: str
    sha256: str
    base: str
    revision: str | None
    fingerprint: str
    onto: str
    dtype: str
    data: str = ""
    source: str = ""


def fill(folder: Path, base: bases.Base, chat: Chat, dtype: str, untied: bool) -> None:
    """Everything but weights and card, into `folder`. Raises OSError."""
    source = Path(base.path)
    saved = json_object(folder / "config.json")  # by PEFT's merge: of the class that it loaded
    for pattern in _COPIED:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
    config = saved or json_object(source / "config.json")
    config.pop("quantization_config", None)
    for values in (config, *(part for part in config.values() if isinstance(part, dict))):
        for name in ("torch_dtype", "dtype"):
            if name in values:
                values[name] = dtype
    config["dtype"] = dtype
    for part in (config, config.get("text_config")) if untied else ():
        if isinstance(part, dict):
            part["tie_word_embeddings"] = False
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation(source, chat))
    for name in ("chat_template.json", "chat_template.jinja"):  # the base's own; the adapter's comes with its tokenizer
        (folder / name).unlink(missing_ok=True)
    chat.tokenizer.chat_template = chat.template
    chat.tokenizer.save_pretrained(str(folder))
    if settings := chats.settings_of(chat):
        _write_json(folder / chats.SETTINGS, settings)


def _generation(source: Path, chat: Chat) -> dict[str, Any]:
    """The base's generation_config.json, with every token that ends an answer."""
    settings = json_object(source / "generation_config.json")
    settings.pop("transformers_version", None)
    ends = sorted(chat.ends)
    settings["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    tokenizer = chat.tokenizer
    for name, value in (("bos_token_id", tokenizer.bos_token_id), ("pad_token_id", tokenizer.pad_token_id)):
        if value is not None:
            settings.setdefault(name, value)
    return settings


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def card(origin: Origin, losses: str, proof: str, gguf: str = "") -> str:
    """The model card: YAML header, then Markdown. `losses` and `proof` are Markdown; `gguf` is the file of a GGUF export."""
    named = f"base_model: {origin.base}\nbase_model_relation: finetune\n" if origin.revision else ""
    revision = f" (revision {origin.revision})" if origin.revision else ""
    onto = "the base's own weights" if origin.onto == "base" else "the 4-bit weights that were trained on, unpacked"
    data = f"\n{origin.data}\n" if origin.data else ""
    lora = gguf.endswith("-lora.gguf")
    made = "as a GGUF file of its own" if lora else f"merged into {onto}, in {origin.dtype}"
    trained = f"Trained elsewhere ({origin.source}), exported" if origin.source else "Trained with QLoRA and exported"
    library = "gguf" if gguf else "transformers"
    return f"""---
library_name: {library}
{named}tags: [qlora, lora{"" if lora else ", merged"}]
---
# {origin.adapter}

The base `{origin.base}`{revision}, fingerprint `{origin.fingerprint}`, with the LoRA adapter `{origin.adapter}`
(SHA-256 `{origin.sha256}`) {made}. {trained} by qlora_gui.
{data}
{_how_to_use(origin.adapter, gguf, lora)}

## The same model?

{proof}

## Training

{losses}
"""


def _how_to_use(name: str, gguf: str, lora: bool) -> str:
    if not gguf:
        return """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Use the chat template of this tokenizer: it is the one that was trained with."""
    plain = f"llama-cli -m base.gguf --lora {gguf} --jinja" if lora else f"llama-cli -m {gguf} --jinja"
    first = "Name the base's GGUF file in the first line of `Modelfile`, then:\n\n" if lora else ""
    return f"""{first}```bash
ollama create {name} -f Modelfile && ollama run {name}
{plain}
```"""
