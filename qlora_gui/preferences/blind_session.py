"""A blind session: prompts answered ahead in a thread, judged one after the other, then revealed. No components."""

import random
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.data.tokenization import with_system
from qlora_gui.errors import UserError
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient, columns_of
from qlora_gui.inference.protocol import Answer, Conversation
from qlora_gui.inference.sampling import Decoding
from qlora_gui.preferences.votes import Choice, Column, Vote, VoteLog
from qlora_gui.runs.store import Run

SEEDS = 2**32
_RANDOM = random.SystemRandom()
_BUG = "The answers could not be written: the terminal says why. Press Go on to try again."


@dataclass(frozen=True)
class Plan:
    """What is judged: the base and these runs, or with `aa` the base twice, on these prompts."""

    base: RunConfig
    runs: list[Run]
    prompts: list[str]
    system: str
    decoding: Decoding
    aa: bool = False

    @property
    def count(self) -> int:
        """Answers to a prompt."""
        return 2 if self.aa else len(self.runs) + 1


@dataclass
class Trial:
    """One prompt: its answers by column once they are written, the places they are shown at, the vote on them."""

    messages: Conversation
    order: list[int]
    decoding: Decoding
    retries: int = 0
    answers: list[Answer] = field(default_factory=list)
    since: float = 0.0  # when the judge could see them, on the monotonic clock
    vote: Vote | None = None


def balanced_orders(columns: int, prompts: int) -> list[list[int]]:
    """For every prompt which column stands at which place, by chance, each column equally often at each place.

    Judges prefer a place; counterbalanced, that preference cancels out instead of favouring whoever chance put there.
    Where prompts are no multiple of columns, the counts differ by one at most.
    """
    first = _RANDOM.sample(range(columns), columns)
    orders = [first[turn % columns :] + first[: turn % columns] for turn in range(prompts)]
    _RANDOM.shuffle(orders)
    return orders


