from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from rankcast.errors import ConfigError, LinkError, RankcastError
from rankcast.link.composite import SummedSnr
from rankcast.link.doppler import JakesSnr
from rankcast.link.fading import BlockFadingSnr, GaussMarkovSnr, IidSnr, StaticSnr
from rankcast.link.mobility import PathSnr
from rankcast.link.payload import params_per_rank
from rankcast.link.replay import ReplayedSnr
from rankcast.records import AdapterLayout, Projection
from rankcast.run.config import RunConfig, load_preset, to_yaml
from rankcast.run.link import LinkConfig
from rankcast.run.presets import preset_names, read_preset
from rankcast.run.schema import build, dotted_keys, first_difference, to_plain


@dataclass(frozen=True)
class Inner:
    size: int = 1
    rate: float = 0.5
    mode: Literal["no", "fast"] = "no"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] | None = None
    values: tuple[float, ...] = ()
    corners: tuple[tuple[float, float], ...] = ()
    on: bool = False
    label: str | None = "x"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"inner": {"rate": 2}}, Outer(Inner(rate=2.0))),
        ({"inner": {"rate": "1e-3"}}, Outer(Inner(rate=1e-3))),
        ({"inner": {"mode": "no", "size": "3"}}, Outer(Inner(size=3))),
        ({"names": "q,v"}, Outer(names=("q", "v"))),
        ({"names": ["q"]}, Outer(names=("q",))),
        ({"names": "none"}, Outer()),
        ({"values": "-5,1e1"}, Outer(values=(-5.0, 10.0))),
        ({"values": 3}, Outer(values=(3.0,))),
        ({"corners": "[[1, 2], [3, 4e0]]"}, Outer(corners=((1.0, 2.0), (3.0, 4.0)))),
        ({"corners": [[1, 2]]}, Outer(corners=((1.0, 2.0),))),
        ({"on": "true", "label": "null"}, Outer(on=True, label=None)),
        ({"label": "12"}, Outer(label="12")),
    ],
)
def test_text_and_yaml_mean_the_same(raw: dict[str, Any], expected: Outer) -> None:
    assert build(Outer, raw) == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"inner": {"sise": 1}}, "There is no setting 'inner.sise'; did you mean 'inner.size'?"),
        ({"lable": 1}, "did you mean 'label'?"),
        ({"inner": {"size": 1.5}}, "inner.size must be a whole number, got 1.5"),
        ({"inner": {"size": True}}, "inner.size must be a whole number, got True"),
        ({"inner": {"rate": "much"}}, "inner.rate must be a number, got 'much'"),
        ({"inner": {"mode": "slow"}}, "inner.mode must be one of no, fast, got 'slow'"),
        ({"inner": 3}, "inner must hold settings by name, got 3"),
        ({"on": "perhaps"}, "on must be true or false"),
        ({"values": ["a"]}, "values must be a list, each a number"),
        ({"corners": [[1, 2], [3]]}, "corners must be a list, each a list of 2, each a number"),
        ({"corners": "1,2"}, "corners must be a list, each a list of 2"),
        ({"inner": {"size": None}}, "inner.size must be a whole number, got None"),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(Outer, raw)


