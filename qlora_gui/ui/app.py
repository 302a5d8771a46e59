"""The page: composed of its tabs, and opened on a port."""

import errno
import os
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.runs import queue
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import compare_tab, links, report_tab, runs_tab, train_tab
from qlora_gui.ui.header import header
from qlora_gui.ui.session import Session
from qlora_gui.ui.theme import CSS, QUIET, theme

FIRST_PORT, PORTS = 7860, 40


def _compare_client() -> Any:
    from qlora_gui.compare.client import CompareClient

    return CompareClient()


def build_app(store: RunStore, client_factory: Callable[[], Any] = _compare_client) -> gr.Blocks:
    """The page over a store of runs. It holds no model and imports no torch."""
    session = Session(client_factory)
    with gr.Blocks(title="QLoRA", analytics_enabled=False, fill_width=True) as app:
        link = gr.State(links.to("train"))
        address = gr.Textbox(visible=False)
        header(store)
        with gr.Tabs(selected="train", elem_id="tabs") as tabs:
            with gr.Tab("Train", id="train") as train:
                train_tab.tab(store, link, session.close)
            with gr.Tab("Runs", id="runs") as runs:
                runs_tab.tab(store, link, session.close)
            with gr.Tab("Compare", id="compare") as compare:
                compare_tab.tab(store, link, session)
            with gr.Tab("Report", id="report") as report:
                report_tab.tab(store, link)
        for name, one in zip(links.TABS, (train, runs, compare, report), strict=True):
            one.select(None, None, None, js=links.ON_TAB.format(tab=name), **QUIET)
        link.change(
            lambda link: (gr.Tabs(selected=link["tab"]), links.address(link)), link, [tabs, address], **QUIET
        ).then(None, address, None, js=links.ON_LINK, **QUIET)
        app.load(links.from_request, None, link, **QUIET)
        app.unload(lambda: None)
    app.close_session = session.close
    return app


def launch_page(store: RunStore, host: str, port: int | None, share: bool, auth: str | None) -> None:
    """Open the page and serve it until Ctrl+C. Raises UserError for a taken port, a bad login, or no tunnel.

    A page that others can reach always has a password: one is made and printed when none is given.
    """
    login = _login(auth, share or not _is_this_machine(host))
    port = _port(host, port)
    app = build_app(store)
    app.queue(default_concurrency_limit=8)
    try:
        app.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=login,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            theme=theme(),
            css_paths=CSS,
            footer_links=[],
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
        )
        if share and not app.share_url:
            raise UserError(
                "The public link could not be made, for the tunnel's server cannot be reached: "
                "check the network, or leave out --share."
            )
        queue.ensure_starter(store)
        print(f"The page is at {app.local_url}" + (f" and {app.share_url}" if share else ""), flush=True)
        if login and auth is None:
            print(f"Log in as {login[0]} with the password {login[1]}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("The page is closed; a run that is training goes on.", flush=True)
    finally:
        app.close_session()
        app.close(verbose=False)


def _is_this_machine(host: str) -> bool:
    """Whether only programs on this machine can reach the address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _login(auth: str | None, needed: bool) -> tuple[str, str] | None:
    if auth is None:
        return ("qlora", secrets.token_urlsafe(12)) if needed else None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise UserError("--auth needs a user and a password with a colon between them, like --auth me:secret.")
    return user, password


def _port(host: str, port: int | None) -> int:
    """The port asked for, or the first free one from 7860 on."""
    if port is not None:
        if not 0 < port < 65536:
            raise UserError(f"There is no port {port}: choose one from 1 to 65535 with --port.")
        if not _is_free(host, port):
            raise UserError(f"Port {port} is in use: choose another with --port, or stop the program that has it.")
        return port
    for number in range(FIRST_PORT, FIRST_PORT + PORTS):
        if _is_free(host, number):
            return number
    raise UserError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free: choose one with --port.")


def _is_free(host: str, port: int) -> bool:
    """Whether the port can be bound. Raises UserError when the host is not an address of this machine."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise UserError(f"The host '{host}' cannot be found: use 127.0.0.1, or an address of this machine.") from None
    with socket.socket(found[0], found[1]) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(found[4])
        except PermissionError:
            raise UserError(f"Port {port} needs an administrator: choose one above 1023 with --port.") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"The host '{host}' is no address of this machine: use 127.0.0.1.") from None
            return False
    return True
