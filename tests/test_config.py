"""Every knob once: presets, precedence, sentences for faults, and the command line that means the same."""

import contextlib
import json
import os
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from qlora_gui import config as configs
from qlora_gui.cli import flags, main
from qlora_gui.config import RunConfig, command_line, resolve
from qlora_gui.errors import UserError
from qlora_gui.memory import simulated_step
from qlora_gui.report import comparability
from qlora_gui.runs import sweep
from qlora_gui.runs.store import RunStore
from qlora_gui.simulation import client
from qlora_gui.ui.train import preview

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


def test_what_is_true_of_a_knob_is_on_its_line_and_found_where_it_matters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path
) -> None:
    """A knob made on the fly is asked about wherever lists of knobs used to be written by hand."""

    class Wider(RunConfig):
        notes: str = configs.knob("", "A file of notes.", "Logging", marks="path wide")
        dora: bool = configs.knob(False, "A kind of LoRA.", "LoRA")
        stem: str = configs.knob("", "Which rows are read.", "What to train", marks="rows hub single titled")

    before = {mark: configs.marked(mark) for mark in get_args(configs.Mark)}
    monkeypatch.setattr(configs, "RunConfig", Wider)
    added = {mark: {*configs.marked(mark)} - {*before[mark]} for mark in before}
    assert added == {
        "path": {"notes"},
        "wide": {"notes"},
        "cost": {"notes"},
        "step": {"dora"},
        "rows": {"stem"},
        "hub": {"stem"},
        "single": {"stem"},
        "titled": {"stem"},
    }
    plain = {"base_model": str(llama), "dataset": "demo"}
    guarded = RunStore(tmp_path / "adapters", [tmp_path / "adapters", llama])
    with pytest.raises(
        UserError, match="'/etc/hostname' is in none of the folders"
    ):  # a guest names a file of the machine
        guarded.create(Wider(**plain, notes="/etc/hostname"))
    whole = RunStore(tmp_path / "own").create(Wider(**plain, notes=os.path.relpath(__file__))).manifest()
    assert whole["config"]["notes"] == str(Path(__file__).resolve())
    with pytest.raises(UserError, match="'stem' cannot vary"):
        sweep.expand({"stem": ["a", "b"], "rank": 4})
    assert {"dora", "stem"} <= {*comparability.knobs()} and "notes" not in comparability.knobs()
    rows = [preview.key(Wider(**plain, **more)) for more in ({}, {"stem": "x"}, {"dora": True})]
    assert rows[0] != rows[1] and rows[0] == rows[2]
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(
        client,
        "asked",
        lambda module, question: asked.append(question) or {"peak": 1, "peak_in": "loss", "resident": 1, "phases": {}},
    )
    base = {"model_type": "llama", "hidden_size": 64}
    for dora in (False, True, True):
        with contextlib.suppress(Exception):
            simulated_step.simulate(base, Wider(**plain, dora=dora), 1, 8)
    assert len(asked) == 2, "another step was given the answer to the first"


def test_a_knob_whose_help_names_a_file_or_folder_is_guarded() -> None:
    """So that nobody forgets it: what a guest may name is looked at by this mark alone."""
    for name, field in configs.fields().items():
        if "file" in str(field.description).lower() or "folder" in str(field.description).lower():
            assert name in configs.marked("path") or name == "name", f"{name} takes a path: marks='path'"
