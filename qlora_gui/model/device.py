"""Which device computes, and in which number format it really can."""

import os

import psutil
import torch


def pick() -> torch.device:
    """CUDA or ROCm first, then XPU and Apple's MPS as torch names them, else the CPU; of several processes each its own."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
    return torch.device(accelerator.type, number)


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
    """Whether memory is what an error, or what caused it, is about; a CPU says so only in words."""
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def memory_in_use(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the resident size of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def free_memory(device: torch.device) -> int:
    """Bytes: what a GPU has free, or what this machine can still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
