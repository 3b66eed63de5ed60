"""Memory and time that a large adapter takes: 42 million numbers, 84 MB in bfloat16.

A LoRA of rank 16 on every projection of a model of Llama 3's 8B shape, Gaussian with falling
components, is packed, within a budget as well, unpacked as a LoRA for PEFT and exported for
llama.cpp, each in a process of its own. Then the fingerprint of two layers of that base model
(0.9 GB) is computed, and beside it SHA-256 alone of as many bytes, the floor. Memory is the most
that the process held (VmHWM, so on Linux only), with Python and its libraries. Run it alone with
`python benchmarks/test_adapter_memory.py`; results lie in `results/adapter_memory.json`. With
`--before SRC`, the folder `src` of another checkout, that one is measured, too, and kept beside;
without it what was kept stays.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "adapter_memory.json"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
N_LAYERS, RANK, HIDDEN, INNER, OF_KEYS = 32, 16, 4096, 14336, 1024
N_BASE_LAYERS = 2
BUDGET_BYTES = 6_000_000
MOST_PACKING, MOST_UNPACKING = 252_000_000, 300_000_000
WIDTHS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, OF_KEYS),
    "self_attn.v_proj": (HIDDEN, OF_KEYS), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER), "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}  # fmt: skip
CALLS = {
    "pack": "rankcast.pack({lora!r}, quality='good').save({file!r})",
    "pack_within_budget": "rankcast.pack({lora!r}, budget_bits=8 * {budget}).save({small!r})",
    "unpack": "rankcast.load({file!r}).export('peft', {out!r})",
    "export_gguf": "rankcast.load({file!r}).export('gguf', {gguf!r}, base_model={base!r})",
    "fingerprint": "rankcast.codec.formats.base_folder.BaseFolder.open({weights!r}).fingerprint()",
    "sha256_alone": "[hashlib.sha256(bytes(2**20)) for _ in range(4 * {n_base} // 2**20)]",
}
CHILD = """
import hashlib, json, sys, time
from pathlib import Path
import rankcast
if {call!r}.startswith("rankcast.codec"):
    import rankcast.codec.formats.base_folder
start = time.perf_counter()
{call}
seconds = time.perf_counter() - start
(line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
peak = int(line.split()[1]) * 1024
print(json.dumps({{"peak_bytes": peak, "seconds": seconds}}))
"""


def write_adapter(folder: Path, seed: int) -> int:
    """Write the adapter as PEFT does, in bfloat16, and return how many numbers it has."""
    rng = np.random.default_rng(seed)
    falls = np.sqrt(0.5 * 0.8 ** np.arange(RANK))
    shapes = {}
    for layer in range(N_LAYERS):
        for part, (d_in, d_out) in WIDTHS.items():
            stem = f"base_model.model.model.layers.{layer}.{part}"
            shapes[f"{stem}.lora_A.weight"] = (RANK, d_in)
            shapes[f"{stem}.lora_B.weight"] = (d_out, RANK)
    folder.mkdir()

    def drawn(shape: tuple[int, ...]) -> NDArray[Any]:
        fall = falls[:, None] if shape[0] == RANK else falls
        return rng.normal(size=shape) * fall / max(shape) ** 0.5

    write_bfloat16(folder / "adapter_model.safetensors", shapes, drawn)
    modules = [part.rpartition(".")[2] for part in WIDTHS]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK,
        "target_modules": modules, "base_model_name_or_path": None, "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return sum(map(math.prod, shapes.values()))


def write_base(folder: Path, seed: int, n_layers: int) -> None:
    """Write a model of the same widths in bfloat16, with a small vocabulary."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (8192, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(n_layers):
        for part, (d_in, d_out) in WIDTHS.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = (d_out, d_in)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (HIDDEN,)
    write_config(folder, n_layers)
    write_bfloat16(
        folder / "model.safetensors", shapes, lambda s: rng.standard_normal(s, np.float32)
    )


def write_config(folder: Path, n_layers: int) -> None:
    """Write the description of such a model."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": n_layers,
        "intermediate_size": INNER,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def write_bfloat16(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    drawn: Callable[[tuple[int, ...]], NDArray[Any]],
) -> None:
    """Write a safetensors file as others do, one tensor at a time."""
    plain: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        plain[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(plain).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            bits = drawn(shape).astype("<f4").view("<u4") >> 16
            stream.write(bits.astype("<u2").tobytes())


def measure(source: Path, folder: Path) -> dict[str, Any]:
    """Return memory and time of each call with the package in `source`."""
    names = {
        n: str(folder / n) for n in ("lora", "file", "small", "out", "gguf", "base", "weights")
    }
    n_base = (folder / "weights/model.safetensors").stat().st_size // 2
    found = {}
    for what, call in CALLS.items():
        if (
            what == "fingerprint"
            and not (source / "rankcast/codec/formats/base_folder.py").is_file()
        ):
            continue  # older checkouts loaded the model with torch
        code = CHILD.format(call=call.format(**names, budget=BUDGET_BYTES, n_base=n_base))
        done = subprocess.run(  # noqa: S603 our own interpreter
            [sys.executable, "-c", code],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(source)},
            check=True,
            capture_output=True,
            text=True,
        )
        found[what] = json.loads(done.stdout.splitlines()[-1])
    found["pack"]["file_bytes"] = (folder / "file").stat().st_size
    return found


def run(before: Path | None = None) -> Mapping[str, Any]:
    """Measure and keep the result."""
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        n_numbers = write_adapter(folder / "lora", seed=0)
        write_config(folder / "base", N_LAYERS)
        write_base(folder / "weights", seed=1, n_layers=N_BASE_LAYERS)
        result = {
            "numbers": n_numbers,
            "input_bytes": (folder / "lora" / "adapter_model.safetensors").stat().st_size,
            "before": kept.get("before") if before is None else measure(before, folder),
            "after": measure(ROOT / "src", folder),
            "device": f"{platform.machine()}, one thread",
            "versions": {"python": platform.python_version(), "numpy": version("numpy")},
            "command": "python benchmarks/test_adapter_memory.py",
        }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def test_a_large_adapter_takes_little_memory() -> None:
    found = run()["after"]
    for what, row in found.items():
        print(f"{what:20} {row['peak_bytes'] / 1e6:8.0f} MB {row['seconds']:8.1f} s")
    for what in ("pack", "pack_within_budget"):
        assert found[what]["peak_bytes"] <= MOST_PACKING
    for what in ("unpack", "export_gguf"):
        assert found[what]["peak_bytes"] <= MOST_UNPACKING


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    print(json.dumps(run(parser.parse_args().before), indent=2))
