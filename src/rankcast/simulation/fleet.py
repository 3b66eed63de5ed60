"""Many devices in simulated time: no sockets, threads or signatures, the rules of a device alone.

Devices meet at the server, which is taken to answer at once, and nowhere else. So each is computed
by itself, and a block of them in one array operation: a round is one sync of each device that still
has time. What a device does follows `edge.sync` and `edge.advice`: it looks, plans with what it
measured (or its modem says), begins with a shorter prefix if it has none, takes the difference to
the release that it has, keeps what arrived until the deadline, and goes on after a pause. What is
left out: the time of server and device, resets, and several files in a release.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.edge.install import early_prefix
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray
from rankcast.release.manifest import Manifest
from rankcast.simulation.links import Links
from rankcast.simulation.rows import RateRows
from rankcast.simulation.settings import SimulationSettings
from rankcast.simulation.sums import FleetSums, Times

BLOCK = 4096
"""Devices that are computed together."""
NEWS_BYTES, LOOK_BYTES = 5900, 1340
"""Signed metadata, plan and the heads of HTTP: of a look that finds a release, and of one that
finds nothing new; fitted to a simulation with sockets and one adapter in its store."""
REQUEST_BYTES = 330
"""Heads of HTTP for a blob, likewise."""
_NEW_SHARE = 0.5
"""Of a measurement in the throughput that a device expects, as in `edge.activate`."""
BoolArray = NDArray[np.bool_]
LinkBlocks = Callable[[range, np.random.Generator], Links]
"""Returns the links of some devices."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """The prefixes of a release's file.

    Attributes:
        bits: (K + 1,) of blobs of the first k chunks; of none, 0.
        link_bits: (K + 1,) the same with the heads of HTTP.
        best: (K + 1,) prefix of the lowest expected loss among those with at most k chunks.
        early: (K + 1,) prefix to begin with if k chunks are wanted; k where there is no shorter.
        update_bits: of the difference to the release before, with heads; infinite if there is none.
    """

    bits: FloatArray
    link_bits: FloatArray
    best: IntArray
    early: IntArray
    update_bits: float = np.inf

    @property
    def payload_share(self) -> float:
        """Of what passes the link."""
        return float(self.bits[-1] / self.link_bits[-1])

    def n_held(self, link_bits: FloatArray) -> IntArray:
        """Return how many chunks are complete when so many bits have passed."""
        return np.searchsorted(self.link_bits, link_bits + 0.5, side="right") - 1

    @classmethod
    def of(cls, manifest: Manifest) -> Ladder:
        """Return the prefixes of a release.

        Raises:
            ConfigError: it has several files.
        """
        if len(manifest.files) != 1:
            raise ConfigError("In simulated time a release has one file; this one has several.")
        (file,) = manifest.files
        sizes = np.array([blob.n_bytes for blob in file.blobs()], np.float64)
        sums = 8.0 * np.cumsum(sizes)[1:]
        heads = 8.0 * REQUEST_BYTES * np.arange(2, len(sizes) + 1)
        losses = [chunk.loss for chunk in file.chunks]
        best, early = [0], [0]
        for k in range(1, len(losses) + 1):
            known = [(loss, -n) for n, loss in enumerate(losses[:k], 1) if loss is not None]
            best.append(-min(known)[1] if known else k)
            shorter = early_prefix(manifest, ReleasePrefix.of(manifest, 0, k))
            early.append(k if shorter is None else shorter.n_chunks)
        zero = np.zeros(1)
        return cls(
            np.concatenate([zero, sums]), np.concatenate([zero, sums + heads]),
            np.array(best, np.intp), np.array(early, np.intp),
            8.0 * min((u.blob.n_bytes + REQUEST_BYTES for u in file.updates), default=np.inf),
        )  # fmt: skip


@dataclass(eq=False)
class DeviceArrays:
    """The state and the results of n devices.

    Attributes:
        next_s: when each looks next [s].
        began_s: when each first looked [s].
        version: that each has; 0 for none.
        n_chunks: of its prefix.
        held_bits: of the newest release's blobs, heads of HTTP included.
        held_version: of which release these are.
        update_bits: that are missing of the difference to the release that it has; 0 for none.
        throughput_bps: that it expects; NaN before it measured any.
        first_s: when it first had an adapter, since it began [s]; NaN for never.
        best_s: when it had the best of the first version that it ever had, likewise.
        updated_s: when it had the second version, since that was published [s].
        received_bits: of blobs.
        link_bits: of everything.
        n_syncs: that it began.
        n_late: syncs in which not even a first chunk arrived in time.
        is_late: whether the last was one.
    """

    n: int
    next_s: FloatArray
    began_s: FloatArray = field(init=False)
    version: IntArray = field(init=False)
    n_chunks: IntArray = field(init=False)
    held_bits: FloatArray = field(init=False)
    held_version: IntArray = field(init=False)
    update_bits: FloatArray = field(init=False)
    throughput_bps: FloatArray = field(init=False)
    first_s: FloatArray = field(init=False)
    best_s: FloatArray = field(init=False)
    updated_s: FloatArray = field(init=False)
    received_bits: FloatArray = field(init=False)
    link_bits: FloatArray = field(init=False)
    n_syncs: IntArray = field(init=False)
    n_late: IntArray = field(init=False)
    is_late: BoolArray = field(init=False)

    def __post_init__(self) -> None:
        """Begin with devices that have nothing."""
        self.began_s = self.next_s.copy()
        for name in ("version", "n_chunks", "held_version", "n_syncs", "n_late"):
            setattr(self, name, np.zeros(self.n, np.intp))
        for name in ("held_bits", "update_bits", "received_bits", "link_bits"):
            setattr(self, name, np.zeros(self.n))
        for name in ("throughput_bps", "first_s", "best_s", "updated_s"):
            setattr(self, name, np.full(self.n, np.nan))
        self.is_late = np.zeros(self.n, np.bool_)


@dataclass(frozen=True, eq=False)
class FleetResult:
    """What came out.

    Attributes:
        devices: one array of all.
        n_chunks: of the second release's file.
        in_time: (n,) whether the first usable prefix came within the deadline.
        looks: (seconds,) plans asked for in each second.
        sent_bps: (seconds,) bits that the server sent in each second.
    """

    devices: DeviceArrays
    n_chunks: int
    in_time: BoolArray
    looks: IntArray
    sent_bps: IntArray

    @property
    def sums(self) -> FleetSums:
        """What adds up over devices, by the names of a simulation with sockets."""
        d = self.devices
        is_new = d.version == 2
        whole = is_new & (d.n_chunks == self.n_chunks)
        counted: dict[str, FloatArray | IntArray | BoolArray] = {
            "with_adapter": d.version > 0, "newest_version": is_new, "whole": whole,
            "last_sync_failed": d.is_late, "in_time": self.in_time,
            "received_bits": d.received_bits, "link_bits": d.link_bits, "late": d.n_late,
            "syncs": d.n_syncs,
        }  # fmt: skip
        counts = {name: int(x.astype(np.int64).sum()) for name, x in counted.items()}
        seconds = {"first_usable_s": d.first_s, "best_s": d.best_s, "updated_s": d.updated_s}
        return FleetSums(
            {"devices": d.n, **counts}, {name: Times.of(x) for name, x in seconds.items()},
            self.looks, self.sent_bps,
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Return counts and quantiles over devices."""
        return self.sums.summary()


