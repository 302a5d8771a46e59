"""`--headless-train`: start a run, follow its events to the end, show what was learned."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from tqdm import tqdm

from qlora_gui import hardware
from qlora_gui.config import RunConfig
from qlora_gui.data.prompts import prompts_of
from qlora_gui.errors import UserError
from qlora_gui.formatting import clock
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import Decoding
from qlora_gui.memory import cpu_guard
from qlora_gui.runs import launch
from qlora_gui.runs.event_text import describe, loss_of, oom_report_lines
from qlora_gui.runs.events import FINAL, Event, Step, as_record
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.runs.training_rows import rows_of
from qlora_gui.system import console, signals

_POLL_SECONDS = 0.3
_TOGETHER_SECONDS = 1.0  # signals this close together count as one
EXIT_CODES = {"finished": 0, "failed": 1, "died": 1, "stopped": 130}


def train(
    store: RunStore, config: RunConfig | None, resume: str | None, as_json: bool, answers: int, changed: bool = False
) -> int:
    """Train a new run of `config`, or go on with the run `resume`, if `changed` also with other data or base. Returns the
    exit code.

    Ctrl+C (or SIGTERM) asks the run to stop and save; a second one kills it. Raises UserError for bad input,
    also when only the child finds it: then the folder of a run that never took a step is removed.
    """
    signals.raise_on_terminate()
    show = _json_line if as_json else (_Bar() if sys.stderr.isatty() else _plain_line)
    with _Interrupts() as interrupts:
        if resume:
            run = store.get(resume)
            offset = run.events()[1]
        else:
            assert config is not None
            hardware.settle()
            cpu_guard.check(config)
            run, offset = store.create(config), 0
        interrupts.act = run.request_stop
        try:
            launch.start(run, store, resume=resume is not None, changed=changed)
        except UserError:
            if not resume and not run.is_locked():
                store.delete(run)
            raise
        if not as_json:
            print(f"Run {run.id} in {run.path}", flush=True)
        end = _follow(run, offset, show, interrupts)
        wait_until_gone(run)
    if not resume:
        _remove_if_refused(store, run, end)
    return _conclude(run, end, as_json, answers)


class _Interrupts:
    """Counts Ctrl+C and SIGTERM instead of being thrown out of whatever is going on, which would leave the run alone.

    The first one does `act` at once: a notebook's stop button kills this process a moment after its Ctrl+C. Signals
    close together count as one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.act: Callable[[], None] | None = None
        self._last = -_TOGETHER_SECONDS
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupts":
        self._before = signals.handle(self._on_signal, signals.stop_signals())
        return self

    def __exit__(self, *error: object) -> None:
        signals.restore(self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last > _TOGETHER_SECONDS:
            self.count += 1
        self._last = now
        if self.count == 1 and self.act is not None:
            with contextlib.suppress(UserError):  # tried again, and reported, where the run is followed
                self.act()


def _follow(run: Run, offset: int, show: Callable[[Event], None], interrupts: _Interrupts) -> Event:
    """Show events until a final one comes, or the trainer is gone. The first interrupt stops it, the second kills it."""
    heeded = 0
    while True:
        if interrupts.count > heeded:
            heeded = interrupts.count
            if heeded == 1:
                print("Stopping: this step is finished and saved (Ctrl+C again to kill)", file=sys.stderr, flush=True)
                run.request_stop()
            else:
                launch.kill(run)
        gone = not run.is_live()  # asked before reading: what was written until then is read below
        fresh, offset = run.events(offset)
        for event in fresh:
            show(event)
            if event["kind"] in FINAL:
                return event
        if gone:
            return {"kind": "died", "message": run.log_tail(5)}
        time.sleep(_POLL_SECONDS)


def _remove_if_refused(store: RunStore, run: Run, end: Event) -> None:
    """Remove a new run that its trainer refused before the first step. Raises UserError with the reason."""
    if end["kind"] != "failed" or end.get("bug") or end.get("autopsy"):
        return
    if not run.has_adapter() and not run.history().all(Step):
        store.delete(run)
        raise UserError(end["message"])


def _conclude(run: Run, end: Event, as_json: bool, answers: int) -> int:
    kind = end["kind"]
    if end.get("autopsy"):
        message = "\n".join([f"The run failed. {end['message']}", *oom_report_lines(end["autopsy"])])
        print(console.printable(message), file=sys.stderr)
        return EXIT_CODES[kind]
    if kind in ("failed", "died"):
        outcome = "failed" if kind == "failed" else "died"
        print(console.printable(f"The run {outcome}: {end['message']}\nSee {run.log_file}"), file=sys.stderr)
        return EXIT_CODES[kind]
    if not as_json:
        print(_losses(end))
        if run.has_adapter():
            print(f"Adapter: {run.path}")
        if kind == "finished" and answers > 0:
            _show_answers(run, answers)
    return EXIT_CODES[kind]


def wait_until_gone(run: Run, seconds: float = 10) -> None:
    """Wait until the trainer that has written its last event is really gone, with its memory."""
    deadline = time.monotonic() + seconds
    while (run.is_locked() or launch.find(run)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _losses(end: Event) -> str:
    before, after = end.get("loss_before"), end.get("loss_after")
    if before is None or after is None:
        return f"{end['kind'].capitalize()} after step {end['step']}; no rows were held out."
    change = 100 * (after - before) / before
    return f"{end['kind'].capitalize()}. Held-out loss: base {before:.4f}, adapter {after:.4f} ({change:+.1f}%)"


def _show_answers(run: Run, count: int) -> None:
    """Held-out prompts answered greedily by base and adapter, side by side."""
    config = run.config()
    prompts = prompts_of(rows_of(config).held_out, count, config.system_prompt)
    client, decoding = CompareClient(), Decoding(greedy=True, max_new_tokens=96)
    try:
        if prompts:
            print("\nLoading the base to compare", flush=True)
            client.columns(config.base_model, config.revision, [run.path])
        for prompt in prompts:
            print(f"\nPrompt:  {prompt.turns[-1]['content']}", flush=True)
            try:
                base, adapter = protocol.collect(client.answer([prompt.turns] * 2, decoding, prompt.tools), 2)
            except UserError as error:  # the run itself is done, and well
                print(error, flush=True)
                continue
            print(f"Base:    {base.text.strip()}\nAdapter: {adapter.text.strip()}", flush=True)
    finally:
        client.close()


def _json_line(event: Event) -> None:
    print(json.dumps(event, ensure_ascii=not console.shows_everything()), flush=True)


def _plain_line(event: Event) -> None:
    if text := describe(event):
        print(console.printable(text), flush=True)


class _Bar:
    """A progress bar on a terminal; everything that is no step is a line above it."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(step := as_record(event), Step):
            if self.bar is None:
                self.bar = tqdm(total=step.max_steps, unit="step", dynamic_ncols=True)
            self.bar.set_postfix_str(f"loss {loss_of(step, 3)}, {clock(step.eta or 0)} left", refresh=False)
            self.bar.update(step.step - self.bar.n)
        elif text := describe(event):
            tqdm.write(console.printable(text), file=sys.stderr)
        if event["kind"] in FINAL and self.bar is not None:
            self.bar.close()
