"""Which device computes, and in which number format it really can."""

import gc
import os
import re

import psutil
import torch

from qlora_gui.system import kind

_LEFT_TO_DRIVER = 300 * 2**20  # bytes of a card that are not given to tensors where its driver would spill
# How libraries say that memory is short where they raise another class than torch.OutOfMemoryError: CUDA's and HIP's
# runtimes (lazy loading of kernels, pinned memory), cuBLAS, cuDNN and cuSOLVER (their workspaces; a cuBLAS handle that
# finds no room for one is "not initialized"), NCCL, SYCL, bitsandbytes, the allocator of CPUs, C++ and the kernel.
_SHORT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|cannot allocate memory|not enough memory: you tried|bad_alloc|bad allocation"
    "|_ALLOC_FAILED|ALLOCATION_FAILED|ErrorMemoryAllocation|ErrorOutOfMemory|ERROR_OUT_OF_(?:DEVICE|HOST)_MEMORY"
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(?:Lt)?Create",
    re.IGNORECASE,
)
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)([af]?)")


def pick() -> torch.device:
    """CUDA or ROCm first, then XPU and Apple's MPS as torch names them, else the CPU; of several processes each its own.

    CUDA cards that this torch has no kernels for are passed over. `hardware.remark_on` says what nobody has tried.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return torch.device("cpu")
    every = range(torch.accelerator.device_count())
    numbers = [number for number in every if accelerator.type != "cuda" or not any(lacking_kernels(number))]
    if not numbers:
        return torch.device("cpu")
    return torch.device(accelerator.type, numbers[int(os.environ.get("LOCAL_RANK", 0)) % len(numbers)])


def lacking_kernels(number: int) -> tuple[str, str]:
    """Where this torch has no kernels for a CUDA card: the oldest compute capability that it has some for, like "7.5", if the
    card's is older, or else the newest one below the card's. ("", "") where it has.

    Kernels (sm_86) run on cards of the same major version from theirs on, those with an "a" (sm_90a) on no other;
    intermediate code (compute_90) is compiled for any newer card (NVIDIA's CUDA programming guide, compute capabilities).
    """
    have = torch.cuda.get_device_capability(number)
    known = [match for arch in torch.cuda.get_arch_list() if (match := _ARCHITECTURE.fullmatch(arch))]
    built = [(kind, divmod(int(digits), 10), suffix) for kind, digits, suffix in (match.groups() for match in known)]
    if torch.version.hip or not built or any(_runs(have, *build) for build in built):
        return "", ""
    lower = [version for _, version, _ in built if version < have]
    if not lower:
        return "{}.{}".format(*min(version for _, version, _ in built)), ""
    return "", "{}.{}".format(*max(lower))


def _runs(have: tuple[int, int], kind: str, version: tuple[int, int], suffix: str) -> bool:
    if suffix == "a":
        return have == version
    return have >= version and (have[0] == version[0] or (kind == "compute" and not suffix))


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware has it; else fp16 on GPUs and fp32 on CPUs.

    A T4 says it supports bf16, but emulates it: asked without emulation. QLORA_GUI_COMPUTE_DTYPE (bfloat16, float16
    or float32) overrules, for benchmarks.
    """
    if forced := os.environ.get("QLORA_GUI_COMPUTE_DTYPE"):
        dtype: torch.dtype = getattr(torch, forced)
        return dtype
    if device.type == "cuda":
        real = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if real else torch.float16
    if device.type == "xpu":
        return torch.bfloat16 if torch.xpu.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bf16() else torch.float32
    return torch.float16


def _cpu_has_bf16() -> bool:
    features = torch.backends.cpu.get_cpu_capability()
    if features.startswith("AVX512"):
        return torch.cpu._is_avx512_bf16_supported()
    return torch.cpu._is_amx_tile_supported()


def ran_out(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is about memory; most libraries say so only in words."""
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(error, (RuntimeError, OSError)) and _SHORT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def keep_on_card(device: torch.device, limit: int | None = None) -> None:
    """Let torch run out of memory beyond `limit` bytes, and where a driver would move what does not fit into system memory.

    NVIDIA's driver does so on Windows, and so under WSL2: a run that is too large then crawls, and says nothing. What is
    free changes: to be called before anything large begins.
    """
    spills = kind.is_windows() or kind.is_wsl()
    if device.type == "cuda" and (spills or limit):
        free, total = torch.cuda.mem_get_info(device)
        room = free + torch.cuda.memory_reserved(device) - _LEFT_TO_DRIVER if spills else total
        room = min(room, limit or room)
        torch.cuda.set_per_process_memory_fraction(min(max(room / total, 0.0), 1.0), device)


def free_and_total(device: torch.device) -> tuple[int, int]:
    """Bytes of a CUDA card or an XPU that are free, and all that it has.

    A CUDA card too full even to be asked has 0 free; of Intel's integrated GPUs, which report none, all is taken as free. Where
    a chip shares the processor's memory (GB10), what the system keeps there of files can be had as well.
    """
    backend = torch.cuda if device.type == "cuda" else torch.xpu
    properties = backend.get_device_properties(device)
    try:
        free, total = backend.mem_get_info(device)
    except RuntimeError:
        return (0 if device.type == "cuda" else properties.total_memory), properties.total_memory
    if getattr(properties, "is_integrated", False):
        free = min(max(free, psutil.virtual_memory().available), total)
    return free, total


def release() -> None:
    """Give back what nobody holds any more, cycles included, so that what comes next is not refused for fragments."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_in_use(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the resident size of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def free_memory(device: torch.device) -> int:
    """Bytes: what a GPU has free and what torch's allocator keeps for tensors to come, or what this machine can give."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free_and_total(device)[0] + cached
    return psutil.virtual_memory().available
