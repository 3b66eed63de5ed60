from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from rankcast.allocation.problem import AllocationProblem
from rankcast.config.link import (
    BlockConfig,
    GaussMarkovConfig,
    IidConfig,
    JakesConfig,
    LinkConfig,
    RateConfig,
    StaticConfig,
    TraceConfig,
)
from rankcast.config.plain import first_difference, from_plain, setting_names, to_plain
from rankcast.config.run import RunConfig
from rankcast.errors import ConfigError, LinkError, RankcastError
from rankcast.link.build import expected_db, link_states, reference_db, snr_process
from rankcast.link.costs import params_per_rank
from rankcast.link.jakes import JakesSnr
from rankcast.link.path import PathSnr
from rankcast.link.processes import BlockFadingSnr, GaussMarkovSnr, IidSnr, StaticSnr, SummedSnr
from rankcast.link.rate_models import rate_model_of
from rankcast.link.replay import ReplayedSnr
from rankcast.presets import load_preset, preset_names, read_preset, to_yaml, typed_first
from rankcast.records import AdapterLayout, Projection


@dataclass(frozen=True)
class Inner:
    size: int = 1
    rate: float = 0.5
    mode: Literal["no", "fast"] = "no"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=lambda: Inner(size=7))
    names: tuple[str, ...] | None = None
    values: tuple[float, ...] = ()
    corners: tuple[tuple[float, float], ...] = ()
    on: bool = False
    label: str | None = "x"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"inner": {"rate": 2}}, Outer(Inner(size=7, rate=2.0))),
        ({"inner": {"rate": "1e-3"}}, Outer(Inner(size=7, rate=1e-3))),
        ({"inner": {"mode": "fast", "size": 3}}, Outer(Inner(size=3, mode="fast"))),
        ({"names": ["q"]}, Outer(names=("q",))),
        ({"names": None}, Outer()),
        ({"values": [-5, "1e1"]}, Outer(values=(-5.0, 10.0))),
        ({"corners": [[1, 2]]}, Outer(corners=((1.0, 2.0),))),
        ({"on": True, "label": None}, Outer(on=True, label=None)),
        ({"label": "12"}, Outer(label="12")),
    ],
)
def test_plain_values_become_settings(raw: dict[str, Any], expected: Outer) -> None:
    assert from_plain(Outer, raw) == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"inner": {"sise": 1}}, "There is no setting 'inner.sise'; did you mean 'inner.size'?"),
        ({"lable": 1}, "did you mean 'label'?"),
        ({"inner": {"size": 1.5}}, "inner.size must be a whole number, got 1.5"),
        ({"inner": {"size": True}}, "inner.size must be a whole number, got True"),
        ({"inner": {"rate": "much"}}, "inner.rate must be a number, got 'much'"),
        ({"inner": {"rate": False}}, "inner.rate must be a number, got False"),
        ({"inner": {"mode": "slow"}}, "inner.mode must be one of no, fast, got 'slow'"),
        ({"inner": 3}, "inner must hold settings by name, got 3"),
        ({"on": "perhaps"}, "on must be true or false"),
        ({"label": 12}, "label must be text, got 12"),
        ({"names": "q,v"}, "names must be a list, got 'q,v'"),
        ({"values": ["a"]}, "values[0] must be a number, got 'a'"),
        ({"corners": [[1, 2], [3]]}, "corners[1] must be a list of 2, got [3]"),
        ({"corners": [1, 2]}, "corners[0] must be a list, got 1"),
        ({"inner": {"size": None}}, "inner.size must be a whole number, got None"),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_plain(Outer, raw)


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = load_preset(
        "paper",
        {
            "finetune.kinds": ["q", "v"],
            "data.max_train": 100,
            "link.path.waypoints_m": [[1, 2], [30, 4]],
        },
    )
    assert to_plain(config)["link"]["path"]["waypoints_m"] == [[1.0, 2.0], [30.0, 4.0]]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_preset(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("name", ["tiny", "demo", "sst2-minilm", "paper"])
def test_every_preset_resolves_and_describes_itself(name: str) -> None:
    config = load_preset(name)
    assert preset_names()[name]
    assert config.finetune.total_steps == config.steps
    assert config.data.seed == config.finetune.seed == config.seed
    names = set(setting_names(to_plain(config)))
    assert names >= {"finetune.lr", "policy.ppo.clip", "steps", "link.jakes.speed_m_s"}


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
    assert link.iid.values_db == (-5.0, 0.0, 5.0, 10.0, 15.0)
    assert (link.bandwidth_hz, link.deadline_s, link.accounting) == (100e6, 1.0, "paper")
    assert config.early_stopping


def test_overrides_reach_any_depth_and_set_what_depends_on_them() -> None:
    config = load_preset("tiny", {"policy.ppo.clip": 0.3, "seed": 7, "steps": 20})
    assert config.policy.ppo.clip == 0.3
    assert config.data.seed == config.finetune.seed == 7
    assert config.finetune.total_steps == 30  # two whole episodes of 15
    assert load_preset("tiny", {"seed": 7, "data.seed": 1}).data.seed == 1


def test_an_override_leaves_its_neighbours_as_the_preset_has_them() -> None:
    diffusion = load_preset("tiny", {"policy.diffusion.eta": 0.5}).policy.diffusion
    assert diffusion == replace(load_preset("tiny").policy.diffusion, eta=0.5)


def test_what_other_defaults_follow_from_is_read_first() -> None:
    args = ["tiny", "--finetune.lr", "1e-3", "--seed=4", "--steps", "20", "--resume"]
    assert typed_first(args) == {"seed": 4, "steps": 20}
    assert typed_first(["tiny", "--data.seed", "3"]) == {}
    assert typed_first(["--steps", "many"]) == {}


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
        load_preset("tiny", {key: 1})


def test_unknown_presets_and_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_preset("tinny")
    for text, message in (("- 1\n", "must hold settings"), ("a: [1", "no readable YAML")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_preset(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy.ppo.clip": -1}, "policy.ppo: clip must be positive"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"link.bandwidth_hz": 0}, "link: bandwidth_hz must be positive"),
        ({"link.bandwidth_hz": -1.0}, "bandwidth_hz must be positive"),
        ({"link.deadline_s": 0}, "deadline_s must be positive"),
        ({"link.deadline_s": float("inf")}, "deadline_s must be positive"),
        ({"link.rate_model": "awgnn"}, "did you mean 'awgn'"),
        ({"link.jakes.fading": "nakagami"}, "link.jakes.fading must be one of rayleigh, rician"),
    ],
)
def test_values_out_of_range_name_their_section(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_preset("tiny", changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"process": "static", "static.snr_db": float("nan")},
        {"iid.values_db": [float("inf")]},
        {"iid.values_db": []},
        {"process": "gauss-markov", "gauss_markov.correlation": 2},
        {"process": "block", "block.length": 0},
        {"process": "jakes", "jakes.speed_m_s": -1},
        {"process": "jakes", "jakes.carrier_hz": 0},
        {"process": "path", "path.waypoints_m": [[1, 1]]},
        {"process": "path", "path.decorrelation_m": 0},
        {"process": "trace"},
        {"process": "trace", "trace.file": "no-such-trace.csv"},
        {"process": "trace", "trace.file": "x", "trace.format": "mahimahi"},
    ],
)
def test_impossible_processes_are_refused(changes: dict[str, Any]) -> None:
    link = load_preset("tiny", {f"link.{key}": value for key, value in changes.items()}).link
    with pytest.raises(RankcastError):
        snr_process(link)


