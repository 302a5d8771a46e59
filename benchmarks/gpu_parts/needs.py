"""What the GPU benchmark needs, looked for before anything is measured: packages, the GPU, and a first 4-bit product."""

import importlib
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import Any

PACKAGES = {
    "torch": "a CUDA build, 2.11 or newer",
    "transformers": "5.17 or newer",
    "peft": "0.19 or newer",
    "accelerate": "1.10 or newer",
    "bitsandbytes": "0.50 or newer, installed or its folder on PYTHONPATH",
    "pydantic": "2.11 or newer",
    "yaml": "PyYAML 6",
    "psutil": "any",
    "filelock": "any",
}
MORE = {
    "trl": "the way `trl`, with datasets",
    "datasets": "the way `trl`",
    "unsloth": "the part `unsloth`",
}


def missing() -> list[str]:
    """A line for every package that is not there; imports nothing."""
    return [f"{name} ({told})" for name, told in PACKAGES.items() if find_spec(name) is None]


def version(name: str) -> str:
    """Of an installed package, or of a folder on the path that brings no metadata."""
    try:
        return metadata.version({"yaml": "PyYAML"}.get(name, name))
    except metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))


def run(dry: bool) -> Iterator[dict[str, Any]]:
    """A line for every package, one for the device, and one for a product in 4 bits. Raises SystemExit with what lacks."""
    yield {"package": "python", "version": platform.python_version()}
    for name in PACKAGES:
        yield {"package": name, "version": version(name)}
    for name, what in MORE.items():
        if find_spec(name) is None:
            yield {"package": name, "version": None, "without": what}
        elif name != "unsloth":  # which changes transformers as soon as it is imported
            yield {"package": name, "version": version(name)}
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        yield {"capability": f"{major}.{minor}", "free": free, "total_bytes": total, "build": torch.version.cuda}
        if free < 0.9 * total and not dry:
            yield {"warning": f"other programs hold {(total - free) / 2**30:.1f} GB of the GPU: close them"}
    elif not dry:
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA GPU: a driver of 580 or newer is needed for CUDA 13; only --dry-run works"
        )
    yield {"product_in_4_bits": _product()}


def _product() -> str:
    """The number format that a 4-bit linear was tried in. Raises SystemExit where bitsandbytes has no library for it."""
    import bitsandbytes as bnb
    import torch

    from qlora_gui.models import device as devices

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = devices.compute_dtype(device)
    try:
        linear = bnb.nn.Linear4bit(128, 128, compute_dtype=dtype).to(device)
        torch.isfinite(linear(torch.ones(2, 128, dtype=dtype, device=device)).sum()).item()
    except Exception as error:
        raise SystemExit(f"bitsandbytes {version('bitsandbytes')} cannot multiply in 4 bits here: {error}") from error
    return str(dtype).removeprefix("torch.")
