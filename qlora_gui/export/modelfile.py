"""A Modelfile for Ollama: the file, the chat template in Ollama's own language, and what ends an answer.

Ollama does not run the template in a GGUF file: it takes one of its own where it recognizes it, else none. So the trained one
is taken apart by rendering conversations, put together as a Go template, and left out where that does not give the same text.
"""

from dataclasses import dataclass
from typing import Any

from qlora_gui.data.chat import Chat

_Q, _A, _N, _S = "QxQuestionQx", "QxAnswerQx", "QxNextQx", "QxSystemQx"
_TEMPERATURE = 0.7  # as in Compare


@dataclass(frozen=True)
class Pieces:
    """A chat template as text around its turns. `first` comes where there is no system message, `bos` before all else."""

    bos: str
    first: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]

    def render(self, turns: list[dict[str, str]], prompt: bool) -> str:
        """What the pieces make of a conversation; to be held against the template itself."""
        text = self.bos
        system = next((turn["content"] for turn in turns if turn["role"] == "system"), None)
        if system is not None and self.system:
            text += self.system[0] + system + self.system[1]
        else:
            text += self.first
        for turn in turns:
            if turn["role"] != "system":
                before, after = self.user if turn["role"] == "user" else self.assistant
                text += before + turn["content"] + after
        return text + (self.assistant[0] if prompt else "")

    def go(self) -> str:
        """The same in Ollama's language."""
        head = self.first
        if self.system:
            head = f"{{{{ if .System }}}}{self.system[0]}{{{{ .System }}}}{self.system[1]}{{{{ else }}}}{self.first}{{{{ end }}}}"
        user = f"{self.user[0]}{{{{ .Content }}}}{self.user[1]}"
        assistant = f"{self.assistant[0]}{{{{ .Content }}}}{self.assistant[1]}"
        turns = (
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}{{{{ end }}}}'
        )
        return f"{self.bos}{head}{turns}{self.assistant[0]}"


def pieces(chat: Chat) -> Pieces | None:
    """The template of a chat taken apart; None where it does more than put text around turns."""
    render = chat.probe.render
    user, answer, more = _turn("user", _Q), _turn("assistant", _A), _turn("user", _N)
    try:
        head, _, tail = render([user], None, True).partition(_Q)
        two = render([user, answer, more], None, True)
        between = two.partition(_A)[2].partition(_N)[0]
        # Where exactly an answer's end becomes the next question's beginning makes no difference to the text.
        user_pre = _common_end(head, between)
        first = head.removesuffix(user_pre)
        bos = _leading(chat.tokenizer, first)
        system = _system(render, user, user_pre, bos)
        if system is None and _shows_system(render, user):
            return None  # Ollama would leave a system message out
        made = Pieces(
            "" if _adds_bos(chat.tokenizer) else bos,
            first.removeprefix(bos),
            system,
            (user_pre, ""),
            (tail, between.removesuffix(user_pre)),
        )
        found = Pieces(bos, made.first, made.system, made.user, made.assistant)
        tried = [[user], [user, answer, more]]
        tried += [[_turn("system", _S), *turns] for turns in tried] if system else []
        if any(found.render(turns, True) != render(turns, None, True) for turns in tried):
            return None
    except Exception:  # templates are programs; they raise what they like on turns they dislike
        return None
    parts = (made.bos, made.first, *(made.system or ()), *made.user, *made.assistant)
    return None if '"""' in made.go() or any("{{" in part for part in parts) else made


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-size - 1] == other[-size - 1]:
        size += 1
    return one[len(one) - size :]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _system(render: Any, user: dict[str, str], user_pre: str, bos: str) -> tuple[str, str] | None:
    """What stands before and after a system message; None where the template refuses one, or writes it elsewhere."""
    try:
        text = render([_turn("system", _S), user], None, True)
    except Exception:  # as above
        return None
    before, mark, after = text.partition(_S)
    between = after.partition(_Q)[0]
    if not mark or not between.endswith(user_pre):
        return None
    return before.removeprefix(bos), between.removesuffix(user_pre)


def _shows_system(render: Any, user: dict[str, str]) -> bool:
    try:
        return _S in render([_turn("system", _S), user], None, True)
    except Exception:  # as above
        return False


def _leading(tokenizer: Any, text: str) -> str:
    bos = tokenizer.bos_token
    return bos if bos and text.startswith(bos) else ""


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its first token there by itself, as llama.cpp then does."""
    ids = tokenizer("x")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def of_model(file: str, chat: Chat) -> str:
    """The Modelfile beside a whole model."""
    return f"FROM ./{file}\n{_rest(chat)}"


def of_adapter(file: str, chat: Chat, base: str) -> str:
    """The Modelfile beside an adapter's file; which GGUF file is its base, the user has to say."""
    return f"# A GGUF file of {base}, in 16 bits or 8: an adapter fits no other base.\nFROM ./base.gguf\nADAPTER ./{file}\n{_rest(chat)}"


def _rest(chat: Chat) -> str:
    taken = pieces(chat)
    lines = [f'TEMPLATE """{taken.go()}"""' if taken else _NO_TEMPLATE]
    ends = [chat.tokenizer.decode([end]) for end in sorted(chat.ends)]
    stops = dict.fromkeys(text for text in (*ends, *chat.stops) if text.strip())
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines.append(f"PARAMETER temperature {_TEMPERATURE}")
    return "\n".join(lines) + "\n"


_NO_TEMPLATE = (
    "# The chat template does more than Ollama's language was found to: Ollama will use the one it recognizes, or none."
)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
