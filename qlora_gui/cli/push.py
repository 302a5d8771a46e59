"""`export --push`: an adapter or an export to the Hugging Face Hub, with a question where a repository has files already."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qlora_gui import hub
from qlora_gui.cli import export
from qlora_gui.errors import UserError
from qlora_gui.export import hub_target, job, push_job
from qlora_gui.export.push_job import Push
from qlora_gui.inference.protocol import Conversation


@dataclass(frozen=True)
class Asked:
    """Where to: the repository, whether everybody may read it, and whether one that has files already is agreed to."""

    repo: str
    public: bool
    existing: bool


def push(adapter: Path, what: str, asked: Asked) -> int:
    """Push an adapter, or its export in the folder `what`. Returns 0. Raises UserError."""
    token = hub.login_token()
    return _pushed(adapter, _agreed(what, asked, token), token)


def export_and_push(
    adapter: Path,
    settings: job.Settings,
    asked: Asked,
    base: str | None,
    revision: str,
    prompts: Sequence[Conversation],
) -> int:
    """Export, then push the folder; one that lies there whole and is the same export is pushed as it is.

    Returns 0, or 1 where the exported model is worse: it is not pushed then. Raises UserError.
    """
    token = hub.login_token()
    agreed = _agreed(str(Path(settings.out).absolute()), asked, token)  # before minutes of work
    made = job.read(Path(settings.out))
    if made is not None and job.is_export_of(Path(settings.out), adapter, settings, base):
        print(f"'{settings.out}' is this export already: it is pushed as it is.", file=sys.stderr, flush=True)
        print(made.proof, flush=True)
    elif export.run(adapter, settings, base, revision, prompts):
        print(
            f"Not pushed, because it is worse. If you want it on the hub all the same, give the same command again: "
            f"'{settings.out}' is pushed as it is then.",
            file=sys.stderr,
        )
        return 1
    return _pushed(adapter, agreed, token)


def _agreed(what: str, asked: Asked, token: str) -> Push:
    """What to push where, once whoever starts it has agreed to what is there. Raises UserError."""
    target = hub_target.look(asked.repo, token)
    if question := hub_target.question(target, asked.public):
        _ask(question, target, asked)
    return Push(asked.repo, what, asked.public, target.seen)


def _ask(question: str, target: hub_target.Target, asked: Asked) -> None:
    """Let the user agree. Raises UserError where nobody does, or nobody can be asked."""
    names_it = asked.public or not target.is_public
    if asked.existing and names_it:
        return
    if not sys.stdin.isatty():
        flags = "--push-existing" if names_it else "--public and --push-existing"
        raise UserError(f"{question} Nothing was pushed: give {flags} if that is meant, or another name.")
    print(question, file=sys.stderr)
    where = f"the {target.seen} repository '{target.repo}'"
    print(f"Push to {where}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was pushed.")


def _pushed(adapter: Path, asked: Push, token: str) -> int:
    given = {"adapter": str(adapter.absolute()), "asked": asdict(asked), "token": token}
    code, last = export.follow(push_job.MODULE, given)
    if code or "url" not in last:
        raise UserError(f"The push ended without an error message (exit code {code}): see what is written above.")
    print(last["url"], flush=True)
    return 0
