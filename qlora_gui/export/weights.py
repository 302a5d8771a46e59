"""A base's weights on disk: listed without reading them, read one at a time, and written as shards the same way."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from qlora_gui import plain_files
from qlora_gui.errors import UserError

SHARD_BYTES = 5_000_000_000  # as large as a file may get
_INDEX = "model.safetensors.index.json"
_ALIGNED = 8  # bytes: where the tensors of a file begin, as its format asks
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """One tensor of a base: its name in `file`, its format and shape."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """Its values, on the CPU."""
        with safe_open(str(self.file), framework="pt") as file:
            return file.get_tensor(self.name)


def listed(folder: Path) -> dict[str, Stored]:
    """Every tensor of a base by its name on disk, in the order of its files. Raises UserError for files that are damaged."""
    found: dict[str, Stored] = {}
    for path in _files(folder):
        try:
            with safe_open(str(path), framework="pt") as file:
                names = file.keys()
                for name in names:
                    part = file.get_slice(name)
                    found[name] = Stored(path, name, _DTYPES[part.get_dtype()], tuple(part.get_shape()))
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"The weights '{path}' cannot be read ({error}): take a whole copy of the base.") from None
    return found


def _files(folder: Path) -> list[Path]:
    """The files that transformers would load, as `models.base` has checked them."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = json.loads(plain_files.read_text(folder / _INDEX, follow=True))
    return [folder / name for name in dict.fromkeys(index["weight_map"].values())]


@dataclass(frozen=True)
class Place:
    """Where a weight of the model comes from: the tensors on disk, `converted` if more was done to them than to rename them."""

    stored: tuple[str, ...]
    converted: bool


def places(model: Any, names: Sequence[str]) -> dict[str, Place]:
    """By the name of a model's parameter, where transformers takes it from; `names` are those on disk.

    As transformers' own loader renames them (`convert_and_load_state_dict_in_model`), which has rules for hundreds of
    architectures; `model` may be on the meta device.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    known, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Place] = {}
    for name in names:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in known and name in known:
            renamed, pattern = rename_source_key(name, [], [], prefix, known)
        if renamed in known:
            before = found.get(renamed, Place((), False))
            found[renamed] = Place(
                (*before.stored, name), before.converted or pattern is not None or bool(before.stored)
            )
    return found


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its name, format and shape, and what makes its values when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write(
    folder: Path, tensors: Sequence[Planned], wrote: Callable[[int], None], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as safetensors, in files of at most `shard_bytes` (one tensor may be larger), with an index where they are several.

    Only one tensor is in memory at a time; `wrote` gets its bytes. Raises OSError.
    """
    shards: list[list[Planned]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    of = len(shards)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if of == 1 else f"model-{number:05}-of-{of:05}.safetensors"
        _write_file(folder / name, shard, wrote)
        index |= dict.fromkeys((tensor.name for tensor in shard), name)
    if of > 1:
        total = sum(tensor.bytes for tensor in tensors)
        body = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / _INDEX).write_text(body + "\n", encoding="utf-8")


def _write_file(path: Path, tensors: Sequence[Planned], wrote: Callable[[int], None]) -> None:
    """One file in the format of safetensors: the length of a header, the header, and the tensors one after the other.

    The library writes a file only from tensors that are all in memory (https://github.com/huggingface/safetensors#format).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = tensor.make().contiguous()
            assert values.dtype == tensor.dtype and tuple(values.shape) == tensor.shape, tensor.name
            file.write(values.reshape(-1).view(torch.uint8).numpy().data)
            wrote(tensor.bytes)


def in_pieces(rows: int, width: int, most: int = 64 << 20) -> Iterator[slice]:
    """Neighbouring rows whose values take at most so many bytes in fp32."""
    each = max(most // (4 * max(width, 1)), 1)
    for first in range(0, rows, each):
        yield slice(first, min(first + each, rows))
