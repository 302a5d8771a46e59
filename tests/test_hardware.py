"""One truth about the device: torch's view beside nvidia-smi's, what is wrong between them, and one card a process."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_gui import hardware, nvidia, torch_view
from qlora_gui.cli import main
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.memory import budget, cpu_guard
from qlora_gui.nvidia import Gpu
from qlora_gui.runs import gpus, launch
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.torch_view import Card, View
from qlora_gui.ui import app
from qlora_gui.ui.train import form, memory_panel

GIB = 2**30
T4 = Card(0, "Tesla T4", 15 * GIB, 14 * GIB, "aaaa1111-0000", "0000:04:00.0", "7.5")
T4_TOO = Card(1, "Tesla T4", 15 * GIB, 10 * GIB, "bbbb2222-0000", "0000:05:00.0", "7.5")
SMI_T4 = Gpu("Tesla T4", 15 * GIB, 9 * GIB, "gpu-aaaa1111-0000", "0000:04:00.0", "580.82.07")
SMI_T4_TOO = Gpu("Tesla T4", 15 * GIB, 12 * GIB, "gpu-bbbb2222-0000", "0000:05:00.0", "580.82.07")
CUDA = View("cuda", (T4,), "2.13.0+cu130", "CUDA 13.0", "float16")
BLIND = View("", (), "2.13.0+cu130", "CUDA 13.0", "bfloat16")

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Makes this process believe in a machine: what nvidia-smi lists, and what torch answers."""
    for name in (*torch_view._ENVIRONMENT, hardware.USE_CPU, gpus.CARD_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "cache"))

    def be(listed: Sequence[Gpu], seen: View | None, installed: View | None = None, delay: float = 0) -> None:
        told = installed or View(version="2.13.0+cu130", built_for="CUDA 13.0")

        def run(command: Sequence[str]) -> str:
            time.sleep(delay)
            if seen is None:
                raise subprocess.CalledProcessError(1, command, stderr="Traceback\nImportError: libcudart.so.13")
            return json.dumps(asdict(seen))

        monkeypatch.setattr(nvidia, "gpus", lambda: list(listed))
        monkeypatch.setattr(nvidia, "driver", lambda: listed[0].driver if listed else "")
        monkeypatch.setattr(hardware, "_has_nvidia_card", lambda: False)
        monkeypatch.setattr(torch_view, "installed", lambda: told)
        monkeypatch.setattr(hardware, "_asking", torch_view.Asking(run))
        monkeypatch.setattr(hardware, "_last", None)
        if not delay:
            hardware.settle()

    return be


def test_without_nvidia_smi_the_budget_is_of_torchs_card(machine: Machine) -> None:
    machine([], CUDA)
    here = budget.here()
    assert (here.kind, here.gpu, here.total, here.free) == ("cuda", "Tesla T4", 15 * GIB, 14 * GIB)
    assert not hardware.trouble()


def test_where_nvidia_smi_says_not_available_torch_tells_the_memory(machine: Machine) -> None:
    machine([Gpu("NVIDIA GB10", None, None, "gpu-aaaa1111-0000", "0000:04:00.0", "580.1")], CUDA)
    assert hardware.devices()[0].free == 14 * GIB


def test_free_memory_is_nvidia_smis_of_the_same_card_whatever_the_order(machine: Machine) -> None:
    machine([SMI_T4_TOO, SMI_T4], View("cuda", (T4, T4_TOO), "2.13.0", "CUDA 13.0", "float16"))
    assert [(one.number, one.free) for one in hardware.devices()] == [(0, 9 * GIB), (1, 12 * GIB)]


def test_a_mig_instance_keeps_its_own_name_and_memory(machine: Machine) -> None:
    mig = Card(0, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5 * GIB, 4 * GIB, "", "0000:04:00.0", "8.0")
    machine([Gpu("NVIDIA A100-SXM4-40GB", 40 * GIB, 39 * GIB, "gpu-cc", "0000:04:00.0", "580.1")], View("cuda", (mig,)))
    [device] = hardware.devices()
    assert (device.name, device.free) == (mig.name, 4 * GIB) and budget.here().gpu == mig.name


