"""Settings as YAML: texts, numbers, booleans, lists and mappings; anything else in YAML is read as text or refused.

Plain YAML turns `on` into true, `12:30` into 750 and 2024-01-01 into a date, and a few lines of aliases into more values
than memory holds. Here words are read as YAML 1.2's core schema does, and yes and no besides.
"""

import re
from typing import Any, ClassVar

import yaml

MOST_TEXT = 128 << 10  # characters
MOST_VALUES = 10_000
_MOST_DIGITS = 40
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the words of the core schema, and no other types than settings have."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        f"{_TAG}{name}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"] for name in ("null", "str", "seq", "map")
    }


def _add(name: str, pattern: str, begins: str) -> None:
    _Loader.add_implicit_resolver(
        f"{_TAG}{name}", re.compile(rf"^(?:{pattern})$"), [*begins, ""] if name == "null" else list(begins)
    )


_add("bool", "true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO", "tTfFyYnN")
_add("null", "~|null|Null|NULL|", "~nN")
_add("int", "[-+]?[0-9]+", "-+0123456789")
_add("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_add("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")


def _bool(loader: Any, node: Any) -> bool:
    return bool(loader.construct_scalar(node).lower() in ("true", "yes"))


def _int(loader: Any, node: Any) -> int:
    digits = loader.construct_scalar(node)
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, and at most {_MOST_DIGITS} are read")
    return int(digits)


def _float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


def _none_of_ours(loader: Any, node: Any) -> Any:
    raise ValueError(f"values of the kind {str(node.tag).replace(_TAG, '!!')} are none that settings have")


_Loader.add_constructor(f"{_TAG}bool", _bool)
_Loader.add_constructor(f"{_TAG}int", _int)
_Loader.add_constructor(f"{_TAG}float", _float)
_Loader.add_constructor(None, _none_of_ours)  # type: ignore[type-var]


def parsed(text: str) -> Any:
    """The value of a YAML text. Raises ValueError with one line on what is wrong with it."""
    if len(text) > MOST_TEXT:
        raise ValueError(f"it has {len(text):,} characters, and at most {MOST_TEXT:,} are read")
    loader = None
    try:
        loader = _Loader(text)  # which looks for characters that no YAML text has
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error).splitlines()  # the library raises what it likes on keys
        raise ValueError(reason[0] if reason else type(error).__name__) from None
    finally:
        if loader is not None:
            loader.dispose()


def _weigh(node: Any, known: dict[int, int]) -> int:
    """How many values a node expands to, its aliases written out. Raises ValueError for too many, or for a circle."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError("an alias in it stands for what it is part of")
        return known[id(node)]
    known[id(node)] = 0
    inner: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' stands in it twice")
    count = 1 + sum(_weigh(part, known) for part in inner)
    if count > MOST_VALUES:
        raise ValueError(f"it stands for more than {MOST_VALUES:,} values")
    known[id(node)] = count
    return count
