"""`python -m qlora_gui.check.worker FOLDER device|cpu`: the part of the check that computes, a JSON line for each finding.

First on the device, as a run would use it; then on the CPU in fp32, which holds the device's numbers against its own.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.check.lines import Line
from qlora_gui.errors import UserError, first_line
from qlora_gui.memory import run_time
from qlora_gui.runs.store import RunStore
from qlora_gui.system import collector, processes

with collector.paused():
    import torch

    from qlora_gui.check import layer_speed, numbers, tiny_models
    from qlora_gui.check.numbers import Numbers
    from qlora_gui.models import device as devices

CHECKED = "QLORA_GUI_CHECKED"  # "gpu" or "cpu": what the first part ran on, for the second one itself is on the CPU


def main() -> int:
    folder, role = Path(sys.argv[1]), sys.argv[2]
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries and the trainer print is no answer
    cache = hub.cache_dir()
    os.environ["QLORA_GUI_CACHE"] = str(folder / "cache")  # what these tiny bases need and measure is not worth keeping
    for line in (on_device if role == "device" else on_cpu)(folder, cache):
        answer.write(json.dumps(line.as_dict()) + "\n")
        answer.flush()
    return 0


def on_device(folder: Path, cache: Path | None) -> Iterator[Line]:
    """Each line as it is known; `folder` gets what the CPU's part reads, `cache` the speed, which is not measured without it."""
    device = devices.pick()
    yield from _tried("bitsandbytes", lambda: _bitsandbytes(device))
    if device.type == "cuda" and not torch.cuda.get_device_properties(device).is_integrated:
        yield from _tried("spilling", lambda: _spilling(device))
    data = tiny_models.write_rows(folder / "rows.jsonl")
    store = RunStore(folder / "device")
    for name in tiny_models.NAMES:
        began = time.monotonic()

        def train_and_measure(name: str = name, began: float = began) -> Line:
            base = tiny_models.make(name, folder / name)
            run = numbers.trained(store, numbers.config_of(name, base, data))
            result = numbers.measured(run, run.path)
            torch.save(vars(result), folder / f"{name}.pt")
            text = f"{name.capitalize()}: a small random one is trained, saved, reloaded and answers in {result.dtype}"
            return Line(f"{name}-trained", "ok", f"{text} ({time.monotonic() - began:.0f} s).")

        yield from _tried(f"{name}-trained", train_and_measure)
    if device.type in ("cpu", "cuda"):  # elsewhere there is no limit to set
        yield from _tried("out-of-memory", lambda: _out_of_memory(store, folder, device))
    if cache is not None:
        yield from _tried("speed", lambda: _speed(device, cache))


def _tried(key: str, look: Any) -> Iterator[Line]:
    """A line, or what went wrong as one; the traceback goes where the rest of the output goes."""
    try:
        yield look()
    except Exception as error:
        traceback.print_exc()
        message = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        yield Line(
            key, "failed", f"{key.replace('-', ' ').capitalize()}: {message}", "Report this, with the lines above."
        )


def _bitsandbytes(device: torch.device) -> Line:
    """bitsandbytes' own library is loaded, and multiplies by 4-bit values as it unpacks them."""
    import bitsandbytes as bnb
    from bitsandbytes import cextension, functional

    if "error" in type(cextension.lib).__name__.lower():
        fix = "Install the bitsandbytes of requirements.txt; on a GPU it needs the CUDA that torch is built for."
        return Line("bitsandbytes", "failed", f"bitsandbytes {bnb.__version__} cannot load its library.", fix)
    dtype = devices.compute_dtype(device)
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    dense = functional.dequantize_4bit(packed, state).float()
    worst = 0.0
    for count in (1, 64):  # a token, and a batch: kernels of their own
        x = torch.randn(count, 512, generator=torch.Generator().manual_seed(count)).to(device, dtype)
        wanted = x.float() @ dense.t()
        product = bnb.matmul_4bit(x, packed.t(), quant_state=state).float()
        worst = max(worst, float((product - wanted).abs().max() / wanted.abs().max()))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    text = f"bitsandbytes {bnb.__version__} multiplies 4-bit values on {where} (within {worst:.0e})."
    if not worst < 3e-2:
        return Line("bitsandbytes", "failed", text, "Its kernel is wrong on this device: report this.")
    return Line("bitsandbytes", "ok", f"{text[:-1]}; library {_library()}." if _library() else text)


