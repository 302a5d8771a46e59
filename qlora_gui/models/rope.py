"""Rotary positions whose frequencies transformers picks by the longest row of a batch: what a row is then read with
depends on the rows beside it, once one of them is beyond a length.
"""

from collections.abc import Iterator, Mapping
from typing import Any


def grows(text: Mapping[str, Any]) -> bool:
    """Whether a config.json's text part scales its positions with the row, and so is made to read beyond its context."""
    parameters = [text.get("rope_parameters"), text.get("rope_scaling")]
    return any(
        "dynamic" in str(entry.get("rope_type") or entry.get("type"))
        for entry in parameters
        if isinstance(entry, Mapping)
    )


def alike_up_to(config: Any) -> int | None:
    """The tokens up to which all rows of a batch are read with the same frequencies, whatever stands beside them.

    Beyond, longrope takes its long factors (Phi-3), and dynamic scaling grows with the row. None for all other bases.
    """
    text = config.get_text_config()
    limits = []
    for parameters in _parameters(text):
        kind = str(parameters.get("rope_type") or parameters.get("type") or "")
        if kind == "longrope":
            limits.append(parameters.get("original_max_position_embeddings") or text.max_position_embeddings)
        elif "dynamic" in kind:
            limits.append(text.max_position_embeddings)
    return min(map(int, limits), default=None)


def _parameters(text: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of each kind of a text config's positions: of all layers, or by type of layer."""
    parameters = getattr(text, "rope_parameters", None)
    if isinstance(parameters, Mapping):
        yield parameters
        yield from (entry for entry in parameters.values() if isinstance(entry, Mapping))


def forget_rows(model: Any) -> None:
    """Let every forward pass begin with a base's own frequencies.

    Those of dynamic scaling else stay as the longest row so far left them: then a loss depends on what was read before.
    """
    for part in model.modules():
        kinds = getattr(part, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, Mapping) else [kinds]
        if any("dynamic" in str(kind) for kind in kinds) and hasattr(part, "original_max_seq_len"):
            part.register_forward_pre_hook(_forget)


def _forget(part: Any, args: tuple[Any, ...]) -> None:
    for name, own in list(part.named_buffers(recurse=False)):
        if not name.endswith("original_inv_freq"):
            continue
        kind = name.removesuffix("original_inv_freq")  # "", or a type of layer and "_"
        setattr(part, f"{kind}inv_freq", own.clone())
        setattr(part, f"{kind}max_seq_len_cached", part.original_max_seq_len)
