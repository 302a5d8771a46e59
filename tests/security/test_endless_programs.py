"""Programs in what strangers send: chat templates and regular expressions that have no end, or fill the memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_gui.config import make
from qlora_gui.data import template_renderer
from qlora_gui.data.template_renderer import EndlessTemplate, Renderer, TemplateError
from qlora_gui.errors import UserError
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs import launch
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.train import preview
from tests.adapters import made_adapter
from tests.conftest import TINY, wait_until_ended
from tests.security.attacks import Attempts

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "loops in loops": (LOOPS, "did not finish"),
    "a loop beyond all measure": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "a power": ("{% set x = (9 ** 9) ** (9 ** 8) %}{{ x > 1 }}", "did not finish"),
    "a doubled text": (
        "{% set n=namespace(s='x') %}{% for i in range(60) %}{% set n.s=n.s+n.s %}{% endfor %}{{ n.s }}",
        "needs more than 512 MB",
    ),
    "a repeated text": ("{{ 'a' * 10**10 }}", "needs more than 512 MB"),
    "a wide format": ("{{ '%3000000000d' | format(1) }}", "needs more than 512 MB"),
    "a list of lists": (
        "{% set n=namespace(l=[0]) %}{% for i in range(60) %}{% set n.l=n.l+n.l %}{% endfor %}",
        "needs more than 512 MB",
    ),
    "a macro of itself": ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "deep brackets": ("{{ " + "[" * 500 + "]" * 500 + " }}", "recursion"),
    "a long answer": ("{{ 'x' * 30000000 }}", "writes more than 16,000,000 characters"),
    "Python's insides": ("{{ ''.__class__.__mro__ }}", "unsafe"),
}
PATTERNS = {
    "target_modules": r"(([a-z_.0-9])+)+!|.*q_proj",
    "exclude_modules": r"(([a-z_.0-9])+)+!",
    "alpha_pattern": {r"(([a-z_.0-9])+)+!": 4},
    "rank_pattern": {r"(([a-z_.0-9])+)+!": 2},
    "layers_pattern": r"(([a-z_.0-9])+)+!",
}
ENDLESS = (
    "{% if messages[-1].content != 'QxAnswerQx' and messages[0].content != 'QxQuestionQx' %}" + LOOPS + "{% endif %}"
)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


def rendered(renderer: Renderer, template: str) -> str:
    """What a template makes of a question, or what is said of it."""
    try:
        return renderer.render(template, {"eos_token": "</s>"}, [{"role": "user", "content": "hi"}], None, True, {})
    except (EndlessTemplate, TemplateError) as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.attack("chat templates that never end or fill the memory")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_has_little_time_and_memory(name: str, renderer: Renderer, attempt: Attempts) -> None:
    template, told = TEMPLATES[name]
    rendered(renderer, "{{ messages[0].content }}")  # it is there
    before = psutil.Process().memory_info().rss
    attempt(told in rendered(renderer, template), name)
    attempt(psutil.Process().memory_info().rss - before < 200e6, "memory of this process")
    again = time.monotonic()
    rendered(renderer, template)
    if told.startswith(("did", "needs")):
        attempt(time.monotonic() - again < 0.5, "one that went too far once is not tried again")
    assert rendered(renderer, "{{ messages[0].content }}{{ eos_token }}") == "hi</s>"


@pytest.mark.attack("chat templates that never end or fill the memory")
def test_templates_that_are_slow_again_and_again_are_ended(
    renderer: Renderer, attempt: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_renderer, "_AT_FIRST", 0.5)
    slow = "{% for a in range(99999) %}{% set b = a %}{% endfor %}" * 240
    told = [rendered(renderer, slow) for _ in range(6)]
    attempt("far too slow" in told[-1], told[-1][:80])


@pytest.mark.attack("chat templates that never end or fill the memory")
def test_the_process_that_renders_ends_by_itself_where_its_parent_was_killed(attempt: Attempts) -> None:
    code = (
        "from qlora_gui.data.template_renderer import RENDERER as R\n"
        "R.render('', {}, [{'role': 'user', 'content': 'x'}], None, True, {})\n"
        "print(R._child.pid, flush=True)\n"
        f"R.render({LOOPS!r}, {{}}, [{{'role': 'user', 'content': 'x'}}], None, True, {{}})\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=launch.child_environment()
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    try:
        child.wait(40)
    except psutil.TimeoutExpired:
        attempt(False, "it runs on")
    attempt(not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE, "it runs on")


def endless_adapter(base: Path, folder: Path, template: str = LOOPS, **config: Any) -> Path:
    made = made_adapter(base, folder, 1, r=2, target_modules=["q_proj"])
    (made / "chat_template.jinja").write_text(template)
    file = made / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return made


@pytest.mark.slow
@pytest.mark.attack("chat templates that never end or fill the memory")
def test_an_adapter_with_an_endless_template_is_refused_and_the_worker_serves_on(
    llama: Path, tmp_path: Path, attempt: Attempts
) -> None:
    good = made_adapter(llama, tmp_path / "good", 2, r=2, target_modules=["q_proj"])
    client = CompareClient()
    try:
        client.columns(str(llama), "", [good])
        pid = client.pid
        with pytest.raises(UserError) as refused:
            client.columns(str(llama), "", [endless_adapter(llama, tmp_path / "bad")])
        attempt("chat template of the adapter 'bad' did not finish within 3 s" in str(refused.value), refused)
        client.columns(str(llama), "", [good])
        attempt(client.pid == pid, "the worker died of it")
        # One that is endless at a question only, and a stop while it is
        client.columns(str(llama), "", [endless_adapter(llama, tmp_path / "later", ENDLESS)])
        answers = client.answer([[{"role": "user", "content": "hi"}]] * 2, Decoding(greedy=True, max_new_tokens=4))
        threading.Timer(0.7, client.stop).start()
        began = time.monotonic()
        with pytest.raises(UserError, match="Stopped while a chat template"):
            list(answers)
        attempt(time.monotonic() - began < 5, "Stop does not help")
    finally:
        client.close()


@pytest.mark.attack("regular expressions of an adapter that never end")
@pytest.mark.slow
def test_patterns_without_an_end_are_refused_by_name(llama: Path, tmp_path: Path, attempt: Attempts) -> None:
    client = CompareClient()
    try:
        for field, pattern in PATTERNS.items():
            config = {field: pattern} | ({"layers_to_transform": [0]} if field == "layers_pattern" else {})
            bad = endless_adapter(llama, tmp_path / field, "{{ messages[0].content }}", **config)
            with pytest.raises(UserError) as refused:
                client.columns(str(llama), "", [bad])
            attempt(f"its {field} against" in str(refused.value), f"{field}: {refused.value}")
        attempt(client.is_loaded, "the worker died of it")
    finally:
        client.close()


@pytest.mark.slow
@pytest.mark.attack("chat templates that never end or fill the memory")
def test_a_run_with_an_endless_template_ends_with_a_sentence_and_stops_at_once(
    llama: Path, store: RunStore, tmp_path: Path, attempt: Attempts
) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    (base / "chat_template.jinja").write_text(LOOPS)
    run = store.create(make(TINY | {"base_model": str(base), "name": "endless"}))
    launch.start(run, store)
    attempt(wait_until_ended(run) == "failed", "it goes on")
    attempt("chat template did not finish within 3 s" in run.events()[0][-1]["message"], run.log_tail())
    # One that takes long for every row, but no more than it may: Stop ends it
    slow = "{% for a in range(99999) %}{% set b = a %}{% endfor %}" * 8
    (base / "chat_template.jinja").write_text(slow + "{% for m in messages %}{{ m.content }}{% endfor %}")
    run = store.create(make(TINY | {"base_model": str(base), "name": "slow"}))
    launch.start(run, store)
    while "Reading the data" not in run.log_tail():
        time.sleep(0.1)
    time.sleep(1)
    began = time.monotonic()
    run.request_stop()
    attempt(wait_until_ended(run) in ("stopped", "failed"), run.log_tail())
    attempt(time.monotonic() - began < 5, "Stop does not help")


@pytest.mark.slow
@pytest.mark.attack("chat templates that never end or fill the memory")
def test_the_preview_says_that_a_template_is_endless(llama: Path, tmp_path: Path, attempt: Attempts) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(LOOPS)
    before = psutil.Process().memory_info().rss
    shown = list(preview.steps(make({"base_model": str(llama), "chat_template": str(template)})))
    attempt("did not finish within 3 s" in shown[-1], shown[-1][:200])
    attempt(psutil.Process().memory_info().rss - before < 300e6, "memory of the page")


@pytest.mark.slow
@pytest.mark.attack("chat templates that never end or fill the memory")
def test_ctrl_c_ends_a_headless_comparison_within_seconds(llama: Path, tmp_path: Path, attempt: Attempts) -> None:
    bad = endless_adapter(llama, tmp_path / "bad", ENDLESS)
    (tmp_path / "prompts.txt").write_text("hi\n")
    command = [sys.executable, "app.py", "--headless-compare", "--adapters", str(bad), "--base", str(llama)]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out.json")]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[2]
    )
    assert child.stdout
    said = ""
    for line in child.stdout:
        said += line
        if "Prompt 1" in line:
            break
    family = psutil.Process(child.pid).children(recursive=True)
    time.sleep(0.5)
    began = time.monotonic()
    os.kill(child.pid, signal.SIGINT)
    child.wait(60)
    attempt(time.monotonic() - began < 5, said)
    _, alive = psutil.wait_procs(family, timeout=20)
    attempt(not alive, "a child is left")
