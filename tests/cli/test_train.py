"""`python app.py` as people call it: wrong input is one sentence and leaves nothing; exit codes; Ctrl+C saves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_gui.cli import train
from qlora_gui.runs.store import Run, RunStore
from tests.conftest import TINY
from tests.conversations import ALTERNATING

ROOT = Path(__file__).parents[2]


def app(*words: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run app.py to its end; the runs go to `cwd`/adapters."""
    command = [sys.executable, str(ROOT / "app.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, env=os.environ | (env or {}))


def flags(**knobs: object) -> list[str]:
    words = []
    for name, value in (TINY | knobs).items():
        flag = "--" + name.replace("_", "-")
        words += [flag if value else "--no-" + flag[2:]] if isinstance(value, bool) else [flag, str(value)]
    return words


@pytest.fixture
def folder(tmp_path: Path, llama: Path, bloom_runs: dict[str, Run]) -> Iterator[Path]:
    """A working directory with one of everything that can be wrong."""
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    (tmp_path / "prompts.txt").write_text("Where is my kettle?\n")
    (tmp_path / "no-model").mkdir()
    (tmp_path / "weightless").mkdir()
    shutil.copy(llama / "config.json", tmp_path / "weightless")
    (tmp_path / "taken").write_text("a file where a folder should be")
    (tmp_path / "colour.yaml").write_text("colour: red")
    (tmp_path / "bloom").symlink_to(bloom_runs["all"].path)
    (tmp_path / "llama").symlink_to(llama)
    yield tmp_path


T = "--headless-train"
C = ["--headless-compare", "--prompts", "prompts.txt", "--out", "out.json"]
# fmt: off
BAD: list[tuple[str, list[str], str]] = [
    ("missing data file", [T, "--dataset", "nope.json"], "The data file 'nope.json' does not exist"),
    ("empty data file", [T, "--dataset", "empty.json"], "is empty"),
    ("malformed row", [T, "--dataset", "wrong.jsonl"], "wrong.jsonl row 2 (read as prompt-completion): 'completion' is missing"),
    ("wrong format named", [T, "--dataset", "wrong.jsonl", "--dataset-format", "alpaca"], "'instruction' is missing"),
    ("unknown format", [T, "--dataset-format", "xml"], "dataset_format should be"),
    ("unknown base, no network", [T, "--base-model", "nobody/nothing"], "the hub does not answer"),
    ("missing base folder", [T, "--base-model", "./nowhere"], "The base model folder './nowhere' does not exist"),
    ("base folder without model", [T, "--base-model", "no-model"], "has no config.json"),
    ("base folder without weights", [T, "--base-model", "weightless"], "No tokenizer can be loaded"),
    ("unknown hub data", [T, "--dataset", "nobody/nothing"], "the hub does not answer"),
    ("wrong flag", [T, "--rnak", "3"], "There is no flag --rnak: did you mean --rank"),
    ("flag without value", [T, "--rank"], "Argument --rank: expected one argument"),
    ("rank 0", [T, "--rank", "0"], "rank should be greater than or equal to 1 (it is '0')"),
    ("rank of letters", [T, "--rank", "many"], "rank should be a valid integer"),
    ("linears that are not there", [T, "--base-model", "llama", *flags(), "--target-modules", "nope"], "this base has the linears"),
    ("no room for any answer", [T, "--base-model", "llama", *flags(), "--max-length", "16"], "No row of 'demo' can be trained on"),
    ("tracker not installed", [T, "--base-model", "llama", *flags(), "--report-to", "mlflow"], "pip install mlflow"),
    ("unknown preset", [T, "--preset", "big"], "There is no preset 'big': choose one of demo"),
    ("missing config file", [T, "--config", "nope.yaml"], "The config file 'nope.yaml' does not exist"),
    ("unknown setting in a config file", [T, "--config", "colour.yaml"], "There is no setting 'colour'"),
    ("name with a path", [T, "--name", "../x"], "name: use letters"),
    ("adapters is a file", [T, "--adapters-dir", "taken/runs"], "No run can be made in"),
    ("resume of nothing", [T, "--resume", "nope"], "There is no run 'nope'"),
    ("resume with other settings", [T, "--resume", "nope", "--rank", "3"], "--resume goes on with a run as it was"),
    ("training flag on the page", ["--rank", "3"], "add --headless-train"),
    ("compare without adapters", C, "--headless-compare needs --adapters"),
    ("compare with no adapter folder", [*C, "--adapters", "nope"], "nope"),
    ("adapter of another base", [*C, "--adapters", "bloom", "--base", "llama"], "was trained on"),
    ("missing prompts", [*C, "--prompts", "no.txt", "--adapters", "bloom"], "no.txt"),
    ("out in a missing folder", [*C, "--out", "x/o.json", "--adapters", "bloom"], "x"),
    ("temperature out of bounds", [*C, "--adapters", "bloom", "--temperature", "-1"], "temperature should be greater"),
]
# fmt: on


@pytest.mark.parametrize(("case", "words", "said"), BAD, ids=[case for case, _, _ in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(folder: Path, case: str, words: list[str], said: str) -> None:
    before = sorted(folder.iterdir())
    done = app(*words, cwd=folder)
    sentence = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in sentence, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    left = [path for path in folder.iterdir() if path not in before and path.name != "adapters"]
    assert not left and not list((folder / "adapters").glob("[!.]*"))  # a lock file may stay


def test_a_read_only_adapters_folder_is_one_sentence(folder: Path) -> None:
    (folder / "adapters").mkdir()
    (folder / "adapters").chmod(0o555)
    if os.geteuid() == 0:  # root writes everywhere: an immutable mount would be needed, so drop the right itself
        drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", "--"]
        command = [*drop, sys.executable, str(ROOT / "app.py"), T, "--base-model", "llama"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)
    else:
        done = app(T, "--base-model", "llama", cwd=folder)
    assert done.returncode == 2 and "make the folder writable" in done.stderr, done.stderr


def test_a_full_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = app("--port", port, cwd=tmp_path)
    assert done.returncode == 2 and f"Port {port} is in use" in done.stderr, done.stderr


def test_headless_train_prints_plain_lines_and_answers(tmp_path: Path, llama: Path) -> None:
    done = app(T, "--base-model", llama, "--name", "one", *flags(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 6/6" in done.stdout and "Held-out loss: base" in done.stdout
    assert done.stdout.count("\nBase:") == done.stdout.count("\nAdapter:") - 1 == 3
    assert RunStore(tmp_path / "adapters").get("one").state() == "finished"


@pytest.mark.slow
def test_a_row_that_the_template_refuses_does_not_end_the_answers(tmp_path: Path, llama: Path) -> None:
    """And one that ends in two answers is probed, under a template that wants roles to alternate."""
    (tmp_path / "alternating.jinja").write_text(
        ALTERNATING
        + "{% if m['content'] == 'secret' %}{{ raise_exception('not that') }}{% endif %}"
        + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (tmp_path / "rows").mkdir()
    said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    refused = [{"role": "user", "content": "secret"}, said[1]]
    for name, rows in (("train", [said] * 4), ("validation", [refused, [*said, said[1]]])):
        lines = [json.dumps({"messages": list(row)}) + "\n" for row in rows]
        (tmp_path / "rows" / f"{name}.jsonl").write_text("".join(lines))
    given = ["--base-model", llama, "--name", "one", "--dataset", "rows", "--chat-template", "alternating.jinja"]
    done = app(T, *given, *flags(max_steps=1, probe_prompts=2), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refuses this conversation: not that" in done.stdout and done.stdout.count("\nBase:") == 1
    probed = [one for one in RunStore(tmp_path / "adapters").get("one").events()[0] if one["kind"] == "probe"]
    assert probed and [one["prompt"] for one in probed[-1]["answers"]] == ["Hi"]


@pytest.mark.slow
def test_json_gives_the_events_and_nothing_else(tmp_path: Path, llama: Path) -> None:
    done = app(T, "--base-model", llama, "--name", "one", "--json", *flags(), cwd=tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert events == RunStore(tmp_path / "adapters").get("one").events()[0]


@pytest.mark.slow
def test_a_run_json_replays_the_same_run(tmp_path: Path, llama: Path) -> None:
    app(T, "--base-model", llama, "--answers", "0", *flags(name="one"), cwd=tmp_path)
    first = tmp_path / "adapters" / "one" / "run.json"
    app(T, "--config", first, "--name", "two", "--answers", "0", cwd=tmp_path)
    assert (tmp_path / "adapters" / "two" / "run.json").read_text() == first.read_text().replace('"one"', '"two"')


def started(tmp_path: Path, llama: Path, **knobs: object) -> tuple["subprocess.Popen[bytes]", Run]:
    """A headless run named `long` that has taken a step, and its process."""
    words = [T, "--base-model", str(llama), *flags(name="long", **knobs)]
    command = [sys.executable, str(ROOT / "app.py"), *words]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run = Run(tmp_path / "adapters" / "long")
    deadline = time.monotonic() + 60
    while not any(event["kind"] == "step" for event in run.events()[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return child, run


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_finishes(tmp_path: Path, llama: Path) -> None:
    child, run = started(tmp_path, llama, max_steps=80, eval_steps=1000, save_steps=1000)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    assert run.state() == "stopped" and run.has_adapter()
    done = app(T, "--resume", "long", "--answers", "0", cwd=tmp_path)
    assert done.returncode == 0 and run.state() == "finished", done.stderr


@pytest.mark.slow
def test_a_killed_trainer_is_exit_code_1(tmp_path: Path, llama: Path) -> None:
    child, run = started(tmp_path, llama, max_steps=4000)
    os.kill(next(event["pid"] for event in run.events()[0] if event["kind"] == "started"), signal.SIGKILL)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 1 and b"The run died" in told and run.state() == "died"


@pytest.mark.slow
def test_a_resume_that_fails_deletes_nothing(folder: Path, llama: Path) -> None:
    """A copy of a run without its events, whose base is on a drive that is away: it had taken steps all the same."""
    base = folder / "base"
    shutil.copytree(llama, base)
    done = app(T, "--base-model", "base", *flags(max_steps=2, save_steps=1), "--name", "tickets", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = folder / "adapters" / "tickets"
    (run / "events.jsonl").write_text("")
    shutil.rmtree(base)
    again = app(T, "--resume", "tickets", cwd=folder)
    assert again.returncode != 0 and "base" in again.stderr
    assert (run / "adapter_model.safetensors").is_file() and any((run / "checkpoints").iterdir())


def test_signals_that_come_together_stop_a_run_once_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's stop button sends Ctrl+C, and others within half a second; the last of them ends the process."""
    now, stops = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with train._Interrupts() as interrupts:
        interrupts.act = lambda: stops.append(now[0])
        for after in (0.0, 0.2, 0.3):
            now[0] = 100.0 + after
            signal.raise_signal(signal.SIGINT)
        assert (interrupts.count, stops[0]) == (1, 100.0)
        now[0] += 5.0
        signal.raise_signal(signal.SIGINT)
        assert interrupts.count == 2


def test_what_strangers_write_commands_no_terminal(folder: Path) -> None:
    (folder / "\033]0;owned\007.jsonl").write_text("")
    done = app(T, "--dataset", "\033]0;owned\007.jsonl", cwd=folder)
    assert done.returncode == 2 and "owned" in done.stderr and "\033" not in done.stderr and "\007" not in done.stderr
