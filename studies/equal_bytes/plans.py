"""One training of ours, and what several choosers send of it over each link.

An adapter is trained for the size of a good link, and its weights train on, down to those of worse
ones. Then nothing trains any more. A policy learns which versions of which projections are worth
their bits; solvers and simple rules choose from the same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from rankcast.allocation.level_problem import LevelProblem
from rankcast.allocation.waterfilling import plan_at_price
from rankcast.codec.container import Container, read_container
from rankcast.codec.target import pack_into
from rankcast.codec.versions import Versions
from rankcast.config.policy import PolicyConfig, TrainingConfig, UtilityConfig
from rankcast.config.run import EnvConfig
from rankcast.env.mdp import AllocationMdp
from rankcast.learner.version_learner import VersionLearner
from rankcast.link.capacity import Awgn
from rankcast.link.processes import IidSnr
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.records import FloatArray, IntArray, LinkState, Observation
from studies.byte_frontier.ours import TrainedFile

BANDWIDTH_HZ, DEADLINE_S = 1e4, 1.0
LINKS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
"""The paper's."""
BETWEEN_DB = (-2.5, 2.5, 7.5, 12.5)
"""Links that no size was trained for."""
POLICY, SOLVER, ENERGY = "AirLLM", "exact solver", "energy"
UNIFORM, WHOLE, ONE_STEP = "uniform levels", "largest file", "one step for all"
CHOOSERS = (POLICY, SOLVER, ENERGY, UNIFORM, WHOLE, ONE_STEP)
LEARNING = UtilityConfig(total_gain=0.4, noise_std=0.1, paired_noise_std=0.02)
"""What is known beforehand: a classifier of two classes that has been trained loses about .3."""


def links(snrs_db: tuple[float, ...] = (*LINKS_DB, *BETWEEN_DB)) -> LinkState:
    """Return links over 10 kHz with a deadline of one second."""
    n = len(snrs_db)
    return LinkState(np.array(snrs_db), np.full(n, BANDWIDTH_HZ), np.full(n, DEADLINE_S))


def budgets_bits(snrs_db: tuple[float, ...] = (*LINKS_DB, *BETWEEN_DB)) -> FloatArray:
    """Return what arrives over each link in time, by Shannon's formula [bits]."""
    rates = BANDWIDTH_HZ * Awgn().spectral_efficiency(np.array(snrs_db))
    return rates * DEADLINE_S


def trained_sizes() -> tuple[int, ...]:
    """Return the sizes that are trained for, descending: what up to 5 dB arrives [bytes].

    Beyond, steps of training are worth more than bytes.
    """
    return tuple(int(bits // 8) for bits in budgets_bits(LINKS_DB[2::-1]))


@dataclass(frozen=True)
class Sent:
    """What a chooser sends over a link.

    Attributes:
        chooser: its name.
        snr_db: of the link [dB].
        file: what is sent.
    """

    chooser: str
    snr_db: float
    file: Container


def sent_over_links(trained: TrainedFile, episodes: int, seed: int) -> Iterator[Sent]:
    """Yield what every chooser sends over every link.

    Args:
        trained: the training that is over; the learner is used to measure plans.
        episodes: of 15 steps in which the policy learns.
        seed: of the policy.
    """
    versions = Versions.of(file for file, _, _ in trained.files)
    levels = versions.levels()
    problem = LevelProblem.of(
        levels, trained.learner.layout, Awgn(), link_weight=0.0, wholes=versions.wholes
    )
    learner = VersionLearner(trained.learner, problem, versions)
    trainer = _learned(learner, problem, episodes, seed)
    gains = {ENERGY: levels.step_gains, UNIFORM: levels.step_gains}
    plans = _plans(trainer, problem, seed)
    for i, (snr_db, budget) in enumerate(
        zip((*LINKS_DB, *BETWEEN_DB), budgets_bits(), strict=True)
    ):
        link = links((snr_db,))
        for chooser, chosen in plans.items():
            worth = problem.worth(gains.get(chooser, trainer.utility.mean_gains()), link)
            yield Sent(chooser, snr_db, versions.file_within(chosen[i], worth, budget))
        yield Sent(WHOLE, snr_db, versions.largest_within(budget))
        yield Sent(ONE_STEP, snr_db, pack_into(versions.largest, budget / 8))


def _learned(
    learner: VersionLearner, problem: LevelProblem, episodes: int, seed: int
) -> AirLLMTrainer:
    """Return a trainer whose policy and belief have learned what levels are worth."""
    config = EnvConfig(BANDWIDTH_HZ, DEADLINE_S)
    env = AllocationMdp(learner, IidSnr((*LINKS_DB, *BETWEEN_DB)), problem, config)
    policy = AirLLM(problem, PolicyConfig(), seed)
    trainer = AirLLMTrainer(env, policy, TrainingConfig(utility=LEARNING), seed)
    for _ in range(episodes):
        trainer.run_episode()
    return trainer


def _plans(trainer: AirLLMTrainer, problem: LevelProblem, seed: int) -> Mapping[str, IntArray]:
    """Return the (links, N) plans of those that choose levels."""
    link = links()
    text = trainer.teacher.mean_text()
    nothing = np.zeros((link.size, problem.layout.n_projections), dtype=np.int64)
    repeated = type(text)(*(np.repeat(x, link.size) for x in (text.lexical_entropy, text.oov_rate)))
    observation = Observation(link, repeated, nothing)
    gains = trainer.utility.gains_at(problem, link, text=repeated)
    energy = problem.levels.step_gains
    whole = np.full_like(nothing, problem.layout.r_max)
    policy = trainer.policy.allocate(observation, np.random.default_rng(seed))
    return {
        POLICY: policy,
        SOLVER: problem.settle(plan_at_price(gains, problem, observation), observation, gains),
        ENERGY: problem.feasible(whole, link, np.broadcast_to(energy, (link.size, *energy.shape))),
        UNIFORM: replace(problem, wholes=None).feasible(whole, link),
    }


def decoded(file: Container) -> Container:
    """Return what a device reads of the bytes that were sent."""
    return read_container(file.to_bytes())
