"""Every knob once: presets, precedence, sentences for faults, and the command line that means the same."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from qlora_gui.cli import flags, main
from qlora_gui.config import RunConfig, command_line, resolve
from qlora_gui.errors import UserError

KNOBS = (
    "name base_model revision dataset dataset_format dataset_split skip_bad_rows system_prompt max_length eval_fraction rank alpha "
    "dropout bias target_modules use_rslora quant_type double_quant epochs max_steps learning_rate lr_scheduler "
    "warmup_ratio weight_decay max_grad_norm optimizer batch_size gradient_accumulation gradient_checkpointing attention auto_fit packing "
    "chat_template thinking "
    "logging_steps eval_steps probe_prompts probe_tokens save_steps seed report_to special_tokens gpu num_processes fsdp accelerate_config"
).split()


def test_the_knobs_are_these_and_each_has_help_and_a_group() -> None:
    assert sorted(RunConfig.model_fields) == sorted(KNOBS)
    for field in RunConfig.model_fields.values():
        assert field.description and "\n" not in field.description
        assert configs.extra(field, "group") in configs.GROUPS


def test_defaults_are_the_fields_recommendations() -> None:
    config = RunConfig()
    assert config.learning_rate == 2e-4 and config.target_modules == "all-linear"
    assert config.quant_type == "nf4" and config.double_quant


@pytest.mark.parametrize(
    ("preset", "base", "rank", "alpha", "bias", "epochs"),
    [
        ("experiment-1", "bigscience/bloom-7b1", 14, 20, "lora_only", 3),
        ("experiment-2", "bigscience/bloom-7b1", 20, 20, "all", 3),
        ("experiment-3", "bigscience/bloom-560m", 20, 20, "all", 3),
    ],
)
def test_the_reports_experiments(preset: str, base: str, rank: int, alpha: float, bias: str, epochs: float) -> None:
    config = resolve(preset=preset)
    assert (config.base_model, config.rank, config.alpha, config.bias, config.epochs) == (
        base,
        rank,
        alpha,
        bias,
        epochs,
    )


def test_the_demo_preset_and_that_no_other_is_shipped_untested() -> None:
    demo = resolve(preset="demo")
    assert (demo.base_model, demo.dataset) == ("demo", "demo")
    assert configs.preset_names() == ["demo", "experiment-1", "experiment-2", "experiment-3"]


def test_flag_beats_file_beats_preset_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rank: 9\nlearning-rate: 1e-4\nalpha: 18\n")
    config = resolve({"alpha": 7}, file, "experiment-1")
    assert (config.alpha, config.rank, config.learning_rate, config.bias) == (7, 9, 1e-4, "lora_only")
    assert config.dropout == RunConfig().dropout


def test_a_run_json_is_a_config_file(tmp_path: Path) -> None:
    config = resolve({"rank": 5, "target_modules": ["q_proj", "v_proj"]})
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"schema": 1, "config": config.model_dump(mode="json"), "versions": {}}))
    assert resolve(file=file) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, "rank should be greater than or equal to 1 (it is 0)."),
        ({"rank": "many"}, "rank should be a valid integer"),
        ({"rnak": 8}, "There is no setting 'rnak': did you mean 'rank'."),
        ({"bias": "some"}, "bias should be 'none', 'lora_only' or 'all' (it is 'some')."),
        ({"learning_rate": -1}, "learning_rate should be greater than 0"),
        ({"dropout": 1}, "dropout should be less than 1"),
        ({"name": "../../etc"}, "name: use letters, digits"),
        ({"name": ".hidden"}, "name: use letters, digits"),
        ({"target_modules": []}, "target_modules: name at least one module, or all-linear."),
        ({"revision": "main"}, "revision belongs to a hub model"),
    ],
)
def test_faults_are_sentences(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(values)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("rank: [", "neither YAML nor a run.json"),
        ("- 1\n- 2", "holds no settings"),
        ("colour: red", "no setting 'colour'"),
    ],
)
def test_a_wrong_config_file_is_a_sentence(tmp_path: Path, body: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(body)
    with pytest.raises(UserError, match=said):
        resolve(file=file)


OTHER: dict[str, Any] = {
    "special_tokens": "control",
    "gpu": "cpu",
    "num_processes": 2,
    "fsdp": True,
    "accelerate_config": "two.yaml",
    "name": "my-run",
    "base_model": "owner/model",
    "revision": "v1",
    "dataset": "my data.json",
    "dataset_format": "alpaca",
    "dataset_split": "test",
    "skip_bad_rows": True,
    "chat_template": "chatml",
    "thinking": "on",
    "system_prompt": '--Be "kind" & brief',
    "max_length": 77,
    "eval_fraction": 0.2,
    "rank": 3,
    "alpha": 5.5,
    "dropout": 0.1,
    "bias": "all",
    "target_modules": ["a", "b"],
    "use_rslora": True,
    "quant_type": "fp4",
    "double_quant": False,
    "epochs": 1.5,
    "max_steps": 9,
    "learning_rate": 1.23456789e-5,
    "lr_scheduler": "linear",
    "warmup_ratio": 0.5,
    "weight_decay": 0.01,
    "max_grad_norm": 1,
    "optimizer": "adamw_torch",
    "batch_size": 2,
    "gradient_accumulation": 3,
    "gradient_checkpointing": "none",
    "attention": "sdpa",
    "auto_fit": False,
    "packing": True,
    "logging_steps": 2,
    "eval_steps": 3,
    "probe_prompts": 1,
    "probe_tokens": 9,
    "save_steps": 4,
    "seed": 5,
    "report_to": "wandb",
}


@pytest.mark.parametrize("preset", [None, "demo", "experiment-2", "nothing named"])
def test_the_command_line_gives_the_same_config(preset: str | None) -> None:
    config = resolve(OTHER if preset != "nothing named" else {"rank": 3})
    preset = None if preset == "nothing named" else preset
    assert preset is None or all(getattr(config, name) != getattr(RunConfig(), name) for name in KNOBS)
    words = shlex.split(command_line(config, preset))
    arguments = flags.headless().parse_args(words[2:])
    knobs = {name: getattr(arguments, name) for name in KNOBS if hasattr(arguments, name)}
    assert resolve(knobs, preset=main.preset_of(arguments, knobs)) == config
