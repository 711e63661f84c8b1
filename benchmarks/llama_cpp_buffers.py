"""What llama.cpp says it reserves, beside what the planner computes: cache and compute buffer, 7B and 13B.

    python -m benchmarks.llama_cpp_buffers --peer PEER_FOLDER --dir FOLDER    # as built by benchmarks.cpu_peers

The models have random weights, the published widths and heads, and two layers: a compute buffer holds one layer's work
whatever their number is, and the cache of two is compared with the formula's for two. llama.cpp prints MiB with two
decimals when a context is made; here its processor reserves them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, make_manifest, make_table, write_result
from benchmarks.cpu_peers import find_peer_version
from llavakit.conversion.random_pair import write_random_pair
from llavakit.kernels.machine import count_cpus
from llavakit.planner import formulas
from llavakit.planner.models import find_model
from llavakit.planner.records import Setting

_NUM_LAYERS = 2
_MIB = 1 << 20
_COLUMNS = ("model", "context", "flash attention", "buffer", "logged", "planned", "error")
_LINES = {
    "cache": re.compile(r"KV buffer size = +([0-9.]+) MiB"),
    "compute": re.compile(r"compute buffer size = +([0-9.]+) MiB"),
}
# Runs under the peer's interpreter, and prints what llama.cpp logs while a context is made.
_PROGRAM = """
import ctypes, sys
import llama_cpp

@llama_cpp.llama_log_callback
def tell(level, text, data):
    sys.stdout.write(text.decode(errors="replace"))

llama_cpp.llama_log_set(tell, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = int(sys.argv[2]), 512, 512, 1
params.flash_attn_type = int(sys.argv[3])
context = llama_cpp.llama_init_from_model(model, params)
assert context
"""


def read_log(peer: Path, model: Path, context: int, *, has_flash: bool) -> dict[str, float]:
    """Return MiB of the cache and of the compute buffer, as logged."""
    command = [str(peer / "bin/python"), "-c", _PROGRAM, str(model), str(context), "1" if has_flash else "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = {name: line.findall(done.stdout) for name, line in _LINES.items()}
    if missing := [name for name, sizes in found.items() if not sizes]:
        raise SystemExit(f"this llama.cpp logs no size of {' and '.join(missing)}; see the expressions in {__file__}.")
    return {name: sum(map(float, sizes)) for name, sizes in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="for the models, which stay there")
    parser.add_argument("--contexts", type=int, nargs="*", default=[512, 2048, 4096])
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    manifest = make_manifest(num_threads=count_cpus())
    manifest["versions"]["llama-cpp-python"] = find_peer_version(options.peer)
    rows: list[dict[str, Any]] = []
    for name in ("llava:7b", "llava:13b"):
        config = find_model(name).config
        config = replace(config, text_config=replace(config.text_config, num_hidden_layers=_NUM_LAYERS))
        path = options.dir / f"{name.replace(':', '-')}-{_NUM_LAYERS}-layers.gguf"
        if not path.exists():
            write_random_pair(path, config, "q4_k_m", num_threads=count_cpus())
        sizes = find_model(str(path)).sizes
        for context in options.contexts:
            for has_flash in (False, True):
                logged = read_log(options.peer, path, context, has_flash=has_flash)
                setting = Setting(num_context_tokens=context, has_flash_attention=has_flash)
                planned = {
                    "cache": formulas.kv_bytes(sizes, setting, _NUM_LAYERS, context) / _MIB,
                    "compute": formulas.processor_buffer_bytes(sizes, setting) / _MIB,
                }
                for buffer in _LINES:
                    found, formula = logged[buffer], planned[buffer]
                    rows.append({
                        "model": name, "context": context, "flash attention": "yes" if has_flash else "no",
                        "buffer": buffer, "logged": f"{found:.2f} MiB", "planned": f"{formula:.2f} MiB",
                        "error": f"{formula / found - 1:+.2%}", "logged_mib": found, "planned_mib": formula,
                    })  # fmt: skip
    print(make_table(rows, _COLUMNS))
    print(write_result("llama_cpp_buffers", manifest, rows))


if __name__ == "__main__":
    main()
