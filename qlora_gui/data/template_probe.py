"""What a chat template does, found by rendering short conversations with marks in them.

How it shows reasoning, what it puts between the generation prompt and an answer, and what ends an answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlora_gui.data import reasoning as thought
from qlora_gui.data import special_tokens
from qlora_gui.data.chat_template import PLAIN, STOP
from qlora_gui.data.template_renderer import RENDERER
from qlora_gui.errors import first_line

QUESTION, ANSWER, NEXT, REASON = "QxQuestionQx", "QxAnswerQx", "QxNextQx", "QxReasonQx"
_SWITCHES = ("enable_thinking", "thinking")  # names of the setting; the second one is DeepSeek's and Granite's
_ALIASES = ("reasoning_content", "reasoning", "thinking")  # fields of a turn that templates read reasoning from
_USER = {"role": "user", "content": QUESTION}

# Where a template takes reasoning from: a field of the turn, a block of its content, marks in its content, or, where it
# has no opinion on it ("text"), it is text like any other. "dropped": it is left out wherever it stands.
Form = Literal["field", "blocks", "content", "text", "dropped"]
Render = Callable[..., str]


@dataclass(frozen=True)
class Probe:
    """A template with its settings. `render(turns, tools, generation_prompt)` gives its text and raises what it raises.

    `switches` are the names of its setting for thinking; `opens` says that its generation prompt opens a thought.
    `header` is what begins an answer where the template has no generation prompt of its own; `empty_thought` what it
    writes for reasoning that is not there. `tail` follows the newest answer, and `end` is the end mark in it, or what
    takes its place: `end_from` says where it comes from. `ends` are tokens and `stops` texts that end an answer, `marks`
    all that do as a template would write them.
    """

    render: Render
    switches: tuple[str, ...]
    opens: bool
    form: Form
    header: str
    empty_thought: str
    tail: str
    end: str
    end_from: Literal["template", "next turn", "eos"]
    ends: frozenset[int]
    stops: tuple[str, ...]
    marks: tuple[str, ...] = ()
    failure: str = ""

    @property
    def knows_thinking(self) -> bool:
        """Whether thinking can be turned on and off under this template."""
        return bool(self.switches) or self.opens

    @property
    def splits_thought(self) -> bool:
        """Whether reasoning in an answer's text is more than text to this template."""
        return self.form != "text"

    def shaped(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """A turn with its reasoning where the template looks for it, and without what is not for it."""
        shaped = {key: value for key, value in turn.items() if key not in ("learn", "joined", "place", *_ALIASES)}
        reasoning = turn.get("reasoning_content")
        has_reasoning = reasoning or (reasoning == "" and self.form == "field")
        return _with_reasoning(shaped, str(reasoning), self.form) if has_reasoning else shaped

    def to_end_mark(self, rest: str, texts: Sequence[str]) -> str:
        """What a template wrote for the newest answer, up to its end mark and no further; `texts` are known to be in it."""
        if rest.endswith(self.tail):
            rest = rest[: len(rest) - len(self.tail)] + self.end
        # Templates may write something else after calls of tools: an end mark of their own, or the next prompt.
        after = max((rest.rfind(text) + len(text) for text in texts if text in rest), default=0)
        places = [(rest.find(mark, after), len(mark)) for mark in filter(None, (self.end, *self.marks))]
        ended = min((place + size for place, size in places if place >= 0), default=None)
        return rest.rstrip() if ended is None else rest[:ended]


def probe(tokenizer: Any, template: str, thinking: bool | None, base_ends: frozenset[int]) -> Probe:
    """Ask a template. Where it refuses even a question and an answer, what it does is unknown and `failure` says why."""
    none = _no_tools(tokenizer, template)
    switches = tuple(name for name in _SWITCHES if name in template and _switched(tokenizer, template, name, none))
    render = _renderer(tokenizer, template, {} if thinking is None else dict.fromkeys(switches, thinking), none)
    eos = frozenset({tokenizer.eos_token_id} - {None})
    try:
        ask = render([_USER], None, True)
        newest = render([_USER, _answer()], None)
        after = render([_USER, _answer(), {**_USER, "content": NEXT}], None)
    except Exception as error:  # templates are programs; this one refuses what every one should take
        end = str(tokenizer.eos_token or "")
        return Probe(
            render, switches, False, "text", "", "", "", end, "eos", base_ends | eos, (), (), first_line(error)
        )
    head, _, tail = newest.partition(ANSWER)
    follows = after.partition(ANSWER)[2].partition(NEXT)[0]
    gap = head[len(ask) :] if head.startswith(ask) else ""
    asks_by_itself = ask != render([_USER], None)
    header = "" if asks_by_itself or thought.left_open(ask) or not gap.strip() else gap  # a space is the answer's own
    opens = thought.left_open(ask) is not None
    form = _form(render, template, bool(switches) or opens)
    end, end_from = _end(tokenizer, tail, follows, base_ends)
    tokens, texts = _ending(tokenizer, end)
    stops = tuple(dict.fromkeys([*texts, *([STOP] if template == PLAIN else [])]))
    empty = "" if header else _empty_thought(render, form, ask, gap)
    ends = base_ends | eos | tokens
    written = [str(token) for number, token in tokenizer.added_tokens_decoder.items() if number in ends]
    marks = tuple(filter(str.strip, [*written, *texts]))
    return Probe(render, switches, opens, form, header, empty, tail, end, end_from, ends, stops, marks)


def _answer() -> dict[str, Any]:
    return {"role": "assistant", "content": ANSWER}


def _renderer(tokenizer: Any, template: str, settings: Mapping[str, Any], no_tools: Any) -> Render:
    # A tokenizer with a way of its own (Mistral's) has no program for a template.
    usual = getattr(type(tokenizer).apply_chat_template, "__module__", "") == "transformers.tokenization_utils_base"

    def render(turns: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, generation_prompt: bool = False) -> str:
        tool_list = list(tools) if tools else no_tools
        if usual:
            special = tokenizer.special_tokens_map
            return RENDERER.render(template, special, turns, tool_list, generation_prompt, settings)
        return str(
            tokenizer.apply_chat_template(
                list(turns),
                tools=tool_list,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **settings,
            )
        )

    return render


def _no_tools(tokenizer: Any, template: str) -> list[Any] | None:
    """What says to a template that there are no tools: None, or [] for those that count them without looking."""
    try:
        _renderer(tokenizer, template, {}, None)([_USER], None, True)
    except Exception:  # templates raise what they like
        try:
            _renderer(tokenizer, template, {}, [])([_USER], None, True)
        except Exception:
            return None
        return []
    return None


def _switched(tokenizer: Any, template: str, name: str, no_tools: Any) -> bool:
    """Whether a setting changes what this template asks."""
    try:
        asked = [_renderer(tokenizer, template, {name: on}, no_tools)([_USER], None, True) for on in (True, False)]
    except Exception:  # templates raise what they like
        return False
    return asked[0] != asked[1]


def _with_reasoning(turn: dict[str, Any], reasoning: str, form: Form) -> dict[str, Any]:
    """A turn with its reasoning in the place that a form says."""
    content = str(turn.get("content") or "")
    if form == "field":
        return {**turn, **dict.fromkeys(_ALIASES, reasoning)}
    if form == "blocks":
        blocks = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": content}]
        return {**turn, "content": blocks}
    if form == "content":
        opening, closing = thought.MARKS[0]
        return {**turn, "content": f"{opening}\n{reasoning}\n{closing}\n\n{content}"}
    return turn


def _form(render: Render, template: str, knows_thinking: bool) -> Form:
    """Where the template takes reasoning from, of the newest answer."""
    for form in ("field", "blocks", "content"):
        shown = _try(render, _with_reasoning(_answer(), REASON, form))  # type: ignore[arg-type]
        quoted = shown and any(f"{quote}{REASON}{quote}" in shown for quote in "'\"")  # the turn's list, written out
        if shown and REASON in shown and ANSWER in shown and not quoted:
            if form != "content":
                return form  # type: ignore[return-value]
            return "content" if knows_thinking and thought.MARKS[0][0] in template else "text"
    return "dropped"


def _try(render: Render, answer: Mapping[str, Any]) -> str | None:
    try:
        return render([_USER, answer], None)
    except Exception:  # templates raise what they like
        return None


def _empty_thought(render: Render, form: Form, ask: str, gap: str) -> str:
    """The gap between generation prompt and answer, where that is reasoning that is not there; else ""."""
    if not gap.strip():
        return ""
    squeezed = "".join(gap.split())
    left_open = thought.left_open(ask)
    if (left_open and squeezed == left_open[0]) or squeezed in map("".join, thought.MARKS):
        return gap
    full = _try(render, _with_reasoning(_answer(), REASON, form)) or ""
    if REASON not in full or not full.startswith(ask):
        return ""
    around = full[len(ask) :].partition(ANSWER)[0].replace(REASON, "")
    return gap if "".join(around.split()) == squeezed else ""


def _end(
    tokenizer: Any, tail: str, follows: str, base_ends: frozenset[int]
) -> tuple[str, Literal["template", "next turn", "eos"]]:
    """The end mark of an answer, with what stands before it, and where it comes from.

    `tail` is what follows the newest answer, `follows` what stands between an answer and the next question. First
    choice is a token that the base ends at, then EOS where it follows every answer, then the first token of the tail
    that is more than letters. A template that writes none has the answer ended by the next turn, as GLM's does, where
    the base ends there, or else by EOS, which the template does not write.
    """
    pattern = special_tokens.compiled(tuple(t for t in _added(tokenizer) if t.strip()))
    marks = list(pattern.finditer(tail))
    always = len(_common(tail, follows))

    def number(mark: Any) -> Any:
        return tokenizer.convert_tokens_to_ids(mark.group())

    ending = [mark for mark in marks if number(mark) in base_ends]
    ending += [mark for mark in marks if number(mark) == tokenizer.eos_token_id and mark.end() <= always]
    if chosen := next(iter([*ending, *marks]), None):
        return tail[: chosen.end()], "template"
    if tail.strip():
        return tail.rstrip(), "template"
    for mark in pattern.finditer(follows):
        if number(mark) in base_ends | {tokenizer.eos_token_id}:
            return follows[: mark.end()], "next turn"
        break
    return str(tokenizer.eos_token or ""), "eos"


def _added(tokenizer: Any) -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values()]


def _common(first: str, second: str) -> str:
    size = next((place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    return first[: min(len(first), len(second)) if size is None else size]


def _ending(tokenizer: Any, end: str) -> tuple[frozenset[int], tuple[str, ...]]:
    """The token that an end mark ends with, or the text that it is where it is no token."""
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    last = next((n for n, token in tokenizer.added_tokens_decoder.items() if _is_end_of(str(token), end)), None)
    if last is not None and ids:
        return frozenset({last}), ()
    return frozenset(), (end.strip(),) if end.strip() else ()


def _is_end_of(token: str, text: str) -> bool:
    return bool(token.strip()) and text.endswith(token)
