"""The MDP of Sec. IV-A: as the training loop steps it, and as Gymnasium environments."""

from rankcast.env.gym import (
    LevelAllocationEnv,
    RankAllocationEnv,
    RankAllocationVectorEnv,
    observation_space,
    register,
    synthetic_learner,
    to_vector,
)
from rankcast.env.mdp import AllocationMdp, Outcome

__all__ = [
    "AllocationMdp",
    "LevelAllocationEnv",
    "Outcome",
    "RankAllocationEnv",
    "RankAllocationVectorEnv",
    "observation_space",
    "register",
    "synthetic_learner",
    "to_vector",
]

register()
