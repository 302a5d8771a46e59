"""A model that is no adapter on the base: what was merged, or any model in a folder of its own, in 16 bits or more."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from gguf import GGUFReader
from transformers import AutoConfig, GenerationConfig, GgufConfig

from qlora_gui.data.chat import Chat
from qlora_gui.errors import UserError
from qlora_gui.inference import model_probe
from qlora_gui.inference.clean_base import CleanBase
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import attention, chats, supported, text_part
from qlora_gui.models import base as bases
from qlora_gui.models import device as devices

_SPARE = 1.2  # times the weights, for loading and answering
Say = Callable[[str], None]


class WholeModel:
    """A column that is a model of its own. `model` is None until it is first asked, and while the base has its memory.

    The constructor raises UserError for a folder that holds no model that can be loaded.
    """

    def __init__(self, folder: Path):
        supported.check(folder)
        self.folder, self.name = folder, folder.name
        self.model: CleanBase | None = None
        self.tokenizer = bases.load_tokenizer(folder)
        self.takes_turns = False

    @property
    def bytes(self) -> int:
        """The memory that it takes in 16 bits."""
        return int(_SPARE * 2 * _numbers(self.folder, None))

    def fits(self) -> bool:
        """Whether there is memory for it beside what is loaded now."""
        return devices.free_memory(devices.pick()) >= self.bytes

    def load(self, say: Say) -> CleanBase:
        """The model, loaded where it is not yet. Raises UserError where it fits nowhere."""
        if self.model is None:
            self.model = load(self.folder, self.tokenizer, f"The model '{self.name}'", say)
        return self.model

    def leave(self) -> None:
        """Give its memory back."""
        self.model = None
        gc.collect()
        devices.release()

    def chat(self, decoding: Decoding) -> Chat:
        """Its own chat template, with the thinking that is asked for, else as it was trained."""
        trained = chats.thinking_beside(self.folder)
        thinking = {"on": True, "off": False}.get(decoding.thinking, trained)
        ends = chats.base_ends(str(self.folder))
        template = chats.template_beside(self.folder) or self.tokenizer.chat_template
        return Chat(
            self.tokenizer, template, thinking, ends, decoding.control_tokens, f"The chat template of '{self.name}'"
        )

    def proof(self) -> dict[str, Any]:
        """What the column is."""
        return {
            "name": self.name,
            "adapter": str(self.folder),
            "weights": "a whole model of its own, in 16 bits or more, and not an adapter on the base",
            **({"memory": "takes turns with the base, as both do not fit"} if self.takes_turns else {}),
        }


def _numbers(folder: Path, gguf: Path | None) -> int:
    """How many numbers a model's weights are."""
    if gguf:
        return sum(int(part.n_elements) for part in GGUFReader(gguf).tensors)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2


def load(folder: Path, tokenizer: Any, what: str, say: Say, gguf: tuple[Path, Path] | None = None) -> CleanBase:
    """The model in a merged folder; or in a GGUF file, as (file, folder of the base), read by transformers with code of its own.

    Of a GGUF file the weights are read, and the base's config beside them: transformers' reader leaves out scaling of
    positions. In 16 bits on a GPU that it fits into; on the CPU in fp32 if that fits, else as it is stored. Raises UserError
    where it fits nowhere.
    """
    numbers = _numbers(folder, gguf[0] if gguf else None)
    device = devices.pick()
    if device.type != "cpu" and devices.free_memory(device) < _SPARE * 2 * numbers:
        device = torch.device("cpu")
    free = psutil.virtual_memory().available
    copies = 2.2 if gguf else 1.2  # a GGUF file is unpacked into memory before the model takes it
    if (gguf or device.type == "cpu") and free < copies * 2 * numbers:
        raise UserError(f"{what} does not fit into this machine's memory in 16 bits.")
    config = AutoConfig.from_pretrained(str(gguf[1] if gguf else folder), trust_remote_code=False)
    stored = config.dtype if config.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    dtype = torch.float32 if device.type == "cpu" and free > copies * 4 * numbers else stored
    say(f"Loading {what[0].lower()}{what[1:]}")
    auto = text_part.auto_class(config)
    named: dict[str, Any] = {}
    if gguf:
        named = {"gguf_file": gguf[0].name, "quantization_config": GgufConfig(dequantize=True)}
        config = config.get_text_config()
        config.quantization_config = None
        if any(part.name == "output.weight" for part in GGUFReader(gguf[0]).tensors):  # a head that the adapter trained
            config.tie_word_embeddings = False
    model = bases.settled(
        auto.from_pretrained(str(folder), config=config, dtype=dtype, device_map={"": device}, **named)
    )
    if device.type != "cpu":  # as in Compare
        attention.install(model, "auto")
    model.generation_config = GenerationConfig()
    located = bases.Base(folder.name, str(folder), None, "")
    computed_in = f"{str(dtype).removeprefix('torch.')} on {device.type}"
    quantization: Any = None
    reading = model_probe.ask(model)
    return CleanBase(located, model, tokenizer, frozenset(), {"computed_in": computed_in}, quantization, reading)
