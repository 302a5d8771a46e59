"""Signals: who handles Ctrl+C or a request to end, and how a main thread that hangs is reached."""

import _thread
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Any  # what signal.signal takes and gives: a function of two arguments, or one of its constants


def stop_signals() -> tuple[int, ...]:
    """Those by which a person or the system asks a program to end; Windows has Ctrl+Break, and sends no SIGTERM."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    return tuple(map(int, [*numbers, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else [])]))


def handle(handler: Handler, numbers: tuple[int, ...]) -> dict[int, Handler]:
    """Install `handler` for these signals; returns the previous handlers, for `restore`. In the main thread only."""
    return {number: signal.signal(number, handler) for number in numbers}


def on_interrupt(handler: Handler) -> dict[int, Handler]:
    """Install `handler` for Ctrl+C and `interrupt_main_thread`; returns the previous handler, for `restore`."""
    return handle(handler, (int(signal.SIGINT),))


def restore(before: Mapping[int, Handler]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def raise_on_terminate() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as Ctrl+C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def interrupt_main_thread() -> None:
    """As if somebody had pressed Ctrl+C; it also ends a blocking call of the main thread, but not on Windows."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def watch_terminate(act: Callable[[], object]) -> None:
    """Call `act` in a thread of its own when SIGTERM comes, although the main thread may hang and answer no signal.

    Windows sends none: there `act` is never called.
    """
    reads, wakes = socket.socketpair()  # Windows takes no pipe
    wakes.setblocking(False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with wakes:  # kept open for as long as somebody listens
            while signal.SIGTERM not in reads.recv(64):
                pass
            act()

    threading.Thread(target=watch, daemon=True).start()


def ignore_interrupt() -> None:
    """From now on ignore Ctrl+C: the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def limit_computing(seconds: float) -> None:
    """Let the kernel end this process once it has computed for so long; 0 takes that back. Not on Windows."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def computed_too_long(code: int | None) -> bool:
    """Whether a child's exit code says that `limit_computing` ended it."""
    return code is not None and code == -getattr(signal, "SIGPROF", 0) != 0


@contextmanager
def regularly(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Within, call `look` in the main thread every so many seconds, also while a regular expression is matched; what it
    raises ends that. Not on Windows, nor in another thread than the main one: there nothing is called.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def called(number: int, frame: FrameType | None) -> None:
        look()

    before = signal.signal(signal.SIGALRM, called)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