@pytest.mark.parametrize(
    ("driver", "installed", "hidden", "said"),
    [
        pytest.param("535.104", BLIND, None, "needs NVIDIA driver 580 or newer, and this one is 535.104", id="driver"),
        pytest.param(
            "580.1", View("", (), "2.13.0+cpu", "CPU"), None, "2.13.0+cpu is built for CPU: install", id="build"
        ),
        pytest.param("580.1", BLIND, "", "CUDA_VISIBLE_DEVICES is empty and hides it: unset", id="hidden"),
        pytest.param("580.1", BLIND, "7", "CUDA_VISIBLE_DEVICES is '7' and hides it", id="wrong number"),
        pytest.param("580.1", View("", (), "2.13.0+rocm6.4", "ROCm 6.4"), None, "built for ROCm", id="rocm"),
        pytest.param(
            "580.1",
            View("", (), "2.13.0+cu130", "CUDA 13.0", warning="CUDA unknown error."),
            None,
            "does not see it (torch says: CUDA unknown error)",
            id="unknown",
        ),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_told_before_the_start(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    store: RunStore,
    capsys: pytest.CaptureFixture[str],
    driver: str,
    installed: View,
    hidden: str | None,
    said: str,
) -> None:
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    machine([Gpu("Tesla T4", 15 * GIB, 14 * GIB, "gpu-a", "0000:04:00.0", driver)], installed, installed)
    monkeypatch.setattr(hardware, "_asking", torch_view.Asking(lambda command: json.dumps(asdict(installed))))
    hardware.settle()
    assert said in hardware.trouble() and "(Tesla T4) is not used" in hardware.trouble()
    assert hardware.devices()[0].kind == "cpu" and budget.here().kind == "cpu"
    assert "Tesla T4" in app.text(store) and "note bad" in app.text(store)
    large = {"base_model": "bigscience/bloom-7b1"}
    _, faults = form.judge(large | {"dataset": "demo"}, store)
    assert "set gpu to cpu" in faults["gpu"]
    with pytest.raises(UserError, match="to train on the CPU on purpose, set gpu to cpu"):
        cpu_guard.check(make(large))
    cpu_guard.check(make(large | {"gpu": "cpu"}))
    cpu_guard.check(make({}))  # the demo is small: it is told, and trains
    assert said in memory_panel._doubts(make({})).replace("&#x27;", "'")
    assert main.main(["--headless-fit"]) == 0
    assert said in capsys.readouterr().out
    assert main.main(["--headless-train", "--preset", "experiment-1", "--adapters-dir", str(store.root)]) == 2
    assert "set gpu to cpu" in capsys.readouterr().err and not store.all()


def test_a_card_without_a_driver_or_outside_of_the_container_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine([], BLIND)
    assert hardware.trouble() == ""  # there is no GPU
    monkeypatch.setattr(hardware, "_has_nvidia_card", lambda: True)
    monkeypatch.setattr(hardware, "_DEVICE_FILES", tmp_path)
    assert "no driver is loaded: install NVIDIA's" in hardware.trouble(BLIND)
    monkeypatch.setattr(nvidia, "driver", lambda: "580.1")
    assert "was not given it: start it with the GPU (docker: --gpus all)" in hardware.trouble(BLIND)
    (tmp_path / "nvidia0").touch()
    assert "torch 2.13.0+cu130 does not see it" in hardware.trouble(BLIND)


def test_the_cpu_on_purpose_is_no_trouble(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([SMI_T4], BLIND)
    monkeypatch.setenv(hardware.USE_CPU, "true")
    assert hardware.trouble() == "" and hardware.devices()[0].kind == "cpu" and hardware.settled()


def test_a_card_that_torch_has_no_kernels_for_is_not_used(machine: Machine) -> None:
    p100 = Card(0, "Tesla P100-PCIE-16GB", 16 * GIB, 15 * GIB, "dd", "0000:04:00.0", "6.0", "7.5")
    machine([Gpu(p100.name, 16 * GIB, 15 * GIB, "gpu-dd", p100.bus, "580.1")], View("cuda", (p100,), "2.13.0+cu130"))
    assert hardware.devices()[0].kind == "cpu"
    assert "no kernels for its compute capability 6.0, only from 7.5 on" in hardware.trouble()
    new = Card(0, "NVIDIA GeForce RTX 5090", 32 * GIB, 30 * GIB, "ee", "0000:04:00.0", "12.0", newest="9.0")
    machine([Gpu(new.name, 32 * GIB, 30 * GIB, "gpu-ee", new.bus, "570.1")], View("cuda", (new,), "2.13.0+cu126"))
    assert hardware.devices()[0].kind == "cpu" and "12.0, only up to 9.0" in hardware.trouble()


def test_a_child_that_fails_is_told_and_asked_again_later(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([SMI_T4], None)
    assert "torch cannot be used here: ImportError: libcudart.so.13" in hardware.trouble()
    monkeypatch.setattr(torch_view, "_AGAIN", 0.0)
    answered = threading.Event()
    monkeypatch.setattr(hardware._asking, "_run", lambda command: answered.wait(30) and json.dumps(asdict(CUDA)))
    assert hardware.devices()[0].kind == "cpu" and hardware.settled()  # what it said last, while it is asked again
    assert "libcudart" in hardware.trouble()
    assert not torch_view.file().exists()
    answered.set()
    assert hardware.settle() and hardware.trouble() == "" and hardware.devices()[0].kind == "cuda"


LOST = View("", (), "2.13.0+cu130", "CUDA 13.0", "bfloat16", "CUDA initialization: CUDA unknown error")


def test_that_torch_saw_no_gpu_is_not_kept_for_later_processes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After suspend CUDA fails and nvidia-smi does not; nothing but another question tells that it is mended."""
    machine([SMI_T4], LOST)
    assert "CUDA unknown error" in hardware.trouble() and not torch_view.file().exists()
    monkeypatch.setattr(hardware, "_asking", torch_view.Asking(lambda command: json.dumps(asdict(CUDA))))
    assert hardware.settle() and hardware.devices()[0].kind == "cuda" and torch_view.file().exists()
    monkeypatch.setattr(hardware, "_asking", torch_view.Asking(lambda command: json.dumps(asdict(LOST))))
    assert hardware.settle(fresh=True) and hardware.trouble() == ""  # as it was kept
    assert hardware.settle(anew=True) and "CUDA unknown error" in hardware.trouble()  # as --headless-check asks
    monkeypatch.setattr(hardware, "_asking", torch_view.Asking(lambda command: json.dumps(asdict(BLIND))))
    machine([], BLIND)
    assert torch_view.file().exists() and hardware.trouble() == ""  # there is no GPU: that is worth keeping


GTX = Card(0, "NVIDIA GeForce GTX 1080", 8 * GIB, 8 * GIB, "cccc", "0000:01:00.0", "6.1", "7.5")
RTX = Card(1, "NVIDIA GeForce RTX 3060", 12 * GIB, 11 * GIB, "dddd", "0000:02:00.0", "8.6")


@pytest.mark.parametrize("gpu", ["", "1", "GPU-dddd"])
def test_a_card_without_kernels_before_a_usable_one_is_passed_over(machine: Machine, gpu: str) -> None:
    machine([], View("cuda", (GTX, RTX), "2.13.0+cu130", "CUDA 13.0"))
    given = gpus.environment(gpu)
    assert given["CUDA_VISIBLE_DEVICES"] == "GPU-dddd"
    assert ("the only one that torch has kernels for" in json.loads(given[gpus.CARD_VARIABLE])["said"]) == (gpu == "")
    assert gpus.environment_of_several() == {"CUDA_VISIBLE_DEVICES": "GPU-dddd"}
    with pytest.raises(UserError, match="it is one of 1"):
        gpus.environment("0")


def test_the_device_of_a_process_is_one_that_torch_has_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_gui.models import device as devices

    capabilities = [(6, 1), (8, 6), (6, 1), (8, 9)]
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **given: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capabilities[number])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"])
    assert devices.pick() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.pick() == torch.device("cuda", 3)
    capabilities[:] = [(6, 1)] * 4
    assert devices.pick() == torch.device("cpu")


@pytest.mark.parametrize(
    ("have", "built", "lacks"),
    [
        ((7, 5), ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"], ("", "")),
        ((8, 9), ["sm_75", "sm_80", "sm_86"], ("", "")),  # kernels of the same major version
        ((6, 1), ["sm_75", "sm_80"], ("7.5", "")),
        ((12, 0), ["sm_50", "sm_80", "sm_90"], ("", "9.0")),  # a torch for CUDA 12.6 on a card of today
        ((12, 0), ["sm_80", "sm_90", "compute_90"], ("", "")),  # compiled on the way
        ((12, 1), ["sm_90", "sm_120"], ("", "")),
        ((10, 3), ["sm_90a", "sm_100a"], ("", "10.0")),
        ((10, 3), ["sm_100f"], ("", "")),
        ((9, 0), ["sm_90a"], ("", "")),
        ((7, 5), [], ("", "")),
    ],
)
def test_kernels_run_on_what_nvidia_says(
    monkeypatch: pytest.MonkeyPatch, have: tuple[int, int], built: list[str], lacks: tuple[str, str]
) -> None:
    from qlora_gui.models import device as devices

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: have)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    assert devices.lacking_kernels(0) == lacks


def test_the_page_does_not_wait_for_torch(machine: Machine, store: RunStore) -> None:
    machine([SMI_T4], CUDA, delay=1.0)
    began = time.monotonic()
    assert "checking whether torch" in app.text(store) and "Tesla T4" in app.text(store)
    assert hardware.devices()[0].free == 9 * GIB and hardware.trouble() == ""
    assert "Asking torch" in memory_panel._doubts(make({}))
    assert time.monotonic() - began < 0.9
    assert hardware.settle() and "checking whether torch" not in app.text(store)


def test_the_answer_is_kept_until_what_it_depends_on_changes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([SMI_T4], CUDA)
    asked: list[Any] = []

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        return json.dumps(asdict(CUDA))

    def new_process() -> None:
        monkeypatch.setattr(hardware, "_asking", torch_view.Asking(run))
        hardware.settle()

    new_process()
    assert not asked  # kept in the cache folder
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    new_process()
    assert len(asked) == 1
    monkeypatch.setattr(torch_view, "_version_file", lambda: "__version__ = '2.14.0'")
    new_process()
    assert len(asked) == 2
    monkeypatch.setattr(nvidia, "driver", lambda: "590.1")
    new_process()
    assert len(asked) == 3
    torch_view.file().write_text("[]")
    new_process()
    assert len(asked) == 4
    assert (
        "aaaa" not in torch_view.file().with_suffix("").name and str(Path.home()) not in torch_view.file().read_text()
    )


def test_the_child_answers_as_this_machine_is() -> None:
    """The real child: torch's version and build, and on a build for CPUs no card."""
    done = subprocess.run([sys.executable, "-m", torch_view.MODULE], capture_output=True, text=True, timeout=120)
    seen = torch_view.parse(json.loads(done.stdout))
    assert seen.version and seen.built_for == torch_view.installed().built_for and not seen.error
    assert seen.dtype in ("bfloat16", "float16", "float32")
    assert bool(seen.cards) == bool(seen.kind)


@pytest.mark.parametrize(
    ("kind", "is_rocm", "said"),
    [("cuda", False, ""), ("", False, ""), ("cuda", True, "AMD"), ("xpu", False, "Intel"), ("mps", False, "Apple")],
)
def test_what_nobody_has_tried_says_so(kind: str, is_rocm: bool, said: str) -> None:
    told = hardware.remark_on(kind, is_rocm)
    assert told.startswith(said) and bool(told) == bool(said) and ("has not been tried" in told) == bool(said)


@pytest.mark.parametrize(
    ("gpu", "taken", "number", "because"),
    [
        ("", (), 1, "the one of 2 GPUs with the most free memory"),
        ("", ("bbbb2222-0000",), 0, "the one of 2 GPUs with the most free memory"),
        ("0", (), 0, "as gpu says"),
        ("GPU-bbbb2222-0000", (), 1, "as gpu says"),
    ],
)
def test_one_process_is_given_one_card(
    machine: Machine, gpu: str, taken: tuple[str, ...], number: int, because: str
) -> None:
    machine([SMI_T4, SMI_T4_TOO], View("cuda", (T4, T4_TOO), "2.13.0", "CUDA 13.0"))
    given = gpus.environment(gpu, taken)
    card = (T4, T4_TOO)[number]
    assert given["CUDA_VISIBLE_DEVICES"] == f"GPU-{card.uuid}"
    told = json.loads(given[gpus.CARD_VARIABLE])
    assert (
        told["address"] == card.uuid
        and told["said"].startswith(f"On GPU {number} (Tesla T4")
        and because in told["said"]
    )
    assert ("num_processes 2 trains one run on all" in told["said"]) == (not taken)
    assert budget.here(gpu).free == (9, 12)[1 if gpu == "" and not taken else number] * GIB or taken


def test_numbers_count_among_the_visible_cards(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5, 9")  # there is no 9
    machine([SMI_T4, SMI_T4_TOO], View("cuda", (T4, T4_TOO), "2.13.0", "CUDA 13.0"))
    assert gpus.environment("1")["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb2222-0000"
    machine([], View("cuda", (replace(T4, uuid=""), replace(T4_TOO, uuid="")), "2.13.0", "CUDA 13.0"))
    assert gpus.environment("1")["CUDA_VISIBLE_DEVICES"] == "5"
    assert torch_view.numbering() == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert torch_view.numbering() == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert launch.child_environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_on_rocm_hips_variable_is_set(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tuple(Card(number, "AMD Instinct MI300X", 192 * GIB, (100 + number) * GIB) for number in range(2))
    machine([], View("cuda", both, "2.13.0+rocm7", "ROCm 7.0"))
    assert gpus.environment()["HIP_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")  # HIP goes by it, too
    machine([], View("cuda", both, "2.13.0+rocm7", "ROCm 7.0"))
    assert gpus.environment()["HIP_VISIBLE_DEVICES"] == "6"


def test_with_one_gpu_or_none_there_is_no_choice(machine: Machine) -> None:
    machine([SMI_T4], CUDA)
    assert gpus.environment() == {} and gpus.environment("0") == {}
    assert gpus.environment("cpu")[hardware.USE_CPU] == "true"
    assert budget.here("cpu").kind == "cpu"


@pytest.mark.parametrize("gpu", ["2", "GPU-cccc3333-0000"])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(machine: Machine, store: RunStore, gpu: str) -> None:
    machine([SMI_T4, SMI_T4_TOO], View("cuda", (T4, T4_TOO), "2.13.0", "CUDA 13.0"))
    _, faults = form.judge({"gpu": gpu}, store)
    assert "it is one of 0 (Tesla T4), 1 (Tesla T4)" in faults["gpu"]
    with pytest.raises(UserError, match="There is no GPU"):
        store.create(make({"gpu": gpu}))


def test_the_knob_takes_numbers_uuids_and_cpu_only() -> None:
    assert [make({"gpu": value}).gpu for value in (0, "1", "CPU", "gpu-0123abcd-1", "", "MIG-0123abcd-1")] == [
        "0", "1", "cpu", "gpu-0123abcd-1", "", "MIG-0123abcd-1",
    ]  # fmt: skip
    for wrong in ("-1", "one", True, "0,1", "GPU-$(id)", 1.5):
        with pytest.raises(UserError, match="gpu"):
            make({"gpu": wrong})
    with pytest.raises(UserError, match="one GPU for one process"):
        make({"gpu": "1", "num_processes": 2})


def _live(store: RunStore, name: str, card: str | None, **knobs: object) -> tuple[Run, Any]:
    """A run that looks live: its lock is held by this process, and its trainer was told `card`."""
    run = store.create(make({"name": name} | knobs))
    lock = run.lock()
    lock.acquire()
    EventLog(run.events_file).append("started", pid=1, resumed=False, **({"card": card} if card else {}))
    return run, lock


def test_a_second_run_starts_on_the_other_card_and_a_third_waits(machine: Machine, store: RunStore) -> None:
    machine([SMI_T4, SMI_T4_TOO], View("cuda", (T4, T4_TOO), "2.13.0", "CUDA 13.0"))
    _, lock = _live(store, "first", T4_TOO.uuid)
    assert launch.check_free(store, config=make({})) == {T4_TOO.uuid}
    assert launch.has_room(store, store.create(make({"name": "second"})))
    with pytest.raises(launch.BusyError, match="first"):
        launch.check_free(store, config=make({"gpu": "1"}))
    with pytest.raises(launch.BusyError, match="first"):
        launch.check_free(store, config=make({"num_processes": 2}))
    _, other_lock = _live(store, "third", T4.uuid)
    with pytest.raises(launch.BusyError):
        launch.check_free(store, config=make({}))
    assert not launch.has_room(store, store.get("second"))
    assert launch.check_free(store, config=make({"gpu": "cpu"})) == {T4.uuid, T4_TOO.uuid}
    _, on_cpu = _live(store, "fourth", gpus.CPU)
    with pytest.raises(launch.BusyError, match="fourth"):
        launch.check_free(store, config=make({"gpu": "cpu"}))
    lock.release(), other_lock.release(), on_cpu.release()


def test_a_run_that_was_told_no_card_holds_them_all(machine: Machine, store: RunStore) -> None:
    machine([SMI_T4, SMI_T4_TOO], View("cuda", (T4, T4_TOO), "2.13.0", "CUDA 13.0"))
    _, lock = _live(store, "first", None)
    with pytest.raises(launch.BusyError, match="first"):
        launch.check_free(store, config=make({}))
    lock.release()


def test_nvidia_smi_is_read_with_and_without_all_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'Tesla T4, 15360, 15000, GPU-AAAA, 00000000:04:00.0, 580.82.07'\n"
        "echo 'NVIDIA GB10, [N/A], [N/A], GPU-BB, 0000000F:01:00.0, [N/A]'\necho 'Tesla T4, 15360, 15355'\necho broken\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert nvidia.gpus() == [
        Gpu("Tesla T4", 15360 << 20, 15000 << 20, "gpu-aaaa", "0000:04:00.0", "580.82.07"),
        Gpu("NVIDIA GB10", None, None, "gpu-bb", "000f:01:00.0", ""),
        Gpu("Tesla T4", 15360 << 20, 15355 << 20),
    ]
