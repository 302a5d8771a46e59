"""`python -m qlora_gui.simulation.__main__`: the memory of one training step on a CUDA GPU, measured without one.

Reads one JSON object on stdin and writes one on stdout. The real step runs on fake tensors for two numbers of
layers; what every phase needs at its first and at its last layers grows by the same bytes with every further
layer, so all layers follow from these two.
"""

import json
import math
import sys
import time
import warnings
from typing import Any

from qlora_gui import config as configs
from qlora_gui import families
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.step_rules import checkpoint_interval
from qlora_gui.system import collector, processes

with collector.paused():
    import bitsandbytes as bnb
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training
    from torch._subclasses import FakeTensorMode
    from transformers.utils import logging as chatter

    from qlora_gui.models import chunked_loss, lora
    from qlora_gui.simulation import fake_model
    from qlora_gui.simulation.cuda_emulation import cuda_rules
    from qlora_gui.simulation.step import Peaks, Way, peak_of_step

_MOST_RAM = 8 * 2**30  # far more than it needs; a base that escapes the fakes must not take the machine with it


def simulate(
    base: dict[str, Any],
    run: RunConfig,
    rows: int,
    length: int,
    way: Way = "ours",
    checkpointing: str = "all",
    flash: bool = True,
) -> dict[str, Any]:
    """Bytes on a CUDA GPU: `peak`, the phase it is `peak_in`, `resident` between steps, and the peak of every phase.

    `base` is the base's config.json; `way` is ours, or stock: PEFT's preparation under transformers' Trainer in bf16.
    Of the batches of this size the worst is meant: every token is learned from. Not counted: the CUDA context and the
    libraries' workspaces. `flash`: the GPU has flash attention (compute capability 8.0).
    Raises UserError for a base that transformers cannot build.
    """
    config = fake_model.read_config(base)
    run = run.model_copy(update={"gradient_checkpointing": checkpointing})
    few, more = layer_counts(config, checkpointing)
    whole = config.get_text_config().num_hidden_layers
    if whole <= more:
        measured = [peaks(config, whole, run, rows, length, way, flash)]
    else:
        measured = [peaks(config, layers, run, rows, length, way, flash) for layers in (few, more)]
    places, resident = extrapolate(measured, whole)
    phases: dict[str, int] = {}
    for (phase, _), size in places.items():
        phases[phase] = max(phases.get(phase, 0), size)
    where = max(phases, key=lambda phase: phases[phase])
    return {"peak": phases[where], "peak_in": where, "resident": resident, "phases": phases}


def layer_counts(config: Any, checkpointing: str) -> tuple[int, int]:
    """Two numbers of layers that both end as the whole model ends, with every kind of layer at both ends.

    Kinds repeat with the checkpointed layers and with the base's own pattern (config.layer_types).
    """
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["same"]
    own = next(size for size in range(1, len(kinds) + 1) if all(k == kinds[i % size] for i, k in enumerate(kinds)))
    period = math.lcm(own, checkpoint_interval(checkpointing) or 1)
    few = 2 * period + config.num_hidden_layers % period
    return few, few + period


def extrapolate(measured: list[Peaks], whole: int) -> tuple[dict[tuple[str, int], int], int]:
    """Peaks for two numbers of layers -> (bytes by place, resident bytes) for `whole` layers.

    Layers are named from the nearer end (-1 is the last), so that both numbers of layers have the same places.
    """
    few, more = measured[0], measured[-1]
    if few is more:
        return few.places, few.resident
    head = few.layers // 2
    pairs = {
        (phase, layer if layer < head else layer - few.layers): (
            size,
            more.places[phase, layer if layer < head else layer + more.layers - few.layers],
        )
        for (phase, layer), size in few.places.items()
    }
    more_layers, further = more.layers - few.layers, whole - few.layers

    def at_whole(small: int, large: int) -> int:
        return small + (large - small) * further // more_layers

    return {place: at_whole(*pair) for place, pair in pairs.items()}, at_whole(few.resident, more.resident)


def peaks(config: Any, layers: int, run: RunConfig, rows: int, length: int, way: Way, flash: bool = True) -> Peaks:
    """The step of a base with this config but only so many layers, on fake tensors."""
    config = fake_model.with_layers(config, layers)
    model = fake_model.base_on_meta(config, run)
    packed = ["position_ids", "blocks"] if run.packing else []  # as data/collate.py collates
    mask = ["attention_mask"] if way == "stock" else packed
    with cuda_rules(not fake_model.own_logits(config), not mask, flash):
        with torch.device("meta"):
            model = prepared(model, run) if way == "ours" else usual(model, run)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake_model.to_fake(model)
            names = ["input_ids", "labels", *mask]
            batch = {name: torch.empty(rows, length, dtype=torch.int64) for name in names}
            return peak_of_step(model, batch, run, way)


def prepared(model: Any, run: RunConfig) -> Any:
    """A loaded base made ready to train, as training/run.py does it for a GPU."""
    if run.attention == "auto" and families.find(model.config.model_type).cpu_eager_up_to:
        run = run.model_copy(update={"attention": "sdpa"})  # what auto is on a GPU
    lora.prepare(model, run)
    model = lora.attach(model, run)
    chunked_loss.install(model.get_base_model())
    return model.train()


def usual(model: Any, run: RunConfig) -> Any:
    """A loaded base made ready the usual way: PEFT's preparation, PEFT's LoRA, and nothing of ours."""
    model.config.use_cache = model.config.get_text_config().use_cache = False  # as the Trainer sets it
    checkpoints = run.gradient_checkpointing != "none"
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpoints)
    for part in model.modules():
        if isinstance(part, bnb.nn.Linear4bit) and part.bias is not None:
            # as its first forward does, before there is any optimizer state
            part.bias.data = part.bias.data.to(part.compute_dtype)
    return get_peft_model(model, lora.settings(run)).train()


def main() -> int:
    began = time.monotonic()
    processes.limit_memory(_MOST_RAM)
    warnings.simplefilter("ignore")
    chatter.set_verbosity_error()
    try:
        asked = json.load(sys.stdin)
        asked["run"] = configs.make(asked.pop("config"))
        answer = simulate(**asked)
    except UserError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(answer | {"seconds": round(time.monotonic() - began, 2), "ram": processes.peak_memory()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
