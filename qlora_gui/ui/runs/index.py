"""All runs in a line each, for thousands of them: an index of what was read, in memory and in the cache.

It is made from the folders and is never the truth: who lives, what waits, and the sizes and ages of all files are looked at
each time (`runs.scan`), and a run whose files have changed is read again. Without the cache, or with a damaged one, it takes
longer and says the same. What cannot be read within a moment is read in the background, and is "…" until then.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.formatting import amount
from qlora_gui.runs import derived_cache, event_file, scan
from qlora_gui.runs.scan import Seen
from qlora_gui.runs.store import YOUNG_SECONDS, Run, RunStore
from qlora_gui.ui.runs.summary import Summary, read, unread

PATIENCE_SECONDS = 0.1  # that a page waits for runs to be read
_AGE_SECONDS = 1.0  # of a look that several views share
_KEEP_SECONDS = 60.0
MUCH = 16 << 20  # bytes of events that are read in the background


@dataclass(frozen=True)
class Look:
    """All runs, newest first, as they were in one moment; `version` is another one whenever something is."""

    summaries: Sequence[Summary]
    version: str
    at: float = 0.0

    @property
    def unread(self) -> int:
        """How many runs have not been read yet."""
        return sum(not summary.read for summary in self.summaries)


class Index:
    """What is known of the runs of one folder."""

    def __init__(self, root: Path):
        self.root = root
        self._turn, self._writing = threading.Lock(), threading.Lock()
        self._known: dict[str, tuple[tuple[int, ...], Summary]] = {}
        self._look = Look((), "")
        self._version = 0
        self._worker: threading.Thread | None = None
        self._kept_at, self._changed = 0.0, False
        self._load()

    def look(self, patience: float | None, age: float = 0.0) -> Look:
        """All runs; those that cannot be read within `patience` seconds come unread. None waits for all.

        A look that is no older than `age` seconds is taken as it is.
        """
        with self._turn:
            if time.monotonic() - self._look.at < age:
                return self._look
            until = None if patience is None else time.monotonic() + patience
            seen = scan.scan(self.root)
            runs = [self._summarize(run, until) for run in seen]
            self._known = {run.id: self._known[run.id] for run in seen if run.id in self._known}
            places = _places(seen)
            runs = [replace(run, place=places[run.id]) if run.id in places else run for run in runs]
            if runs != self._look.summaries:
                self._version += 1
            self._look = Look(runs, f"{id(self)}-{self._version}", time.monotonic())
            if any(not self._is_known(run) for run in seen):
                self.read_on()
        if self._changed and time.monotonic() - self._kept_at > _KEEP_SECONDS:
            threading.Thread(target=self._keep, daemon=True).start()
        return self._look

    def summarize(self, seen: Seen, patience: float | None = None) -> Summary:
        """One run."""
        with self._turn:
            return self._summarize(seen, None if patience is None else time.monotonic() + patience)

    def _summarize(self, seen: Seen, until: float | None) -> Summary:
        """A run as it is known, if its files are as they were then; else read, if there is time."""
        known = self._known.get(seen.id)
        if known is not None and known[0] == _stamp(seen):
            return known[1]
        late = until is not None and (time.monotonic() > until or event_file.behind(seen.path / "events.jsonl") > MUCH)
        if late:
            return known[1] if known is not None and not seen.locked else unread(seen)
        return self._read(seen)

    def _read(self, seen: Seen) -> Summary:
        summary = read(Run(seen.path), seen)
        self._known[seen.id] = (_stamp(seen), summary)
        self._changed = True
        return summary

    def _is_known(self, seen: Seen) -> bool:
        known = self._known.get(seen.id)
        return known is not None and known[0] == _stamp(seen)

    def read_on(self) -> None:
        """See that what is not read yet is being read in the background."""
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._read_all, daemon=True)
            self._worker.start()

    def _read_all(self) -> None:
        """Read what is not known, a run at a time, so that others get their turn; the long ones last."""
        missing = [seen for seen in scan.scan(self.root) if not self._is_known(seen)]
        for seen in sorted(missing, key=lambda seen: event_file.behind(seen.path / "events.jsonl") > MUCH):
            event_file.catch_up(seen.path / "events.jsonl")
            with self._turn:
                if not self._is_known(seen):
                    self._read(seen)
        self._keep()

    def _keep(self) -> None:
        with self._writing:  # not while `_turn` is held: nobody waits for the disk
            with self._turn:
                if not self._changed:
                    return
                self._changed, self._kept_at = False, time.monotonic()
                runs = {name: [list(stamp), _plain(summary)] for name, (stamp, summary) in self._known.items()}
            derived_cache.keep(self._name(), {"knobs": list(RunConfig.model_fields), "runs": runs})

    def _load(self) -> None:
        stored = derived_cache.load(self._name())
        try:
            if stored and stored["knobs"] == list(RunConfig.model_fields):
                runs = stored["runs"].items()
                self._known = {name: (tuple(stamp), _from_plain(plain)) for name, (stamp, plain) in runs}
        except (KeyError, TypeError, ValueError, AttributeError):
            self._known = {}

    def _name(self) -> str:
        return derived_cache.name_of("runs", self.root)


_indexes: dict[Path, Index] = {}
_making = threading.Lock()


def reading(run: Run) -> str:
    """How far the events of a long run are that is being read in the background; "" for one that can be drawn."""
    left = event_file.behind(run.events_file)
    if left <= MUCH:
        return ""
    get_index(RunStore(run.path.parent)).read_on()
    size = max(run.events_file.stat().st_size, 1)
    return f"Its events are being read: {1 - left / size:.0%} of {amount(size)}…"


def get_index(store: RunStore) -> Index:
    """The index of a store's folder; one per process."""
    with _making:
        if store.root not in _indexes:
            _indexes[store.root] = Index(store.root)
        return _indexes[store.root]


