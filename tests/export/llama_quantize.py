"""`llama-quantize IN OUT TYPE`, of llama.cpp's own library: its program is not in the npm package that tests have it from."""

import ctypes
import sys
from pathlib import Path

_FTYPES = {"Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}  # llama.h


class _Params(ctypes.Structure):
    """llama_model_quantize_params: its first fields, and room for the others, whose defaults stay."""

    _fields_ = (("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("others", ctypes.c_byte * 504))


def main(libraries: Path, model: str, out: str, kind: str) -> int:
    mode = ctypes.RTLD_GLOBAL
    for name in ("libggml-base.so", "libggml.*.so"):
        ggml = ctypes.CDLL(str(next(libraries.glob(name))), mode=mode)
    llama = ctypes.CDLL(str(next(libraries.glob("libllama.*.so"))), mode=mode)
    ggml.ggml_backend_load_all_from_path(str(libraries).encode())
    llama.llama_model_quantize_default_params.restype = _Params
    params = llama.llama_model_quantize_default_params()
    params.ftype = _FTYPES[kind.upper()]
    llama.llama_backend_init()
    return int(llama.llama_model_quantize(model.encode(), out.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:5]))
