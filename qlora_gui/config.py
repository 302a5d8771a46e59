"""RunConfig: every knob, declared once. Flag, form field, validation message and README table come from its line."""

import difflib
import json
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from qlora_gui import settings_yaml
from qlora_gui.errors import UserError
from qlora_gui.optimizers import DEFAULT, OPTIMIZERS
from qlora_gui.references import DEMO, NO_REVISION
from qlora_gui.system import files

Settings = TypeVar("Settings", bound=BaseModel)
FormatName = Literal[
    "auto", "alpaca", "messages", "sharegpt", "prompt-completion", "text"
]  # data/formats.py reads them
PRESETS = Path(__file__).parent / "presets"
GROUPS = ("What to train", "LoRA", "Quantization", "Schedule", "Optimizer", "Memory", "Several GPUs", "Logging")


Mark = Literal["path", "rows", "step", "cost", "wide", "hub", "single", "titled"]
_STEP_GROUPS = ("LoRA", "Quantization", "Optimizer", "Memory")


def knob(
    default: Any,
    help: str,
    group: str,
    rare: bool = True,
    marks: str = "",
    choices: Collection[str] = (),
    **bounds: Any,
) -> Any:
    """One line for one knob: its default, one line of help, its group in the form, its bounds, and what else is true of it.

    `choices` are the values of a knob that a table holds, one row each; other fixed values are in its annotation.

    `marks` are words: `path` (may name a file or folder: guests may not name all), `rows` (changes which rows there are
    or how they are encoded), `cost` (changes what a run costs, not what it learns; so does all of Logging), `no-step` (of
    LoRA, Quantization, Optimizer or Memory, but without influence on the memory of a simulated step), `wide` (a row of its own
    in the form), `hub` (the hub is asked about it), `single` (a sweep cannot vary it), `titled` (reports say it in words of
    their own).
    """
    extra: dict[str, Any] = {"group": group, "rare": rare, "marks": marks.split(), "choices": choices}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class RunConfig(BaseModel):
    """Every choice of a run, resolved. Immutable; unknown names are errors.

    Defaults: all linears and 2e-4 as in the QLoRA paper (2305.14314, section 4 and table 9); alpha twice the rank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)

    # fmt: off
    name: str = knob("", "Name of the run and of its folder. Leave empty for a made-up name.", "What to train", False, marks="single cost", max_length=64)
    base_model: str = knob("demo", "Base model: a hub id, a local folder, or demo.", "What to train", False, marks="path rows wide hub titled", min_length=1)
    revision: str = knob("", "Revision of a hub model: branch, tag or commit.", "What to train", marks="rows hub")
    dataset: str = knob("demo", "Data: a JSON, JSONL, CSV or Parquet file, a hub id, or demo.", "What to train", False, marks="path rows wide titled", min_length=1)
    dataset_format: FormatName = knob("auto", "How rows are read; auto recognizes the columns.", "What to train", marks="rows")
    dataset_split: str = knob("train", "Split of a hub data set.", "What to train", marks="rows", min_length=1)
    skip_bad_rows: bool = knob(False, "Skip rows that cannot be used instead of stopping; they are counted and listed.", "What to train", marks="rows")
    system_prompt: str = knob("", "System prompt put before every conversation that has none.", "What to train", marks="rows wide")
    chat_template: str = knob("", "Chat template: empty for the base's own; plain, chatml, the name of one of the base's, or a Jinja file.", "What to train", marks="path rows")
    thinking: Literal["auto", "on", "off"] = knob("auto", "Whether the model reasons before it answers, where its chat template has such a setting; auto is on if most answers carry reasoning.", "What to train", marks="rows")
    special_tokens: Literal["text", "control"] = knob("text", "How to read special tokens that appear in the data, such as </s>: as plain text, or as the token.", "What to train", marks="rows")
    max_length: int = knob(512, "Maximum sequence length in tokens; longer examples are truncated.", "What to train", marks="rows", ge=16, le=131_072)
    eval_fraction: float = knob(0.1, "Share of rows kept aside for measuring (0: none). Ignored if the data has its own.", "What to train", ge=0, le=0.5)

    rank: int = knob(16, "LoRA rank: how much the adapter can learn.", "LoRA", False, ge=1, le=1024)
    alpha: float = knob(32, "LoRA alpha: the update is scaled by alpha / rank.", "LoRA", False, gt=0, le=4096)
    dropout: float = knob(0.05, "Dropout on the LoRA input.", "LoRA", ge=0, lt=1)
    bias: Literal["none", "lora_only", "all"] = knob("none", "Biases to train as well.", "LoRA", False)
    target_modules: str | list[str] = knob("all-linear", "Linear layers that get LoRA: all-linear, or names separated by commas.", "LoRA", marks="wide")
    use_rslora: bool = knob(False, "Scale by alpha / sqrt(rank): for high ranks.", "LoRA")

    quant_type: Literal["nf4", "fp4"] = knob("nf4", "4-bit data type of the frozen base.", "Quantization")
    double_quant: bool = knob(True, "Quantize the quantization constants too.", "Quantization")

    epochs: float = knob(3, "Passes over the training data.", "Schedule", False, gt=0, le=1000)
    max_steps: int = knob(0, "Stop after this many optimizer steps; 0 = by epochs.", "Schedule", ge=0, le=10**9)
    learning_rate: float = knob(2e-4, "Peak learning rate.", "Schedule", False, gt=0, le=1)
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = knob("cosine", "Learning rate schedule.", "Schedule")
    warmup_ratio: float = knob(0.03, "Share of steps for learning rate warmup.", "Schedule", ge=0, lt=1)

    weight_decay: float = knob(0.0, "Weight decay of the optimizer.", "Optimizer", marks="no-step", ge=0, le=1)
    max_grad_norm: float = knob(0.3, "Gradients are clipped to this norm; 0 does not clip.", "Optimizer", ge=0, le=10**9)
    optimizer: str = knob(DEFAULT, "Optimizer, by its name in transformers.", "Optimizer", choices=OPTIMIZERS)
    seed: int = knob(42, "Seed of initialization, order and held-out split.", "Optimizer", marks="no-step", ge=0, lt=2**32)

    batch_size: int = knob(4, "Examples per forward pass (micro-batch).", "Memory", False, marks="no-step", ge=1, le=1024)
    gradient_accumulation: int = knob(4, "Micro-batches per optimizer step.", "Memory", False, ge=1, le=4096)
    gradient_checkpointing: Literal["auto", "none", "every-4", "every-3", "every-2", "all"] = knob("auto", "Layers whose activations are recomputed to save memory; auto takes the fewest that fit.", "Memory", marks="cost no-step")
    attention: Literal["auto", "sdpa", "eager"] = knob("auto", "How attention is computed; auto takes the faster one.", "Memory", marks="cost")
    auto_fit: bool = knob(True, "When a GPU run does not fit, halve the micro-batch, double accumulation, and go on.", "Memory", marks="cost no-step")
    packing: bool = knob(False, "Pack several examples into a row; they do not attend to each other.", "Memory")

    gpu: str = knob("", "GPU to train on: its number as listed by --headless-check, or its uuid. Empty: the one with the most free memory; cpu: the CPU.", "Several GPUs")
    num_processes: int = knob(1, "Number of GPUs to train on, one process each; launched by accelerate.", "Several GPUs", ge=1, le=1024)
    fsdp: bool = knob(False, "Split the 4-bit base across the GPUs (FSDP), for bases larger than one GPU.", "Several GPUs")
    accelerate_config: str = knob("", "File from accelerate config, e.g. for several machines. Empty: data parallel on this machine only.", "Several GPUs", marks="path")

    logging_steps: int = knob(5, "Log every N steps.", "Logging", ge=1, le=10**9)
    eval_steps: int = knob(50, "Evaluate every N steps.", "Logging", ge=1, le=10**9)
    probe_prompts: int = knob(3, "Held-out prompts answered at every evaluation, to see when answers get better or break.", "Logging", ge=0, le=20)
    probe_tokens: int = knob(48, "Length limit of these answers, in tokens.", "Logging", ge=1, le=512)
    save_steps: int = knob(50, "Save a checkpoint every N steps.", "Logging", ge=1, le=10**9)
    report_to: Literal["none", "tensorboard", "wandb", "mlflow"] = knob("none", "Also log to this tracker (must be installed).", "Logging")
    # fmt: on

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("use letters, digits, dots, dashes and underscores, beginning with a letter or digit")
        if value.endswith((".json", ".jsonl")):
            raise ValueError("a name must not end like a data file")
        if why := files.why_not_a_name(value):
            raise ValueError(f"{why}: choose another")
        return value

    @field_validator("revision")
    @classmethod
    def _revision(cls, value: str) -> str:
        if value and (not re.fullmatch(r"[\w][\w./-]*", value) or ".." in value):
            raise ValueError("use a branch, a tag or a commit")
        return value

    @field_validator("gpu", mode="before")
    @classmethod
    def _gpu(cls, value: Any) -> str:
        text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else "?"
        if text.lower() == "cpu":
            return "cpu"
        if not re.fullmatch(r"|\d{1,3}|(?i:(gpu-|mig-)?[0-9a-f][0-9a-f-]{7,60})", text):
            raise ValueError(
                "use the number of a GPU, its uuid (GPU-…), cpu, or nothing for the one with the most free memory"
            )
        return text

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _checkpointing(cls, value: Any) -> Any:
        return {True: "all", False: "none"}.get(value, value) if isinstance(value, bool) else value  # as in older runs

    @field_validator("optimizer", mode="before")
    @classmethod
    def _optimizer(cls, value: Any) -> Any:
        if not (isinstance(value, str) and value in OPTIMIZERS):
            *first, last = map(repr, OPTIMIZERS)
            raise PydanticCustomError(
                "literal_error", f"Input should be {', '.join(first)} or {last}"
            )  # as a Literal's
        return value

    @field_validator("target_modules")
    @classmethod
    def _modules(cls, value: str | list[str]) -> str | list[str]:
        names = value.split(",") if isinstance(value, str) else value
        names = [name.strip() for name in names if name.strip()]
        if not names:
            raise ValueError("name at least one module, or all-linear")
        if "all-linear" in names and len(names) > 1:
            raise ValueError("give all-linear alone, or a list of names")
        return "all-linear" if names == ["all-linear"] else names

    @model_validator(mode="after")
    def _together(self) -> "RunConfig":
        if self.revision and self.base_model == DEMO:  # of a local folder `ModelRef.check_revision` says it
            raise ValueError(NO_REVISION)
        if self.gpu and self.gpu != "cpu" and (self.num_processes > 1 or self.accelerate_config):
            raise ValueError("gpu names one GPU for one process: leave it empty, or set num_processes to 1")
        if self.fsdp and self.num_processes == 1 and not self.accelerate_config:
            raise ValueError("fsdp splits the base across processes: set num_processes or accelerate_config too")
        return self

    @property
    def control(self) -> bool:
        """Whether special tokens spelled out in the data are what they spell."""
        return self.special_tokens == "control"


def fields() -> dict[str, FieldInfo]:
    """Every knob by name, in the order of the form."""
    return RunConfig.model_fields


def extra(field: FieldInfo, key: Literal["group", "rare", "marks"]) -> Any:
    """`group`, `rare` or `marks` of a knob."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra[key]


