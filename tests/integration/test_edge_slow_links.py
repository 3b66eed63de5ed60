"""A device whose link was slow once finds out when it is not any more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edge_data import client_of, release_of, serving
from rankcast.delivery.edge.records import DeviceState


@pytest.mark.parametrize("measured", [False, True])
def test_a_slow_measurement_does_not_stop_a_device_for_ever(measured: bool, tmp_path: Path) -> None:
    one = release_of(1, measured=measured)
    with serving(tmp_path) as server:
        server.publish(one)
        client = client_of(server, tmp_path)
        client.folder.mkdir(parents=True)
        state = DeviceState("demo")
        for n_rungs in range(1, len(one.chunks) + 1):
            client.states.save(dataclasses.replace(state, throughput_bps=1e-6))
            result = client.sync()
            assert (result.outcome, result.planned_by) == ("activated", "device")
            assert result.release is not None
            assert result.release.n_rungs == n_rungs
            state = client.states.load() or state
        client.states.save(dataclasses.replace(state, throughput_bps=1e-6))
        assert client.sync().outcome == "up-to-date"
