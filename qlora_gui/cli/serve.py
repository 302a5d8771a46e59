"""`serve`: base and adapters answer other programs, until Ctrl+C."""

import secrets
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn

from qlora_gui.errors import UserError
from qlora_gui.inference.client import CompareClient, base_of
from qlora_gui.inference.protocol import Load
from qlora_gui.inference.sampling import MAX_ADAPTERS
from qlora_gui.references import ModelRef
from qlora_gui.runs import elsewhere, fetched
from qlora_gui.runs.store import RunStore
from qlora_gui.serving import vllm
from qlora_gui.serving.address import Address
from qlora_gui.serving.batching import Batcher, Models
from qlora_gui.serving.server import Endpoint

KEY = "QLORA_GUI_API_KEY"
FIRST_PORT = 8000
LEAST_KEY = 16


def models_of(store: RunStore, runs: Sequence[str], base: str | None, revision: str) -> Models:
    """What `serve` serves: these runs, folders or hub ids of adapters, on their base or on another that is named. Raises UserError."""
    adapters = [fetched.find(name, store, _say).absolute() for name in runs]
    if not adapters and base is None:
        newest = next((run for run in store.all() if run.has_adapter() and not run.is_elsewhere()), None)
        if newest is None:
            raise UserError("There is no adapter to serve yet: train one, or name a base with --base.")
        adapters = [newest.path]
    if len(adapters) > MAX_ADAPTERS:
        raise UserError(f"{len(adapters)} adapters are too many to serve at once: name {MAX_ADAPTERS} at most.")
    if base is not None and not adapters:
        ModelRef.find(base, revision).check()
        return Models(Load(base, revision), [base])
    if whole := next((adapter for adapter in adapters if elsewhere.is_whole(adapter)), None):
        raise UserError(f"'{whole}' is a whole model and no adapter: serve it by itself, with --base {whole}.")
    arguments = base_of(adapters, base, revision)
    names = [str(arguments["base_model"]), *(adapter.name for adapter in adapters)]
    return Models(Load(adapters=tuple(str(adapter) for adapter in adapters), **arguments), names)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_vllm(models: Models) -> int:
    """Print vLLM's command for the same. Raises UserError for what vLLM refuses."""
    command = vllm.command(models)
    for line in command.remarks:
        print(line, file=sys.stderr)
    print(command.text)
    return 0


class _Server(uvicorn.Server):
    """Prints the lines of `ready` once it can be asked."""

    ready: Sequence[str] = ()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for line in self.ready:
            print(line, flush=True)


def run(models: Models, place: Address, key: str) -> int:
    """Serve until Ctrl+C. Raises UserError where it cannot begin."""
    open_to_others = place.is_reachable or bool(place.hosts)
    if key and len(key) < LEAST_KEY:
        raise UserError(f"The API key in {KEY} is too short to be one: use {LEAST_KEY} characters or more.")
    made = open_to_others and not key
    if made:
        key = secrets.token_urlsafe(24)
    port = place.free_port(FIRST_PORT)
    client = CompareClient(idle_seconds=float("inf"))
    try:
        batcher = Batcher(client)
        for column in batcher.load(models, _say):
            if warning := column.get("warning"):
                print(f"{column['name']}: {warning}", file=sys.stderr)
        endpoint = Endpoint(batcher, models, key, ["localhost", *place.names()])
        server = _Server(
            uvicorn.Config(
                endpoint.app,
                place.host,
                port,
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=2,
                server_header=False,
            )
        )
        server.ready = [f"Serving {', '.join(models.names)} at http://{place.host}:{port}/v1"]
        if key:
            server.ready.append(f"API key: {key}" if made else f"The API key is the one in {KEY}.")
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        client.close()
    print("The endpoint is closed.", flush=True)
    return 0
