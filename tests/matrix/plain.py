"""What is right: the same model in plain transformers and PEFT, with no line of the program."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from tests.matrix.build import Made, Turns

IGNORED = -100
STOP = "\n### User:"  # ends an answer under the program's plain template, for bases that bring none


@dataclass(frozen=True)
class Row:
    """A conversation as tokens; learned is the answer with its end mark, from token `begin` on."""

    context: str
    answer: str
    ids: list[int]
    begin: int

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.begin + self.ids[self.begin :]


class Reader:
    """Conversations -> rows, by the template alone. `template`: the program's own, for bases that bring none."""

    def __init__(self, made: Made, template: str | None):
        self.tokenizer = AutoTokenizer.from_pretrained(made.path)
        self.template = self.tokenizer.chat_template or template
        self.has_template = bool(self.tokenizer.chat_template)
        self.ends = [self.tokenizer.eos_token, *made.ends]
        self.end = ""  # that the program learns where the template writes none

    def prompt(self, turns: Turns) -> str:
        """What is asked: all but the answer, and the beginning of one, without thinking."""
        return str(self._render(turns[:-1] if turns[-1]["role"] == "assistant" else turns, add_generation_prompt=True))

    def row(self, turns: Turns) -> Row:
        context, whole, content = self.prompt(turns), self._render(turns), turns[-1]["content"]
        assert whole.startswith(context), f"{whole!r} does not begin with {context!r}"
        begins, content, after = whole[len(context) :].partition(content.strip())
        assert content, f"the answer is not in {whole!r}"
        marks = "|".join(re.escape(token) for token in self.tokenizer.all_special_tokens + self._added())
        found = re.match(rf"\s*({marks})", after)
        answer = begins + content + (found[0] if found else self.end)
        told = self.tokenizer(context + answer, add_special_tokens=False, return_offsets_mapping=True)
        places = [start for start, _ in told["offset_mapping"]]
        begin = next(number for number, start in enumerate(places) if start >= len(context))
        return Row(context, answer, told["input_ids"], begin)

    def _added(self) -> list[str]:
        return [str(token) for token in self.tokenizer.added_tokens_decoder.values()]

    def _render(self, turns: Turns, **more: Any) -> str:
        how = {"chat_template": self.template, "enable_thinking": False, "tokenize": False, **more}
        return str(self.tokenizer.apply_chat_template(turns, **how))

    def ids(self, turns: Turns) -> list[int]:
        """The tokens of `prompt`."""
        found: list[int] = self.tokenizer(self.prompt(turns), add_special_tokens=False)["input_ids"]
        return found


def load(path: Path) -> Any:
    """The model in 4 bits, computing in fp32."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    how = {"quantization_config": quantization, "dtype": torch.float32, "device_map": "cpu"}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), **how)
    except ValueError:  # an image model that transformers does not list among the causal ones
        model = AutoModelForImageTextToText.from_pretrained(str(path), **how)
    for part in model.modules():
        if isinstance(part, bnb.nn.Linear4bit):
            part.support_avx512bf16_for_cpu = False
            part.compute_dtype, part.compute_type_is_set = torch.float32, True
    return model.eval()


def with_adapter(path: Path, folder: Path, trainable: bool = False) -> Any:
    """The model with an adapter as PEFT loads it. Raises AssertionError where tensors are missing or left over."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load(path), str(folder), is_trainable=trainable)
    texts = [str(one.message) for one in said]
    lost = [text for text in texts if "missing" in text.lower() or "unexpected" in text.lower()]
    assert not lost, f"PEFT does not find all of the adapter: {lost[0][:300]}"
    return model


def trains(made: Made, row: Row) -> str:
    """Take one step of plain PEFT on all linears; gives what was built. What it raises, nobody can train."""
    model = load(made.path)
    told = type(model).__name__
    try:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    except ValueError as error:  # PEFT has no LoRA for some linear: the program may leave that out
        told += f", PEFT refuses all linears: {str(error).splitlines()[0][:120]}"
        for part in model.parameters():
            part.requires_grad_(part.is_floating_point() and part.ndim == 1)
    model.train()
    model(**padded([row], 0), use_cache=False).loss.backward()
    return told


def padded(rows: list[Row], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, each [rows, tokens], padded on the right."""
    longest = max(len(row.ids) for row in rows)

    def tensor(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([one + [filler] * (longest - len(one)) for one in values])

    return {
        "input_ids": tensor([row.ids for row in rows], pad),
        "attention_mask": tensor([[1] * len(row.ids) for row in rows], 0),
        "labels": tensor([row.labels for row in rows], IGNORED),
    }


def step(model: Any, rows: list[Row], pad: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss over all learned tokens, and the gradients by name."""
    model.train()
    model.zero_grad()
    loss = model(**padded(rows, pad), use_cache=False).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.eval()
    return float(loss), found


@torch.no_grad()
def loss_of(model: Any, row: Row) -> float:
    """The sum over a row's learned tokens, in nats, read alone."""
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
    return float(cross_entropy(logits[:-1], torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="sum"))


@torch.no_grad()
def answer(model: Any, reader: Reader, turns: Turns, tokens: int) -> str:
    """The greedy answer to one conversation, alone."""
    ids = torch.tensor([reader.ids(turns)])
    ends = [reader.tokenizer.convert_tokens_to_ids(token) for token in reader.ends]
    config = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=ends, pad_token_id=reader.tokenizer.pad_token_id
    )
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    written = [token for token in out[0, ids.shape[1] :].tolist() if token not in ends]
    text = str(reader.tokenizer.decode(written, skip_special_tokens=True))
    return text if reader.has_template else text.partition(STOP)[0]
