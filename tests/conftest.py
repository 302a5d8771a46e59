"""Fixtures: small real bases, a store of its own for every test, and trained adapters made once."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from qlora_gui import hub
from qlora_gui.runs import launch
from qlora_gui.runs.config import make
from qlora_gui.runs.store import Run, RunStore

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data" / "instructions.json"
TINY: dict[str, object] = {
    "max_length": 192,
    "max_steps": 6,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "gradient_checkpointing": "none",
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 3,
    "probe_prompts": 0,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that of two workers none is left alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("demo") is None)


@pytest.fixture(scope="session", autouse=True)
def a_cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Quantized bases of tests are not kept among the user's; the demo model is shared, making it takes a while."""
    folder, models = tmp_path_factory.mktemp("cache"), hub.cache_dir() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models.resolve(), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_GUI_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BLOOM with random weights and a real tokenizer; it has no chat template."""
    from tests.models import make_bloom

    return make_bloom(tmp_path_factory.mktemp("bases") / "small-bloom")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights, a real tokenizer and a ChatML template."""
    from tests.models import make_llama

    return make_llama(tmp_path_factory.mktemp("bases") / "small-llama")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "adapters")


@pytest.fixture(autouse=True)
def no_trainer_outlives_its_test(tmp_path: Path) -> Iterator[None]:
    yield
    for run in RunStore(tmp_path / "adapters").all():
        launch.kill(run)


def need(there: bool, reason: str) -> None:
    """Skip the test when something it needs is absent; in CI that is a failure."""
    if not there:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def wait_until_ended(run: Run, seconds: float = 120) -> str:
    """Wait for a run's end and give its state."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not run.is_live():
            return run.state()
        time.sleep(0.2)
    raise AssertionError(f"{run.id} is still {run.state()} after {seconds} s:\n{run.log_tail()}")


def train(store: RunStore, **knobs: object) -> Run:
    """Create a run and train it to its end in the real child process."""
    run = store.create(make(TINY | knobs))
    launch.start(run, store)
    assert wait_until_ended(run) == "finished", run.log_tail()
    return run


@pytest.fixture(scope="session")
def bloom_runs(bloom: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Three adapters of the small BLOOM by what they train: `none`, `lora_only` and `all` biases."""
    store = RunStore(tmp_path_factory.mktemp("bloom-runs"))
    ranks = {"none": 8, "lora_only": 4, "all": 6}
    return {
        bias: train(store, base_model=str(bloom), name=f"bloom-{bias}", bias=bias, rank=rank, seed=rank)
        for bias, rank in ranks.items()
    }
