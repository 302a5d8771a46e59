"""What a resumed run goes on from: an intact checkpoint, with the base and the rows of before."""

from array import array
from collections.abc import Iterable

import xxhash

from qlora_gui.data.tokenization import Encoded
from qlora_gui.errors import UserError
from qlora_gui.models.base import Base
from qlora_gui.runs import changes, checkpoints
from qlora_gui.runs.event_text import describe
from qlora_gui.runs.events import Base as BaseEvent
from qlora_gui.runs.events import Data, EventLog
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import Run
from qlora_gui.training import distributed


def digest(examples: Iterable[Encoded]) -> str:
    """16 hex digits over rows as the model reads them: their tokens, and which are learned, in their order."""
    hasher = xxhash.xxh3_64()
    for row in examples:
        for ids in (row.input_ids, row.labels):
            hasher.update(len(ids).to_bytes(8, "little") + array("q", ids).tobytes())
    return hasher.hexdigest()


class Before:
    """A run as it was last started; where it is begun now (not `resume`), nothing is held against it.

    `allowed`: a change is reported, and is no reason to stop.
    """

    def __init__(self, run: Run, log: EventLog, resume: bool, allowed: bool):
        self.run, self.log, self.allowed = run, log, allowed
        past = run.history() if resume else RunHistory()
        self.base, self.data = past.latest(BaseEvent), past.latest(Data)

    def check_base(self, base: Base) -> None:
        """Raise ChangedError for a base of other weights, or of another revision, than before."""
        if self.base is None:
            return
        if self.base.fingerprint not in (None, base.fingerprint):
            self._tell(changes.another_base(base.name))
        elif self.base.revision not in (None, base.revision):
            self._tell(f"the base '{base.name}' is of revision {base.revision} and was of {self.base.revision}")

    def check_rows(self, files: dict[str, str], rows: str) -> None:
        """Raise ChangedError for rows, as the model reads them, that are others than before: `rows` is their digest."""
        if self.data is None or self.data.digest in (None, rows):
            return
        now = {name: value for name, value in files.items() if name != "name"}
        then = {name: value for name, value in (self.data.files or {}).items() if name != "name"}
        if now != then:
            self._tell("its data has other rows")
        else:
            self._tell("its rows are read as other tokens (another tokenizer, chat template, or version of a library)")

    def checkpoint(self) -> str:
        """The checkpoint to go on from; a newer one that is damaged is reported. Raises UserError where there is none."""
        intact, wrong = checkpoints.sound(self.run.checkpoints)
        if intact is None:
            raise UserError(changes.no_checkpoint(self.run.id, wrong))
        processes = self.base.processes if self.base else distributed.world()
        if processes != distributed.world():
            raise UserError(
                f"The run '{self.run.id}' was begun with {processes} processes and cannot go on with {distributed.world()}: "
                "its steps would see other rows."
            )
        if wrong:
            self._note(f"{'; '.join(wrong)}: the run goes on from {intact.name} instead.")
        return str(intact)

    def _tell(self, change: str) -> None:
        if not self.allowed:
            raise changes.ChangedError(self.run.id, change)
        self._note(f"Resumed though something has changed: {change}.")

    def _note(self, text: str) -> None:
        print(describe(self.log.append("note", text=text)), flush=True)
