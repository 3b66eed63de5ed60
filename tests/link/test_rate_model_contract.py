"""What every `RateModel` must do, whichever it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.links import link
from rankcast.errors import LinkError
from rankcast.link.capacity import (
    Awgn,
    Ergodic,
    Nakagami,
    Outage,
    RateModel,
    Rayleigh,
    Rician,
    rate_bps,
)
from rankcast.link.nr import Carrier
from rankcast.link.nr_link import NrRate
from rankcast.records import LinkState

MODELS: list[RateModel] = [
    Awgn(),
    Ergodic(Rayleigh()),
    Ergodic(Rician(4.0)),
    Ergodic(Nakagami(2.5)),
    Outage(Rayleigh(), 0.1),
    Outage(Rician(4.0), 0.01),
    NrRate(link()),
    NrRate(link(Carrier.for_bandwidth(100e6), table="256qam", max_transmissions=1)),
]
every_model = pytest.mark.parametrize("model", MODELS, ids=repr)


@every_model
def test_satisfies_the_protocol(model: RateModel) -> None:
    assert isinstance(model, RateModel)


@every_model
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_shapes(model: RateModel, shape: tuple[int, ...]) -> None:
    efficiency = model.spectral_efficiency(np.full(shape, 7.0))
    assert np.shape(efficiency) == shape
    assert np.asarray(efficiency).dtype == np.float64


@every_model
def test_rises_from_almost_nothing(model: RateModel) -> None:
    snr_db = np.arange(-100.0, 100.0, 0.25)
    efficiency = model.spectral_efficiency(snr_db)
    assert np.isfinite(efficiency).all()
    assert (efficiency > 0).all()
    assert (np.diff(efficiency) >= -1e-13 * efficiency[1:]).all()
    assert efficiency[0] < 1e-5
    assert efficiency[-1] > 1.0


@every_model
def test_promises_no_more_than_a_steady_channel_holds(model: RateModel) -> None:
    # Below -60 dB, where nothing gets through, a table may say one bit in a million.
    snr_db = np.arange(-60.0, 100.0, 0.25)
    steady = Awgn().spectral_efficiency(snr_db)
    assert (model.spectral_efficiency(snr_db) <= steady * (1 + 1e-9)).all()


@every_model
def test_links_do_not_influence_one_another(model: RateModel) -> None:
    snr_db = np.array([-7.3, 0.1, 11.9, 26.2])
    alone = [float(model.spectral_efficiency(np.array([x]))[0]) for x in snr_db]
    assert model.spectral_efficiency(snr_db).tolist() == alone


@every_model
def test_given_snrs_are_left_alone(model: RateModel) -> None:
    snr_db = np.array([3.0, -4.0])
    model.spectral_efficiency(snr_db)
    assert snr_db.tolist() == [3.0, -4.0]


@every_model
def test_rate_is_proportional_to_the_bandwidth(model: RateModel) -> None:
    narrow, wide = (
        rate_bps(model, LinkState(np.array([9.0]), np.array([w]), np.array([1.0])))
        for w in (1e6, 3e6)
    )
    assert wide == pytest.approx(3 * narrow)


@every_model
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 301.0, -301.0])
def test_refuses_what_is_no_snr(model: RateModel, bad: float) -> None:
    with pytest.raises(LinkError, match="SNR"):
        model.spectral_efficiency(np.array([0.0, bad]))
