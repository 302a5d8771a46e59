"""Model families: one file for each that differs from what most decoders do, with all that is true of it; without torch.

A file has `FAMILIES`, a Family for each of its model types. It needs no registration.
"""

import importlib
import pkgutil
from collections.abc import Iterator

from qlora_gui.families.family import Family

_PLAIN = Family("")


def _all() -> Iterator[Family]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        yield from getattr(importlib.import_module(module.name), "FAMILIES", ())


FAMILIES: dict[str, Family] = {family.model_type: family for family in _all()}


def find(model_type: str) -> Family:
    """What is known of a model type; a family without facts for all others."""
    if family := FAMILIES.get(model_type):
        return family
    alike = (family for name, family in FAMILIES.items() if name.endswith("*") and model_type.startswith(name[:-1]))
    return next(alike, _PLAIN)
