"""A few held-out prompts answered while a run trains, so that one sees when its answers got better, or broke."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from qlora_gui.data import literal
from qlora_gui.data.tokens import with_system
from qlora_gui.model import template

Turns = list[dict[str, str]]


def prompts_of(examples: Sequence[Any], count: int, system_prompt: str) -> list[Turns]:
    """The first `count` conversations up to their last answer; rows of plain text have none."""
    found = []
    for example in examples:
        turns = example.get("messages", [])
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
        if last:
            found.append(with_system(turns[:last], system_prompt))
    return found[:count]


class Probes:
    """Prompts, and how a model in training answers them."""

    def __init__(self, tokenizer: Any, prompts: Sequence[Turns], max_new_tokens: int, control: bool = False):
        self.tokenizer, self.prompts, self.max_new_tokens = tokenizer, prompts, max_new_tokens
        self.control = control  # whether special tokens spelled out in them are what they spell

    @torch.no_grad()
    def answers(self, model: Any, in_step: bool = False) -> list[dict[str, Any]]:
        """Greedy answers in one batch, padded on the left: `prompt` (its last turn), `answer`, and `ended` by itself.

        `in_step`: processes that share the model out write as many tokens as the slowest of them.
        Leaves the model in the mode it was in. Draws no random numbers, so a run is the same with and without.
        """
        device, pad = model.device, self.tokenizer.pad_token_id
        rows = [literal.prompt(turns, self.tokenizer, self.control).ids(self.tokenizer) for turns in self.prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        end = self.tokenizer.eos_token_id
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=end,
            pad_token_id=pad,
            use_cache=True,
        )
        was_training = model.training
        model.eval()
        try:
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=in_step)
        finally:
            model.train(was_training)
        return [self._told(turns, row[longest:].tolist(), end) for turns, row in zip(self.prompts, out, strict=True)]

    def _told(self, turns: Turns, ids: list[int], end: int) -> dict[str, Any]:
        text, ended = self.tokenizer.decode(ids, skip_special_tokens=True), end in ids
        for stop in template.stop_strings(self.tokenizer.chat_template):
            text, found, _ = text.partition(stop)
            ended = ended or bool(found)
        return {"prompt": turns[-1]["content"], "answer": text.strip(), "ended": ended}
