"""Makes the small random models: a tokenizer with its chat template, a config, weights that matter, and rows to learn."""

import functools
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qlora_gui.data import load
from tests import tokenizers as real
from tests.matrix.specs import SPECS, WINDOW
from tests.matrix.templates import TEMPLATES

TRAINED, MEASURED = 4, 2  # rows of each length to train on, and to measure on
LONGER = 20  # tokens that a long row has beyond the window, at least
MAX_LENGTH = 224
LENGTHS = ("short", "long")
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Made:
    """A model on disk and its rows: `train` and `measured` conversations of two turns, of each length."""

    name: str
    path: Path
    ends: list[str]  # what may end an answer besides the tokenizer's EOS
    train: dict[str, list[Turns]]
    measured: list[Turns]  # short and long in turn

    def dataset(self, which: str) -> Path:
        """A folder with rows to train on (`short`, `long` or `mixed`) and the rows to measure on."""
        return self.path.with_name(f"{self.name}-{which}")

    def rows(self, which: str) -> list[Turns]:
        """What `dataset` trains on."""
        half = TRAINED // 2
        mixed = [*self.train["short"][:half], *self.train["long"][:half]]
        return mixed if which == "mixed" else self.train[which]


def build(name: str, root: Path) -> Made:
    """The model of a spec in `root`, made unless it is there."""
    folder = root / name
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _save(name, folder)
        (folder / "made").touch()
    template = SPECS[name].template
    made = _with_rows(name, folder, [] if template.startswith("@") else TEMPLATES[template].ends)
    for which in (*LENGTHS, "mixed"):
        made.dataset(which).mkdir(exist_ok=True)
        for file, rows in (("train", made.rows(which)), ("heldout", made.measured)):
            lines = [json.dumps({"messages": turns}) + "\n" for turns in rows]
            (made.dataset(which) / f"{file}.jsonl").write_text("".join(lines))
    return made


def _save(name: str, folder: Path) -> None:
    spec = SPECS[name]
    tokenizer = _tokenizer(spec.template, folder)
    torch.manual_seed(0)
    config, ends = _config(name, tokenizer)
    maker = getattr(transformers, spec.auto) if spec.auto else AutoModelForCausalLM.from_config
    model = maker(config)
    _randomize(model)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    model.generation_config = GenerationConfig(eos_token_id=ends, **ids)
    model.save_pretrained(folder)


@functools.cache
def _text() -> list[str]:
    return [turn["content"] for example in load.load("demo").train for turn in example["messages"]]


@functools.cache
def _bpe() -> str:
    """A byte-level BPE tokenizer of about 900 tokens, trained once for all models."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(_text(), trainer)
    return str(bpe.to_str())


def _tokenizer(template: str, folder: Path) -> Any:
    if template.startswith("@"):
        real.copy(template[1:], folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.pad_token is None:  # as the published bases add one
            tokenizer.pad_token = tokenizer.eos_token
            tokenizer.save_pretrained(folder)
        return tokenizer
    chosen = TEMPLATES[template]
    bpe = Tokenizer.from_str(_bpe())
    bpe.add_special_tokens(["<pad>", "<s>", *dict.fromkeys([*chosen.special, *chosen.ends])])
    own = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token=chosen.eos, pad_token="<pad>")
    own.chat_template = chosen.text
    own.save_pretrained(folder)
    return own


def _config(name: str, tokenizer: Any) -> tuple[Any, list[int]]:
    """A spec's config with the tokenizer's ids in it, and the ids that end an answer."""
    spec = SPECS[name]
    vocabulary = -(-(len(tokenizer) + 8) // 64) * 64
    further = [] if spec.template.startswith("@") else TEMPLATES[spec.template].ends
    ends = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in further)]
    eos = ends if len(ends) > 1 else ends[0]
    about = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_token_id}
    about["vocab_size"] = vocabulary

    def filled(values: dict[str, Any]) -> dict[str, Any]:
        return {key: vocabulary if value == "V" else value for key, value in values.items() if key != "_ids"}

    given = filled(spec.settings)
    if "text_config" not in given:
        return _config_class(spec.config)(**(given | about)), ends
    for number, key in enumerate(spec.settings.get("_ids", [])):  # of images and the like: no text has them
        given[key] = vocabulary - 1 - number
    given["text_config"] = filled(given["text_config"]) | about
    return _config_class(spec.config)(**given), ends


def _config_class(name: str) -> Any:
    found = getattr(transformers, name, None)
    return found or next(one for one in CONFIG_MAPPING.values() if one.__name__ == name)


@torch.no_grad()
def _randomize(model: Any) -> None:
    """Weights as large as trained ones are: with transformers' own, no layer would say much, and faults go unseen."""
    generator = torch.Generator().manual_seed(0)
    embedding = model.get_input_embeddings().weight

    def normal(like: torch.Tensor, deviation: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * deviation

    for name, part in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if leaf in ("A_log", "dt_bias", "D", "dt_proj") or "rg_lru" in name or "forget" in name:
            part.add_(normal(part, 0.05))
        elif "bias" in leaf and part.ndim <= 2:
            part.copy_(normal(part, 0.2))
        elif part.ndim == 1:
            part.add_(normal(part, 0.1))
        elif "embed" in name or part is embedding or leaf in ("wte", "wpe") or ("conv" in name and part.ndim == 3):
            part.copy_(normal(part, 0.5))
        else:
            transposed = type(model.get_submodule(owner)).__name__ == "Conv1D"
            part.copy_(normal(part, 1.6 / part.shape[0 if transposed else -1] ** 0.5))
    for name, part in model.named_buffers():
        if name.endswith("correction_bias"):
            part.copy_(normal(part, 0.1))


def _with_rows(name: str, folder: Path, ends: list[str]) -> Made:
    """Conversations that begin alike: the short ones fit into the window, the long ones do not."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words, dice = " ".join(_text()).split(), random.Random(5)

    def some(count: int) -> str:
        first = dice.randrange(len(words) - count)
        return " ".join(words[first : first + count])

    def turns(user: int, assistant: int) -> Turns:
        asked = {"role": "user", "content": "Answer this one: " + some(user)}
        return [asked, {"role": "assistant", "content": some(assistant)}]

    def size(row: Turns) -> int:
        """In tokens, without what the template adds."""
        return sum(len(tokenizer(turn["content"], add_special_tokens=False)["input_ids"]) for turn in row)

    def long() -> Turns:
        for count in range(10, 200, 2):
            row = turns(count, count - 2)
            if size(row) > WINDOW + LONGER:
                return row
        raise AssertionError("no row is long enough")

    many = TRAINED + MEASURED
    short = [turns(dice.randint(1, 3), dice.randint(1, 3)) for _ in range(many)]
    longer = [long() for _ in range(many)]
    measured = [row for pair in zip(short[TRAINED:], longer[TRAINED:], strict=True) for row in pair]
    return Made(name, folder, ends, {"short": short[:TRAINED], "long": longer[:TRAINED]}, measured)
