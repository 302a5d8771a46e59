"""The parameters of a base of an architecture that the closed form does not know: counted by a child process, and kept."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_gui.errors import UserError
from qlora_gui.memory.model_shape import Shape
from qlora_gui.simulation import client


def counted(shape: Shape, base: Mapping[str, Any], ask: bool) -> Shape:
    """The shape with the true numbers of its parameters, where they are known from before or `ask` allows some seconds.

    `base` is the base's config.json. Where it cannot be counted the shape stays as rough as it was.
    """
    question = {"base": dict(base)}
    file = client.folder() / f"count-{client.key(question)}.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return replace(shape, counted=(int(told["in_4_bits"]), int(told["all"])))
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged
        if not ask:
            return shape
    try:
        told = client.asked(client.PARAMETERS, question)
    except UserError:
        return shape
    client.keep(file, told)
    return replace(shape, counted=(told["in_4_bits"], told["all"]))
