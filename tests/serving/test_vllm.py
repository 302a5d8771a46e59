"""vLLM's command made from runs, and what vLLM would refuse or answer differently."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.cli import serve
from qlora_gui.cli.main import main
from qlora_gui.errors import UserError
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.serving import vllm


def test_the_command_of_a_run(bloom: Path, bloom_runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(bloom_runs["none"].path), "--vllm"]) == 0
    out, err = capsys.readouterr()
    words = shlex.split(out)
    assert words[:3] == ["vllm", "serve", str(bloom)] and "16-bit weights" in err
    assert words[words.index("--max-lora-rank") + 1] == "8"
    assert words[words.index("--lora-modules") + 1] == f"bloom-none={bloom_runs['none'].path}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bias": "all"}, "trained biases"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"dense": 4}}, "by module"),
        ({"alpha_pattern": {"dense": 4}}, "by module"),
        ({"r": 1000}, "ranks up to 512"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    ],
)
def test_what_vllm_refuses(
    bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    shutil.copytree(bloom_runs["none"].path, tmp_path / "otter")
    file = tmp_path / "otter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    models = serve.models_of(RunStore(tmp_path), ["otter"], str(bloom), "")
    with pytest.raises(UserError, match=reason) as refused:
        vllm.command(models)
    assert "qlora-gui export --to merged" in str(refused.value)


def test_ranks_are_rounded_up_to_what_vllm_takes(bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    shutil.copytree(bloom_runs["none"].path, tmp_path / "otter")
    file = tmp_path / "otter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 20}))
    command = vllm.command(serve.models_of(RunStore(tmp_path), ["otter"], str(bloom), ""))
    assert "--max-lora-rank 32" in command.text


@pytest.mark.parametrize("rank", [None, "8", 8.0, 0])
def test_a_rank_that_is_none_is_a_sentence(bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path, rank: Any) -> None:
    shutil.copytree(bloom_runs["none"].path, tmp_path / "otter")
    file = tmp_path / "otter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": rank}))
    with pytest.raises(UserError, match="is damaged: its r is"):
        vllm.command(serve.models_of(RunStore(tmp_path), ["otter"], str(bloom), ""))


def test_an_adapters_own_template_is_not_what_vllm_renders(
    bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path
) -> None:
    shutil.copytree(bloom_runs["none"].path, tmp_path / "otter")
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        (tmp_path / "otter" / file).unlink(missing_ok=True)
    models = serve.models_of(RunStore(tmp_path), ["otter"], str(bloom), "")
    assert not any("template" in remark for remark in vllm.command(models).remarks)
    (tmp_path / "otter" / "chat_template.jinja").write_text("{{ messages }}")
    assert any("--chat-template" in remark and "otter" in remark for remark in vllm.command(models).remarks)


def test_what_cannot_be_served_is_a_sentence(
    bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(bloom_runs["none"].path)
    for copy in (tmp_path / "twin" / "bloom-none", tmp_path / "base"):
        shutil.copytree(path, copy)
    for words, sentence in (
        (["nobody"], "There is no adapter 'nobody'"),
        ([], "There is no adapter to serve yet"),
        ([path] * 6, "6 adapters are too many"),
        ([path, str(tmp_path / "twin" / "bloom-none")], "Two of the models would be called 'bloom-none'"),
        ([str(tmp_path / "base")], "An adapter cannot be called 'base' here"),
        (["--base", str(tmp_path / "none")], "does not exist"),
        ([path, "--port", "99999"], "There is no port 99999"),
    ):
        assert main(["serve", *words, "--adapters-dir", str(tmp_path / "empty")]) == 2
        assert sentence in capsys.readouterr().err


def test_a_short_key_is_refused(
    bloom_runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(serve.KEY, "short")
    assert main(["serve", str(bloom_runs["none"].path)]) == 2
    assert "too short" in capsys.readouterr().err