@dataclass(frozen=True, eq=False)
class Fleet:
    """All that decides what becomes of each device, in whichever process it is computed.

    Attributes:
        settings: how to simulate; resets and restarts have no effect.
        n_devices: how many.
        links: of some of them.
        releases: the first, and the one that is published at `settings.update_at`.
        block: devices that are computed together; their chances depend on it.
    """

    settings: SimulationSettings
    n_devices: int
    links: LinkBlocks
    releases: tuple[Manifest, Manifest]
    block: int = BLOCK

    @property
    def n_blocks(self) -> int:
        """How many blocks of devices there are."""
        return math.ceil(self.n_devices / self.block)

    def run(
        self, blocks: range | None = None, stopping: Callable[[], bool] = lambda: False
    ) -> FleetResult:
        """Simulate the devices of some blocks, which are the same whatever else is computed.

        Args:
            blocks: one at least; all of them if left out.
            stopping: says whether to stop, after which the blocks computed so far are returned.

        Raises:
            ConfigError: a release of several files.
            LinkError: an impossible link.
        """
        settings = self.settings
        ladders = Ladder.of(self.releases[0]), Ladder.of(self.releases[1])
        demand = _Demand(int(np.ceil(settings.duration_s)))
        done = []
        for number in range(self.n_blocks) if blocks is None else blocks:
            seed = np.random.SeedSequence(settings.seed, spawn_key=(number,))
            of_links, of_pauses = (np.random.default_rng(s) for s in seed.spawn(2))
            start = number * self.block
            chosen = self.links(range(start, min(start + self.block, self.n_devices)), of_links)
            rows = RateRows(np.ascontiguousarray(chosen.rates_bps.T), chosen.step_s)
            done.append(_Block(settings, ladders, chosen, rows, demand, of_pauses).run())
            if stopping():
                break
        devices = _joined(done)
        in_time = devices.first_s <= settings.deadline_s
        return FleetResult(
            devices, len(ladders[1].bits) - 1, in_time, demand.looks, demand.sent_bps
        )


