"""A disk of its own that is too small, or that another program fills while an export is written: a sentence, and nothing half."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qlora_gui.errors import UserError
from qlora_gui.export import work
from qlora_gui.export.job import Kind, Settings
from qlora_gui.runs.store import Run
from tests.faults import disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 100 MB: an export of the small BLOOM takes a few, and 64 MB are to stay free."""
    try:
        with disks.small_disk(tmp_path / "disk", 100 << 20):
            yield tmp_path / "disk"
    except OSError as error:
        pytest.skip(f"needs a small disk: {error}")


def left(disk: Path) -> list[str]:
    return sorted(path.name for path in disk.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("kind", ["merged", "gguf"])
def test_a_disk_that_fills_up_while_it_is_written(kind: Kind, bloom_runs: dict[str, Run], disk: Path) -> None:
    def fill(done: int, of: int) -> None:
        with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    settings = Settings(kind, out=str(disk / "out"), rows=0)
    with pytest.raises(UserError, match=r"disk|space|No space left"):
        work.export(bloom_runs["all"].path, settings, lambda text: None, fill)
    assert left(disk) == ["ballast"]
    (disk / "ballast").unlink()
    work.export(bloom_runs["all"].path, settings, lambda text: None, lambda done, of: None)
    assert left(disk) == ["out"], "with room the same export is made"


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(bloom_runs: dict[str, Run], disk: Path) -> None:
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(60 << 20))
    with pytest.raises(UserError, match="free some space"):
        work.export(bloom_runs["all"].path, Settings("merged", out=str(disk / "out"), rows=0), print, lambda a, b: None)
    assert left(disk) == ["ballast"]
