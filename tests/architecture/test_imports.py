"""The light install stays light: what an edge device or `--help` needs imports no torch."""

from __future__ import annotations

import json

import pytest

from helpers.commands import fresh_python

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "gymnasium",
    "matplotlib",
    "tensorboard",
    "fastapi",
    "sqlalchemy",
)
LIGHT = {
    "the package": "import rankcast",
    "records and errors": "import rankcast.records, rankcast.errors",
    "the radio": "import rankcast.link.capacity, rankcast.link.costs, rankcast.link.processes",
    "the settings of a run": "from rankcast.presets import load_preset; load_preset('tiny')",
    "a link from settings": (
        "from rankcast.config import LinkConfig\n"
        "from rankcast.link.build import snr_process\n"
        "snr_process(LinkConfig())"
    ),
    "allocators": (
        "import rankcast.allocation.baselines, rankcast.allocation.waterfilling, "
        "rankcast.allocation.beliefs"
    ),
    "a device": "import rankcast.edge.sync, rankcast.edge.engines.vllm, rankcast.cli.edge",
    "the synthetic utility": "import rankcast.learner.synthetic",
    "signing, publishing and trust": (
        "import rankcast.release.publish, rankcast.release.verify, rankcast.cli.publish"
    ),
    "many devices on one band": "import rankcast.band.schedulers, rankcast.band.lagrangian",
    "the command line": (
        "import contextlib, io\n"
        "from rankcast.cli.main import main\n"
        "sys.argv = ['rankcast', '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main()"
    ),
}


@pytest.mark.parametrize("what", LIGHT)
def test_imports_nothing_heavy(what: str) -> None:
    report = f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = fresh_python(f"import json, sys\n{LIGHT[what]}\n{report}", check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_check_would_notice_torch() -> None:
    """The list of heavy modules names what `sys.modules` really calls them."""
    done = fresh_python("import sys, rankcast.policy.ppo; print('torch' in sys.modules)")
    assert done.stdout.strip() == "True"


def test_a_device_on_a_plain_link_needs_no_scipy() -> None:
    """Neither to verify nor to plan, and other links say what to install."""
    script = (
        "import sys; sys.modules['scipy'] = None\n"
        f"{LIGHT['a device']}; {LIGHT['signing, publishing and trust']}\n"
        "import rankcast.packaging.export, rankcast.edge.engines.folder\n"
        "from rankcast.edge.advice import RadioLink\n"
        "from rankcast.errors import ConfigError\n"
        "assert RadioLink(5.0, 1e6).throughput_bps(1.0) > 1e6\n"
        "try:\n    RadioLink(5.0, 1e6, 'rayleigh_ergodic').throughput_bps(1.0)\n"
        "except ConfigError as error:\n    assert \"'rankcast[link]'\" in str(error)\n"
        "else:\n    raise AssertionError\n"
        "from rankcast.cli.main import main\n"
        "main(['allocate', '--run', 'none', '--snr-db', '5', '--bandwidth-hz', '1e6',"
        " '--deadline-s', '1'])"
    )
    done = fresh_python(script, check=False)
    right = done.returncode == 2 and "pip install 'rankcast[link]'" in done.stderr
    assert right, done.stderr
