"""The one error type for people.

UserError            something a person can mend: one sentence, what was wrong and how to mend it
  (anything else)    a bug: keeps its traceback, in the log
"""


class UserError(Exception):
    """One sentence that says what was wrong and how to mend it; shown without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def panicked(error: BaseException) -> UserError | None:
    """What to say where a library in Rust, the tokenizers above all, gave up on what it was given; such an error is no
    Exception. None for any other."""
    if type(error).__name__ != "PanicException":
        return None
    return UserError(
        f"The tokenizer gave up on a text ({first_line(error)}): its patterns cannot be matched, so that this base or adapter "
        "cannot be used."
    )
