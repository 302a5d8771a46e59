"""A GGUF file of a model, written tensor by tensor from the base's files and an adapter; or of an adapter alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import AutoConfig

from qlora_gui.errors import UserError
from qlora_gui.export import merge
from qlora_gui.export.gguf import architectures, vocabulary
from qlora_gui.export.gguf.architectures import Config
from qlora_gui.export.weights import Planned
from qlora_gui.inference.adapter_file import Adapter

Kind = Literal["f16", "bf16", "q8_0"]
_TYPES = {
    "f16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# What some files have before the names that llama.cpp's table knows, and what it has there.
_PREFIXES = {"": "", "transformer.": "", "language_model.": "", "model.language_model.": "model."}
_NOT_TEXT = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "visual.",
)
_SUFFIXES = (".weight", ".bias")


def config_of(folder: Path) -> Config:
    """A base's config with every default of its type in it, the text part alone."""
    whole = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    return {**whole.to_dict(), **whole.get_text_config().to_dict(), "model_type": whole.model_type}


def check(folder: Path, tokenizer: Path) -> None:
    """Raise UserError for a base whose architecture or tokenizer GGUF has no name for: before anything is computed."""
    config = config_of(folder)
    architectures.of(config)
    vocabulary.read(tokenizer, int(config["vocab_size"]))


