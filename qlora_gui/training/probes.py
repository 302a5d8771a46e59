"""A few held-out prompts answered while a run trains, to see when its answers got better, or broke."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from qlora_gui.data.chat import Chat
from qlora_gui.data.prompts import Prompt
from qlora_gui.models import rope


class Probes:
    """Prompts, and how a model in training answers them."""

    def __init__(self, chat: Chat, prompts: Sequence[Prompt], max_new_tokens: int):
        self.chat, self.prompts, self.max_new_tokens = chat, prompts, max_new_tokens

    @torch.no_grad()
    def answers(self, model: Any, in_step: bool = False) -> list[dict[str, Any]]:
        """Greedy answers: `prompt` (its last turn), `answer`, and `ended` by itself.

        In one batch, padded on the left; one by one where the longest would change how the others are read.
        `in_step`: processes that shard the model generate as many tokens as the longest answer of any of them.
        Leaves the model in the mode it was in. Draws no random numbers, so a run is the same with and without.
        """
        tokenizer = self.chat.tokenizer
        rows = [self.chat.prompt(prompt.turns, prompt.tools).ids(tokenizer) for prompt in self.prompts]
        limit = rope.alike_up_to(model.config)
        apart = limit is not None and max(map(len, rows)) + self.max_new_tokens > limit
        was_training = model.training
        model.eval()
        try:
            answers = [
                ids
                for part in ([[row] for row in rows] if apart else [rows])
                for ids in self._generate(model, part, in_step)
            ]
        finally:
            model.train(was_training)
        return [self._as_dict(prompt, ids) for prompt, ids in zip(self.prompts, answers, strict=True)]

    def _generate(self, model: Any, rows: list[list[int]], in_step: bool) -> list[list[int]]:
        """The new tokens of each row of a batch."""
        device, pad, longest = model.device, self.chat.tokenizer.pad_token_id, max(map(len, rows))
        text = model.config.get_text_config()
        room = None if rope.grows(text.to_dict()) else getattr(text, "max_position_embeddings", None)
        new = min(self.max_new_tokens, max(room - longest + 1, 1)) if room else self.max_new_tokens
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=sorted(self.chat.ends),
            pad_token_id=pad,
            use_cache=True,
        )
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=in_step)
        return [row[longest:].tolist() for row in out]

    def _as_dict(self, prompt: Prompt, ids: list[int]) -> dict[str, Any]:
        end = next((place for place, token in enumerate(ids) if token in self.chat.ends), None)
        text, ended = self.chat.tokenizer.decode(ids[:end], skip_special_tokens=True), end is not None
        for stop in self.chat.stops:
            text, matched, _ = text.partition(stop)
            ended = ended or bool(matched)
        return {"prompt": prompt.turns[-1]["content"], "answer": text.strip(), "ended": ended}