def _library() -> str:
    """The file that bitsandbytes' kernels come from, by what this process has mapped; "" where that is unknown."""
    return next((Path(file).name for file in processes.mapped_files() if "libbitsandbytes" in file), "")


def _out_of_memory(store: RunStore, folder: Path, device: torch.device) -> Line:
    data = tiny_models.write_rows(folder / "long.jsonl", 40, times=0 if device.type == "cpu" else 40)
    what = "GPU's" if device.type == "cuda" else "counted"
    return Line(
        "out-of-memory",
        "ok",
        f"Out of memory on purpose ({what} limit at half of what a run needs): it {numbers.survived(store, folder / 'llama', data)}.",
    )


def _spilling(device: torch.device) -> Line:
    """Whether the driver says no where the card is full, or goes on in main memory, at a tenth of the speed.

    Asked before anything sets a limit of torch's own, which would say no before the driver is asked.
    """
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    try:
        beyond = torch.empty(free + (1 << 30), dtype=torch.uint8, device=device)
    except (torch.OutOfMemoryError, RuntimeError):
        return Line("spilling", "ok", "More than the GPU has is refused, as it should be.")
    del beyond
    torch.cuda.empty_cache()
    fix = (
        "In NVIDIA's control panel set CUDA sysmem fallback to off, or set QLORA_GUI_MEMORY_LIMIT to what the card has."
    )
    return Line(
        "spilling", "warning", "The driver falls back to main memory when the GPU is full, which makes runs crawl.", fix
    )


def _speed(device: torch.device, cache: Path) -> Line:
    speed = layer_speed.measured(device)
    run_time.keep(speed, cache)
    large = speed.layers[-1]
    how = "fp32" if speed.dtype == "float32" else speed.dtype
    return Line(
        "speed",
        "ok",
        f"One layer of a 7B base in 4 bits: {large.at(2048):,.0f} tokens/s forward and backward ({how}, 4 x 512 tokens), so a "
        f"7B base of 32 layers trains at about {large.at(2048) / 32:,.2g} tokens/s (estimate).",
    )


def on_cpu(folder: Path, cache: Path | None) -> Iterator[Line]:
    """The device's numbers in `folder` against this process's own."""
    store = RunStore(folder / "cpu")
    data = folder / "rows.jsonl"
    here: dict[str, Numbers] = {}
    cpu: dict[str, Numbers] = {}
    for name in tiny_models.NAMES:
        if not (folder / f"{name}.pt").is_file():
            continue  # its line gave the reason

        try:
            here[name] = Numbers(**torch.load(folder / f"{name}.pt", weights_only=True))
            config = numbers.config_of(name, folder / name, data)
            adapter = folder / "device" / name
            cpu[name] = numbers.measured(numbers.trained(store, config), adapter)
            columns, _ = numbers.answered(config, adapter)
            answers = enumerate(zip(here[name].answers, cpu[name].answers, strict=True))
            choices = [numbers.choice_apart(columns, place, tokens, own) for place, (tokens, own) in answers]
            yield from numbers.lines(name, here[name], cpu[name], choices)
        except Exception as error:
            traceback.print_exc()
            message = f"{name.capitalize()} on the CPU: {type(error).__name__}: {first_line(error)}"
            yield Line(f"{name}-cpu", "failed", message, "Report this, with the lines above.")
    if cpu:
        yield from numbers.kernels({name: here[name] for name in cpu}, cpu, os.environ.get(CHECKED, "cpu"))


if __name__ == "__main__":
    sys.exit(main())