def test_an_impossible_rate_model_is_refused() -> None:
    link = LinkConfig(rate_model="rayleigh_outage", rate=RateConfig(epsilon=1.0))
    with pytest.raises(LinkError, match="outage probability"):
        rate_model_of(link)
    with pytest.raises(LinkError, match="narrower than one resource block"):
        rate_model_of(LinkConfig(rate_model="nr_256qam", bandwidth_hz=1e5))


def test_each_process_is_built_from_its_settings() -> None:
    assert snr_process(LinkConfig()) == IidSnr()
    static = LinkConfig(process="static", static=StaticConfig(9))
    assert snr_process(static) == StaticSnr(9)
    assert reference_db(snr_process(static), static) == 9
    markov = LinkConfig(process="gauss-markov", gauss_markov=GaussMarkovConfig(1, 2, 0.5))
    assert snr_process(markov) == GaussMarkovSnr(1, 2, 0.5)
    assert expected_db(snr_process(markov), markov) == (1,)
    for fading in ("rayleigh", "rician", "nakagami"):
        settings = BlockConfig(fading=fading, length=4)
        block = snr_process(LinkConfig(process="block", block=settings))
        assert isinstance(block, BlockFadingSnr)
        assert type(block.fading).__name__.lower() == fading
    drawn = LinkConfig(iid=IidConfig((3, 1, 2)))
    assert reference_db(snr_process(drawn), drawn) == 2
    unknown: Any = "nakagami"
    with pytest.raises(ConfigError, match="fading of the process jakes"):
        snr_process(LinkConfig(process="jakes", jakes=JakesConfig(fading=unknown)))


def test_the_demo_link_costs_one_at_full_rank_and_five_db() -> None:
    kinds = {"q": 384, "k": 384, "v": 384, "o": 384, "fc1": 1536, "fc2": 1536}
    layout = AdapterLayout(
        tuple(Projection(f"{n}.{k}", n, k, 384, w) for n in range(6) for k, w in kinds.items()), 8
    )
    assert params_per_rank(layout).sum() * 8 == 332_064
    link = load_preset("demo").link
    problem = AllocationProblem.from_config(link, layout)
    full = problem.link_costs.component_costs(link_states(link, (5.0,))).sum()
    assert full == pytest.approx(1.0, abs=0.05)


