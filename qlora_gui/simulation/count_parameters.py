"""`python -m qlora_gui.simulation.count_parameters`: the parameters of a base, counted on the model itself, without its weights.

Reads {"base": config.json} on stdin and writes {"in_4_bits", "all"} on stdout. For architectures that no closed form of
memory/model_shape.py knows.
"""

import json
import sys
import warnings
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError, first_line
from qlora_gui.system import collector, processes

with collector.paused():
    import bitsandbytes as bnb
    from transformers.utils import logging as chatter

    from qlora_gui.simulation import fake_model

MOST_RAM = 8 * 2**30  # far more than a model without weights needs


def count(base: dict[str, Any]) -> dict[str, int]:
    """Weights that are `in_4_bits` once the base with this config.json is loaded, and `all` of its parameters.

    Raises UserError for a base that transformers cannot build.
    """
    try:
        model = fake_model.base_on_meta(fake_model.read_config(base), RunConfig())
    except (UserError, MemoryError):
        raise
    except Exception as error:  # code of hundreds of architectures: what it raises for a config is its own affair
        raise UserError(f"This base cannot be built from its config.json ({first_line(error)}).") from error
    linears = [part for part in model.modules() if isinstance(part, bnb.nn.Linear4bit)]
    packed = {id(part.weight) for part in linears}
    quantized = sum(part.in_features * part.out_features for part in linears)
    rest = sum(part.numel() for part in model.parameters() if id(part) not in packed)
    return {"in_4_bits": quantized, "all": quantized + rest}


def main() -> int:
    processes.limit_memory(MOST_RAM)
    warnings.simplefilter("ignore")
    chatter.set_verbosity_error()
    try:
        print(json.dumps(count(json.load(sys.stdin)["base"])))
    except MemoryError:
        print(json.dumps({"error": "This base cannot be built from its config.json: that takes more than 8 GB."}))
        return 1
    except UserError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