def _joined(parts: list[DeviceArrays]) -> DeviceArrays:
    whole = DeviceArrays(sum(part.n for part in parts), np.concatenate([p.next_s for p in parts]))
    for name in vars(whole):
        if name not in ("n", "next_s"):
            setattr(whole, name, np.concatenate([getattr(part, name) for part in parts]))
    return whole


class _Demand:
    """What the server is asked for in each second, in whole bits: they add up in any order."""

    def __init__(self, seconds: int) -> None:
        self.looks = np.zeros(seconds, np.int64)
        self._changes_bps = np.zeros(seconds + 2, np.int64)

    @property
    def sent_bps(self) -> IntArray:
        return np.cumsum(self._changes_bps)[: len(self.looks)]

    def look(self, at_s: FloatArray) -> None:
        np.add.at(self.looks, at_s.astype(np.intp), 1)

    def send(self, from_s: FloatArray, to_s: FloatArray, bits: FloatArray) -> None:
        """Spread bits evenly over the whole seconds that a transfer touches."""
        last = len(self.looks)
        first = np.minimum(from_s.astype(np.intp), last)
        end = np.floor(to_s).astype(np.intp) + 1
        share = np.rint(bits / np.maximum(end - first, 1)).astype(np.int64)
        np.add.at(self._changes_bps, first, share)
        np.add.at(self._changes_bps, np.minimum(end, last + 1), -share)


