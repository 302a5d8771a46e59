"""Runs, events, evaluations and votes as the program writes them, made without training."""

import json
from collections.abc import Callable
from typing import Any

from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.evaluation import verdict
from qlora_gui.preferences.votes import Column, Vote
from qlora_gui.report import written
from qlora_gui.report.blocks import Table
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore

GB = 2**30


ADAPTER_FACTS = {
    "b_zero_share": 0.0,
    "delta_ratio": 0.02,
    "linears": 210,
    "linears_available": 210,
    "trained_biases": 0,
    "lora_only_lost": False,
    "embeddings_in_file": False,
    "vocab_differs": False,
    "template_differs": False,
    "no_base_template": False,
    "quantization_differs": False,
    "revision_differs": False,
    "double_bos": False,
}


DATA = {"name": "rows.json", "rows.json": "a" * 64}


BLOOM = {"vocabulary": 250880, "fingerprint": "bloom-small"}


class Made:
    """A run's folder made by hand, from events as the trainer writes them."""

    def __init__(self, store: RunStore, run_id: str, fingerprint: dict[str, str] | None = None, **knobs: Any):
        self.run = Run(store.root / run_id)
        self.run.path.mkdir(parents=True)
        config = RunConfig(**({"base_model": "bigscience/bloom-560m", "dataset": "rows.json"} | knobs))
        manifest = {
            "schema": 1,
            "config": config.model_dump(mode="json"),
            "versions": {"torch": "2.13.0", "peft": "0.21.2"},
            "dataset": fingerprint or DATA,
        }
        (self.run.path / "run.json").write_text(json.dumps(manifest))
        self.config, self.log = config, EventLog(self.run.events_file)

    def trained(
        self,
        held_out: list[float] | None = None,
        tokens: int = 9000,
        device: str = "cpu",
        end: str = "finished",
        **base: Any,
    ) -> "Made":
        """Steps 1 to 40, held-out losses spread over them, an adapter where it ended well."""
        losses = [2.0, 1.5, 1.4] if held_out is None else held_out
        self.log.append("started", pid=1, resumed=False)
        self.log.append("stage", text="Finding the base model")
        self.log.append(
            "data",
            format="alpaca",
            used=800,
            held_out=100,
            truncated=3,
            dropped=1,
            dropped_rows=[],
            tokens=90000,
            supervised=40000,
        )
        told = {
            "name": self.config.base_model,
            "revision": None,
            "template": "abc",
            "dtype": "bfloat16",
            "trained": 9000,
            "biases": 0,
            "layers": 168,
            "rows": 800,
            "rows_a_batch": 4,
            "chunked_loss": True,
            "gradient_checkpointing": "none",
        }
        self.log.append("base", **(told | BLOOM | {"device": device} | base))
        for place, loss in enumerate(losses):
            step = round(40 * place / max(len(losses) - 1, 1))
            if step:
                self.log.append(
                    "step",
                    step=step,
                    max_steps=40,
                    epoch=step / 40,
                    loss=loss - 0.1,
                    learning_rate=1e-4,
                    grad_norm=0.5,
                    tokens_per_second=150.0,
                    memory=2 * GB,
                    eta=3.0,
                )
            self.log.append("eval", step=step, loss=loss, tokens=tokens)
        if end == "finished":
            (self.run.path / "adapter_config.json").write_text("{}")
            (self.run.path / "adapter_model.safetensors").write_text("")
            self.log.append("saved", step=40, sha256=f"sha-{self.run.id}", bytes=0)
            self.log.append("finished", step=40, seconds=75.0, loss_before=losses[0], loss_after=losses[-1])
        return self

    def evaluated(self, difference: float = -0.44, width: float = 0.07, base: float = 2.0, **more: Any) -> "Made":
        """An evaluation.json as evaluation/results.py writes it."""
        texts = {
            "answers": 100,
            "ended_by_eos": 0.41,
            "ended_by_length": 0.59,
            "empty": 0.0,
            "rep4": 0.1,
            "distinct1": 0.5,
            "distinct2": 0.8,
            "compression": 1.9,
            "tokens": 60.0,
            "copied": 0.0,
            "chrf": 31.0,
            "rouge_l": 0.2,
            "exact": 0.0,
            "json_valid": None,
        }
        found: dict[str, Any] = {
            "schema": 1,
            "made": 1789000000.0,
            "adapter": {"name": self.run.id, "sha256": f"sha-{self.run.id}"},
            "base": {
                "name": "base",
                "revision": None,
                "fingerprint": "bloom-small",
                "quantization": "nf4",
                "computed_in": "bfloat16",
            },
            "data": {"source": "held-out rows of the run", "rows": 100, "tokens": 9000, "trained_on": 0},
            "settings": {"rows": 100, "max_new_tokens": 256, "seed": 0, "resamples": 9999},
            "loss": {
                "base": base,
                "adapter": base + difference,
                "difference": difference,
                "low": difference - width,
                "high": difference + width,
                "p": 2e-4,
                "p_holm": 2e-4 if abs(difference) > width else 0.4,
                "rows": 100,
            },
            "dependence": None,
            "texts": {"base": texts, "adapter": texts | {"ended_by_eos": 0.98, "ended_by_length": 0.02}},
            "eos": {"base": 0.3, "adapter": 0.95},
            "drift": {"kl": 0.21, "first_divergence": 4.0, "same": 0.02},
            "general": {"base": 3.1, "adapter": 3.2, "tokens": 700},
            "adapter_facts": ADAPTER_FACTS,
            "examples": [
                {
                    "prompt": f"Question {n}",
                    "reference": f"known {n}",
                    "base": f"base says {n}",
                    "adapter": f"adapter says {n}",
                }
                for n in range(1, 6)
            ],
        }
        found["verdict"] = verdict.decide(found)
        (self.run.path / "evaluation.json").write_text(json.dumps(found | more))
        return self


