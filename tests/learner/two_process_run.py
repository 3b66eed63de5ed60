"""Trains a few steps and writes down what one process saw; started by test_two_processes.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers.models import keyword_splits
from rankcast.config.codec import CodecConfig
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.byte_budget import ByteBudgetTraining, packer
from rankcast.learner.transformer import TransformerLearner

CONFIG = FinetuneConfig(
    model="tiny", lr=1e-3, r_max=4, alpha=4.0, batch_size=8, warmup_steps=0, mixed_precision="no"
)


def train(config: FinetuneConfig) -> dict[str, object]:
    """Train under ranks that change, some of them 0, and that other processes do not know."""
    live = TransformerLearner(config, keyword_splits(n_train=40, n_held_out=11))
    rng = np.random.default_rng(live.accelerator.process_index)
    losses = []
    for _ in range(4):
        live.apply(rng.integers(0, 5, (1, 12)))
        result = live.step()
        assert result.reference_loss is not None
        losses.append((float(result.task_loss[0]), float(result.reference_loss[0])))
    return {
        "n_processes": live.accelerator.num_processes,
        "losses": losses,
        "weights": live.adapter.state_dict(),
        "right": live.judge_texts("test", None)[1].tolist(),
        "evaluation_loss": live.evaluate("test").loss,
        "next_text": live.next_text().lexical_entropy.tolist(),
    }


def train_to_size(config: FinetuneConfig) -> dict[str, object]:
    """Train for a file of a given size."""
    live = TransformerLearner(config, keyword_splits(n_train=40, n_held_out=11))
    codec = CodecConfig(target_bytes=900, rank=1, teachers=1)
    training = ByteBudgetTraining(live, codec, 16, packer(live))
    losses = [training.step() for _ in range(training.steps)]
    return {"sized_losses": losses, "sized_file": training.finish()[0].to_bytes()}


if __name__ == "__main__":
    outcome = train(CONFIG) | train_to_size(CONFIG)
    rank = torch.distributed.get_rank()
    torch.save(outcome, Path(sys.argv[1]) / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # at the end of an interpreter Gloo's threads sometimes abort what is done
