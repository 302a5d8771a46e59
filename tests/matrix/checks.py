"""One architecture held against plain transformers + PEFT: every check gives a status and what it saw.

Statuses: `ok`; `refused`, with a sentence and before the run; `late`, a refusal that comes only after the training;
`wrong`; `crash`, in the program; `outside`, where plain transformers + PEFT do not manage either.
"""

import json
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from qlora_gui.config import make
from qlora_gui.data import chat_template
from qlora_gui.errors import UserError
from qlora_gui.evaluation.job import Settings
from qlora_gui.evaluation.run import evaluate
from qlora_gui.inference import protocol
from qlora_gui.inference.sampling import Decoding
from qlora_gui.memory import budget, known_models
from qlora_gui.memory.estimate import plan
from qlora_gui.runs.store import RunStore
from qlora_gui.training import preview
from tests.matrix import plain, product
from tests.matrix.build import MAX_LENGTH, Made, Turns, build

NEW = 16  # tokens of an answer
LOSS, GRADIENT = 1e-4, 2e-3  # relative; typical are 1e-7 and 2e-6


class Result(NamedTuple):
    """What became of a check, in which words, and how long it took."""

    status: str
    detail: str
    seconds: float


class Wrong(Exception):
    """It ran, and the result is not that of plain transformers + PEFT."""


STATUSES: dict[type[Exception], str] = {UserError: "refused", product.Late: "late", Wrong: "wrong"}


def check(name: str, root: Path) -> dict[str, Result]:
    """All checks of a spec, in order; its files go into `root`."""
    made = build(name, root / "models")
    work = root / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    checks = Checks(made, RunStore(work))
    checks.all()
    return checks.found


