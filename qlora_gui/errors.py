"""The one error type for people.

UserError            something a person can fix: one sentence, what was wrong and how to fix it
  (anything else)    a bug: keeps its traceback, in the log
"""


class UserError(Exception):
    """One sentence that says what was wrong and how to fix it; shown without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def panicked(error: BaseException) -> UserError | None:
    """The message for a panic in a Rust library, usually tokenizers; such an error is no Exception. None for any other
    error."""
    if type(error).__name__ != "PanicException":
        return None
    return UserError(
        f"The tokenizer gave up on a text ({first_line(error)}): its patterns cannot be matched, so that this base or adapter "
        "cannot be used."
    )
