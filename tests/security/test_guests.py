"""What guests of a page can make the machine do, and find out about its files: attacked through the page itself."""

import dataclasses
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_gui.config import RunConfig, make
from qlora_gui.errors import UserError
from qlora_gui.runs import accelerate_config, launch, queue
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.app import build_app
from tests.conftest import TINY
from tests.security.attacks import Attempts
from tests.served_page import Page, Visitor, opened, visiting

CODE = "an accelerate config by which a machine of the attacker's sends pickles"
FILES = "which files there are, by what the page answers"
GUESTS = ("--allow-host", "lab.example")  # a page with guests, and no login that the test would have to make


class Listener:
    """The attacker's machine: counts who comes for its pickles."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.came = self._socket.getsockname()[1], 0
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return
            self.came += 1

    def settings(self, **more: Any) -> dict[str, Any]:
        """A config that leads a run here."""
        return {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_GPU",
            "num_machines": 2,
            "num_processes": 2,
            "machine_rank": 1,
            "main_process_ip": "127.0.0.1",
            "main_process_port": self.port,
        } | more

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def attacker() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.close()


@contextmanager
def shared(folder: Path, *words: str) -> Iterator[tuple[Page, Visitor]]:
    """A page with guests that is started in a folder, and one of them."""
    with opened(folder, *GUESTS, *words, HF_HUB_OFFLINE="1") as page, visiting(page) as guest:
        yield page, guest


def stays_away(attacker: Listener, store: RunStore, seconds: float) -> bool:
    """Whether nobody comes to the attacker's machine for a while, whatever is running."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not attacker.came:
        time.sleep(0.1)
    for run in store.all():
        launch.kill(run)
    return not attacker.came


