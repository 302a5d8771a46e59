"""The page: composed of its tabs, and opened on a port."""

import contextlib
import os
import threading
import time
from collections.abc import Callable

from qlora_gui import hub
from qlora_gui.formatting import amount

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # these are read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Else Gradio sums up the last 10,000 calls with pandas after every call, for a page of its own that is switched off.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**12))
# Not /tmp/gradio, which other users of the machine can read, or make first.
os.environ.setdefault("GRADIO_TEMP_DIR", str(hub.private("page")))

from html import escape
from urllib.parse import quote

import gradio as gr
from starlette.middleware import Middleware

from qlora_gui import hardware
from qlora_gui.errors import UserError
from qlora_gui.inference.client import CompareClient
from qlora_gui.runs import elsewhere, queue, scan, uploads
from qlora_gui.runs.store import RunStore
from qlora_gui.serving.address import Address
from qlora_gui.serving.batching import Batcher
from qlora_gui.serving.server import Beside, Endpoint
from qlora_gui.system import signals
from qlora_gui.ui import key, links
from qlora_gui.ui.compare import tab as compare_tab
from qlora_gui.ui.guard import MOST_UPLOAD, Guard, Login
from qlora_gui.ui.key import Key
from qlora_gui.ui.rendering import html
from qlora_gui.ui.report import tab as report_tab
from qlora_gui.ui.runs import index
from qlora_gui.ui.runs import tab as runs_tab
from qlora_gui.ui.runs.summary import Summary
from qlora_gui.ui.theme import CSS, QUIET, TICK_SECONDS, theme
from qlora_gui.ui.train import tab as train_tab

# The run's name goes to its view without leaving the page, which would lose the form; its address is for a new tab.
_GO = """element.addEventListener('click', (event) => {
  const name = event.target.closest('a[data-run]');
  if (!name || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  trigger('click', {run: name.dataset.run});
});"""

_SWEEP_SECONDS = 6 * 3600.0
ENDS_RUNS = "QLORA_GUI_PAGE_ENDS_RUNS"  # set where nothing outlives the page
_END_SECONDS = 280.0  # compose.yaml gives five minutes


def _tabs(store: RunStore, link: gr.State, client: CompareClient, endpoint: Endpoint) -> dict[str, Callable[[], None]]:
    """The tabs in their order, each with what fills it."""
    return {
        "train": lambda: train_tab.TrainTab(store, link, client.close).wire(),
        "runs": lambda: runs_tab.RunsTab(store, link, client.close).wire(),
        "compare": lambda: compare_tab.CompareTab(store, client, endpoint).wire(link),
        "report": lambda: report_tab.ReportTab(store).wire(link),
    }


def build_app(store: RunStore, compare: CompareClient | None = None) -> gr.Blocks:
    """The page over a store of runs. It holds no model and imports no torch: its one compare worker does."""
    client = compare or CompareClient()
    endpoint = Endpoint(Batcher(client))
    swept = (3600, 86400)  # Gradio's copies of uploads and reports: looked at every hour, deleted after a day
    with gr.Blocks(title="qlora_gui", analytics_enabled=False, fill_width=True, delete_cache=swept) as app:
        link = gr.State(links.to("train"))
        address = gr.Textbox(visible=False)
        header(store, link)
        with gr.Tabs(selected="train", elem_id="tabs") as tabs:
            for name, fill in _tabs(store, link, client, endpoint).items():
                with gr.Tab(name.capitalize(), id=name) as tab:
                    fill()
                tab.select(None, None, None, js=links.ON_TAB.format(tab=name), **QUIET)
        link.change(
            lambda link: (gr.Tabs(selected=link["tab"]), links.address(link)), link, [tabs, address], **QUIET
        ).then(None, address, None, js=links.ON_LINK, **QUIET)
        app.load(None, None, None, js=links.IN_PAGE, **QUIET)
        app.load(links.from_request, None, link, **QUIET)
        app.unload(lambda: None)
    app.close_session = client.close
    app.endpoint = endpoint
    return app


