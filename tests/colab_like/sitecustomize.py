"""Put first on PYTHONPATH: the tunnel of Gradio's share link gives an address without asking anybody."""

import importlib.abc
import importlib.util
import sys
from typing import Any

ADDRESS = "https://colab-like.gradio.live"


class _Tunnel(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "gradio.networking":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def loaded(module: Any) -> None:
            load(module)
            module.setup_tunnel = lambda *given, **named: ADDRESS

        spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Tunnel())
