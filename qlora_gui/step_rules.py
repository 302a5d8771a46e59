"""Sizes and rules that the code of a training step and the plan of its memory share; without torch."""

GPU_MULTIPLE = 8  # tokens to a multiple of which rows are padded on a GPU: 16 bytes in 16 bits
BLOCK, BLOCK2 = 64, 256  # weights that share one absmax, and absmaxes that share one: bitsandbytes' defaults
_CHUNK_LOGITS, _CHUNK_LOGITS_CPU = 2**25, 2**26


def chunk_rows(vocabulary: int, device: str) -> int:
    """Hidden states per chunk of the loss, a multiple of 8: 128 with BLOOM's 250,880 words on a GPU; twice that on a CPU,
    where it is faster.
    """
    logits = _CHUNK_LOGITS_CPU if device == "cpu" else _CHUNK_LOGITS
    return max(logits // vocabulary // 8 * 8, 16)


def checkpoint_interval(which: str) -> int:
    """Layers number k - 1, 2 * k - 1, ... are recomputed: k of `every-k`, 1 for `all` (and `auto`), 0 for `none`."""
    if which == "none":
        return 0
    return int(which.removeprefix("every-")) if which.startswith("every-") else 1


def keeps_unpacked(weights: int, free: float) -> bool:
    """Whether a CPU with so many free bytes keeps 4-bit weights unpacked as well: where that takes up to an eighth of them."""
    return 4 * weights <= free / 8
