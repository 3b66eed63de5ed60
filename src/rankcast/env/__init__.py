"""The MDP of Sec. IV-A as Gymnasium environments: one link, or B links stepped as one operation."""

from rankcast.env.config import EnvConfig, Payment
from rankcast.env.observing import N_STATE, observation_space, to_vector
from rankcast.env.single import RankAllocationEnv, register, synthetic_learner
from rankcast.env.vector import RankAllocationVectorEnv

__all__ = [
    "N_STATE",
    "EnvConfig",
    "Payment",
    "RankAllocationEnv",
    "RankAllocationVectorEnv",
    "observation_space",
    "register",
    "synthetic_learner",
    "to_vector",
]

register()
