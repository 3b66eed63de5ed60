"""`rankcast edge watch`: sync again and again, sooner where word of a release comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from rankcast.errors import ConfigError, RankcastError
from rankcast.run.edge_options import EdgeWatch

if TYPE_CHECKING:
    from rankcast.delivery.edge.client import EdgeClient
    from rankcast.delivery.edge.syncing import SyncResult

_STEP_S = 0.2
"""How often a pause looks whether it should end [s]."""


def watch(
    command: EdgeWatch,
    client: EdgeClient,
    stopping: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
    *,
    say: Callable[[SyncResult], None],
) -> int:
    """Sync until asked to stop; errors are told and the next sync tries again.

    Args:
        command: the options.
        client: the device.
        stopping: says whether to stop.
        sleep: waits [s].
        say: tells what came of a sync.

    Raises:
        ConfigError: a pause that is not positive, no address of a broker, or a missing extra.
    """
    if not (command.every_s > 0 and command.mqtt_delay_s >= 0 and command.mqtt_jitter_s >= 0):
        raise ConfigError(
            f"--every-s is positive [s], --mqtt-delay-s and --mqtt-jitter-s are not negative, got "
            f"{command.every_s}, {command.mqtt_delay_s} and {command.mqtt_jitter_s}."
        )
    rng, told = np.random.default_rng(), ""
    with ExitStack() as stack:
        rang = _bell(command, stack)
        while not stopping():
            try:
                result = client.sync()
                if result.message != told:
                    say(result)
                told = result.message
            except RankcastError as error:
                if str(error) != told:
                    complain(str(error))
                told = str(error)
            _pause(command, rang, stopping, sleep, rng)
    return 0


def complain(words: str) -> None:
    """Tell what went wrong."""
    print(f"rankcast: {words}", file=sys.stderr, flush=True)  # noqa: T201


def _bell(command: EdgeWatch, stack: ExitStack) -> Callable[[], bool]:
    """Return what says whether word came; nobody brings any without a broker."""
    if command.mqtt is None:
        return lambda: False
    from rankcast.delivery.notices import Bell, Broker  # noqa: PLC0415 most do without

    bell = Bell(Broker.of(command.mqtt), command.adapter, complain)
    return stack.enter_context(bell).rang


def _pause(
    command: EdgeWatch,
    rang: Callable[[], bool],
    stopping: Callable[[], bool],
    sleep: Callable[[float], None],
    rng: np.random.Generator,
) -> None:
    """Wait for the next sync; the first message that comes meanwhile may shorten it, once."""
    left_s, woken = command.every_s * rng.uniform(0.5, 1.0), False
    while left_s > 0.0 and not stopping():
        if not woken and rang():
            woken = True
            left_s = min(left_s, command.mqtt_delay_s + command.mqtt_jitter_s * rng.uniform())
            continue
        sleep(min(_STEP_S, left_s))
        left_s -= _STEP_S