@pytest.mark.attack(CODE)
@pytest.mark.slow
def test_a_guest_brings_no_accelerate_config(
    tmp_path: Path, llama: Path, attacker: Listener, attempt: Attempts
) -> None:
    """By an upload, through a link to it, and with a file of the owner's that leads to another machine."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    (allowed / "two.yaml").write_text(yaml.safe_dump(attacker.settings()))
    store = RunStore(tmp_path / "adapters")
    with shared(tmp_path, "--allow-dir", str(allowed), "--allow-dir", str(llama)) as (page, guest):
        uploaded = guest.upload("rows.json", json.dumps(attacker.settings()).encode())
        assert Path(uploaded).is_relative_to(page.folder / "cache" / "uploads")
        (allowed / "link.yaml").symlink_to(uploaded)
        knobs = TINY | {"base_model": str(llama), "dataset": str(allowed / "rows.jsonl")}
        form = {f"knob-{name}": value for name, value in knobs.items()}
        for named in (uploaded, str(allowed / "link.yaml"), str(allowed / "two.yaml")):
            for button in ("start", "queue"):
                told = guest.call(guest.of(button), form | {"knob-accelerate_config": named})
                held = stays_away(attacker, store, 3) and not store.all()
                attempt(held and "accelerate config" in json.dumps(told), (named, button))
        told = guest.call(
            guest.of("sweep-start"), form | {"sweep-text": f"accelerate_config: [{uploaded}]\nrank: 4, 8"}
        )
        attempt(stays_away(attacker, store, 3) and not store.all(), "sweep")


@pytest.mark.attack(CODE)
@pytest.mark.slow
def test_a_strangers_run_brings_none(tmp_path: Path, llama: Path, attacker: Listener, attempt: Attempts) -> None:
    """A run folder from elsewhere names the config in itself, and says that it is waiting for the GPU."""
    store = RunStore(tmp_path / "adapters")
    run = store.create(make(TINY | {"base_model": str(llama), "name": "sent"}))
    manifest = json.loads((run.path / "run.json").read_text())
    config = run.path / "README.yaml"
    config.write_text(yaml.safe_dump(attacker.settings()))
    for named in (str(config), "adapters/sent/README.yaml", str(run.path / ".." / "sent" / "README.yaml")):
        manifest["config"]["accelerate_config"] = named
        (run.path / "run.json").write_text(json.dumps(manifest))
        run.events_file.unlink(missing_ok=True)
        queue._mark(run, 1, False)  # as if it had got into the queue all the same
        with opened(tmp_path):
            held = stays_away(attacker, RunStore(tmp_path / "nothing"), 6)
        launch.kill(run)
        attempt(held and "which strangers can make" in run.events()[0][-1]["message"], named)


def _hostile(port: int) -> dict[str, Any]:
    """Every setting that accelerate knows, with a value that leads somewhere."""
    from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig

    names = {one.name for kind in (ClusterConfig, SageMakerConfig) for one in dataclasses.fields(kind)}
    there = f"127.0.0.1:{port}"
    values: dict[str, Any] = dict.fromkeys(names, there)
    values |= {
        name: {"dynamo_backend": "x", "deepspeed_config_file": "/x"} for name in names if name.endswith("_config")
    }
    values |= {"commands": ["touch /tmp/x"], "tpu_env": ["LD_PRELOAD=/x"], "tpu_vm": ["x"], "fsdp_config": {"env": "x"}}
    values |= {"num_processes": 10**400, "num_machines": 10**9, "machine_rank": -1, "main_process_port": "29500 --x"}
    values |= {"main_process_ip": "127.0.0.1 --rdzv_backend=c10d", "gpu_ids": "0 --module", "rdzv_backend": "c10d"}
    values |= {
        "rdzv_conf": "a=b",
        "rdzv_endpoint": there,
        "env": ["A=b"],
        "log_dir": "/",
        "no_python": True,
        "module": "x",
    }
    values |= {"mpirun_hostfile": "/x", "tee": "3", "role": "--x", "max_restarts": 9, "training_script": "/x"}
    return values


@pytest.mark.attack("settings of accelerate that are not known, each with a hostile value")
def test_only_known_settings_are_passed_on(tmp_path: Path, attempt: Attempts) -> None:
    file = tmp_path / "config.yaml"
    plain = {"distributed_type": "MULTI_GPU", "num_processes": 2}
    hostile = _hostile(1)
    assert len(
        hostile
    ) > 50 and accelerate_config._PASSED_ON.keys() | accelerate_config._IDLE.keys() <= hostile.keys() | {
        "dynamo_backend"
    }
    for name, value in hostile.items():
        file.write_text(json.dumps(plain | {name: value}))
        try:
            accelerate_config.read(str(file))
            attempt(False, name)
        except UserError as error:
            attempt(name in str(error) or "not a YAML file" in str(error), (name, str(error)))
    bodies: list[bytes] = [
        b"&a [*a]", b"a: &x {b: c}\n<<: [*x, *x]\ndistributed_type: NO", b"!!python/object/apply:os.system ['true']",
        b"[" * 60_000, b"- a", b"1", b"", b"\xff\xfe\x00", b"distributed_type: NO\n" + b"# x" * 30_000,
        b"? [a]\n: b\n", b"distributed_type: 2001-99-99", b"distributed_type: {NO: 1}", b"distributed_type: [NO]",
    ]  # fmt: skip
    for body in bodies:
        file.write_bytes(body)
        with pytest.raises(UserError):
            accelerate_config.read(str(file))
        attempt(True, body[:30])
    for name, value in {"main_process_ip": "::1", "main_process_port": 1, "num_machines": 2, "machine_rank": 1}.items():
        file.write_text(json.dumps(plain | {"num_machines": 2, "main_process_ip": "10.0.0.1"} | {name: value}))
        assert accelerate_config.read(str(file))
        with pytest.raises(UserError, match="the owner can start this one from the command line"):
            accelerate_config.read(str(file), local_only=True)
        attempt(True, name)


@pytest.mark.parametrize("name", ["data-parallel-4-gpus", "fsdp-2-gpus", "two-machines"])
def test_the_examples_are_read(name: str) -> None:
    file = Path(__file__).parents[2] / "docs" / "accelerate" / f"{name}.yaml"
    told = yaml.safe_load(file.read_text())
    words = accelerate_config.read(str(file)).flags()
    assert words[words.index("--num_processes") + 1] == str(told["num_processes"])
    assert ("--use_fsdp" in words, "--multi_gpu" in words) == ("fsdp" in name, "fsdp" not in name)
    assert ("--main_process_ip" in words) == (name == "two-machines")


def test_what_accelerate_config_writes_is_read(tmp_path: Path) -> None:
    """Its own file for two GPUs, whose other lines change nothing."""
    file = tmp_path / "default_config.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndebug: false\ndistributed_type: MULTI_GPU\ndowncast_bf16: 'no'\n"
        "enable_cpu_affinity: false\ngpu_ids: all\nmachine_rank: 0\nmain_training_function: main\n"
        "mixed_precision: bf16\nnum_machines: 1\nnum_processes: 2\nrdzv_backend: static\nsame_network: true\n"
        "tpu_env: []\ntpu_use_cluster: false\ntpu_use_sudo: false\nuse_cpu: false\n"
    )
    assert accelerate_config.read(str(file), local_only=True).flags(4)[:3] == ["--multi_gpu", "--num_processes", "4"]
    file.write_text("distributed_type: NO\n")
    assert "--multi_gpu" not in accelerate_config.read(str(file)).flags()
    file.write_text("distributed_type: MULTI_GPU\n")
    with pytest.raises(UserError, match="does not say num_processes"):
        accelerate_config.read(str(file)).flags()
    assert RunConfig(accelerate_config=str(file)).accelerate_config


PATHS = ("base_model", "dataset", "chat_template", "accelerate_config", "name", "revision", "dataset_split")
FIELDS = (*(f"knob-{name}" for name in PATHS), "sweep-text", "base", "llm-url", "target")


def _pairs(folder: Path) -> list[tuple[str, str]]:
    """Names of something that is there and of something that is not, alike in all else."""
    (folder / "docs" / "notes").mkdir(parents=True)
    (folder / "notes.jsonl").write_text("{}")
    up = "../" * 12
    home = str(folder)
    return [
        (f"{home}/docs/notes", f"{home}/docs/motes"),
        (f"{up}{home.lstrip('/')}/notes.jsonl", f"{up}{home.lstrip('/')}/motes.jsonl"),
        ("docs/notes", "docs/motes"),
    ]


@pytest.mark.slow
@pytest.mark.attack(FILES)
def test_the_page_tells_no_guest_which_files_there_are(tmp_path: Path, attempt: Attempts) -> None:
    """Every field that is a text, at every listener that takes it, with settings that are right and that are not."""
    pairs = _pairs(tmp_path)
    with shared(tmp_path) as (_, guest):

        def told(listener: dict[str, Any], field: str, named: str, steps: int) -> str:
            texts = [f"{knob}: [{named}]" for knob in PATHS] if field == "sweep-text" else [named]
            form = {"knob-base_model": "no/such", "knob-max_steps": steps}
            answers = [json.dumps(guest.call(listener, form | {field: text})[-1:]) for text in texts]
            return re.sub(r"[\d.]+ GB", "* GB", "".join(answers).replace(named, "*"))  # memory is free, and taken

        distinct = {(*one["inputs"], None, *one["outputs"]): one for one in guest.listeners if one["backend_fn"]}
        taken = 0
        for listener in distinct.values():
            outputs = set(map(guest.name, listener["outputs"]))
            starts = {guest.name(part) for part, _ in listener["targets"]} & {"start", "queue", "sweep-start"}
            for field in FIELDS:
                if field not in map(guest.name, listener["inputs"]):
                    continue
                if "preview" in outputs and field not in ("knob-base_model", "knob-dataset"):
                    continue  # it starts a process each time; what the others name is judged before that
                taken += 1
                for there, gone in pairs:
                    # Where nothing may start the settings are wrong; where faults are told they are both.
                    for steps in (-1,) if starts else (-1, 2) if "form-status" in outputs else (2,):
                        same = told(listener, field, there, steps) == told(listener, field, gone, steps)
                        attempt(same, (field, listener["targets"], there, steps))
        assert taken > 30


@pytest.mark.attack(FILES)
def test_run_names_tell_nothing_either(tmp_path: Path, attempt: Attempts) -> None:
    (tmp_path / "run.json").write_text("{}")
    store = RunStore(tmp_path / "adapters", [tmp_path / "adapters"])
    store.root.mkdir()
    for there, gone in (
        ("../adapters", "../adapterz"),
        ("../run.json", "../run.jsom"),
        (f"{tmp_path}", f"{tmp_path}x"),
        ("a/../..", "a/../b"),
    ):
        asked: list[Callable[[str], Any]] = [store.get, lambda name: make({"name": name})]
        for ask in asked:
            said = []
            for name in (there, gone):
                with pytest.raises(UserError) as caught:
                    ask(name)
                said.append(str(caught.value).replace(str(store.root), "").replace(name, "*"))
            attempt(said[0] == said[1], (there, said))
        attempt(not store.is_taken(there) and not store.is_taken(gone), there)
    for name in ("x" * 5000, "a\0b", "\ud800"):
        with pytest.raises(UserError):
            store.get(name)


@pytest.mark.slow
@pytest.mark.attack("links in allowed folders that lead out of them")
def test_members_that_lead_out_are_not_read(tmp_path: Path, llama: Path, attempt: Attempts) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    rows, gone = secret / "rows.jsonl", secret / "gone.jsonl"
    secret.mkdir()
    rows.write_text('{"prompt": "a", "completion": "the secret"}\n' * 20)
    own = '{"prompt": "a", "completion": "b"}\n' * 20
    for name, target in {"train.jsonl": rows, "heldout.jsonl": rows, "other": secret, "valid.jsonl": gone}.items():
        folder = allowed / name.partition(".")[0]
        folder.mkdir(parents=True)
        if name != "train.jsonl":
            (folder / "train.jsonl").write_text(own)
        (folder / name).symlink_to(target)
    inner = allowed / "inner" / "deeper"
    inner.mkdir(parents=True)
    (allowed / "inner" / "train.jsonl").write_text(own)
    (inner / "a.jsonl").symlink_to(rows)
    base = allowed / "base"
    base.mkdir()
    for file in llama.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").unlink()
    (base / "chat_template.jinja").symlink_to(rows)
    good = allowed / "good"
    good.mkdir()
    (good / "rows.jsonl").write_text(own)
    (good / "train.jsonl").symlink_to(good / "rows.jsonl")
    with shared(tmp_path, "--allow-dir", str(allowed)) as (_, guest):
        preview = next(one for one in guest.listeners if ["preview", ""] and _draws(guest, one, "preview"))
        for knob, folder in [("dataset", one) for one in ("train", "heldout", "other", "valid", "inner")] + [
            ("base_model", "base")
        ]:
            form = {f"knob-{knob}": str(allowed / folder), "knob-max_steps": 2}
            for listener in (guest.of("start"), guest.of("queue"), preview):
                told = json.dumps(guest.call(listener, form))
                said = listener is preview or "leads out" in told
                attempt(said and "the secret" not in told, (folder, told[:300]))
    store = RunStore(tmp_path / "adapters", [tmp_path / "adapters", allowed])
    assert not store.all()
    store.check_allowed(str(good), "dataset")


def _draws(guest: Visitor, listener: dict[str, Any], name: str) -> bool:
    return any(guest.name(part) == name for part in listener["outputs"])


def test_a_page_with_guests_has_no_switch_for_the_endpoint(tmp_path: Path) -> None:
    """What is not visible on a page can be called all the same: so nothing listens to it there."""
    for roots, there in (([tmp_path], False), (None, True)):
        page = build_app(RunStore(tmp_path / "adapters", roots))
        of = {part for fn in page.fns.values() for part, _ in fn.targets} | {
            part._id for fn in page.fns.values() for part in fn.outputs
        }
        switch = next(block for block in page.blocks.values() if block.elem_id == "endpoint-switch")
        assert (switch._id in of) == there