def test_a_configuration_survives_yaml(tmp_path: Any) -> None:
    config = load_preset("paper", {"finetune.kinds": "q,v", "data.max_train": 100})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_preset(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("name", ["tiny", "demo", "sst2-minilm", "paper"])
def test_every_preset_resolves_and_describes_itself(name: str) -> None:
    config = load_preset(name)
    assert preset_names()[name]
    assert config.finetune.total_steps == config.steps
    assert config.data.seed == config.finetune.seed == config.seed
    assert set(dotted_keys(RunConfig)) >= {"finetune.lr", "policy.ppo.clip", "steps"}


def test_the_paper_preset_has_table_two() -> None:
    config = load_preset("paper")
    policy, link = config.policy, config.link
    assert config.finetune.model == "facebook/opt-1.3b"
    assert (policy.actor_hidden, policy.unet_depth, policy.unet_kernel) == (256, 6, 3)
    assert (policy.ppo.discount, policy.ppo.decay, policy.ppo.clip) == (0.95, 0.95, 0.2)
    assert (policy.ppo.learning_rate, policy.diffusion.learning_rate) == (1e-4, 5e-5)
    assert config.finetune.batch_size == policy.ppo.minibatch == policy.diffusion.batch_size == 32
    assert (config.seed, config.steps, config.eval_every) == (42, 15_000, 100)
    assert (policy.diffusion.inference_steps, policy.diffusion.training_steps) == (50, 1000)
    assert (policy.diffusion.guidance_weight, link.link_weight) == (0.1, 0.1)
    assert config.finetune.r_max == 64
    assert link.values_db == (-5.0, 0.0, 5.0, 10.0, 15.0)
    assert (link.bandwidth_hz, link.deadline_s, link.accounting) == (100e6, 1.0, "paper")
    assert config.early_stopping


def test_overrides_reach_any_depth_and_set_what_depends_on_them() -> None:
    config = load_preset("tiny", {"policy.ppo.clip": "0.3", "seed": "7", "steps": "20"})
    assert config.policy.ppo.clip == 0.3
    assert config.data.seed == config.finetune.seed == 7
    assert config.finetune.total_steps == 30  # two whole episodes of 15
    assert load_preset("tiny", {"seed": 7, "data.seed": 1}).data.seed == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("finetune.lrr", "did you mean 'finetune.lr'?"),
        ("policy.ppo.clipp", "did you mean 'policy.ppo.clip'?"),
        ("stepss", "did you mean 'steps'?"),
        ("bandwidth_hz", "did you mean link.bandwidth_hz?"),
        ("data.seeds", "did you mean 'data.seed'?"),
    ],
)
def test_an_unknown_override_names_the_nearest(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_preset("tiny", {key: "1"})


def test_unknown_presets_and_files_that_are_no_settings(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_preset("tinny")
    for text, message in (("- 1\n", "must hold settings"), ("a: [1", "no readable YAML")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_preset(str(tmp_path / "x.yaml"))


def test_out_of_range_values_name_their_section() -> None:
    with pytest.raises(ConfigError, match=r"policy\.ppo: clip must be positive"):
        load_preset("tiny", {"policy.ppo.clip": -1})
    with pytest.raises(ConfigError, match="horizon must be at least 1"):
        load_preset("tiny", {"horizon": 0})


@pytest.mark.parametrize(
    "changes",
    [
        {"snr_db": "nan"},
        {"values_db": [".inf"]},
        {"values_db": []},
        {"bandwidth_hz": 0},
        {"bandwidth_hz": -1.0},
        {"deadline_s": 0},
        {"deadline_s": ".inf"},
        {"rate_model": "awgnn"},
        {"process": "gauss-markov", "correlation": 2},
        {"process": "block", "block_length": 0},
        {"rate_model": "rayleigh_outage", "epsilon": 1},
        {"process": "jakes", "fading": "nakagami"},
        {"process": "jakes", "speed_m_s": -1},
        {"process": "jakes", "carrier_hz": 0},
        {"process": "path", "waypoints_m": [[1, 1]]},
        {"process": "path", "decorrelation_m": 0},
        {"process": "trace"},
        {"process": "trace", "trace": "no-such-trace.csv"},
        {"process": "trace", "trace": "x", "trace_format": "mahimahi"},
    ],
)
def test_impossible_links_are_refused_before_anything_loads(changes: dict[str, Any]) -> None:
    with pytest.raises(RankcastError):
        load_preset("tiny", {f"link.{key}": value for key, value in changes.items()})


def test_each_process_is_built_from_its_settings() -> None:
    assert LinkConfig().snr_process() == IidSnr()
    assert LinkConfig(process="static", snr_db=3).snr_process() == StaticSnr(3)
    markov = LinkConfig(process="gauss-markov", snr_db=1, std_db=2, correlation=0.5)
    assert markov.snr_process() == GaussMarkovSnr(1, 2, 0.5)
    for fading in ("rayleigh", "rician", "nakagami"):
        block = LinkConfig(process="block", fading=fading, block_length=4).snr_process()
        assert isinstance(block, BlockFadingSnr)
        assert type(block.fading).__name__.lower() == fading
    assert LinkConfig(values_db=(3, 1, 2)).reference_db == 2
    assert LinkConfig(process="static", snr_db=9).reference_db == 9


def test_the_demo_link_costs_one_at_full_rank_and_five_db() -> None:
    kinds = {"q": 384, "k": 384, "v": 384, "o": 384, "fc1": 1536, "fc2": 1536}
    layout = AdapterLayout(
        tuple(Projection(f"{n}.{k}", n, k, 384, w) for n in range(6) for k, w in kinds.items()), 8
    )
    assert params_per_rank(layout).sum() * 8 == 332_064
    link = load_preset("demo").link
    problem = link.problem(layout)
    full = problem.link_costs.component_costs(link.states((5.0,))).sum()
    assert full == pytest.approx(1.0, abs=0.05)


def test_the_first_difference_of_two_configurations() -> None:
    one, other = to_plain(load_preset("tiny")), to_plain(load_preset("tiny", {"finetune.lr": 1.0}))
    assert first_difference(one, one) == ""
    assert first_difference(one, other) == "finetune.lr was 0.02 and is now 1.0"
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b was None and is now 2"
    assert yaml.safe_load(yaml.safe_dump(one)) == one


def test_a_link_without_values_is_refused() -> None:
    with pytest.raises(LinkError, match="at least one SNR"):
        LinkConfig(values_db=())


def test_moving_devices_are_built_from_their_settings() -> None:
    jakes = LinkConfig(process="jakes", snr_db=8, std_db=6, speed_m_s=10, step_s=0.5)
    shadowing = GaussMarkovSnr(8, 6, float(np.exp(-0.1)))
    assert jakes.snr_process() == SummedSnr((shadowing, JakesSnr(0.0, 10, 3.5e9, 0.5)))
    assert jakes.expected_db == (8,)
    rician = LinkConfig(process="jakes", fading="rician", k_factor=7).snr_process()
    assert isinstance(rician, SummedSnr)
    assert rician.parts[1] == JakesSnr(0.0, 1.5, 3.5e9, 1.0, k_factor=7)
    keys = {"process": "path", "waypoints_m": "[[100, 0], [1000, 0]]", "exponent": 2, "snr_db": 20}
    path = load_preset("tiny", {f"link.{key}": value for key, value in keys.items()}).link
    assert path.snr_process() == PathSnr(((100, 0), (1000, 0)), 1.5, 1.0, 20.0, 2.0, 4.0)
    # The mean of log10(d/100) from 100 to 1,000 m is (10·ln 10 − 9)/(9·ln 10).
    log = np.log(10.0)
    assert path.reference_db == pytest.approx(20 - 20 * (10 * log - 9) / (9 * log), abs=1e-5)


def test_a_path_survives_yaml(tmp_path: Path) -> None:
    config = load_preset("tiny", {"link.process": "path", "link.waypoints_m": [[1, 2], [30, 4]]})
    assert to_plain(config)["link"]["waypoints_m"] == [[1.0, 2.0], [30.0, 4.0]]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_preset(str(tmp_path / "config.yaml")) == config


def test_a_measured_snr_is_replayed(tmp_path: Path) -> None:
    file = tmp_path / "measured.csv"
    file.write_text("when,SNR\n12.00.00,4\n12.00.01,9\n12.00.02,-\n12.00.03,1\n12.00.59,7\n")
    keys = {"process": "trace", "trace": str(file), "time_column": "when", "value_column": "SNR"}
    keys |= {"time_format": "%H.%M.%S", "rate_model": "rayleigh_ergodic"}
    link = load_preset("tiny", {f"link.{key}": value for key, value in keys.items()}).link
    process = link.snr_process()
    assert isinstance(process, ReplayedSnr)
    assert process.values_db.tolist() == [4, 9, 9, 1, 1, 7, 7]
    assert link.expected_db == (1, 4, 7, 7, 9)
    assert link.reference_db == 7
    assert build(LinkConfig, to_plain(link)) == link


def test_a_measured_throughput_needs_awgn(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("20,Mbits/sec\n0,bits/sec\n5000,Kbits/sec\n")
    link = LinkConfig(
        process="trace", trace=str(rows), trace_kind="throughput", trace_format="rows",
        bandwidth_hz=10e6,
    )  # fmt: skip
    process = link.snr_process()
    assert isinstance(process, ReplayedSnr)
    rate_bps = 10e6 * link.rates().spectral_efficiency(process.values_db)
    np.testing.assert_allclose(rate_bps, [20e6, 0.0, 5e6], atol=20.0)
    settings = {"process": "trace", "trace": str(rows), "trace_format": "rows"}
    with pytest.raises(LinkError, match=r"rate_model must be awgn, not rayleigh_ergodic"):
        build(
            LinkConfig,
            settings | {"trace_kind": "throughput", "rate_model": "rayleigh_ergodic"},
        )
    with pytest.raises(LinkError, match="rows hold throughput, from which no SNR follows"):
        build(LinkConfig, settings)
    with pytest.raises(LinkError, match=r"gone\.csv cannot be read"):
        build(LinkConfig, {"process": "trace", "trace": str(tmp_path / "gone.csv")})
    schedule = tmp_path / "schedule.down"
    schedule.write_text("0\n1000\n2000\n")
    keys = settings | {"trace": str(schedule), "trace_format": "mahimahi"}
    build(LinkConfig, keys | {"trace_kind": "throughput"})


def test_a_link_of_5g_nr() -> None:
    link = LinkConfig(rate_model="nr_64qam", bandwidth_hz=5e6, impl_loss_db=1.0)
    ideal = replace(link, impl_loss_db=0.0)
    at = np.array([5.0])
    rates = [float(c.rates().spectral_efficiency(at)[0]) for c in (link, ideal, LinkConfig())]
    assert rates == sorted(rates)
    moved = float(ideal.rates().spectral_efficiency(at - 1.0)[0])
    assert rates[0] == pytest.approx(moved, rel=1e-6)


def test_a_band_too_narrow_for_nr_is_refused() -> None:
    with pytest.raises(LinkError, match="narrower than one resource block"):
        LinkConfig(rate_model="nr_256qam", bandwidth_hz=1e5)
