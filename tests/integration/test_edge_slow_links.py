"""A device whose link was slow once finds out when it is not any more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edge_data import client_of, release_of, serving
from rankcast.delivery.edge.records import DeviceState


def test_a_slow_measurement_does_not_shut_a_device_out_for_ever(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.publish(release_of(1))
        client = client_of(server, tmp_path)
        client.folder.mkdir(parents=True)
        client.states.save(dataclasses.replace(DeviceState("demo"), throughput_bps=1.0))
        result = client.sync()
        assert result.outcome == "activated"
        assert result.release is not None
        assert result.release.n_rungs == 1
        assert (result.throughput_bps or 0.0) > 1e3
        assert client.sync().release != result.release
