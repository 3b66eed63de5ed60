"""The light install stays light: what an edge device or `--help` needs imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
    "the radio": "import rankcast.link.capacity, rankcast.link.payload, rankcast.link.fading",
    "allocators": (
        "import rankcast.allocation.baselines, rankcast.allocation.solve, "
        "rankcast.allocation.utility"
    ),
    "a device": (
        "import rankcast.delivery.edge.client, rankcast.delivery.edge.vllm, "
        "rankcast.run.edge_commands"
    ),
    "the synthetic utility": "import rankcast.finetune.synthetic",
    "signing, publishing and trust": (
        "import rankcast.delivery.publishing, rankcast.delivery.trust, rankcast.run.publishing"
    ),
    "the command line": (
        "import contextlib, io\n"
        "from rankcast.cli import main\n"
        "sys.argv = ['rankcast', '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main()"
    ),
}


@pytest.mark.parametrize("what", LIGHT)
def test_imports_nothing_heavy(what: str) -> None:
    report = f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        [sys.executable, "-c", f"import json, sys\n{LIGHT[what]}\n{report}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_check_would_notice_torch() -> None:
    """The list of heavy modules names what `sys.modules` really calls them."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, rankcast.policy.gae; print('torch' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "True"


def test_a_device_on_a_plain_link_needs_no_scipy() -> None:
    """Neither to verify nor to plan, and other links say what to install."""
    script = (
        "import sys; sys.modules['scipy'] = None\n"
        f"{LIGHT['a device']}; {LIGHT['signing, publishing and trust']}\n"
        "import rankcast.run.exporting, rankcast.delivery.edge.activation\n"
        "from rankcast.delivery.edge.advice import RadioLink\n"
        "from rankcast.errors import ConfigError\n"
        "assert RadioLink(5.0, 1e6).throughput_bps(1.0) > 1e6\n"
        "try:\n    RadioLink(5.0, 1e6, 'rayleigh_ergodic').throughput_bps(1.0)\n"
        "except ConfigError as error:\n    assert \"'rankcast[link]'\" in str(error)\n"
        "else:\n    raise AssertionError\n"
        "from rankcast.cli import main\n"
        "main(['allocate', '--run', 'none', '--snr-db', '5', '--bandwidth-hz', '1e6',"
        " '--deadline-s', '1'])"
    )
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (done.returncode, "pip install 'rankcast[link]'" in done.stderr) == (2, True), (
        done.stderr
    )
