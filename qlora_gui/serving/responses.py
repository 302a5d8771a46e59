"""Answers of the endpoint as JSON, whole and in pieces, in OpenAI's form."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_gui.inference import protocol
from qlora_gui.serving.requests import Asked

_REASONS = {"eos": "stop", "stop string": "stop", "length": "length", "stopped": "stop"}
Token = tuple[str, float | None, list[tuple[str, float]]]


@dataclass
class _Choice:
    """What has come of one completion."""

    text: str = ""
    sent: int = 0  # characters that went out in pieces
    scored: list[Token] = field(default_factory=list)
    scored_sent: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    reason: str | None = None


class Response:
    """One answer in the making: `take` events of its completions, then `whole`, or `pieces` after each of them.

    `fingerprint` tells base and adapter from others of the same name.
    """

    def __init__(self, asked: Asked, fingerprint: str):
        self.asked = asked
        self.choices = [_Choice() for _ in asked.completions]
        kind = "chatcmpl" if asked.is_chat else "cmpl"
        self._about: dict[str, Any] = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": fingerprint,
        }

    @property
    def is_whole(self) -> bool:
        return all(choice.reason for choice in self.choices)

    def take(self, number: int, event: protocol.Answering) -> None:
        """Let an event of one completion tell more of it."""
        choice = self.choices[number]
        if isinstance(event, protocol.Text):
            choice.text += event.text
        elif isinstance(event, protocol.Began):
            choice.prompt_tokens = event.tokens
        elif isinstance(event, protocol.Scored):
            choice.scored += [
                (text, value, [(other, score) for other, score in top]) for text, value, top in event.tokens
            ]
        elif isinstance(event, protocol.Ended):
            choice.tokens, choice.reason = event.tokens, _REASONS[event.ended]

    def whole(self) -> dict[str, Any]:
        """The answer at once."""
        choices = [self._whole(number, choice) for number, choice in enumerate(self.choices)]
        kind = "chat.completion" if self.asked.is_chat else "text_completion"
        return self._about | {"object": kind, "choices": choices, "usage": self.usage()}

    def beginning(self) -> Iterator[dict[str, Any]]:
        """The first pieces: of a chat, whose turn it is."""
        if self.asked.is_chat:
            for number in range(len(self.choices)):
                yield self._piece(number, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def pieces(self, number: int) -> Iterator[dict[str, Any]]:
        """What is new of one completion since the last call, if anything is."""
        choice = self.choices[number]
        text, scored = choice.text[choice.sent :], choice.scored[choice.scored_sent :]
        if text or (choice.reason and scored):
            logprobs = self._logprobs(number, scored, choice.sent)
            choice.sent, choice.scored_sent = len(choice.text), len(choice.scored)
            yield self._piece(
                number, {"delta": {"content": text}} if self.asked.is_chat else {"text": text}, logprobs, None
            )
        if choice.reason:
            yield self._piece(number, {"delta": {}} if self.asked.is_chat else {"text": ""}, None, choice.reason)

    def last(self) -> Iterator[dict[str, Any]]:
        """The pieces after all completions have ended."""
        if self.asked.include_usage:
            kind = "chat.completion.chunk" if self.asked.is_chat else "text_completion"
            yield self._about | {"object": kind, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens read and written; the prompt of several choices is counted once."""
        prompts = {
            repr(each.prompt): choice.prompt_tokens
            for each, choice in zip(self.asked.completions, self.choices, strict=True)
        }
        read, written = sum(prompts.values()), sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _whole(self, number: int, choice: _Choice) -> dict[str, Any]:
        what: dict[str, Any] = {"text": choice.text}
        if self.asked.is_chat:
            what = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
        logprobs = self._logprobs(number, choice.scored, 0)
        return {"index": number, **what, "logprobs": logprobs, "finish_reason": choice.reason}

    def _piece(self, number: int, what: Mapping[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.asked.is_chat else "text_completion"
        choice = {"index": number, **what, "logprobs": logprobs, "finish_reason": reason}
        return self._about | {"object": kind, "choices": [choice]}

    def _logprobs(self, number: int, scored: Sequence[Token], offset: int) -> dict[str, Any] | None:
        if self.asked.completions[number].top is None:
            return None
        if self.asked.is_chat:
            entries = [
                _entry(text, value) | {"top_logprobs": [_entry(*one) for one in top]} for text, value, top in scored
            ]
            return {"content": entries, "refusal": None}
        offsets = []
        for text, _, _ in scored:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": [text for text, _, _ in scored],
            "token_logprobs": [value for _, value, _ in scored],
            "top_logprobs": [_by_text(text, value, top) for text, value, top in scored],
            "text_offset": offsets,
        }


def _entry(text: str, value: float | None) -> dict[str, Any]:
    """A token with its bytes, None where it is but a part of a character, whose bytes its text does not tell."""
    known = "\ufffd" not in text
    return {"token": text, "logprob": value, "bytes": [*text.encode("utf-8", "surrogatepass")] if known else None}


def _by_text(text: str, value: float | None, top: Sequence[tuple[str, float]]) -> dict[str, float] | None:
    """The likeliest tokens by their text, the one that stands there among them; of those with one text the likeliest."""
    if value is None:
        return None
    found: dict[str, float] = {}
    for other, score in [*top, (text, value)]:
        found.setdefault(other, score)
    return found
