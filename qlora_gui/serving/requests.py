"""Requests of the endpoint: what is read of them, and what is refused. The form is OpenAI's (platform.openai.com/docs/api-reference).

What would change an answer and is not supported is refused by its name; what says nothing about an answer is passed over.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_gui.inference.protocol import Completion, Conversation
from qlora_gui.inference.sampling import Decoding
from qlora_gui.serving.batching import BASE

DEFAULT_TOKENS = 1024  # of an answer, where a request names no limit: some bases never end by themselves
MOST_TOKENS = 8192
MOST_CHOICES = 8
MOST_STOPS = 16
MOST_TOP = 20
_GREEDY_BELOW = 0.05  # temperatures
_SEEDS = 2**32


class ApiError(Exception):
    """What an answer to a request says instead of one, in OpenAI's form. `status` is the HTTP status."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Turn(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Common(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(1.0, ge=0, le=5)
    top_p: float | None = Field(1.0, ge=0, le=1)
    n: int | None = Field(1, ge=1, le=MOST_CHOICES)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None


class _Chat(_Common):
    messages: list[_Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    chat_template_kwargs: dict[str, Any] | None = None


_Token = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


class _Text(_Common):
    prompt: str | list[str] | list[_Token] | list[list[_Token]]
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    echo: bool | None = False


_Form = TypeVar("_Form", bound=_Common)

# What changes an answer and is not to be had here, with the values that ask for nothing.
_NEUTRAL: Mapping[str, Sequence[Any]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "best_of": (1,),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "length_penalty": (1,),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
}


@dataclass(frozen=True)
class Asked:
    """A request as it is answered: `completions` in the order of its choices, `choices` of each prompt."""

    model: str
    completions: list[Completion]
    is_chat: bool
    stream: bool
    include_usage: bool


def chat(body: Any, names: Sequence[str]) -> Asked:
    """A request to /v1/chat/completions; `names` are the models, by column. Raises ApiError."""
    given = _read(_Chat, body)
    column = column_of(given.model, names)
    most = given.max_completion_tokens or given.max_tokens
    if given.max_tokens == 0:
        raise ApiError(400, "max_tokens is 0: ask for at least one token.", "max_tokens")
    top = (given.top_logprobs or 0) if given.logprobs else None
    if given.top_logprobs and not given.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
    turns: Conversation = [_turn(turn, number) for number, turn in enumerate(given.messages)]
    completions = [
        Completion(column, turns, decoding, _stops(given), top)
        for decoding in _decodings(given, most, _thinking(given.chat_template_kwargs))
    ]
    return Asked(given.model, completions, True, bool(given.stream), _with_usage(given))


def text(body: Any, names: Sequence[str]) -> Asked:
    """A request to /v1/completions. Raises ApiError."""
    given = _read(_Text, body)
    column = column_of(given.model, names)
    prompts: list[Any] = _prompts(given.prompt)
    if len(prompts) * (given.n or 1) > MOST_CHOICES * 16:
        raise ApiError(
            400, f"That asks for more than {MOST_CHOICES * 16} answers at once: send fewer prompts.", "prompt"
        )
    if given.max_tokens == 0 and not given.echo:
        raise ApiError(
            400, "max_tokens is 0, which only gives something with echo: ask for at least one.", "max_tokens"
        )
    most = 16 if given.max_tokens is None else given.max_tokens  # 16 is OpenAI's default here
    completions = [
        Completion(column, prompt, decoding, _stops(given), given.logprobs, bool(given.echo), most > 0)
        for prompt in prompts
        for decoding in _decodings(given, most or 1, "auto")
    ]
    return Asked(given.model, completions, False, bool(given.stream), _with_usage(given))


def column_of(model: str, names: Sequence[str]) -> int:
    """The column of a model's name; the base also goes by `base`. Raises ApiError."""
    if model in names:
        return names.index(model)
    if model == BASE:
        return 0
    raise ApiError(
        404, f"There is no model '{model[:200]}' here: there are {', '.join(names)}.", "model", "model_not_found"
    )


def _read(form: type[_Form], body: Any) -> _Form:
    if not isinstance(body, dict):
        raise ApiError(400, "The request is no JSON object.")
    for name, neutral in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise ApiError(400, f"{name} is not supported here: leave it out.", name, "unsupported_parameter")
    try:
        return form.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if fault["loc"][0] == "prompt":
            raise ApiError(
                400, "prompt: give a text, a list of texts, tokens, or a list of lists of tokens.", "prompt"
            ) from None
        place = ".".join(map(str, fault["loc"][:2]))
        raise ApiError(400, f"{place}: {fault['msg']}.", place) from None


def passed_over(body: Mapping[str, Any]) -> list[str]:
    """The names in a request that nothing here reads, those in its messages among them."""
    known = {*_Chat.model_fields, *_Text.model_fields, *_NEUTRAL, "user", "metadata", "store", "service_tier"}
    given = body.get("messages")
    turns = [turn for turn in given if isinstance(turn, dict)] if isinstance(given, list) else []
    inner = {name for turn in turns for name, value in turn.items() if value is not None} - {*_Turn.model_fields}
    return [*sorted(set(body) - known), *(f"messages.{name}" for name in sorted(inner))]


def _turn(turn: _Turn, number: int) -> dict[str, Any]:
    content = turn.content
    if isinstance(content, list):
        if other := next((part.type for part in content if part.type not in ("text", "refusal")), None):
            raise ApiError(400, f"Message {number} has a part of the type {other}: only text is read here.", "messages")
        texts = [part.text if part.type == "text" else part.refusal for part in content]
        if None in texts:
            raise ApiError(400, f"Message {number} has a part without text.", "messages")
        content = "".join(text or "" for text in texts)
    if content is None and not turn.tool_calls:
        raise ApiError(400, f"Message {number} has no content.", "messages")
    plain: dict[str, Any] = {"role": "system" if turn.role == "developer" else turn.role, "content": content or ""}
    more = {"tool_calls": turn.tool_calls, "tool_call_id": turn.tool_call_id, "name": turn.name}
    return plain | {name: value for name, value in more.items() if value is not None}


def _thinking(kwargs: Mapping[str, Any] | None) -> str:
    """`enable_thinking` is the one setting of templates that is known here."""
    others = sorted(set(kwargs or {}) - {"enable_thinking"})
    if others:
        raise ApiError(400, f"chat_template_kwargs: {others[0]} is not supported here.", "chat_template_kwargs")
    value = (kwargs or {}).get("enable_thinking")
    return "auto" if value is None else "on" if value else "off"


def _prompts(prompt: Any) -> list[Any]:
    """A prompt for each answer: texts, or lists of tokens."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt or not all(prompt):
        raise ApiError(400, "The prompt is empty.", "prompt")
    return list(prompt)


def _stops(given: _Common) -> list[str]:
    stops = [given.stop] if isinstance(given.stop, str) else given.stop or []
    if len(stops) > MOST_STOPS:
        raise ApiError(400, f"There are {len(stops)} stop texts: {MOST_STOPS} at most.", "stop")
    return [stop for stop in stops if stop]


def _decodings(given: _Common, most: int | None, thinking: Any) -> list[Decoding]:
    """The settings of each choice: neighbours have neighbouring seeds. Without a seed they are drawn anew each time."""
    tokens = DEFAULT_TOKENS if most is None else most
    if tokens > MOST_TOKENS:
        raise ApiError(400, f"max_tokens is {tokens}: {MOST_TOKENS} at most.", "max_tokens")
    temperature = 1.0 if given.temperature is None else given.temperature
    top_p = 1.0 if given.top_p is None else given.top_p
    greedy = temperature < _GREEDY_BELOW or top_p == 0
    seed = secrets.randbelow(_SEEDS) if given.seed is None else given.seed
    sampling = {} if greedy else {"temperature": temperature, "top_p": top_p}
    return [
        Decoding(greedy=greedy, max_new_tokens=tokens, thinking=thinking, seed=(seed + choice) % _SEEDS, **sampling)  # type: ignore[arg-type]
        for choice in range(given.n or 1)
    ]


def _with_usage(given: _Common) -> bool:
    return bool(given.stream_options and given.stream_options.include_usage)