def glance(store: RunStore) -> Look:
    """All runs for a view that is drawn again and again: a second old perhaps, and some unread."""
    return get_index(store).look(PATIENCE_SECONDS, _AGE_SECONDS)


def now(store: RunStore) -> Look:
    """All runs as they are now; some perhaps unread."""
    return get_index(store).look(PATIENCE_SECONDS)


def summaries(store: RunStore) -> list[Summary]:
    """All runs, newest first, each of them read."""
    return list(get_index(store).look(None).summaries)


def summary(run: Run, patience: float | None = None) -> Summary:
    """One run. Raises FileNotFoundError where it is gone."""
    seen = scan.see(run.path)
    if seen is None:
        raise FileNotFoundError(run.path)
    return get_index(RunStore(run.path.parent)).summarize(seen, patience)


def _stamp(seen: Seen) -> tuple[int, ...]:
    """What a run is known by. A young one changes its state without a word in its events."""
    return (*seen.stamp, int(0 <= time.time() - seen.made < YOUNG_SECONDS))


def _places(seen: Sequence[Seen]) -> dict[str, int]:
    """The place in the queue of every run that waits, 1 is next."""
    marked = [(mark, run) for run in seen if run.queued and not run.locked and (mark := Run(run.path).queue_mark())]
    marked = [(mark, run) for mark, run in marked if mark["ours"]]
    order = sorted(marked, key=lambda pair: (pair[0]["place"], pair[1].made, pair[1].id))
    return {run.id: place for place, (_, run) in enumerate(order, 1)}


def _plain(summary: Summary) -> dict[str, Any]:
    config = summary.config.model_dump(mode="json") if summary.config else None
    return asdict(replace(summary, config=None)) | {"config": config}


def _from_plain(plain: dict[str, Any]) -> Summary:
    # Not validated again: that takes longer than to read the folders' stamps, and the checksum says that we wrote it.
    config = RunConfig.model_construct(**plain["config"]) if plain["config"] else None
    sweep = (plain["sweep"][0], tuple(plain["sweep"][1])) if plain["sweep"] else None
    return Summary(**plain | {"config": config, "sweep": sweep})
