"""The live tasks of the experiments, and the link that they share.

Settings were chosen alike for both trainings: learning rates 1e-3 and 3e-3 (AdaLoRA) or 1e-3 and
2e-3 (nested) for 400 steps of another seed, judged on SST-2's validation split.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankcast.experiment.live import LiveTask
from rankcast.finetune.config import FinetuneConfig
from rankcast.link.capacity import Awgn
from rankcast.records import FloatArray

SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
STEPS = 800
FULL_RANK_AT_DB = 15.0
"""The bandwidth is such that rank 8 everywhere just arrives at this SNR [dB]."""

_NESTED = FinetuneConfig(
    model="minilm",
    r_max=8,
    alpha=8.0,
    lr=2e-3,
    warmup_steps=50,
    total_steps=STEPS,
    batch_size=32,
    orthogonality_weight=0.0,
    nested_prob=1.0,
    nested_levels="spread",
    max_length=64,
    measure_reference=False,
    mixed_precision="no",
)
SST2 = LiveTask("sst2", "sst2", n_held_out=2310, n_probe=3000, finetune=_NESTED)
SST2_CODES = LiveTask(
    "sst2-codes", "sst2", n_held_out=4400, n_probe=1500, finetune=_NESTED, first=5310
)
"""More judged texts, and others than those on which SST2 is judged and probed."""
AGNEWS = LiveTask(
    "agnews",
    "agnews",
    n_held_out=0,
    n_probe=1000,
    finetune=replace(_NESTED, batch_size=16, max_length=32),
)
"""Its texts are longer than SST-2's: title and lead begin within 32 tokens."""
TASKS = {task.name: task for task in (SST2, SST2_CODES, AGNEWS)}


def share_of_full_rank(snr_db: float) -> float:
    """Return what share of r_max everywhere arrives in time at an SNR [dB]."""
    rates: FloatArray = Awgn().spectral_efficiency(np.array([snr_db, FULL_RANK_AT_DB]))
    return float(rates[0] / rates[1])
