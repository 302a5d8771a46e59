"""What an adapter has beyond plain LoRA on linears, which PEFT alone computes: DoRA, whole modules, single tokens' embeddings."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qlora_gui.errors import UserError

_NAME = re.compile(r"[\w.]+")  # PEFT puts these names into regular expressions
_MAGNITUDE = "lora_magnitude_vector"
_TOKENS = "token_adapter.trainable_tokens_delta"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Beyond:
    """What PEFT alone computes of an adapter, as its config names it; the tensors themselves are PEFT's affair.

    `parameters` are bare ones that have LoRA; `saved` the ends of the names of whole modules that take the place of the base's,
    and `replaced` their tensors by the base's names, with their shapes; `tokens` the embeddings whose single rows were
    trained, with their shapes [tokens, width]. `tied` says that a head that shares the embedding's weights is replaced with it.
    """

    dora: bool = False
    parameters: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    replaced: Mapping[str, Shape] = field(default_factory=dict)
    tokens: Mapping[str, Shape] = field(default_factory=dict)
    tied: bool = False

    def __bool__(self) -> bool:
        return bool(self.dora or self.parameters or self.replaced or self.tokens)

    @property
    def reason(self) -> str:
        """Why only PEFT computes it, as a clause; "" for plain LoRA."""
        reasons = {
            f"it puts LoRA on parameters (target_parameters: {', '.join(self.parameters)})": self.parameters,
            "it uses DoRA": self.dora,
            f"it replaces whole modules (modules_to_save: {', '.join(self.saved)})": self.replaced,
            f"it trains single token embeddings ({', '.join(self.tokens)})": self.tokens,
        }
        return " and ".join(text for text, applies in reasons.items() if applies)

    @property
    def more(self) -> str:
        """The same as it is listed behind the number of linears; "" for plain LoRA."""
        parts = [*self.parameters, *["DoRA"] * self.dora]
        if self.replaced:
            parts.append(
                f"{len(self.modules)} modules replaced" if len(self.modules) > 1 else f"{self.modules[0]} replaced"
            )
        return "".join(f", {part}" for part in (*parts, *(f"tokens of {name}" for name in self.tokens)))

    @property
    def modules(self) -> tuple[str, ...]:
        """The replaced modules, by their names in the base."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.replaced))

    def without(self, prefixes: tuple[str, ...]) -> tuple["Beyond", set[str]]:
        """The same without modules whose names begin so, and the names of those."""
        replaced = {name: shape for name, shape in self.replaced.items() if not name.startswith(prefixes)}
        tokens = {name: shape for name, shape in self.tokens.items() if not name.startswith(prefixes)}
        rest = replace(self, replaced=replaced, tokens=tokens)
        return rest, {*self.modules, *self.tokens} - {*rest.modules, *rest.tokens}


class Sorter:
    """Takes the tensors of an adapter that are beyond plain LoRA, one after the other. Raises UserError for a damaged config."""

    def __init__(self, adapter: str, config: Mapping[str, Any]):
        self.parameters = tuple(config.get("target_parameters") or ())
        self.dora = bool(config.get("use_dora"))
        self._tied = bool(config.get("ensure_weight_tying"))
        self._saved = _names(adapter, config, "modules_to_save")
        self._on_tokens = bool(config.get("trainable_token_indices"))
        _check_tokens(adapter, config.get("trainable_token_indices"))
        self._replaced: dict[str, Shape] = {}
        self._tokens: dict[str, Shape] = {}

    def takes(self, name: str, shape: Shape) -> bool:
        """Whether the tensor of this name, without PEFT's prefix, is one of these."""
        if self.dora and name.removesuffix(".weight").endswith(f".{_MAGNITUDE}"):
            return True
        if self._on_tokens and name.endswith(f".{_TOKENS}"):
            self._tokens[name.removesuffix(f".{_TOKENS}")] = shape
            return True
        if ".lora_" in name:
            return False
        saved = any(module.endswith(self._saved) for module in _within(name))
        # of a head and an embedding that share their weights both are in the file, and one may be named
        if saved or (self._tied and self._saved and len(shape) == 2):
            self._replaced[name] = shape
            return True
        return False

    def found(self) -> Beyond:
        return Beyond(self.dora, self.parameters, self._saved, self._replaced, self._tokens, self._tied)


def _within(tensor: str) -> Iterator[str]:
    """The modules that a tensor lies in, from the outermost on."""
    parts = tensor.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _names(adapter: str, config: Mapping[str, Any], field_: str) -> tuple[str, ...]:
    value = config.get(field_)
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in value):
        raise UserError(f"The adapter_config.json of '{adapter}' is damaged: its {field_} is {str(value)[:200]!r}.")
    return tuple(value)


def _check_tokens(adapter: str, value: Any) -> None:
    """Raise UserError unless it is a list of tokens, or such lists by the names of embeddings."""
    lists = value if isinstance(value, dict) else {"embed_tokens": value or []}
    for name, tokens in lists.items():
        sound = isinstance(tokens, list) and all(type(token) is int and token >= 0 for token in tokens)
        if not sound or not _NAME.fullmatch(str(name)):
            raise UserError(
                f"The adapter_config.json of '{adapter}' is damaged: its trainable_token_indices are {str(value)[:200]!r}."
            )


def check(model: Any, adapter: str, beyond: Beyond) -> None:
    """Raise UserError unless every replaced module fits the base and is whole: PEFT copies what its config names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    shapes = {
        f"{name}.{leaf}": (module, tuple(part.shape))
        for name, module in modules.items()
        for leaf, part in module._parameters.items()
        if part is not None
    }
    for tensor, shape in beyond.replaced.items():
        module, have = shapes.get(tensor, (None, None))
        if hasattr(getattr(module, "weight", None), "quant_state"):
            raise UserError(
                f"The adapter '{adapter}' cannot be compared: it replaces '{tensor}', which this base holds in 4 bits: merge it "
                "(qlora-gui export --to merged), and take that as a base."
            )
        if have != shape:
            raise UserError(
                f"The adapter '{adapter}' was trained on another base: it replaces '{tensor}' by one of the shape "
                f"{list(shape)}, and this base has {list(have) if have else 'none'}."
            )
    shared = (model.get_input_embeddings(), model.get_output_embeddings())
    for tensor, (module, _) in shapes.items():
        named = bool(beyond.saved) and any(outer.endswith(beyond.saved) for outer in _within(tensor))
        if named and tensor not in beyond.replaced and not (beyond.tied and module in shared):
            raise UserError(
                f"The adapter '{adapter}' is damaged: its config says that it replaces '{tensor}' (modules_to_save), and its "
                "weights have none for it."
            )
        if tensor in beyond.replaced and not named and module not in shared:
            raise UserError(
                f"The adapter '{adapter}' is damaged: it holds '{tensor}', and its config does not name that (modules_to_save)."
            )
    for name, shape in beyond.tokens.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or len(shape) != 2 or weight.shape[-1] != shape[1]:
            raise UserError(
                f"The adapter '{adapter}' was trained on another base: this one has no embedding '{name}' that rows of the "
                f"shape {list(shape)} fit."
            )