def rows(store: RunStore, head: str) -> list[list[str]]:
    """The rows of the first table with this heading, as texts."""
    table = next(block for block in written(store) if isinstance(block, Table) and head in block.head)
    return [[getattr(value, "text", value) for value in row] for row in table.rows]


BASE, OTTER, LYNX = Column("base"), Column("otter", "a" * 64), Column("lynx", "b" * 64)


def vote(number: int, choice: int | str, columns: tuple[Column, ...] = (BASE, OTTER), **more: object) -> Vote:
    """A vote on the prompt of this number."""
    count = len(columns)
    fields: dict[str, object] = {
        "session": "s",
        "prompt": f"prompt {number}",
        "messages": [{"role": "user", "content": f"prompt {number}"}],
        "columns": columns,
        "order": tuple(range(count)),
        "choice": choice,
        "answers": ("x",) * count,
        "tokens": (10,) * count,
    }
    return Vote(**(fields | more))  # type: ignore[arg-type]


DEMO = configs.resolve(preset="demo")


Values = dict[str, Any]


def facts(**other: Any) -> Values:
    """Those of the demo data."""
    return {
        "rows": 301,
        "format": "messages",
        "supervised_share": 0.41,
        "eos_supervised": 1.0,
        "truncated": 0,
        "truncated_answers": 0,
        "double_bos": False,
        "spelled": 0,
        "has_template": True,
        "template": "3c2d07a8f2b1",
        "pad_is_eos": True,
        "longest": 178,
    } | other


def step(number: int, loss: float | None, **other: Any) -> Values:
    return {
        "t": float(number),
        "kind": "step",
        "step": number,
        "max_steps": 114,
        "epoch": round(number / 76, 4),
        "loss": loss,
        "learning_rate": 2e-4,
        "grad_norm": 0.8,
        "tokens_per_second": 400.0,
        "memory": 2**30,
        "eta": 60.0,
    } | other


def held_out(number: int, loss: float | None) -> Values:
    return {"t": float(number), "kind": "eval", "step": number, "loss": loss, "tokens": 2200}


def curve(number: int) -> float:
    """A training loss as the demo's: fast at first, then slowly, and never smooth."""
    return 0.45 + 1.1 * 0.95**number + (0.12 if number % 6 == 0 else -0.06 if number % 4 == 0 else 0.0)


def healthy_events() -> list[Values]:
    events: list[Values] = [
        {"t": 0.0, "kind": "started"},
        {"t": 0.0, "kind": "stage", "text": "Reading the data"},
        {
            "t": 0.0,
            "kind": "data",
            "used": 301,
            "held_out": 44,
            "truncated": 0,
            "dropped": 0,
            "dropped_rows": [],
            "facts": facts(),
        },
        {
            "t": 0.0,
            "kind": "base",
            "name": "demo",
            "device": "cpu",
            "dtype": "bfloat16",
            "revision": None,
            "template": "3c2d07a8f2b1",
        },
        held_out(0, 1.62),
        step(1, 1.58),
    ]
    for number in range(2, 115, 2):
        events.append(step(number, curve(number)))
        if number in (38, 76, 114):
            events.append(held_out(number, {38: 0.86, 76: 0.71, 114: 0.69}[number]))
    return [*events, {"t": 200.0, "kind": "saved", "step": 114}, {"t": 201.0, "kind": "finished", "step": 114}]


