"""A run of a million events, thinned to a few thousand: real events, all of the newest, and never silently.

Of each kind the newest are kept as they are. What is older lies in buckets of as many events each; a bucket keeps its first
event, so that a curve is an even sample, and those of its lowest and highest loss, so that no spike and no NaN is lost
(after M4, Jugel et al. 2014, doi 10.14778/2732951.2732953). When there are too many buckets, two become one.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]
PEAK = "peak"  # marks an event that is kept for its loss, and is no part of the even sample
_NEWEST, _BUCKETS = 512, 1024  # of each kind
_HEAVY = {"probe": (32, 64)}  # an event of these holds pages of text
_Numbered = tuple[int, Event]


class Thinned:
    """Events in their order; `add` takes the next one, `all` gives what is kept. `counts` is what there were, by kind."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._kinds: dict[str, _Kind] = {}
        self._next = 0

    def add(self, event: Event) -> None:
        kind = event["kind"]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind not in self._kinds:
            self._kinds[kind] = _Kind(*_HEAVY.get(kind, (_NEWEST, _BUCKETS)))
        self._kinds[kind].add((self._next, event))
        self._next += 1

    def thinned(self) -> dict[str, int]:
        """How many events there were of each kind of which not all are kept."""
        return {kind: self.counts[kind] for kind, sample in self._kinds.items() if sample.stride > 1}

    def all(self) -> list[Event]:
        """What is kept, in the order it came."""
        items = [item for sample in self._kinds.values() for item in sample.items()]
        return [event for _, event in sorted(items, key=lambda item: item[0])]

    def plain(self) -> dict[str, Any]:
        """As JSON values; `from_plain` reads them."""
        kinds = {name: sample.plain() for name, sample in self._kinds.items()}
        return {"counts": self.counts, "next": self._next, "kinds": kinds}

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> "Thinned":
        """Raises KeyError, TypeError or ValueError for what `plain` has not written."""
        result = cls()
        result.counts, result._next = dict(value["counts"]), int(value["next"])
        for name, sample in value["kinds"].items():
            result._kinds[name] = _Kind.from_plain(_HEAVY.get(name, (_NEWEST, _BUCKETS)), sample)
        return result


class _Kind:
    """The events of one kind, each with its number in the file."""

    def __init__(self, newest: int, buckets: int):
        self.stride = 1
        self._most = newest, buckets
        self._newest: deque[_Numbered] = deque()
        self._buckets: list[list[_Numbered]] = []
        self._filled = 0  # events in the last bucket

    def add(self, item: _Numbered) -> None:
        self._newest.append(item)
        if len(self._newest) > self._most[0]:
            self._put_away(self._newest.popleft())

    def items(self) -> Iterable[_Numbered]:
        for bucket in self._buckets:
            first, *peaks = bucket
            yield first
            yield from ((number, {**event, PEAK: True}) for number, event in peaks)
        yield from self._newest

    def plain(self) -> dict[str, Any]:
        return {"stride": self.stride, "filled": self._filled, "buckets": self._buckets, "newest": list(self._newest)}

    @classmethod
    def from_plain(cls, most: tuple[int, int], value: dict[str, Any]) -> "_Kind":
        result = cls(*most)
        result.stride, result._filled = int(value["stride"]), int(value["filled"])
        result._buckets = [[(int(number), dict(event)) for number, event in bucket] for bucket in value["buckets"]]
        result._newest.extend((int(number), dict(event)) for number, event in value["newest"])
        return result

    def _put_away(self, item: _Numbered) -> None:
        if self._filled % self.stride == 0:
            if len(self._buckets) >= self._most[1]:
                pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
                self._buckets = [_reduced([*first, *second]) for first, second in pairs]
                self.stride *= 2
            self._buckets.append([item])
            self._filled = 1
        else:
            self._buckets[-1] = _reduced([*self._buckets[-1], item])
            self._filled += 1


def _reduced(bucket: list[_Numbered]) -> list[_Numbered]:
    """The first of a bucket, then those of its lowest and highest loss; a loss that is no number is the highest."""
    known = [item for item in bucket if "loss" in item[1]]
    if not known:
        return bucket[:1]
    low, high = min(known, key=_loss), max(known, key=_loss)
    by_number = {number: (number, event) for number, event in (bucket[0], low, high)}
    return [by_number[number] for number in sorted(by_number)]


def _loss(item: _Numbered) -> float:
    loss = item[1]["loss"]
    return math.inf if loss is None else float(loss)
