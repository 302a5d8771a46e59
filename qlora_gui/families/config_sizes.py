"""Numbers of a base's config.json: read under any of their names, and refused where they are beyond all measure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_gui.errors import UserError

# The largest numbers of a config.json that are believed, each some ten times those of the largest bases there are:
# beyond them memory and time go into counting, or into making a model of them, whatever the answer is.
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2_000),
    **dict.fromkeys(("hidden_size", "n_embed", "n_embd", "d_model", "dim"), 1_000_000),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "head_dim"), 100_000),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 100_000),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size"), 10_000_000
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 10_000),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "num_experts_per_token"), 10_000),
    "vocab_size": 50_000_000,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length"), 100_000_000),
}
_MOST_OF_ANY = 10**15
# Numbers of things, whatever a config calls them: each thing is made. Others are token ids, angles, sizes of files.
_COUNTS = re.compile(r"(?!\w*(param|token|step|sample|train))((num|n)_\w+|\w*(layers|depths?|blocks|labels|stages))")
_MOST_THINGS, _MOST_LISTED = 1_000_000, 100_000


def check_limit(name: str, value: object) -> None:
    """Raise UserError for a number of a config.json that is beyond all measure."""
    most = LIMITS.get(name, _MOST_THINGS if _COUNTS.fullmatch(name) else _MOST_OF_ANY)
    for number in _flat(value, name):
        if isinstance(number, int) and not isinstance(number, bool) and abs(number) > most:
            written = f"{number:,}" if abs(number) < 10**30 else f"a number of {len(str(abs(number)))} digits"
            raise UserError(
                f"The base's config.json says that its {name} is {written}, and at most {most:,} is believed."
            )


def check_limits(config: Mapping[str, Any]) -> None:
    """Raise UserError for a config.json with any number, also in its parts, that is beyond all measure."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_limits(value)
        else:
            check_limit(name, value)
    _check_repeats(config.get("attention_types"))


def _check_repeats(kinds: object) -> None:
    """GPT-Neo's kinds of layers, [[["global", "local"], 12]]: each list of words is written out so often."""
    pairs = [pair for pair in kinds if isinstance(pair, list) and len(pair) == 2] if isinstance(kinds, list) else []
    if any(
        isinstance(words, list) and isinstance(times, int) and len(words) * times > LIMITS["num_layers"]
        for words, times in pairs
    ):
        raise UserError(f"The base's config.json lists more than {LIMITS['num_layers']:,} attention_types.")


def _flat(value: object, name: str) -> Iterator[object]:
    """The values in lists in lists, and in their mappings. Raises UserError for more than a config has."""
    waiting, count = [value], 0
    while waiting:
        item = waiting.pop()
        count += 1 + (len(item) if isinstance(item, list) else 0)
        if count > _MOST_LISTED:
            raise UserError(f"The base's config.json lists more than {_MOST_LISTED:,} values under {name}.")
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, Mapping):
            check_limits(item)
        else:
            yield item


def size(config: Mapping[str, Any], *names: str) -> int:
    """The number under the first of these names that has one. Raises UserError where none has."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(isinstance(number, int) for number in value):
            value = max(value)  # a size per layer: the largest decides what a step needs
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            check_limit(name, value)
            return value
    raise UserError(f"The base's config.json has no usable {names[0]}: memory cannot be planned for it.")


def optional(config: Mapping[str, Any], default: int, *names: str) -> int:
    """As `size`, or a default where no name is there."""
    return size(config, *names) if any(config.get(name) for name in names) else default