def of_kind(events: list[Values], kind: str) -> list[Values]:
    return [event for event in events if event["kind"] == kind]


def held_out_losses(*losses: float | None) -> Callable[[list[Values]], Any]:
    return lambda events: [event.update(loss=loss) for event, loss in zip(of_kind(events, "eval"), losses, strict=True)]


def texts(**other: Any) -> Values:
    return {
        "answers": 44,
        "ended_by_eos": 0.98,
        "ended_by_length": 0.02,
        "empty": 0.0,
        "rep4": 0.01,
        "distinct1": 0.3,
        "distinct2": 0.6,
        "compression": 1.4,
        "tokens": 62.0,
        "copied": 0.12,
        "chrf": 70.0,
        "rouge_l": 0.8,
        "exact": 0.1,
        "json_valid": 0.98,
    } | other


def healthy_evaluation() -> Values:
    return {
        "schema": 1,
        "adapter": {"name": "brave-otter", "sha256": "ab" * 32},
        "base": {"name": "demo", "revision": None, "quantization": "nf4", "template": "3c2d07a8f2b1"},
        "data": {"source": "held-out rows of the run", "rows": 44, "tokens": 2200},
        "loss": {
            "base": 1.62,
            "adapter": 0.69,
            "difference": -0.93,
            "low": -1.0,
            "high": -0.86,
            "p": 0.0001,
            "rows": 44,
        },
        "dependence": {
            "base": 0.61,
            "adapter": 1.4,
            "difference": 0.79,
            "low": 0.7,
            "high": 0.9,
            "p": 1e-4,
            "rows": 44,
        },
        "texts": {"base": texts(ended_by_eos=0.41, ended_by_length=0.59, copied=0.0), "adapter": texts()},
        "eos": {"base": 0.31, "adapter": 0.97},
        "drift": {"kl": 0.42, "first_divergence": 1.0, "same": 0.0},
        "general": {"base": 3.1, "adapter": 3.12, "tokens": 800},
        "adapter_facts": ADAPTER_FACTS | {"delta_ratio": 0.012},
    }


GOOD: dict[str, dict[str, Any]] = {
    "started": {"pid": 1, "resumed": False},
    "stage": {"text": "Reading the data"},
    "note": {"text": "few steps"},
    "data": {
        "used": 9, "held_out": 2, "truncated": 0, "dropped": 1, "dropped_rows": [{"row": 3, "reason": "empty"}],
        "skipped": 1, "skipped_rows": [{"row": 4, "reason": "no answer", "file": "x.jsonl"}], "ignored": {"label": 2},
        "usable": 11, "duplicates": 1, "known": 0, "unused_files": ["y.csv"],
        "facts": {
            "rows": 9, "supervised_share": 0.5, "eos_supervised": 1.0, "truncated_answers": 0, "spelled": 0,
            "pad_is_eos": False,
            "turns": {"learned": 9, "present": 9, "context_only": 0, "cut": 0, "lost": 0, "split": 0, "unended": 0},
            "lost": [], "notes": {}, "thinking": None, "end": "</s>", "end_from": "template", "refuses": "",
        },
    },
    "base": {"name": "b", "device": "cpu", "dtype": "bfloat16", "trained": 5, "processes": 1, "fingerprint": "ab"},
    "fit": {"text": "micro-batch 2", "knobs": {"batch_size": 2}},
    "memory": {"predicted": 100, "measured": 110, "gpu": "T4"},
    "step": {
        "step": 5, "max_steps": 10, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 0.3,
        "tokens_per_second": 9.0, "memory": 2**30, "eta": 3.0,
    },
    "eval": {"step": 5, "loss": 1.5, "tokens": 90},
    "probe": {"step": 5, "answers": [{"prompt": "q", "answer": "a", "ended": True}]},
    "saved": {"step": 10, "sha256": "ab", "bytes": 3},
    "finished": {"step": 10, "seconds": 3.0, "loss_before": 2.0, "loss_after": 1.5},
    "failed": {
        "message": "no room", "bug": False,
        "autopsy": {"phase": "Training", "step": 3, "held_by": [], "changes": [{"text": "less", "knobs": {}, "fits": True, "saves": 5}]},
    },
}  # fmt: skip
