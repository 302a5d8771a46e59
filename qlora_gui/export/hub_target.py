"""A repository on the hub that a model may be pushed to: who would push, what is there, and what has to be confirmed first."""

import re
from dataclasses import dataclass
from typing import Literal

from qlora_gui import hub
from qlora_gui.errors import UserError

Seen = Literal["new", "private", "public"]
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
_PART = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9_])?", re.ASCII)
_LONGEST = 96  # characters of either part
_GIT_ONLY = {".gitattributes"}  # what the hub itself puts into a new repository
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_WHOLE_TOKEN = re.compile(r"(?<![A-Za-z0-9_])hf_(?:oauth_)?[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class Target:
    """A repository as it was seen by `account`: `new` where there is none, or one that holds nothing yet."""

    repo: str
    account: str
    exists: bool
    seen: Seen

    @property
    def is_public(self) -> bool:
        return self.seen == "public"


def check_name(repo: str) -> None:
    """Raise UserError unless this is a name that the hub takes for a model."""
    owner, slash, name = repo.partition("/")
    shown = " ".join(repo[:200].split())
    if not slash:
        raise UserError(f"'{shown}' does not say whose repository it is: give owner/name, like me/tickets.")
    parts = (owner, name)
    bad = not all(_PART.fullmatch(part) and len(part) <= _LONGEST for part in parts)
    if bad or "--" in repo or ".." in repo or name.endswith((".git", ".ipynb")):
        raise UserError(
            f"The hub takes no repository called '{shown}': give owner/name, in letters, digits, single dashes, dots and "
            "underscores."
        )


def url(repo: str) -> str:
    """The page of a model on the hub."""
    return f"{hub.endpoint()}/{repo}"


def without_secrets(text: str, token: str = "") -> str:
    """A text without this token, or anything else that looks like one."""
    return _TOKEN.sub("hf_***", text.replace(token, "***") if token else text)


def has_token(text: str) -> bool:
    """Whether a whole access token stands in a text."""
    return _WHOLE_TOKEN.search(text) is not None


def no_answer() -> UserError:
    """The sentence for a hub that does not answer."""
    if hub.offline_is_wanted():
        return UserError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, and push again.")
    return UserError(
        f"The hub ({hub.endpoint()}) does not answer: check the network and the proxy, and push again. Nothing was pushed."
    )


def whoami(token: str) -> str:
    """The name of the account that a token belongs to. Raises UserError where there is none, or the hub does not answer."""
    return _asked(token)[0]


def _asked(token: str) -> tuple[str, bool]:
    """The account of a token, and whether the hub says that the token may only read. Raises UserError."""
    if not token:
        raise UserError(f"Nobody is logged in to the hub on this machine: {LOG_IN}.")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError("That is no token of the hub: copy one from its page of access tokens, which begins with hf_.")
    answer = None if hub.offline_is_wanted() else hub.ask("/api/whoami-v2", token)
    if answer is None:
        raise no_answer()
    status, about = answer
    if status in (401, 403):
        raise UserError(f"The hub does not know this token, or it has expired: {LOG_IN}.")
    if status == 429:
        raise UserError("The hub was asked too often who is logged in: wait a few minutes, and try again.")
    name = about.get("name")
    if status != 200 or not isinstance(name, str):
        raise UserError(f"The hub could not say who is logged in (status {status}): try again later.")
    auth = about.get("auth")
    own = auth.get("accessToken") if isinstance(auth, dict) else None
    return name, isinstance(own, dict) and own.get("role") == "read"


def look(repo: str, token: str, account: str = "") -> Target:
    """Look at a repository before anything is uploaded; `account` is whose token it is, where that was asked already.

    Raises UserError for a name that the hub does not take, a token that it does not know, or no answer.
    """
    check_name(repo)
    if not account:
        account, only_reads = _asked(token)
        if only_reads:
            raise UserError(f"The token of '{account}' may only read: {LOG_IN}.")
    answer = hub.ask(f"/api/models/{repo}", token)
    if answer is None:
        raise no_answer()
    status, about = answer
    if status in (401, 404):  # 401 is what the hub says of names that do not exist, or that are hidden from this token
        return Target(repo, account, False, "new")
    if status == 403:
        raise UserError(f"The account '{account}' may not see '{repo}': push to a repository of your own.")
    if status != 200:
        raise UserError(f"The hub could not say what '{repo}' is (status {status}): try again later.")
    now = about.get("id")
    if not isinstance(now, str):  # 200 is also what the login page of a network answers
        raise UserError(
            f"What answers at {hub.endpoint()} is not the hub: check the network and the proxy, and try again."
        )
    if now != repo:
        raise UserError(f"The repository '{repo}' is called '{now[:200]}' now: push to that name.")
    files = about.get("siblings")
    names = (
        {str(file.get("rfilename")) for file in files if isinstance(file, dict)} if isinstance(files, list) else {""}
    )
    if not about.get("private"):  # also where the hub does not say
        return Target(repo, account, True, "public")
    return Target(repo, account, True, "new" if names <= _GIT_ONLY else "private")


def question(target: Target, public: bool) -> str:
    """What has to be confirmed before anything is uploaded; "" where nothing has to be."""
    if target.seen == "new":
        return ""
    if target.is_public and not public:
        return (
            f"The repository '{target.repo}' exists and is PUBLIC, and stays so: everybody could read what is pushed. "
            "Files of the same name are replaced."
        )
    return f"The repository '{target.repo}' exists and is {target.seen}. Files of the same name are replaced."


def remark(target: Target, public: bool) -> str:
    """What should be known and needs no answer; "" where there is nothing."""
    if target.exists and not target.is_public and public:
        return f"The repository '{target.repo}' exists and is private, and stays so: change that on its page."
    return ""