def launch_page(store: RunStore, address: Address) -> None:
    """Open the page and serve it until Ctrl+C. Raises UserError for a taken port, a bad login, or no tunnel.

    A page that others can reach always has a password: one is made and printed when none is given. One for this
    machine alone opens by its printed address, which holds a token, unless that is not wanted.
    """
    if os.environ.get(ENDS_RUNS):
        signals.raise_on_terminate()
    login = address.login()
    if login and not address.token:
        raise UserError("--no-token is for a page without a login: leave it out, this one asks for its password.")
    app = build_app(store)
    app.queue(default_concurrency_limit=8, max_size=500, api_open=False)
    try:
        page_key = key.load_or_create() if login or address.token else None
        _launch(app, address, Login(*login, made=not address.auth) if login else None, page_key)
        app.share = False  # else Gradio has browsers fetch the page's scripts from a bucket of its own
        if address.share and not app.share_url:
            raise UserError(
                "The public link could not be made, because the tunnel's server cannot be reached: "
                "check the network, or leave out --share."
            )
        queue.ensure_starter(store)
        threading.Thread(target=_sweep, args=(store,), daemon=True).start()
        token = f"?token={page_key.token}" if page_key else ""
        here = app.local_url + ("" if login else token)
        print(f"The page is at {here}" + (f" and {app.share_url}" if address.share else ""), flush=True)
        if login and not address.auth:
            print(f"Log in as {login[0]} with the password {login[1]}", flush=True)
        elif login:  # a made password needs no such way: nobody's wrong ones hold it up
            mine = app.share_url if address.share else app.local_url
            print(f"If other people's wrong passwords keep you out, log in at {mine.rstrip('/')}/{token}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        if os.environ.get(ENDS_RUNS):
            _end_runs(store)
        else:
            print("The page is closed; a run that is training goes on.", flush=True)
    finally:
        app.close_session()
        app.close(verbose=False)


def _end_runs(store: RunStore) -> None:
    """Let runs save what they have: where the page ends, as in a container, they end with it."""
    live = [run for run in store.all() if run.is_live()]
    for run in live:
        print(f"The run '{run.id}' finishes its step and saves.", flush=True)
        with contextlib.suppress(UserError):
            run.request_stop()
    deadline = time.monotonic() + _END_SECONDS
    while any(run.is_locked() for run in live) and time.monotonic() < deadline:
        time.sleep(0.2)
    print("The page is closed.", flush=True)


def _sweep(store: RunStore) -> None:
    """Now, and then a few times a day, remove uploads that no run names any more."""
    while True:
        if scan.why_unlisted(store.root):  # then nobody knows what its runs name
            time.sleep(_SWEEP_SECONDS)
            continue
        for upload in uploads.sweep(store.named()):
            print(f"Removed the upload {upload.name} ({amount(upload.bytes)}), because no run names it.", flush=True)
        time.sleep(_SWEEP_SECONDS)


def _launch(app: gr.Blocks, address: Address, login: Login | None, page_key: Key | None) -> None:
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
                app_kwargs={
                    "middleware": [
                        Middleware(Guard, hosts=address.names(), key=page_key, login=login),
                        Middleware(Beside, endpoint=app.endpoint),
                    ]
                },
            )
            return
        except OSError:
            if address.port is not None or not left:
                raise


def header(store: RunStore, link: gr.State) -> gr.HTML:
    """Draw the line; it stays up to date while the page is visible. A press on the live run's name goes to it."""
    line = gr.HTML(text(store), elem_id="topbar", js_on_load=_GO)
    seen = gr.State("")

    def look(seen: str) -> object:
        now = text(store, index.glance(store))
        return gr.skip() if now == seen else (now, now)

    def go(event: gr.EventData) -> links.Link:
        return links.to("train", event.run)

    line.click(go, None, link, **QUIET)
    gr.Timer(2 * TICK_SECONDS).tick(look, seen, [line, seen], **QUIET)
    return line


def text(store: RunStore, look: index.Look | None = None) -> str:
    """The line as HTML, of a look at all runs."""
    devices = " + ".join(map(str, hardware.devices()))
    if not hardware.settled():
        devices += " (checking whether torch sees it)"
    live = [run for run in (look or index.now(store)).summaries if run.state in ("running", "stopping")]
    doing = ", ".join(map(_named, live)) or "idle"
    line = f'<div class="topbar"><h1>qlora_gui</h1><span>{escape(devices)} · {doing}</span></div>'
    trouble = hardware.trouble()
    return line + html.note(trouble, bad=True) * bool(trouble) + _unseen(store)


def _unseen(store: RunStore) -> str:
    """What lies in the folder of the runs and cannot be shown; "" mostly."""
    sentences = [scan.why_unlisted(store.root)]
    if named := scan.left_out(store.root):
        sentences.append(
            f"Not shown, because the name is not UTF-8: {', '.join(named[:3])}{'…' * (len(named) > 3)}. Rename the folder."
        )
    if nested := elsewhere.nested(store):
        folders = [f"{name}/{inner}" for name, inners in nested.items() for inner in inners]
        sentences.append(
            f"Not shown, because they lie a folder deeper than adapters do: {', '.join(folders[:3])}"
            f"{'…' * (len(folders) > 3)}. Move them up, or add them in Runs by their path."
        )
    return "".join(html.note(sentence, bad=True) for sentence in sentences if sentence)


def _named(run: Summary) -> str:
    """A live run's name, as a way to it, and its state."""
    address = f'href="?tab=train&amp;run={quote(run.id)}" data-run="{escape(run.id)}"'
    return f"<a {address}>{escape(run.id)}</a> is {run.state}"
