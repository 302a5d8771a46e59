"""The page: composed of its tabs, and opened on a port."""

import os
import threading
from collections.abc import Callable
from typing import Any

from qlora_gui import hub

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # these are read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Else Gradio sums up the last 10,000 calls with pandas after every call, for a page of its own that is switched off.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**12))
# Not /tmp/gradio, which other users of the machine can read, or make first.
os.environ.setdefault("GRADIO_TEMP_DIR", str(hub.private("page")))

import gradio as gr
from starlette.middleware import Middleware

from qlora_gui.errors import UserError
from qlora_gui.runs import queue
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import compare_tab, links, report_tab, runs_tab, train_tab
from qlora_gui.ui.address import Address
from qlora_gui.ui.guard import MOST_UPLOAD, Guard, Login
from qlora_gui.ui.header import header
from qlora_gui.ui.session import Session
from qlora_gui.ui.theme import CSS, QUIET, theme


def _compare_client() -> Any:
    from qlora_gui.compare.client import CompareClient

    return CompareClient()


def build_app(store: RunStore, client_factory: Callable[[], Any] = _compare_client) -> gr.Blocks:
    """The page over a store of runs. It holds no model and imports no torch."""
    session = Session(client_factory)
    swept = (3600, 86400)  # Gradio's copies of uploads and reports: looked at every hour, deleted after a day
    with gr.Blocks(title="QLoRA", analytics_enabled=False, fill_width=True, delete_cache=swept) as app:
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


def launch_page(store: RunStore, address: Address) -> None:
    """Open the page and serve it until Ctrl+C. Raises UserError for a taken port, a bad login, or no tunnel.

    A page that others can reach always has a password: one is made and printed when none is given.
    """
    login = address.login()
    app = build_app(store)
    app.queue(default_concurrency_limit=8, max_size=500, api_open=False)
    try:
        _launch(app, address, Login(*login) if login else None)
        app.share = False  # else Gradio has browsers fetch the page's scripts from a bucket of its own
        if address.share and not app.share_url:
            raise UserError(
                "The public link could not be made, for the tunnel's server cannot be reached: "
                "check the network, or leave out --share."
            )
        queue.ensure_starter(store)
        print(f"The page is at {app.local_url}" + (f" and {app.share_url}" if address.share else ""), flush=True)
        if login and not address.auth:
            print(f"Log in as {login[0]} with the password {login[1]}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("The page is closed; a run that is training goes on.", flush=True)
    finally:
        app.close_session()
        app.close(verbose=False)


def _launch(app: gr.Blocks, address: Address, login: Login | None) -> None:
    """Begin to serve; where a port that was free is taken in the same moment, the next one."""
    for left in range(4, -1, -1):
        try:
            app.launch(
                server_name=address.host,
                server_port=address.free_port(),
                share=address.share,
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
                max_file_size=MOST_UPLOAD,
                num_workers=0,
                mcp_server=False,
                pwa=False,
                app_kwargs={"middleware": [Middleware(Guard, hosts=address.names())]},
            )
            return
        except OSError:
            if address.port is not None or not left:
                raise