class BlindSession:
    """The trials and the judge's way through them. Safe to share between the page's threads and the one that answers.

    `version` changes whenever there is something new to draw.
    """

    def __init__(self, client: CompareClient, log: VoteLog, plan: Plan):
        self.id = uuid.uuid4().hex[:12]
        self.plan = plan
        orders = balanced_orders(plan.count, len(plan.prompts))
        self.trials = [
            Trial([_question(prompt)], order, self._decoding(number))
            for number, (prompt, order) in enumerate(zip(plan.prompts, orders, strict=True))
        ]
        self.current = 0
        self.revealed = False
        self.proofs: list[dict[str, Any]] = []
        self.status, self.error = "", ""
        self.version = 0
        self._client, self._log = client, log
        self._lock = threading.RLock()
        self._working = self._asking = self._over = False
        self.write_on()

    @property
    def written(self) -> int:
        """Prompts whose answers are ready."""
        return sum(bool(trial.answers) for trial in self.trials)

    @property
    def voted(self) -> list[Trial]:
        """The trials that have a vote."""
        return [trial for trial in self.trials if trial.vote]

    @property
    def shown(self) -> Trial | None:
        """What the columns show: the current trial; once revealed the last one that was voted on."""
        if not self.revealed:
            return self.trials[self.current]
        return self.voted[-1] if self.voted else None

    def decoding(self, trial: Trial, column: int) -> Decoding:
        """How a trial's column was asked: the second of an A/A with another seed."""
        seed = trial.decoding.seed + (SEEDS // 2 if self.plan.aa and column else 0)
        return trial.decoding.model_copy(update={"seed": seed % SEEDS})

    def write_on(self) -> None:
        """Have the answers written that are missing, in a thread of its own."""
        with self._lock:
            if self._over or self._working or self._missing() is None:
                return
            self._working, self.error = True, ""
            self.version += 1
        threading.Thread(target=self._work, daemon=True).start()

    def vote(self, number: int, choice: Choice) -> None:
        """Vote on the trial of this number: the best place, a tie, or all bad. Any other number is of a page that lags.

        Raises UserError when the vote cannot be kept; then nothing has changed.
        """
        with self._lock:
            if self.revealed or number != self.current or not self.trials[number].answers:
                return
            trial = self.trials[number]
            vote = self._vote(trial, trial.order[choice] if isinstance(choice, int) else choice)
            self._log.add(vote)
            trial.vote = vote
            if number + 1 < len(self.trials):
                self.current += 1
                self.trials[self.current].since = time.monotonic()
            else:
                self.reveal()
            self.version += 1

    def undo(self) -> None:
        """Take the last vote back: before the reveal to vote anew, after it only to have it not counted.

        Raises UserError when that cannot be kept.
        """
        with self._lock:
            if not self.voted:
                return
            last = self.voted[-1]
            assert last.vote
            self._log.take_back(last.vote.id, after_reveal=self.revealed)
            last.vote = None
            if not self.revealed:
                self.current = self.trials.index(last)
                last.since = time.monotonic()
            self.version += 1

    def retry(self, number: int) -> None:
        """Have the trial's answers written anew, with another seed and at other places."""
        with self._lock:
            if self.revealed or number != self.current or not self.trials[number].answers:
                return
            trial = self.trials[number]
            trial.answers, trial.retries = [], trial.retries + 1
            trial.order = balanced_orders(self.plan.count, 1)[0]
            trial.decoding = self._decoding(number + trial.retries * len(self.trials))
            self.version += 1
        self.write_on()

    def reveal(self) -> None:
        """Say who was who; that ends the session."""
        with self._lock:
            self.revealed = True
            self.version += 1
        self.end()

    def end(self) -> None:
        """Write no more answers."""
        with self._lock:
            self._over = True
            asking_now = self._asking
        if asking_now:
            self._client.stop()

    def _decoding(self, number: int) -> Decoding:
        """The settings with a seed of their own: prompts must not share sampling noise."""
        seed = (self.plan.decoding.seed + number) % SEEDS
        return self.plan.decoding.model_copy(update={"seed": seed})

    def _missing(self) -> int | None:
        """The trial to answer next: the one being judged first."""
        waiting = [n for n, trial in enumerate(self.trials) if not trial.answers and n >= self.current]
        return waiting[0] if waiting else None

    def _next(self) -> Trial | None:
        with self._lock:
            number = None if self._over else self._missing()
            self._working = number is not None
            return None if number is None else self.trials[number]

    def _work(self) -> None:
        error = _BUG
        try:
            while trial := self._next():
                self._answer(trial)
            error = ""
        except UserError as fault:
            error = str(fault)
        finally:
            with self._lock:
                self._asking, self._working = False, self._working and not error
            self._set_status("", "" if self._over else error)

    def _answer(self, trial: Trial) -> None:
        retries, plan = trial.retries, self.plan
        if plan.aa:  # seeds of their own: with shared sampling noise the base would repeat itself word for word
            asked = [self._ask(trial.messages, self.decoding(trial, column)) for column in (0, 1)]
            proofs, answers = ([part for parts in both for part in parts] for both in zip(*asked, strict=True))
        else:
            proofs, answers = self._ask(trial.messages, trial.decoding)
        with self._lock:
            if trial.retries == retries and not self._over:
                trial.answers, self.proofs, trial.since = answers, proofs, time.monotonic()
                self.version += 1

    def _ask(self, messages: Conversation, decoding: Decoding) -> tuple[list[dict[str, Any]], list[Answer]]:
        """The proofs of all columns, of an A/A of the base alone, and their answers. Raises UserError."""
        plan = self.plan
        load = columns_of(plan.base, [] if plan.aa else plan.runs)
        columns, proofs, answers = len(load.adapters) + 1, [], []
        with closing(self._client.ask(load, [with_system(messages, plan.system)] * columns, decoding)) as events:
            for event in events:
                if isinstance(event, protocol.Stage):
                    self._set_status(event.text)
                elif isinstance(event, protocol.Loaded):
                    proofs = event.columns
                    break
            self._set_status("")
            self._asking = True
            for grown in protocol.growing(events, columns, 0):
                answers = grown
                if self._over:
                    break
            self._asking = False
        if any(answer.ended in ("", "stopped") for answer in answers) and not self._over:
            raise UserError("The answers were stopped: press Go on to have them written.")
        return proofs, answers

    def _set_status(self, status: str, error: str = "") -> None:
        with self._lock:
            self.status, self.error = status, error
            self.version += 1

    def _vote(self, trial: Trial, choice: Choice) -> Vote:
        base, plan = self.proofs[0], self.plan
        system = [{"role": "system", "content": plan.system}] if plan.system else []
        names = {
            "name": "base",
            "revision": "revision",
            "fingerprint": "base_fingerprint",
            "quantization": "quantization",
        }
        return Vote(
            session=self.id,
            prompt=trial.messages[-1]["content"],
            messages=[*system, *trial.messages],
            columns=tuple(Column(str(proof["name"]), proof.get("sha256")) for proof in self.proofs),
            order=tuple(trial.order),
            choice=choice,
            answers=tuple(answer.text for answer in trial.answers),
            tokens=tuple(answer.tokens for answer in trial.answers),
            seconds=round(time.monotonic() - trial.since, 1),
            retries=trial.retries,
            decoding=trial.decoding.model_dump(),
            same_dice=trial.decoding.same_dice and not plan.aa and not trial.decoding.greedy,
            aa=plan.aa,
            base={name: base.get(key) for name, key in names.items()},
        )


def _question(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


def parse(text: str) -> list[str]:
    """Prompts of a text: one a line; or, where lines are `---`, one between every two of them."""
    lines = text.splitlines()
    if "---" not in (line.strip() for line in lines):
        return [line.strip() for line in lines if line.strip()]
    blocks = [""]
    for line in lines:
        if line.strip() == "---":
            blocks.append("")
        else:
            blocks[-1] += line + "\n"
    return [block.strip() for block in blocks if block.strip()]


def as_text(prompts: Sequence[str]) -> str:
    """The text that `parse` reads these prompts from."""
    if all(len(prompt.splitlines()) == 1 for prompt in prompts):
        return "\n".join(prompts)
    return "\n---\n".join(prompts) + "\n---"