def marked(mark: Mark) -> tuple[str, ...]:
    """The knobs of which this is true, in the order of the form; see `knob`."""
    return tuple(name for name, field in fields().items() if mark in _marks(field))


def _marks(field: FieldInfo) -> set[str]:
    marks, group = set(extra(field, "marks")), extra(field, "group")
    if group in _STEP_GROUPS and "no-step" not in marks:
        marks.add("step")
    return marks | ({"cost"} if group == "Logging" else set())


def choices(field: FieldInfo) -> tuple[str, ...] | None:
    """The allowed values of a knob with a fixed set, else None."""
    if isinstance(field.json_schema_extra, dict) and (table := field.json_schema_extra.get("choices")):
        return tuple(table)  # type: ignore[arg-type]
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else None


def preset_names() -> list[str]:
    """The shipped presets, `demo` first."""
    return sorted((path.stem for path in PRESETS.glob("*.yaml")), key=lambda name: (name != "demo", name))


def read_preset(name: str) -> dict[str, Any]:
    """The knobs a preset sets. Raises UserError for an unknown name."""
    if name not in preset_names():
        raise UserError(f"There is no preset '{name}': choose one of {', '.join(preset_names())}.")
    return _mapping(PRESETS / f"{name}.yaml")


def read_file(path: str | Path) -> dict[str, Any]:
    """The knobs set in a YAML file or a run's `run.json`. Raises UserError."""
    values = _mapping(Path(path).expanduser())
    if isinstance(values.get("config"), dict) and "schema" in values:
        return dict(values["config"])
    return values