@dataclass(eq=False)
class _Block:
    """Some devices, from the beginning to the end."""

    settings: SimulationSettings
    ladders: tuple[Ladder, Ladder]
    links: Links
    rows: RateRows
    demand: _Demand
    rng: np.random.Generator

    def run(self) -> DeviceArrays:
        """Let every device sync until its time is over."""
        n, settings = self.links.n_devices, self.settings
        devices = DeviceArrays(n, self.rng.uniform(0.0, min(1.0, settings.every_s), n))
        while (active := np.flatnonzero(devices.next_s < settings.duration_s)).size:
            is_new = devices.next_s[active] >= settings.update_at * settings.duration_s
            for version in (1, 2):
                here = active[is_new == (version > 1)]
                if here.size:
                    self._sync(devices, here, version)
        return devices

    def _sync(self, d: DeviceArrays, here: IntArray, version: int) -> None:
        """Let some devices sync once while a version is the newest."""
        ladder, start_s = self.ladders[version - 1], d.next_s[here]
        is_news = d.held_version[here] != version
        look_bits = 8.0 * np.where(is_news, NEWS_BYTES, LOOK_BYTES)
        looked_s = self.rows.passed_at_s(here, start_s, look_bits)
        self._begin(d, here[is_news], version)
        d.n_syncs[here] += 1
        self.demand.look(start_s)
        until_s = looked_s + self.settings.deadline_s
        update = self._take_update(d, here, ladder, looked_s, until_s)
        held = d.held_bits[here]
        wanted = np.where(d.update_bits[here] > 0, 0, self._plan(d, here, ladder, looked_s))
        bits = np.maximum(ladder.link_bits[wanted] - held, 0.0)
        fetch = self._fetch(here, update.end_s, until_s, bits)
        sent_bits = look_bits + update.bits + fetch.bits
        self.demand.send(start_s, fetch.end_s, sent_bits)
        d.link_bits[here] += sent_bits
        d.held_bits[here] = held + fetch.bits
        d.received_bits[here] += (update.bits + fetch.bits) * ladder.payload_share
        d.throughput_bps[here] = _measured(d.throughput_bps[here], fetch)
        early_bits = np.maximum(ladder.link_bits[ladder.early[wanted]] - held, 0.0)
        early_s = np.minimum(self.rows.passed_at_s(here, looked_s, early_bits), fetch.end_s)
        self._activate(d, here, version, wanted, early_s, fetch.end_s)
        pause_s = self.settings.every_s * self.rng.uniform(0.5, 1.0, len(here))
        d.next_s[here] = fetch.end_s + pause_s

    def _begin(self, d: DeviceArrays, here: IntArray, version: int) -> None:
        """Drop what some devices hold of an older release; it may do for a difference."""
        ladder = self.ladders[version - 1]
        n_chunks = np.where(d.version[here] == version - 1, d.n_chunks[here], 0)
        saves = ladder.update_bits < ladder.link_bits[np.minimum(n_chunks, len(ladder.bits) - 1)]
        d.update_bits[here] = np.where(saves, ladder.update_bits, 0.0)
        d.held_bits[here], d.held_version[here] = 0.0, version

    def _take_update(
        self,
        d: DeviceArrays,
        here: IntArray,
        ladder: Ladder,
        from_s: FloatArray,
        until_s: FloatArray,
    ) -> _Fetch:
        """Fetch differences; where one is whole, the chunks that it makes are here."""
        before = d.update_bits[here]
        fetch = self._fetch(here, from_s, until_s, before)
        left = np.where(before - fetch.bits > 0.5, before - fetch.bits, 0.0)
        made = ladder.link_bits[np.minimum(d.n_chunks[here], len(ladder.bits) - 1)]
        d.held_bits[here] = np.where((before > 0) & (left == 0), made, d.held_bits[here])
        d.update_bits[here] = left
        return fetch

    def _fetch(
        self, here: IntArray, from_s: FloatArray, until_s: FloatArray, bits: FloatArray
    ) -> _Fetch:
        """Let bits pass until a deadline."""
        end_s = np.where(bits > 0, self.rows.passed_at_s(here, from_s, bits), from_s)
        passed = self.rows.carried_bits(here, until_s) - self.rows.carried_bits(here, from_s)
        came = np.where(end_s > until_s, np.clip(passed, 0.0, bits), bits)
        end_s = np.minimum(end_s, until_s)
        return _Fetch(came, end_s, end_s - from_s)

    def _plan(self, d: DeviceArrays, here: IntArray, ladder: Ladder, now_s: FloatArray) -> IntArray:
        """Return how many chunks each device wants; 0 if its modem says that none arrives."""
        last, held = len(ladder.bits) - 1, d.held_bits[here]
        n_held = ladder.n_held(held)
        by_modem = self.links.radio is not None
        if by_modem:
            rate_bps = self.rows.rate_bps(here, now_s)
        else:
            expected = d.throughput_bps[here]
            rate_bps = np.where(np.isnan(expected), self.settings.assumed_bps, expected)
        payload = held * ladder.payload_share
        reach = np.searchsorted(ladder.bits, payload + rate_bps * self.settings.deadline_s, "right")
        wanted = ladder.best[np.maximum(np.minimum(reach - 1, last), n_held)]
        if by_modem:
            return wanted
        tries = (wanted <= n_held) & (n_held < last)  # only another transfer can tell
        return np.where(tries, n_held + 1, np.maximum(wanted, 1))

    def _activate(  # noqa: PLR0917 what became of the sync
        self,
        d: DeviceArrays,
        here: IntArray,
        version: int,
        wanted: IntArray,
        early_s: FloatArray,
        end_s: FloatArray,
    ) -> None:
        """Make active what arrived, and note when."""
        ladder = self.ladders[version - 1]
        n_here = ladder.best[np.minimum(ladder.n_held(d.held_bits[here]), wanted)]
        has_none, is_other = d.version[here] == 0, d.version[here] != version
        d.is_late[here] = (n_here < 1) & is_other
        d.n_late[here] += d.is_late[here]
        better = (n_here > 0) & (is_other | (n_here > d.n_chunks[here]))
        began_s, begins = d.began_s[here], better & has_none
        d.first_s[here[begins]] = (early_s - began_s)[begins]
        if version == 1:
            d.best_s[here[better]] = (end_s - began_s)[better]
        else:
            published_s = self.settings.update_at * self.settings.duration_s
            at_s, news = np.where(has_none, early_s, end_s), better & is_other
            d.updated_s[here[news]] = (at_s - published_s)[news]
        d.version[here[better]] = version
        d.n_chunks[here[better]] = n_here[better]


@dataclass(frozen=True, eq=False)
class _Fetch:
    """What came: bits, when the last did [s], and how long that took [s]."""

    bits: FloatArray
    end_s: FloatArray
    elapsed_s: FloatArray


def _measured(known: FloatArray, fetch: _Fetch) -> FloatArray:
    """Return the throughput that devices expect after a transfer [bit/s]; NaN for unknown."""
    counts = (fetch.bits > 0) & (fetch.elapsed_s > 0)
    new = fetch.bits / np.where(counts, fetch.elapsed_s, 1.0)
    mixed = np.where(np.isnan(known), new, (1.0 - _NEW_SHARE) * known + _NEW_SHARE * new)
    return np.where(counts, mixed, known)
