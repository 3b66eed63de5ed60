"""A world whose texts come from domains, with gains that differ by domain and a known optimum.

Each batch is of one domain, with a lexical entropy and an OOV rate around the domain's. The gains
of a domain have the form of the synthetic utility (`rankcast.learner.synthetic`), with log A_{m,d}
and τ_{m,d} correlated between domains. The domains' mean texts do not lie on a line, so that gains
linear in both statistics can follow all three; with one statistic they cannot.

Shapes: L judged links, C domains, K = C·L judged cases, `N` projections, `R` = r_max.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from scipy.stats import norm

from rankcast.allocation.text_gains import TextGains
from rankcast.allocation.waterfilling import waterfill
from rankcast.config.policy import StateName
from rankcast.learner.synthetic import transformer_layout
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, Observation, TextStats
from studies.surrogate.calibrated import CalibratedLearner
from studies.surrogate.calibration import Calibration, TextGroup
from studies.surrogate.fitting import FitQuality
from studies.surrogate.monotone import MonotoneUtility
from studies.surrogate.world import REPEATS, World, best_known, make_world

ENTROPIES, OOV_RATES = (2.1, 2.5, 2.9), (0.05, 0.15, 0.08)
"""Mean of a batch of each domain [nats] and [share of words]."""
ENTROPY_STD, OOV_STD = 0.15, 0.015
"""Spread of batches of one domain."""
BASE_LOSS, TOTAL_GAIN = 0.70, 0.45
NOISE_STD, PAIRED_NOISE_STD = 0.05, 0.02
LAYERS = 3
"""Of six projections each: half as many as in `synthetic_mdp`, so that many runs are affordable."""
SAMPLES = 3000  # texts to which the best linear gains are fitted


@dataclass(frozen=True)
class DomainWorld(World):
    """A world that is judged on each link with texts of each domain.

    `link` holds the links once for each domain, domain by domain. The oracle knows the domain and
    its gains; `uniform` is the best single rank for all links and domains.

    Attributes:
        groups: the domains.
        blind: mean objective of the best plans for the mean of the domains' gains: the least that
            can be reached without the text.
    """

    groups: tuple[TextGroup, ...] = ()
    blind: float = 0.0

    @property
    def text_worth(self) -> float:
        """Reward that knowing the domain is worth at most [nats]."""
        return self.blind - self.oracle

    def objective(self, ranks: IntArray, link: LinkState) -> FloatArray:
        """Return (B,) U + λη of plans for the judged cases in their order."""
        losses = np.array([group.utility.loss(ranks) for group in self.groups])
        domain = self._domains(len(ranks))
        return self.problem.objective(losses[domain, np.arange(len(ranks))], ranks, link)

    def observe(self, repeats: int = REPEATS) -> Observation:
        """Return (K·repeats) states: each case with texts of its domain, the same at each call."""
        plain = super().observe(repeats)
        rng, domain = np.random.default_rng(0), self._domains(plain.link.size)
        return Observation(plain.link, texts_of(self.groups, domain, rng), plain.ranks)

    def linear_worth(self, hidden: tuple[StateName, ...] = ()) -> float:
        """Return what the best gains that are linear in the shown text are worth [nats].

        They are the least-squares fit to the true gains over texts of all domains, so that noise
        and the course of learning have no part in it.
        """
        rng, text_gains = np.random.default_rng(1), TextGains(1.0, hidden)
        domain = rng.integers(len(self.groups), size=SAMPLES)
        true = np.array([group.utility.gains for group in self.groups])

        def design(text: TextStats) -> FloatArray:
            z = text_gains.normalised(text)
            return np.column_stack([np.ones(len(z)), z])

        x = design(texts_of(self.groups, domain, rng))
        fitted = np.linalg.lstsq(x, true.reshape(len(true), -1)[domain], rcond=None)[0]
        seen = self.observe()
        gains = (design(seen.text) @ fitted).reshape(seen.link.size, *true.shape[1:])
        # Decreasing again where the line has bent the order, as beliefs are.
        gains = np.maximum(np.minimum.accumulate(gains, axis=2), 0.0)
        plans = waterfill(gains, self.problem, seen.link)
        return self.blind - float(self.objective(plans, seen.link).mean())

    def _domains(self, size: int) -> IntArray:
        each = np.arange(len(self.groups))
        return np.resize(np.repeat(each, self.link.size // len(each)), size)


def texts_of(
    groups: tuple[TextGroup, ...], domain: IntArray, rng: np.random.Generator
) -> TextStats:
    """Return a text of each of (B,) domains."""
    mean, std = np.array([[g.lexical_entropy, g.oov_rate] for g in groups])[domain].transpose(
        2, 1, 0
    )
    drawn = np.maximum(mean + std * rng.standard_normal(mean.shape), 0.0)
    return TextStats(drawn[0], drawn[1])


def domain_gains(rng: np.random.Generator, layout: AdapterLayout, correlation: float) -> FloatArray:
    """Return (C, N, R) gains, of which each domain's sum to `TOTAL_GAIN`.

    Args:
        rng: source of the gains.
        layout: N and R.
        correlation: between domains, of log A and, before it is made uniform, of τ.
    """
    shared = rng.standard_normal((2, 1, layout.n_projections))
    own = rng.standard_normal((2, len(ENTROPIES), layout.n_projections))
    z, t = np.sqrt(correlation) * shared + np.sqrt(1.0 - correlation) * own
    tau = 0.7 + 4.0 * norm.cdf(t)
    i = np.arange(1, layout.r_max + 1)
    gains = np.exp(1.2 * z[..., None] - i / tau[..., None])
    return TOTAL_GAIN * gains / gains.sum(axis=(1, 2), keepdims=True)


def domain_calibration(seed: int, correlation: float, layers: int = LAYERS) -> Calibration:
    """Return what a model whose texts come from three equally frequent domains would lose."""
    layout = transformer_layout(layers)
    every = domain_gains(np.random.default_rng(seed), layout, correlation)
    share = 1.0 / len(every)
    groups = tuple(
        TextGroup(
            share, (entropy, ENTROPY_STD), (oov, OOV_STD),
            MonotoneUtility("identity", BASE_LOSS, 1.0, gains),
        )
        for gains, entropy, oov in zip(every, ENTROPIES, OOV_RATES, strict=True)
    )  # fmt: skip
    exact = FitQuality(1.0, (1.0, 1.0), 0.0, 1.0, (1.0, 1.0), 0.0, 0)  # nothing was fitted
    return Calibration(layout, groups, NOISE_STD, PAIRED_NOISE_STD, exact, (exact,) * len(groups))


def domain_world(
    seed: int, correlation: float, n_envs: int = 1, layers: int = LAYERS
) -> DomainWorld:
    """Return a world of domains, drawn from a seed."""
    calibration = domain_calibration(seed, correlation, layers)
    mean = make_world(CalibratedLearner(calibration, n_envs, seed), calibration, seed=seed)
    groups, rng = calibration.groups, np.random.default_rng(seed)
    best = partial(best_known, mean.problem, link=mean.link, rng=rng)
    plans = [best(group.utility.loss, group.utility.gains) for group in groups]
    values = {f.name: getattr(mean, f.name) for f in fields(World)}
    values["link"] = LinkState(
        np.tile(mean.link.snr_db, len(groups)),
        np.tile(mean.link.bandwidth_hz, len(groups)),
        np.tile(mean.link.deadline_s, len(groups)),
    )
    world = DomainWorld(**values, groups=groups, blind=mean.oracle)
    oracle = world.objective(np.concatenate(plans), world.link).mean()
    return DomainWorld(**{**values, "oracle": float(oracle)}, groups=groups, blind=mean.oracle)
