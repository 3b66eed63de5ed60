"""Settings of the policy and of its training by Algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal, get_args

from rankcast.errors import ConfigError, check_choice

UtilityForm = Literal["additive", "saturating"]


@dataclass(frozen=True, slots=True)
class UtilityConfig:
    """The prior belief and the noise.

    Attributes:
        total_gain: loss [nats] that full rank is expected to remove; ln 2, the loss of a guess
            between two classes, unless something better is known.
        relative_std: standard deviation of a gain, as a multiple of its mean.
        rank_correlation: correlation between the gains of neighbouring ranks.
        rank_decay: ranks over which the expected gain falls by a factor of e; r_max / 2 by default.
        noise_std: standard deviation of one observed loss [nats].
        paired_noise_std: standard deviation of the difference between a plan and full rank on one
            batch.
        forgetting: share of the evidence that is kept at each update; below 1 where the model
            under the utility is itself learning.
        form: how gains add up: `additive`, or `saturating` where later components remove less than
            the same ones alone, as on fine-tuned models (`rankcast.allocation.saturating`); the
            latter takes no notice of `relative_std`, `rank_correlation` and `rank_decay`.
        text_amplitude: how much a gain is expected to change with the text, by 0.5 nats of lexical
            entropy or 0.05 of OOV rate, as a share of its own standard deviation; of its logarithm
            where gains saturate. 0: gains are the same for all texts
            (`rankcast.allocation.text_gains`).
    """

    total_gain: float = 0.7
    relative_std: float = 1.0
    rank_correlation: float = 0.98
    rank_decay: float | None = None
    noise_std: float = 0.05
    paired_noise_std: float = 0.02
    forgetting: float = 1.0
    form: UtilityForm = "additive"
    text_amplitude: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        check_choice("form of utility", self.form, get_args(UtilityForm))
        positive = ("total_gain", "relative_std", "rank_decay", "noise_std", "paired_noise_std")
        values = {name: getattr(self, name) for name in positive}
        bad = [name for name, value in values.items() if value is not None and not value > 0]
        inside = 0 <= self.rank_correlation < 1 and 0 < self.forgetting <= 1
        if bad or not inside or not 0 <= self.text_amplitude < inf:
            raise ConfigError(
                f"The utility needs positive {', '.join(positive)}, rank_correlation in [0, 1), "
                f"forgetting in (0, 1] and text_amplitude at least 0; got {self}."
            )


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """How plans for teaching are made.

    Attributes:
        plans: plans per lesson, half of them for exploring.
        explore_width: factor on the width of the belief from which exploring plans are drawn.
        group_price_spread: spread (of the logarithm) of the price factors per group.
        wide_links: share of links drawn from the whole range of `rankcast allocate`; the rest are
            links that were met.
        memory: how many states are remembered.
    """

    plans: int = 512
    explore_width: float = 1.2
    group_price_spread: float = 0.3
    wide_links: float = 0.25
    memory: int = 2000


ScheduleName = Literal["linear", "cosine", "scaled_linear"]

Prediction = Literal["epsilon", "v", "x0"]

Spacing = Literal["trailing", "leading", "linspace"]


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of the refinement by diffusion; the defaults are Table II's.

    Attributes:
        training_steps: steps T of the noise schedule.
        inference_steps: denoising steps T_diff of a plan.
        schedule: name of the noise schedule.
        prediction: what the denoiser's output means.
        guidance_scale: scale w of classifier-free guidance; 1 is the plain conditional model, which
            needs no unconditional evaluation (the paper names no value).
        condition_dropout: share of training samples whose condition is hidden (not in the paper).
        eta: scale of σ_τ in Eq. 17; 0 is deterministic.
        spacing: how the T_diff steps are chosen among T.
        guidance_weight: weight κ of the reward term in Eq. 19.
        batch_size: samples of a gradient step.
        learning_rate: learning rate of the denoiser.
    """

    training_steps: int = 1000
    inference_steps: int = 50
    schedule: ScheduleName = "scaled_linear"
    prediction: Prediction = "epsilon"
    guidance_scale: float = 1.0
    condition_dropout: float = 0.1
    eta: float = 0.0
    spacing: Spacing = "trailing"
    guidance_weight: float = 0.1
    batch_size: int = 32
    learning_rate: float = 5e-5


