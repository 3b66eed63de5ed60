"""Code numbers with MPEG NNC (ISO/IEC 15938-17) through `nncodec`, where that is installed.

It wants an older NumPy than we do, so it has a Python environment of its own, which the variable
`RANKCAST_NNC` names:

    python3 -m venv ENV && ENV/bin/pip install nncodec
    RANKCAST_NNC=ENV/bin/python python3 dev.py study run byte_frontier
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rankcast.codec.quantiser import Float32Array
from rankcast.errors import RankcastError

VARIABLE = "RANKCAST_NNC"
_PROGRAM = """
import sys
import numpy as np
from nncodec import nn

source, target, *qps = sys.argv[1:]
matrix = np.load(source)
found = {}
for qp in map(int, qps):
    stream = nn.encode({"w.weight": matrix}, {"qp": qp, "verbose": False})
    found[f"bytes{qp}"] = len(stream)
    found[f"matrix{qp}"] = nn.decode(stream)["w.weight"]
np.savez(target, **found)
"""
"""Dependent quantisation and tuning of the context models are on by default."""


def step_of_qp(qp: int) -> float:
    """Return the quantiser step of a parameter; four more double it."""
    return (4 + qp % 4) * 2.0 ** (qp // 4 - 2)


def qp_near(step: float) -> int:
    """Return the parameter whose step is nearest, by ratio."""
    return min(range(-100, 20), key=lambda qp: abs(math.log(step_of_qp(qp) / step)))


def nnc_python() -> str | None:
    """Return the Python that has `nncodec`; None where nobody has named one."""
    return os.environ.get(VARIABLE) or None


def code_with_nnc(
    strips: Sequence[Float32Array], qps: Sequence[int]
) -> Mapping[int, tuple[int, list[Float32Array]]]:
    """Return the bytes and what a decoder has for the strips, for each quantisation parameter.

    The strips are coded as one matrix, which suits NNC's context models better than one small
    tensor for each. Its rows are as long as divides every strip: 384 numbers of a MiniLM's LoRA.
    Empty where NNC is not installed.

    Raises:
        RankcastError: it is, but does not run.
    """
    python = nnc_python()
    if python is None:
        return {}
    flat = np.concatenate(list(strips))
    width = math.gcd(*(strip.size for strip in strips))
    with TemporaryDirectory() as name:
        source, target = Path(name) / "in.npy", Path(name) / "out.npz"
        np.save(source, flat.reshape(-1, width))
        command = [python, "-c", _PROGRAM, str(source), str(target), *map(str, qps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=name)  # noqa: S603
        if done.returncode:
            words = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise RankcastError(f"MPEG NNC failed in {python} ({VARIABLE}): {words}")
        with np.load(target) as found:
            coded = {qp: (int(found[f"bytes{qp}"]), found[f"matrix{qp}"].ravel()) for qp in qps}
    ends = np.cumsum([strip.size for strip in strips])[:-1]
    return {qp: (size, np.split(x.astype(np.float32), ends)) for qp, (size, x) in coded.items()}
