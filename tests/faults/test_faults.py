"""The seeded part of the fault campaign: each fault once or a few times, always at the same moments."""

from pathlib import Path

import pytest

from tests.faults import campaign, disks
from tests.faults.campaign import FAULTS, Fault, attempt, name_of, uninterrupted

SEEDS = {"killing.trainer": (1, 2), "disks.half_lines": (1, 2, 3)}


@pytest.fixture(scope="module")
def expected(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return uninterrupted(llama, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=name_of)
def test_nothing_is_lost(fault: Fault, llama: Path, expected: dict[int, float], tmp_path: Path) -> None:
    if fault in (disks.full, disks.read_only, disks.full_of_votes):
        try:
            with disks.small_disk(tmp_path / "try", 1 << 20):
                pass
        except OSError as error:
            pytest.skip(f"needs a small disk: {error}")
    for seed in SEEDS.get(name_of(fault), (1,)):
        assert not attempt(fault, seed, llama, expected, tmp_path)


def test_the_table_counts_what_was_lost() -> None:
    results = {"killing.trainer": campaign.Result(3, 60.0, ["seed 2: gone"]), "disks.full": campaign.Result(2, 60.0)}
    told = campaign.table(results)
    assert "5 tries in 2 minutes, lost 1." in told and "| 3 | 1 |" in told and "| 2 | 0 |" in told
