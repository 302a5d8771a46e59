"""Fixtures: small real bases, a store of its own for every test, and trained adapters made once."""

import gc
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # begun in the background: programs of the tests would be deaf to Ctrl+C
    signal.signal(signal.SIGINT, signal.default_int_handler)

from qlora_gui import hub
from qlora_gui.config import make
from qlora_gui.runs import launch
from qlora_gui.runs.events import Event
from qlora_gui.runs.store import Run, RunStore
from tests.security import attacks

_BEGAN = pytest.StashKey[float]()
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also the tests marked slow")
    parser.addoption("--minutes", type=float, metavar="N", help="begin no test after so long: those left are skipped")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_BEGAN] = time.monotonic()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long only where it is asked for; the longest first, so that of two workers none is left alone with them."""
    asked = re.findall(r"\w+", config.getoption("markexpr"))
    unasked = {"slow", "architecture"} - set(asked) - ({"slow"} if config.getoption("--slow") else set())
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    attacks.mark(items)
    items.sort(key=lambda item: item.get_closest_marker("demo") is None)


def pytest_collection_finish() -> None:
    gc.freeze()  # what the test modules import stays: no collection looks at it again


@pytest.hookimpl(tryfirst=True)  # before its fixtures are made
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() > item.config.stash[_BEGAN] + 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes were over")


@pytest.fixture(scope="session", autouse=True)
def a_cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Quantized bases of tests are not kept among the user's; what takes a while to make or fetch is shared."""
    folder = tmp_path_factory.mktemp("cache")
    for name in ("models", "tokenizers"):
        shared = hub.cache_dir() / name
        shared.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(shared.resolve(), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_GUI_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BLOOM with random weights and a real tokenizer; it has no chat template."""
    from tests.small_models import make_bloom

    return make_bloom(tmp_path_factory.mktemp("bases") / "small-bloom")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights, a real tokenizer and a ChatML template."""
    from tests.small_models import make_llama

    return make_llama(tmp_path_factory.mktemp("bases") / "small-llama")


@pytest.fixture
def attempt(request: pytest.FixtureRequest) -> attacks.Attempts:
    """Counts the tries of an attack: `attempt(held, what)`; one that got through fails the test."""
    return attacks.Attempts(request.node)


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


def last(events: Sequence[Event], *kinds: str) -> Event | None:
    """The latest event of one of these kinds."""
    return next((event for event in reversed(events) if event["kind"] in kinds), None)


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