def test_the_first_difference_of_two_configurations() -> None:
    one, other = to_plain(load_preset("tiny")), to_plain(load_preset("tiny", {"finetune.lr": 1.0}))
    assert first_difference(one, one) == ""
    assert first_difference(one, other) == "finetune.lr was 0.02 and is now 1.0"
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b was None and is now 2"
    assert yaml.safe_load(yaml.safe_dump(one)) == one


def test_moving_devices_are_built_from_their_settings() -> None:
    jakes = LinkConfig(
        process="jakes", jakes=JakesConfig(snr_db=8, std_db=6, speed_m_s=10, step_s=0.5)
    )
    shadowing = GaussMarkovSnr(8, 6, float(np.exp(-0.1)))
    assert snr_process(jakes) == SummedSnr((shadowing, JakesSnr(0.0, 10, 3.5e9, 0.5)))
    assert expected_db(snr_process(jakes), jakes) == (8,)
    settings = JakesConfig(fading="rician", k_factor=7)
    rician = snr_process(LinkConfig(process="jakes", jakes=settings))
    assert isinstance(rician, SummedSnr)
    assert rician.parts[1] == JakesSnr(0.0, 1.5, 3.5e9, 1.0, k_factor=7)
    keys = {"waypoints_m": [[100, 0], [1000, 0]], "exponent": 2, "snr_db": 20}
    overrides = {f"link.path.{key}": value for key, value in keys.items()}
    path = load_preset("tiny", {"link.process": "path"} | overrides).link
    assert snr_process(path) == PathSnr(((100, 0), (1000, 0)), 1.5, 1.0, 20.0, 2.0, 4.0)
    # The mean of log10(d/100) from 100 to 1,000 m is (10·ln 10 − 9)/(9·ln 10).
    log = np.log(10.0)
    expected = 20 - 20 * (10 * log - 9) / (9 * log)
    assert reference_db(snr_process(path), path) == pytest.approx(expected, abs=1e-5)


def test_a_measured_snr_is_replayed(tmp_path: Path) -> None:
    file = tmp_path / "measured.csv"
    file.write_text("when,SNR\n12.00.00,4\n12.00.01,9\n12.00.02,-\n12.00.03,1\n12.00.59,7\n")
    keys = {"file": str(file), "time_column": "when", "value_column": "SNR"}
    keys |= {"time_format": "%H.%M.%S"}
    overrides = {f"link.trace.{key}": value for key, value in keys.items()}
    overrides |= {"link.process": "trace", "link.rate_model": "rayleigh_ergodic"}
    link = load_preset("tiny", overrides).link
    process = snr_process(link)
    assert isinstance(process, ReplayedSnr)
    assert process.values_db.tolist() == [4, 9, 9, 1, 1, 7, 7]
    assert expected_db(process, link) == (1, 4, 7, 7, 9)
    assert reference_db(process, link) == 7
    assert from_plain(LinkConfig, to_plain(link)) == link


def test_a_measured_throughput_needs_awgn(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("20,Mbits/sec\n0,bits/sec\n5000,Kbits/sec\n")
    trace = TraceConfig(str(rows), "throughput", "rows")
    link = LinkConfig(process="trace", trace=trace, bandwidth_hz=10e6)
    process = snr_process(link)
    assert isinstance(process, ReplayedSnr)
    rate_bps = 10e6 * rate_model_of(link).spectral_efficiency(process.values_db)
    np.testing.assert_allclose(rate_bps, [20e6, 0.0, 5e6], atol=20.0)
    with pytest.raises(LinkError, match=r"rate_model must be awgn, not rayleigh_ergodic"):
        snr_process(replace(link, rate_model="rayleigh_ergodic"))
    with pytest.raises(LinkError, match="rows hold throughput, from which no SNR follows"):
        snr_process(replace(link, trace=replace(trace, kind="snr")))
    with pytest.raises(LinkError, match=r"gone\.csv cannot be read"):
        snr_process(replace(link, trace=TraceConfig(str(tmp_path / "gone.csv"))))
    schedule = tmp_path / "schedule.down"
    schedule.write_text("0\n1000\n2000\n")
    mahimahi = replace(trace, file=str(schedule), format="mahimahi")
    assert isinstance(snr_process(replace(link, trace=mahimahi)), ReplayedSnr)


def test_a_link_of_5g_nr() -> None:
    link = LinkConfig(rate_model="nr_64qam", bandwidth_hz=5e6, rate=RateConfig(impl_loss_db=1.0))
    ideal = replace(link, rate=RateConfig())
    at = np.array([5.0])
    rates = [
        float(rate_model_of(c).spectral_efficiency(at)[0]) for c in (link, ideal, LinkConfig())
    ]
    assert rates == sorted(rates)
    moved = float(rate_model_of(ideal).spectral_efficiency(at - 1.0)[0])
    assert rates[0] == pytest.approx(moved, rel=1e-6)


def test_the_default_run_is_valid() -> None:
    assert from_plain(RunConfig, {}) == RunConfig()
