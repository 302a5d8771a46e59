"""`--headless-report`: the report on runs, written from their folders as Markdown or as one HTML page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from qlora_gui.errors import UserError
from qlora_gui.files import check_writable, write_whole
from qlora_gui.report import RENDERERS, written
from qlora_gui.runs.store import RunStore


def report(store: RunStore, run_ids: Sequence[str], out: Path, say: Callable[[str], None]) -> int:
    """Write the report on these runs, or on all, to `out`, as its suffix says (.md or .html). Returns 0.

    Raises UserError for an unknown run, another suffix, and a file that cannot be written.
    """
    render = RENDERERS.get(out.suffix.lower())
    if render is None:
        raise UserError(f"A report cannot be written as '{out.name}': end the name with .md or .html.")
    check_writable(out, "The report")
    body = render(written(store, run_ids))
    try:
        write_whole(out, body)
    except OSError as error:
        raise UserError(f"The report cannot be written to '{out}': {error.strerror or error}.") from None
    say(f"The report is in {out}")
    return 0
