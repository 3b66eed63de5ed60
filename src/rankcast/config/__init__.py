"""Every setting of a run as frozen dataclasses, readable without torch or SciPy."""

from rankcast.config.learner import DatasetConfig, FinetuneConfig
from rankcast.config.link import LinkConfig
from rankcast.config.policy import (
    DiffusionConfig,
    PolicyConfig,
    PpoConfig,
    TeacherConfig,
    TrainingConfig,
    UtilityConfig,
)
from rankcast.config.run import EnvConfig, RunConfig

__all__ = [
    "DatasetConfig",
    "DiffusionConfig",
    "EnvConfig",
    "FinetuneConfig",
    "LinkConfig",
    "PolicyConfig",
    "PpoConfig",
    "RunConfig",
    "TeacherConfig",
    "TrainingConfig",
    "UtilityConfig",
]