def write_model(
    out: Path,
    base: Path,
    tokenizer: Path,
    tensors: Sequence[Planned],
    kind: Kind,
    ends: Sequence[int],
    about: Mapping[str, str],
    wrote: Callable[[int], None],
) -> None:
    """Write a whole model. `tensors` are the merged weights in fp32 by their names in `base`, of which one is in memory at a time.

    `tokenizer` is the folder whose tokenizer and template go in, `about` a name and the base's. Raises UserError and OSError.
    """
    config = config_of(base)
    architecture = architectures.of(config)
    names = gguf.get_tensor_name_map(architecture.arch, architectures.blocks(config))
    planned = [(tensor, name) for tensor in tensors if (name := _name(names, tensor.name))]
    planned = _without_second_head(planned, architecture.arch, config, "lm_head" in about.get("loras", ""))
    size = next(tensor.shape[0] for tensor, name in planned if name == "token_embd.weight")
    writer = GGUFWriter(out, gguf.MODEL_ARCH_NAMES[architecture.arch])
    writer.add_type("model")
    writer.add_name(about["name"])
    if base_name := about.get("base"):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base_name)
    architecture.numbers(writer, config)
    writer.add_file_type(_TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.write(writer, vocabulary.read(tokenizer, size), tokenizer, ends)
    extra = architecture.extra(config)
    types = [_type(tensor, kind) for tensor, _ in planned]
    for (tensor, name), how in zip(planned, types, strict=True):
        _announce(writer, name, tensor.shape, how)
    for name, values in extra.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    _open(writer)
    try:
        for (tensor, _), how in zip(planned, types, strict=True):
            values = architecture.changed(tensor.name, tensor.make().float(), config)
            if how == GGMLQuantizationType.F16:
                merge.fitting(values, torch.float16, tensor.name)  # else it would be infinite
            writer.write_tensor_data(gguf.quants.quantize(values.contiguous().numpy(), how))
            wrote(tensor.bytes)
        for values in extra.values():
            writer.write_tensor_data(values)
    finally:
        writer.close()


def write_adapter(out: Path, base: Path, adapter: Adapter, about: Mapping[str, str]) -> None:
    """Write the LoRA pairs alone, as llama.cpp's --lora and Ollama's ADAPTER take them, in fp32.

    Raises UserError for what such a file cannot hold: trained biases, LoRA on bare parameters or on a tied head.
    """
    if adapter.biases:
        raise UserError(
            f"A LoRA file cannot hold the {len(adapter.biases)} biases that '{adapter.name}' trained: merge it (--to gguf)."
        )
    if adapter.beyond:
        raise UserError(f"A LoRA file cannot hold '{adapter.name}', as {adapter.beyond.reason}: merge it (--to gguf).")
    config = config_of(base)
    architecture = architectures.of(config)
    if "lm_head" in adapter.loras and config.get("tie_word_embeddings"):
        raise UserError(
            "A LoRA file cannot hold LoRA on a head that shares the embedding's weights: merge it (--to merged)."
        )
    names = gguf.get_tensor_name_map(architecture.arch, architectures.blocks(config))
    writer = GGUFWriter(out, gguf.MODEL_ARCH_NAMES[architecture.arch])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(about["name"])
    # llama.cpp multiplies by alpha / rank, of the file's one alpha and each pair's own rank: whatever else scales is in B
    writer.add_float32("adapter.lora.alpha", 1.0)
    for module, lora in sorted(adapter.loras.items()):
        name = _name(names, f"{module}.weight")
        if name is None:
            raise UserError(f"llama.cpp has no tensor for '{module}', which has LoRA: merge the adapter (--to merged).")
        rank = lora.a.shape[0]
        b = architecture.changed(f"{module}.weight", lora.b * (lora.scaling * rank), config)
        writer.add_tensor(f"{name}.lora_a", lora.a.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compared(file: Path, base: Path, adapter: Adapter) -> str:
    """A LoRA file read back: whether every product scaling B A is the adapter's, in a sentence. Raises UserError where one is not."""
    config = config_of(base)
    architecture = architectures.of(config)
    names = gguf.get_tensor_name_map(architecture.arch, architectures.blocks(config))
    stored = {part.name: part for part in gguf.GGUFReader(file).tensors}
    for module, lora in adapter.loras.items():
        name = _name(names, f"{module}.weight")
        a, b = stored[f"{name}.lora_a"].data, stored[f"{name}.lora_b"].data
        rank = lora.a.shape[0]
        want = architecture.changed(f"{module}.weight", lora.b, config).numpy() * lora.scaling
        if not (np.array_equal(a, lora.a.numpy()) and np.allclose(b / rank, want, rtol=1e-6)):
            raise UserError(
                f"The LoRA file does not hold what the adapter has for '{module}': report this, it is a bug."
            )
    return f"The file was read back: all {len(adapter.loras)} LoRA pairs are the adapter's."


def _open(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _name(names: Any, name: str) -> str | None:
    """The name of a tensor in the file; None for what a text model does not have. Raises UserError for one that is unknown."""
    if name.startswith(_NOT_TEXT) or name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
        return None
    for prefix, known in _PREFIXES.items():
        if name.startswith(prefix):
            plain = known + name.removeprefix(prefix)
            if found := names.get_name(plain, try_suffixes=_SUFFIXES):
                return str(found)
    raise UserError(f"llama.cpp has no tensor for '{name}': merge the model (--to merged) instead.")


def _without_second_head(
    planned: Sequence[tuple[Planned, str]], arch: gguf.MODEL_ARCH, config: Config, trained: bool
) -> list[tuple[Planned, str]]:
    """What is written of these: llama.cpp's Gemma 2 has one tensor for embedding and head. Raises UserError for a head of its own."""
    if arch != gguf.MODEL_ARCH.GEMMA2:
        return list(planned)
    if trained or not config.get("tie_word_embeddings", True):
        raise UserError(
            "llama.cpp's Gemma 2 has no head of its own, and the adapter trained it: merge it (--to merged)."
        )
    return [(tensor, name) for tensor, name in planned if name != "output.weight"]


def _type(tensor: Planned, kind: Kind) -> GGMLQuantizationType:
    """Vectors stay in fp32, and so does what does not divide into blocks."""
    if len(tensor.shape) < 2:
        return GGMLQuantizationType.F32
    if kind == "q8_0" and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0][0]:
        return GGMLQuantizationType.F16
    return _TYPES[kind][0]


def _announce(writer: GGUFWriter, name: str, shape: Sequence[int], how: GGMLQuantizationType) -> None:
    block, size = gguf.GGML_QUANT_SIZES[how]
    count = int(np.prod(shape))
    if how in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        dtype = np.dtype(np.float32 if how == GGMLQuantizationType.F32 else np.float16)
        writer.add_tensor_info(name, shape, dtype, count // block * size)
    else:  # as bytes: rows of blocks
        rows = (*shape[:-1], shape[-1] // block * size)
        writer.add_tensor_info(name, rows, np.dtype(np.uint8), count // block * size, raw_dtype=how)