@dataclass(frozen=True, slots=True)
class PpoConfig:
    """Settings of PPO; γ, ζ, ϱ, batch size and learning rate are Table II's.

    Attributes:
        discount: discount γ of future rewards.
        decay: decay factor ζ of GAE.
        clip: clipping range ϱ of the probability ratio.
        learning_rate: learning rate of actor and critic.
        epochs: passes over each rollout.
        minibatch: samples of a gradient step.
        value_weight: weight c_V of the value loss.
        entropy_weight: weight c_H of the entropy bonus.
        max_grad_norm: gradients are scaled down to this norm.
        target_kl: stop a rollout's passes when the policy has moved this far [nats]; never by
            default.

    Raises:
        ConfigError: γ or ζ outside [0, 1], or another setting that is not positive.
    """

    discount: float = 0.95
    decay: float = 0.95
    clip: float = 0.2
    learning_rate: float = 1e-4
    epochs: int = 4
    minibatch: int = 32
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    max_grad_norm: float = 0.5
    target_kl: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if not (0.0 <= self.discount <= 1.0 and 0.0 <= self.decay <= 1.0):
            raise ConfigError(
                f"discount and decay must lie in [0, 1], got {self.discount} and {self.decay}."
            )
        for name in ("clip", "learning_rate", "epochs", "minibatch", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}.")


StateName = Literal["snr", "bandwidth", "entropy", "oov", "ranks"]

Proposal = Literal["ppo", "none"]

Refinement = Literal["ddim", "ddpm", "none"]

DenoiserName = Literal["mlp", "unet"]


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Parts of the policy and their sizes.

    Attributes:
        proposal: who proposes the coarse action; `none` leaves it out (DDIM alone).
        refinement: who refines it; `none` decodes PPO's action directly (PPO alone).
        denoiser: network of the denoiser; `mlp` is a residual one.
        hidden: width d_latent of the residual MLP.
        blocks: residual blocks of the MLP.
        unet_depth: resolutions of the U-Net (Table II: 6).
        unet_kernel: kernel of the U-Net (Table II: 3).
        unet_channels: channels C_in of the U-Net.
        actor_hidden: width d_MLP of actor and critic (Table II: 256).
        initial_log_std: log-spread of the coarse action at the start.
        depth_groups: groups of layers in the coarse description.
        blind: parts of the state that actor, critic and denoiser are not shown, for ablations.
        diffusion: schedule, prediction type, steps and guidance.
        ppo: how PPO learns.
    """

    proposal: Proposal = "ppo"
    refinement: Refinement = "ddim"
    denoiser: DenoiserName = "mlp"
    hidden: int = 128
    blocks: int = 2
    unet_depth: int = 6
    unet_kernel: int = 3
    unet_channels: int = 16
    actor_hidden: int = 256
    initial_log_std: float = -2.5
    depth_groups: int = 3
    blind: tuple[StateName, ...] = ()
    diffusion: DiffusionConfig = field(
        default_factory=lambda: DiffusionConfig(
            inference_steps=10, prediction="x0", batch_size=64, learning_rate=1e-3
        )
    )
    ppo: PpoConfig = field(default_factory=PpoConfig)

    def __post_init__(self) -> None:
        """Refuse unknown names and a policy without any part."""
        check_choice("proposal", self.proposal, get_args(Proposal))
        check_choice("refinement", self.refinement, get_args(Refinement))
        check_choice("denoiser", self.denoiser, get_args(DenoiserName))
        for part in self.blind:
            check_choice("part of the state", part, get_args(StateName))
        if self.proposal == "none" and self.refinement == "none":
            raise ConfigError("A policy needs a proposal, a refinement, or both.")


RewardTerm = Literal["utility-guided", "reward-weighted"]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Settings of Algorithm 1.

    Attributes:
        reward_term: the reading of Eq. 19.
        gradient_steps: updates of the denoiser per episode.
        warm_up_steps: updates before the first episode, on plans drawn from the prior.
        guided_every: every how many updates the reward term of `utility-guided` is evaluated;
            0 never.
        dequantise_width: noise on the rank codes, as a share of a bin.
        ema_decay: how slowly the acting denoiser follows the trained one.
        teacher_weight: weight of the actor's imitation of the solved plans at the start.
        teacher_half_life: episodes after which that weight has halved (hyperbolically).
        imitate_every: every how many updates of the denoiser the actor is shown solved plans.
        replay_size: transitions kept for `reward-weighted`.
        teacher_share: share of the episodes in which the teacher acts, by exact Thompson sampling;
            in the others the policy does, and only from these PPO learns. 0 as in the paper, where
            the policy always acts. The teacher acts only where it teaches: with a denoiser and
            `utility-guided`.
        teacher: how plans for teaching are made.
        utility: prior and noise of the learned utility.
    """

    reward_term: RewardTerm = "utility-guided"
    gradient_steps: int = 40
    warm_up_steps: int = 200
    guided_every: int = 0
    dequantise_width: float = 0.5
    ema_decay: float = 0.99
    teacher_weight: float = 1.0
    teacher_half_life: float = 500.0
    imitate_every: int = 4
    replay_size: int = 10_000
    teacher_share: float = 0.9
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)

    def __post_init__(self) -> None:
        """Refuse an unknown reading, and a share that is none."""
        check_choice("reward term", self.reward_term, get_args(RewardTerm))
        if not 0.0 <= self.teacher_share <= 1.0:
            raise ConfigError(f"teacher_share must lie in [0, 1], got {self.teacher_share}.")
