"""Listeners that draw in several steps: what is on the page stays, and a late answer replaces no newer one."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from qlora_gui.runs.store import RunStore
from qlora_gui.ui import app, streaming
from qlora_gui.ui.train import memory_panel, preview


@pytest.fixture
def page(tmp_path: Path) -> gr.Blocks:
    return app.build_app(RunStore(tmp_path / "adapters"))


def listener(page: gr.Blocks, draws: str) -> Any:
    """The first listener that yields and draws the part of this id."""
    found = (fn for fn in page.fns.values() if inspect.isgeneratorfunction(fn.fn))
    return next(fn for fn in found if draws in [part.elem_id for part in fn.outputs])


def fields(page: gr.Blocks, of: Any, **changed: object) -> dict[Any, Any]:
    """What a page sends to a listener: the fields' values, states as they begin, and what a person has changed."""
    found = {part: part.value for part in of.inputs}
    by_id = {part.elem_id: part for part in of.inputs}
    return found | {by_id[name.replace("__", "-")]: value for name, value in changed.items()}


def test_every_listener_that_yields_ends_with_no_change(page: gr.Blocks) -> None:
    """Gradio empties the outputs of a generator that ended without a word."""
    yielding = [fn for fn in page.fns.values() if inspect.isgeneratorfunction(fn.fn)]
    drawn = {part.elem_id for fn in yielding for part in fn.outputs}
    assert drawn >= {"preview", "start", "fit-body", "chat-0", "report", "llm-status"}
    bare = [fn.name for fn in yielding if not hasattr(getattr(fn.fn, "func", fn.fn), "ends_with_no_change")]
    assert not bare


def test_a_stream_without_a_word_changes_nothing() -> None:
    @streaming.streams
    def silent(words: list[str]) -> Iterator[str]:
        yield from words

    assert list(silent([])) == [gr.skip()]
    assert list(silent(["one", "two"])) == ["one", "two", gr.skip()]


def test_a_late_preview_does_not_replace_a_newer_one(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(config: Any, learn: Any, wanted: Any) -> Iterator[str]:
        yield f"marking rank {config.eval_fraction}"
        yield f"marked {config.eval_fraction}"

    monkeypatch.setattr(preview, "steps", steps)
    show = listener(page, "preview")
    rows = next(part for part in show.outputs if part.elem_id == "preview")
    first, second = (fields(page, show, **{"knob__eval_fraction": share}) for share in (0.1, 0.2))
    older, newer = show.fn(first), show.fn(second)
    assert next(older)[rows] == "marking rank 0.1"
    assert next(newer)[rows] == "marking rank 0.2"
    assert list(older) == [gr.skip()]
    assert next(newer)[rows] == "marked 0.2"
    assert not any(rows in drawn for drawn in newer)
    assert list(show.fn(second)) == [gr.skip()]  # shown already
    assert [drawn[rows] for drawn in show.fn(first) if rows in drawn] == ["marking rank 0.1", "marked 0.1"]


def test_a_preview_that_failed_is_tried_again(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(config: Any, learn: Any, wanted: Any) -> Iterator[str]:
        yield "marking"
        raise RuntimeError("a bug")

    show = listener(page, "preview")
    given = fields(page, show)
    monkeypatch.setattr(preview, "steps", steps)
    with pytest.raises(RuntimeError):
        list(show.fn(given))
    monkeypatch.setattr(preview, "steps", lambda *args: iter(["marked"]))
    assert next(iter(show.fn(given)))[show.outputs[0]] == "marked"


def test_a_late_simulation_does_not_replace_a_newer_plan(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    look = listener(page, "fit-body")
    body = next(part for part in look.outputs if part.elem_id == "fit-body")
    given = fields(page, look)
    made: list[str] = []

    def planned(config: Any, target: str, shapes: Any, simulate: bool = False) -> Any:
        made.append(f"simulated {config.rank}" if simulate else f"planned {config.rank}")
        return memory_panel._Drawn(made[-1], "", unsure=not simulate)

    monkeypatch.setattr(memory_panel, "_look", planned)
    older = look.fn(given)
    assert next(older)[body]["value"].startswith("planned")
    newer = list(look.fn(given | {next(part for part in look.inputs if part.elem_id == "knob-rank"): 7}))
    assert [drawn[body]["value"] for drawn in newer[:-1]] == ["planned 7", "simulated 7"]
    assert list(older) == [gr.skip()] and len(made) == 3
