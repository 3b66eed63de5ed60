"""A simulated fleet in shards, one after the other or on a Ray cluster; the sums are the same.

A shard is some blocks of devices. It is computed wherever there is room, and what comes back is its
sums and, if they are wanted, its rows, in the order of the devices. So the memory of whoever
gathers them does not grow with the number of devices.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from rankcast.errors import ConfigError, RankcastError
from rankcast.simulation.fleet import Fleet
from rankcast.simulation.report import rows_of_fleet
from rankcast.simulation.sums import FleetSums

SHARD_BLOCKS = 4
"""Blocks that are computed together, 16,384 devices: a second or two, and nothing to carry."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Some devices of a fleet, computed.

    Attributes:
        sums: over them.
        rows: of each, as CSV without its head; empty unless they were asked for.
        cpu_s: that they took [s].
    """

    sums: FleetSums
    rows: str
    cpu_s: float


@dataclass(frozen=True, eq=False)
class Sharding:
    """How a fleet is divided.

    Attributes:
        fleet: what is simulated.
        with_rows: whether a row of each device is wanted.
        n_blocks: of a shard.
    """

    fleet: Fleet
    with_rows: bool = False
    n_blocks: int = SHARD_BLOCKS

    def __len__(self) -> int:
        """Return how many shards there are."""
        return math.ceil(self.fleet.n_blocks / self.n_blocks)

    def shard(self, number: int, stopping: Callable[[], bool] = lambda: False) -> Shard:
        """Simulate one.

        Args:
            number: of the shard.
            stopping: says whether to stop; then the blocks computed so far are returned.

        Raises:
            ConfigError: a release of several files.
            LinkError: an impossible link.
        """
        began_s, start = time.process_time(), number * self.n_blocks
        end = min(start + self.n_blocks, self.fleet.n_blocks)
        result = self.fleet.run(range(start, end), stopping)
        rows = rows_of_fleet(result, start * self.fleet.block) if self.with_rows else ""
        return Shard(result.sums, rows, time.process_time() - began_s)


def shards_here(sharding: Sharding, stopping: Callable[[], bool]) -> Iterator[Shard]:
    """Yield shards in the order of their devices, computed one after the other.

    Args:
        sharding: how the fleet is divided.
        stopping: says whether to stop; what was begun is still yielded.
    """
    for number in range(len(sharding)):
        yield sharding.shard(number, stopping)
        if stopping():
            return


class RayWorkers:
    """Computes shards on a Ray cluster, whose nodes have this version of rankcast.

    Args:
        address: of the cluster; `auto` for one that runs here, `local` for a new one. It does not
            matter where this process is connected already.
        n_local: processors of a new one.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str, n_local: int = 2) -> None:
        try:
            import ray  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "--ray needs Ray: pip install 'rankcast[ray]', or leave the option out."
            ) from error
        self._ray: Any = ray
        self._started_here = not ray.is_initialized()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        new = {"num_cpus": n_local, "include_dashboard": False} if address == "local" else {}
        try:
            if self._started_here:
                self._ray.init(address, **new, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"There is no Ray cluster at {address}: {error}. Start one with ray start --head, "
                f"or say --ray local for one on this machine."
            ) from error

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster if this joined it; one that it made ends with whatever still runs."""
        if self._started_here:
            self._ray.shutdown()

    def shards(self, sharding: Sharding, stopping: Callable[[], bool]) -> Iterator[Shard]:
        """Yield them in order, while those that follow are computed; see `shards_here`.

        Raises:
            ConfigError: Ray could not compute a shard, nor at a second try.
        """
        ray = self._ray
        compute, given = ray.remote(max_retries=1)(Sharding.shard), ray.put(sharding)
        room, following = 2 * self._n_processors(), 1
        begun = deque([compute.remote(given, 0)])
        while begun:
            while len(begun) < room and following < len(sharding) and not stopping():
                begun.append(compute.remote(given, following))
                following += 1
            try:
                yield ray.get(begun.popleft())
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, RankcastError):
                    raise cause from error
                raise ConfigError(
                    f"Ray could not compute some devices ({type(error).__name__}): {error}. Look "
                    f"at ray status and at the memory of its nodes, and run it again."
                ) from error

    def _n_processors(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))