def resolve(
    overrides: Mapping[str, Any] | None = None, file: str | Path | None = None, preset: str | None = None
) -> RunConfig:
    """flag > config file > preset > default -> RunConfig. Raises UserError that names the knob."""
    return make(layered(overrides, file, preset))


def layered(
    overrides: Mapping[str, Any] | None = None, file: str | Path | None = None, preset: str | None = None
) -> dict[str, Any]:
    """flag > config file > preset, not yet validated. Raises UserError for a file or preset that cannot be read."""
    values: dict[str, Any] = {}
    for layer in (read_preset(preset) if preset else {}, read_file(file) if file else {}, overrides or {}):
        values |= layer
    return values


def make(values: Mapping[str, Any]) -> RunConfig:
    """Validate one set of values. Raises UserError with every fault, each with its knob."""
    return checked(RunConfig, values)


def checked(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Any settings model from values. Raises UserError with every fault, each with its name."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError("; ".join(dict.fromkeys(faults(error).values())) + ".") from None


def faults(error: ValidationError) -> dict[str, str]:
    """A validation error as {knob: sentence without full stop}; "" is the knob of faults between knobs."""
    sentences: dict[str, str] = {}
    for item in error.errors():
        knob_name = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(knob_name, RunConfig.model_fields, 1)
            hint = f": did you mean '{near[0]}'?" if near else ""
            sentences[knob_name] = f"There is no setting '{knob_name}'{hint}".removesuffix("?")
            continue
        message = item["msg"].removeprefix("Input ").replace("Value error, ", ": ", 1)
        given = item["input"]
        actual = (
            f" (it is {given!r})" if knob_name and isinstance(given, (str, int, float, bool)) and given != "" else ""
        )
        sentences.setdefault(knob_name, f"{knob_name} {message}{actual}".replace(" : ", ": ").removeprefix(": "))
    return sentences


def types_of(field: FieldInfo) -> tuple[Any, ...]:
    """The plain types a knob accepts."""
    annotation = field.annotation
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            body = file.read(settings_yaml.MOST_TEXT + 1)
        value = json.loads(body) if path.suffix == ".json" else settings_yaml.parsed(body)
    except FileNotFoundError:
        raise UserError(f"The config file '{path}' does not exist: check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file '{path}' cannot be read: {error}.") from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, ValueError) else "it is nested too deeply"
        if len(body) > settings_yaml.MOST_TEXT:
            reason = f"it has more than {settings_yaml.MOST_TEXT:,} characters, and no more are read"
        raise UserError(f"The config file '{path}' is neither YAML nor a run.json: {reason}.") from None
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"The config file '{path}' holds no settings: write lines like 'rank: 16'.")
    return {key.replace("-", "_"): item for key, item in value.items()}


def command_line(config: RunConfig, preset: str | None = None) -> str:
    """`python app.py --headless-train ...` with just the flags that differ from preset and defaults.

    Where neither base nor data is named the command line starts from the demo's preset: then this does too.
    """
    if preset is None and (config.base_model, config.dataset) == ("demo", "demo"):
        preset = "demo"
    start = resolve(preset=preset) if preset else RunConfig()
    words = ["python", "app.py", "--headless-train"]
    if preset:
        words += ["--preset", preset]
    for name in RunConfig.model_fields:
        value = getattr(config, name)
        if value != getattr(start, name):
            words += _flag(name, value)
    return shlex.join(words)


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else [flag.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [flag, ",".join(value)]
    if isinstance(value, float):
        return [flag, str(int(value)) if value.is_integer() else repr(value)]
    # "--flag=value", for a text that begins with a dash would be taken for a flag
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