class Checks:
    """The checks, what they found so far, and what later ones need of earlier ones."""

    def __init__(self, made: Made, store: RunStore):
        self.made, self.store = made, store
        self.found: dict[str, Result] = {}
        self.reader = plain.Reader(made, chat_template.PLAIN)
        self.exact: dict[str, product.Recorded] = {}  # runs by name of their check
        self.models: dict[str, Any] = {}  # of plain PEFT, by what biases are trained
        self.client = product.InProcess()
        self.answers: dict[tuple[str, str], str] = {}  # of plain models, by adapter and prompt

    def do(self, key: str, call: Callable[[], str]) -> bool:
        """Run one check; whether it is ok."""
        began = time.monotonic()
        try:
            status, detail = "ok", call()
        except tuple(STATUSES) as error:
            status, detail = STATUSES[type(error)], str(error)
        except Exception as error:
            status, detail = "crash", _place(error)
            traceback.print_exc()
        self.found[key] = Result(status, detail, round(time.monotonic() - began, 1))
        print(f"{self.made.name} | {key} | {status} | {detail}", flush=True)
        return status == "ok"

    def all(self) -> None:
        trainable = self.do("plain", lambda: plain.trains(self.made, self.reader.row(self.made.measured[0])))
        if not trainable:
            self._is_outside("plain")
        self.do("learned tokens", self.learned)
        trained = self.do("train", lambda: self.train("train"))
        self.do("fit", self.fit)
        if not trained:
            if not trainable:
                self._is_outside("train")
            return
        biases = self._biases()
        self.do("number format", self.streams)
        self.do("train packed", lambda: self.train("train packed", packing=True))
        if biases:
            self.do("train bias", lambda: self.train("train bias", bias="all"))
        self.do("short", lambda: self.equal("short", "short"))
        self.do("long", lambda: self.equal("long", "long", probe_prompts=3, probe_tokens=NEW))
        self.do("packed", lambda: self.equal("packed", "mixed", packing=True))
        self.do("checkpointed", lambda: self.equal("checkpointed", "short", gradient_checkpointing="all"))
        self.do("eager", lambda: self.equal("eager", "mixed", attention="eager"))
        self.do("sdpa", lambda: self.equal("sdpa", "mixed", attention="sdpa"))
        if biases:
            self.do("bias", lambda: self.equal("bias", "mixed", bias="all"))
            self.do("packed bias", lambda: self.equal("packed bias", "mixed", bias="all", packing=True))
        if "long" in self.exact:
            self.do("held-out", self.held_out)
            self.do("probes", self.probes)
        self.comparing()

    def comparing(self) -> None:
        """Evaluation and comparison of the base, an adapter without and one with trained biases."""
        named = [key for key in ("long", "bias") if key in self.exact]
        if not named:
            return
        if not self.do("load", lambda: self.load(named)):
            if len(named) < 2 or not self.do("load without biases", lambda: self.load(named[:1])):
                return
            named = named[:1]
        self.do("evaluate", lambda: self.evaluate(named))
        self.do("greedy", lambda: self.greedy(named))
        self.do("own conversations", lambda: self.own(named))
        self.do("sampled", lambda: self.sampled(named))

    # ------------------------------------------------------------------ before the run

    def fit(self) -> str:
        """The closed form counts the weights that the run has loaded; where there is none, those of the plain model."""
        recorded = self.exact.get("train")
        in_4_bits, total = recorded.weights if recorded else product.weights(plain.load(self.made.path))
        config = make({"base_model": str(self.made.path), "dataset": str(self.made.dataset("short"))})
        shape = known_models.find(config, count=True)
        figures = plan(config, shape, budget.card(16)).figures
        shares = shape.linear_weights / max(in_4_bits, 1), shape.parameters / total
        told = f"linears {shares[0]:.3f}, parameters {shares[1]:.3f} of the real count; {figures}"
        if abs(shares[0] - 1) > 1e-3 or abs(shares[1] - 1) > 1e-2:  # norms weigh much in a model as small as this
            raise Wrong(told)
        return told

    def learned(self) -> str:
        """What the preview shows as learned is the answer with its end mark, and nothing is dropped."""
        config = make({"base_model": str(self.made.path), "dataset": str(self.made.dataset("long")), "max_length": 512})
        shown = preview.preview(config, lambda text: None)
        first = shown["rows"][0]["pieces"]
        said = "".join(text for text, is_learned in first if is_learned)
        before = "".join(text for text, is_learned in first[:1] if not is_learned)
        row = self.reader.row(self.made.rows("long")[0])
        if row.answer.endswith(self.made.rows("long")[0][-1]["content"].strip()):  # the template writes no end mark
            self.reader.end = next((end for end in self.reader.ends if said.endswith(end)), "")
            if not self.reader.end:
                raise Wrong(f"no end mark is learned: {said[-40:]!r}")
            row = self.reader.row(self.made.rows("long")[0])
        if said != row.answer or before != row.context:
            raise Wrong(f"learned is {said!r} after {before[-30:]!r}, not {row.answer!r} after {row.context[-30:]!r}")
        if shown["dropped"]:
            raise Wrong(f"{shown['dropped']} rows are dropped")
        return f"ends with {row.answer[-14:]!r}"

    # ------------------------------------------------------------------ training

    def _knobs(self, key: str, which: str, **more: Any) -> dict[str, Any]:
        about = {"name": _slug(key), "base_model": str(self.made.path), "dataset": str(self.made.dataset(which))}
        return about | {"max_length": MAX_LENGTH, "batch_size": 4, "probe_prompts": 0} | more

    def train(self, key: str, **more: Any) -> str:
        """As on a GPU: bf16, dropout, two steps, held-out loss and probes; PEFT finds all of the adapter."""
        how = {"max_steps": 2, "batch_size": 2, "probe_prompts": 2, "probe_tokens": 4, "learning_rate": 2e-3}
        recorded = product.run(self.store, False, **self._knobs(key, "mixed", **(how | more)))
        losses = [event["loss"] for kind in ("step", "eval") for event in recorded.events(kind)]
        if not recorded.run.has_adapter() or len(recorded.events("step")) != 2 or any(x != x for x in losses):
            raise Wrong(f"losses {losses}, an adapter: {recorded.run.has_adapter()}")
        plain.with_adapter(self.made.path, recorded.run.path)
        base = recorded.events("base")[-1]
        self.exact[key] = recorded
        return f"{base['dtype']}, {base['layers']} LoRA, {base['biases']} biases, losses {_numbers(losses)}"

    def streams(self) -> str:
        """Between the layers goes the run's number format, unless the architecture itself wants fp32 there."""
        recorded = self.exact["train"]
        own = json.loads((self.made.path / "config.json").read_text()).get("residual_in_fp32")
        dtype = "float32" if own else recorded.events("base")[-1]["dtype"]
        if recorded.streams - {dtype}:
            raise Wrong(f"layers give {sorted(recorded.streams)} where the run computes in {dtype}")
        return f"layers give {sorted(recorded.streams)}"

    def equal(self, key: str, which: str, **more: Any) -> str:
        """Loss and gradients of one step in fp32 are those of plain PEFT on the padded batch."""
        recorded = product.run(self.store, True, **self._knobs(key, which, **more))
        self.exact[key] = recorded
        rows = [self.reader.row(turns) for turns in self.made.rows(which)]
        model = self._plain(recorded, more.get("bias", "none"))
        loss, gradients = plain.step(model, rows, self.reader.tokenizer.pad_token_id)
        if "called a bias that belong to" in recorded.said():  # told before the first step: of routers, experts, ...
            gradients = {name: one for name, one in gradients.items() if _plain_name(name) in _trained(recorded)}
        off = abs(recorded.loss - loss) / loss
        by, worst, one_sided = difference(recorded.gradients, gradients)
        shapes = f"{recorded.shapes}{' shared' if recorded.shared else ''}"
        told = f"loss off by {off:.1e} ({recorded.loss:.4f}, {loss:.4f}), gradients by {by:.1e} ({worst}), {shapes}"
        if one_sided:
            told += f", gradients on one side only: {one_sided[:3]}"
        if not (off < LOSS and by < GRADIENT) or one_sided:
            raise Wrong(told)
        return told

    def _plain(self, recorded: product.Recorded, bias: str) -> Any:
        """Plain PEFT with a run's adapter, loaded once: runs that train the same have the same weights."""
        if bias not in self.models:
            self.models[bias] = plain.with_adapter(self.made.path, recorded.run.path, trainable=True)
            self.models[bias, "file"] = load_file(recorded.run.path / "adapter_model.safetensors")
        file = load_file(recorded.run.path / "adapter_model.safetensors")
        known_file = self.models[bias, "file"]
        far = [name for name in file if name not in known_file or (file[name] - known_file[name]).abs().max() > 1e-6]
        if far or len(file) != len(known_file):
            raise Wrong(f"this run's adapter has other tensors than the first: {far[:3]}")
        return self.models[bias]

    def held_out(self) -> str:
        """The last held-out loss of a run is that of plain PEFT."""
        recorded, model = self.exact["long"], self.models["none"]
        rows = [self.reader.row(turns) for turns in self.made.measured]
        want = sum(plain.loss_of(model, row) for row in rows) / sum(len(row.ids) - row.begin for row in rows)
        got = recorded.events("eval")[-1]["loss"]
        if abs(got - want) / want > LOSS:
            raise Wrong(f"{got:.5f}, not {want:.5f}")
        return f"{got:.4f}"

    def probes(self) -> str:
        """Answers to prompts of different lengths in one batch are those to each alone."""
        answers = self.exact["long"].events("probe")[-1]["answers"]
        told = []
        for one, turns in zip(answers, self.made.measured, strict=False):
            want = self._answer("long", turns).strip()
            told += apart(one["answer"], want)
        if told or len(answers) != 3:
            raise Wrong(f"{len(told)} of {len(answers)} differ: {'; '.join(told)}")
        return f"{len(answers)} answers"

    # ------------------------------------------------------------------ comparing and evaluating

    def load(self, named: list[str]) -> str:
        """The adapters can be compared, or the training said before its first step that they cannot."""
        try:
            columns = self.client.columns(str(self.made.path), "", self._folders(named))
        except UserError as error:
            if "compar" not in " ".join(self.exact[key].said() for key in named):
                raise product.Late(str(error)) from error
            raise
        return "; ".join(str(column.get("self_test", "")) for column in columns[1:])

    def _column(self, adapter: str) -> Any:
        """A column's model alone: the base (""), or plain PEFT with an adapter."""
        if not adapter and "" not in self.models:
            self.models[""] = plain.load(self.made.path)
        return self.models[{"": "", "bias": "all"}.get(adapter, "none")]

    def _answer(self, adapter: str, turns: Turns) -> str:
        key = adapter, turns[0]["content"]
        if key not in self.answers:
            self.answers[key] = plain.answer(self._column(adapter), self.reader, turns, NEW)
        return self.answers[key]

    def evaluate(self, named: list[str]) -> str:
        """Losses and answers of every column on the held-out rows, each against its model alone."""
        folders = self._folders(named)
        settings = Settings(max_new_tokens=NEW)
        found = evaluate(folders, None, settings, lambda text: None, client=self.client)["rows"]
        worst, told = 0.0, []
        for one, turns in zip(found, self.made.measured, strict=True):
            for number, adapter in enumerate(["", *named]):
                want = plain.loss_of(self._column(adapter), self.reader.row(turns))
                worst = max(worst, abs(one["loss"][number] - want) / want)
                told += apart(one["text"][number], self._answer(adapter, turns))
        if worst > LOSS or told:
            raise Wrong(f"losses off by {worst:.1e}, {len(told)} answers differ: {'; '.join(told[:2])}")
        return f"losses off by {worst:.1e}, {len(found) * (len(named) + 1)} answers equal"

    def _asked(self, conversations: list[Turns], **decoding: Any) -> list[str]:
        how = Decoding(**({"greedy": True, "max_new_tokens": NEW} | decoding))
        events = self.client.answer([turns[:-1] for turns in conversations], how)
        return [answer.text for answer in protocol.collect(events, len(conversations))]

    def greedy(self, named: list[str]) -> str:
        """Every column's answer to one prompt is that of its model alone."""
        self.load(named)  # anew: whatever the evaluation left behind
        return self._same([[turns] * (len(named) + 1) for turns in self.made.measured[:2]], named)

    def own(self, named: list[str]) -> str:
        """So it is where every column has a conversation of its own, and they differ in length."""
        return self._same([(self.made.measured * 2)[first : first + len(named) + 1] for first in (0, 1)], named)

    def _same(self, asked: list[list[Turns]], named: list[str]) -> str:
        told, count = [], 0
        for conversations in asked:
            answers = self._asked(conversations)
            count += len(answers)
            for adapter, turns, text in zip(["", *named], conversations, answers, strict=True):
                told += apart(text, self._answer(adapter, turns))
        if told:
            raise Wrong(f"{len(told)} of {count} differ: {'; '.join(told[:2])}")
        return f"{count} answers equal"

    def sampled(self, named: list[str]) -> str:
        """Sampled answers come again under the same seed, and the base's are the same without the adapters.

        It is asked with the same thinking: beside adapters the base thinks as they were trained to.
        """
        thinking = str(self.client.columns(str(self.made.path), "", self._folders(named))[0]["thinking"])
        how = {"greedy": False, "temperature": 0.7, "top_p": 0.95, "seed": 1}
        how["thinking"] = thinking if thinking in ("on", "off") else "auto"
        conversations = [self.made.measured[1]] * (len(named) + 1)
        first, again = self._asked(conversations, **how), self._asked(conversations, **how)
        self.client.columns(str(self.made.path), "", [])
        alone = self._asked(conversations[:1], **how)
        if first != again or alone != first[:1]:
            raise Wrong(f"first {first}, again {again}, the base alone {alone}")
        return f"{len(set(first))} distinct answers"

    # ------------------------------------------------------------------ helpers

    def _folders(self, named: list[str]) -> list[Path]:
        return [self.exact[key].run.path for key in named]

    def _biases(self) -> bool:
        """Whether the base has biases that `bias=all` would train."""
        index = self.made.path / "model.safetensors"
        return any(name.endswith("bias") and "vision" not in name for name in load_file(index))

    def _is_outside(self, key: str) -> None:
        """Plain transformers + PEFT crash on this base too."""
        if self.found[key].status == "crash":
            self.found[key] = self.found[key]._replace(status="outside")


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> tuple[float, str, list[str]]:
    """All gradients together relative to theirs, the name of the worst, and those that only one side has."""
    ours, theirs = _plainly(ours), _plainly(theirs)
    one_sided = [name for name in set(ours) ^ set(theirs) if (ours | theirs)[name].any()]
    apart = {name: float((ours[name] - theirs[name]).double().norm()) for name in set(ours) & set(theirs)}
    whole = sum(float(one.double().square().sum()) for one in theirs.values()) ** 0.5
    together = sum(one**2 for one in apart.values()) ** 0.5
    worst = max(apart, key=lambda name: apart[name], default="")
    return together / max(whole, 1e-12), worst.removeprefix("base_model.model."), sorted(one_sided)


def _plain_name(name: str) -> str:
    return name.replace(".language_model", "")


def _trained(recorded: product.Recorded) -> set[str]:
    return {_plain_name(name) for name in recorded.gradients}


def _plainly(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients by names that are the same whether or not the vision part was loaded."""
    return {_plain_name(name): one for name, one in named.items()}


def apart(got: str, want: str) -> list[str]:
    """Nothing for equal texts, else both from where they part."""
    if got == want:
        return []
    first = next(
        (place for place, (one, two) in enumerate(zip(got, want, strict=False)) if one != two), min(len(got), len(want))
    )
    return [f"…{got[first : first + 30]!r}, not …{want[first : first + 30]!r}"]


def _slug(key: str) -> str:
    return key.replace(" ", "-")


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _place(error: Exception) -> str:
    """An error, where the program raised it, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "qlora_gui" in Path(f.filename).parts]
    told = (str(error).strip().splitlines() or [""])[0][:200]
    last = frames[-1]
    return f"{type(error).__name__}: {told} ({ours[-1] if ours else 'no line of ours'}, {Path(last.filename).name}:{last.lineno})"
