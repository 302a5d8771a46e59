"""Which rows are trained on and which are held out to measure on; rows that equal each other go to one side."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence

from qlora_gui.data.formats import Example


def identity(example: Example) -> bytes:
    """A digest that is equal for examples of the same content, whatever their row."""
    content = {name: value for name, value in example.items() if name != "row"}
    body = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(body.encode(), digest_size=16).digest()


def duplicates(rows: Iterable[Example]) -> int:
    """How many rows equal an earlier one."""
    keys = [identity(row) for row in rows]
    return len(keys) - len(set(keys))


def without(rows: Sequence[Example], known: Iterable[Example]) -> list[Example]:
    """The rows that equal none of `known`."""
    keys = {identity(row) for row in known}
    return [row for row in rows if identity(row) not in keys]


def split_held_out(
    rows: Sequence[Example], fraction: float, seed: int, together: bool = True
) -> tuple[list[Example], list[Example]]:
    """Split rows into (train, held out), at random by `seed`; both keep their order. At least one is trained on.

    No held-out row equals a trained one: of rows that equal each other all are held out or none. Where they are so
    many that none can be held out within the fraction, the fewest are. Without `together` rows are drawn independently.
    """
    count = min(round(len(rows) * fraction), len(rows) - 1)
    if fraction > 0 and len(rows) > 1:
        count = max(count, 1)
    generator = random.Random(seed)
    chosen = set(generator.sample(range(len(rows)), count))
    if count and together:
        groups: dict[bytes, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(identity(row), []).append(index)
        if len(groups) < len(rows):
            chosen = _whole_groups(list(groups.values()), chosen, count, generator)
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [rows[index] for index in sorted(chosen)]


def _whole_groups(groups: list[list[int]], chosen: set[int], count: int, generator: random.Random) -> set[int]:
    """About `count` rows in whole groups, first of all those that are chosen already; never all groups."""
    held = [group for group in groups if chosen.issuperset(group)]
    others = [group for group in groups if not chosen.issuperset(group)]
    generator.shuffle(others)
    indexes = {index for group in held for index in group}
    for group in others[:-1]:
        if len(indexes) + len(group) <= count:
            indexes.update(group)
    if not indexes and len(groups) > 1:
        smallest: list[int] = min(groups, key=len)
        indexes.update(smallest)
    return indexes
