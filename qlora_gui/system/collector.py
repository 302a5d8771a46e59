"""Importing without the garbage collector: what large libraries make of themselves lives as long as the process.

While torch, transformers and peft are imported, a million objects come into being and none dies, and the collector
looks through all of them again and again; when the process ends, once more. Nearly half of the time from the start
to the end of a short process goes there (measured with torch 2.13, transformers 5.23: 5.8 s, against 3.3 s).
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Collect nothing meanwhile, and never look at what there is then again. For imports of large libraries."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
