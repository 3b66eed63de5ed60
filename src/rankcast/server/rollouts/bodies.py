"""What operators send and get: the order of a rollout, and how far it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rankcast.errors import ConfigError
from rankcast.server.rollouts.progress import Progress
from rankcast.server.rollouts.rollout import (
    MOST_STAGES,
    Limit,
    Limits,
    MemberState,
    Order,
    Stage,
    State,
    Target,
    share_of,
)
from rankcast.server.rollouts.windows import Window

MOST_NAMES = 10_000
_DAY_S = 86400.0
_Version = Annotated[int, Field(ge=1, lt=2**31)]
_Word = Annotated[str, Field(max_length=64)]
_Limit = Annotated[str | None, Field(max_length=16, examples=["5%", "3"])]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class OrderRequest(_Body):
    """A rollout to begin."""

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"adapter": "sst2", "version": 3, "stages": ["1%", "10%", "100%"], "every_s": 86400.0,
         "groups": ["eu"], "max_failed": "5%", "window": "01:00-05:00"},
    ]})  # fmt: skip

    adapter: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", max_length=64)
    version: _Version = Field(description="That the target gets; it may be published later.")
    before: _Version | None = Field(
        default=None,
        description="That devices have until then, and get back; if left out, what the rollout "
        "before left them with, or the newest older one.",
    )
    groups: list[_Word] = Field(default_factory=list, max_length=100)
    devices: list[_Word] = Field(default_factory=list, max_length=MOST_NAMES)
    share: str = Field(default="100%", max_length=16, description="Of those, by their names.")
    stages: list[Annotated[str, Field(max_length=16)]] = Field(
        default_factory=lambda: ["1%", "10%", "100%"], max_length=MOST_STAGES
    )
    every_s: float | None = Field(
        default=None, ge=0, le=1e9, description="Time of a stage [s]; null for by hand."
    )
    max_failed: _Limit = "5%"
    max_rolled_back: _Limit = None
    max_refused: _Limit = None
    max_unhealthy: _Limit = None
    max_silent: _Limit = None
    least: str = Field(
        default="80%", max_length=16, description="Of a stage's devices, before the next begins."
    )
    silent_after_s: float = Field(default=_DAY_S, gt=0, le=1e9)
    window: str | None = Field(default=None, max_length=32, examples=["01:00-05:00"])
    window_days: list[_Word] = Field(default_factory=list, max_length=7)

    def order(self, before: int) -> Order:
        """Return the order that it describes.

        Args:
            before: version where none is named.

        Raises:
            ConfigError: something that cannot be.
        """
        if self.window_days and self.window is None:
            raise ConfigError("Days are of a window; name its span, such as 01:00-05:00.")
        days = tuple(self.window_days)
        return Order(
            adapter=self.adapter,
            version=self.version,
            before=before if self.before is None else self.before,
            target=Target(tuple(self.groups), tuple(self.devices), share_of(self.share)),
            stages=tuple(Stage(share_of(text), self.every_s) for text in self.stages),
            limits=Limits(
                _limit(self.max_failed),
                _limit(self.max_rolled_back),
                _limit(self.max_refused),
                _limit(self.max_unhealthy),
                _limit(self.max_silent),
            ),
            least_share=share_of(self.least),
            silent_after_s=self.silent_after_s,
            window=None if self.window is None else Window.parse(self.window, days),
        )


class ReasonRequest(_Body):
    """Why a rollout is changed."""

    reason: str = Field(default="", max_length=500, description="For people.")


class StageBody(_Body):
    """A stage, and what became of its devices."""

    share: float = Field(description="Of the target, the stages before included.")
    after_s: float | None = Field(description="Until the next stage [s]; null for by hand.")
    is_begun: bool
    n_devices: int = Field(description="Without those whose token was revoked.")
    states: dict[MemberState, int]
    n_silent: int
    n_failed: int = Field(description="Rolled back, refused, unhealthy or silent.")


class FailedBody(_Body):
    """A device that failed."""

    device: str
    stage: int = Field(description="From 1 on.")
    state: MemberState
    message: str


class RolloutBody(_Body):
    """A rollout."""

    number: int
    adapter: str
    version: int
    before: int
    state: State
    reason: str
    target: str = Field(description="In words.")
    window: str | None = Field(description="In words.")
    stage: int = Field(description="The last that was begun, from 1 on; 0 before the first.")
    stage_began_s: float = Field(description="[s since 1970]")
    stages: list[StageBody]
    failures_by_group: dict[str, int] = Field(description="Devices of no group under ''.")
    failed: list[FailedBody] = Field(description="The first of them by name.")
    created_s: float = Field(description="[s since 1970]")
    changed_s: float = Field(description="[s since 1970]")

    @classmethod
    def of(cls, progress: Progress) -> RolloutBody:
        """Return what is shown of a rollout."""
        rollout, order = progress.rollout, progress.rollout.order
        begun = rollout.stage + 1 if rollout.stage_began_s else 0
        stages = [
            StageBody(
                share=stage.share,
                after_s=stage.after_s,
                is_begun=number < begun,
                n_devices=count.n_devices,
                states=dict(count.states),
                n_silent=count.n_silent,
                n_failed=count.failures()["failed"],
            )
            for number, (stage, count) in enumerate(zip(order.stages, progress.counts, strict=True))
        ]
        return cls(
            number=rollout.number,
            adapter=order.adapter,
            version=order.version,
            before=order.before,
            state=rollout.state,
            reason=rollout.reason,
            target=order.target.words,
            window=None if order.window is None else order.window.words,
            stage=begun,
            stage_began_s=rollout.stage_began_s,
            stages=stages,
            failures_by_group=dict(progress.by_group),
            failed=[
                FailedBody(device=m.device, stage=m.stage + 1, state=m.state, message=m.message)
                for m in progress.failed
            ],
            created_s=rollout.created_s,
            changed_s=rollout.changed_s,
        )


class RolloutsAnswer(_Body):
    """Rollouts, the newest first."""

    rollouts: list[RolloutBody]


def _limit(text: str | None) -> Limit | None:
    return None if text is None else Limit.parse(text)
