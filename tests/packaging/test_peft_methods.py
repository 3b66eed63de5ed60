"""Adapters of every kind that PEFT has: packed and loaded again, or refused; as documented."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.peft_methods import METHODS, VARIANTS, loaded, trained
from helpers.round_trips import FINEST, packed, round_trip
from helpers.tiny_models import build, error_of
from studies.report.blocks import rendered_blocks, stale_blocks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's and PyTorch's advice
ROOT = Path(__file__).parents[2]
EVERY = METHODS | VARIANTS
COMMITTED = json.loads((ROOT / "studies" / "adapters" / "result.json").read_text("utf-8"))
SEED = 1
EXACT = 1e-3
"""Of an error that is 1 where no adapter arrived; the finest steps leave about 3e-4."""
NOT_LOADED_BY_PEFT = {"XLORA", "PiSSA by random SVD, `--initial-adapter`"}
"""What PEFT 0.21 itself does not load as it saved it: the mixture loses `layers.0` of its
classifier, a name like its first LoRA's; the fast SVD gives another initial adapter each time."""
GENERAL = ("IA3", "LOHA", "OFT", "HRA", "VERA", "SHIRA", "PREFIX_TUNING")
"""Of which every prefix is loaded: vectors near 1, products, rotations, whole numbers, prompts."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def committed(name: str) -> dict[str, Any]:
    """Return what the document says of a kind of adapter, for one seed."""
    rows = [row for row in COMMITTED["rows"] if (row["name"], row["seed"]) == (name, SEED)]
    assert rows, f"No row of {name} in the result: {COMMITTED['command']}."
    return rows[0]


def test_every_method_of_peft_is_here() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as REGISTRY

    registered = {str(kind.value): config.__name__ for kind, config in REGISTRY.items()}
    for name in registered:
        assert name in METHODS, f"New PEFT method {name}: add a config to tests/helpers."
    assert {name: method.config for name, method in METHODS.items()} == registered


@pytest.mark.parametrize("name", EVERY)
def test_a_kind_of_adapter_does_as_documented(name: str, tmp_path: Path) -> None:
    trip, shown = round_trip(EVERY[name], tmp_path, SEED), committed(name)
    assert trip.effect > 0.02  # else an error beside it would say nothing
    assert (trip.stock > 0.1) if name in NOT_LOADED_BY_PEFT else (trip.stock < 1e-5)
    assert (trip.outcome, trip.refusal) == (shown["outcome"], shown["refusal"])
    if trip.outcome != "refused":
        assert trip.finest is not None
        assert trip.good is not None
        assert trip.finest < EXACT
        assert (trip.merged is None) == (shown["merged"] is None)
        assert trip.merged is None or trip.merged < EXACT
        assert shown["good"] / 3 < trip.good < shown["good"] * 3
        assert trip.good_bytes == pytest.approx(shown["good_bytes"], rel=0.1)


def errors_of_prefixes(name: str, folder: Path, **how: Any) -> list[float]:
    """Return the error of each prefix as stock PEFT loads it, of one chunk and more."""
    method = METHODS[name]
    saved, wanted = trained(method, folder, SEED)
    base, errors = method.answers(build(method.model)), []
    container = packed(method, saved, **how)
    for n in range(1, len(container.chunks) + 1):
        container.prefix(n).export("peft", folder / str(n))
        errors.append(error_of(loaded(method, folder / str(n)), wanted, base))
    return errors


@pytest.mark.parametrize("name", GENERAL)
def test_every_prefix_in_general_form_loads_and_the_error_falls(name: str, tmp_path: Path) -> None:
    """Each chunk makes the steps three times finer; the error falls by half or more on average."""
    errors = errors_of_prefixes(name, tmp_path)
    assert len(errors) >= 4
    assert all(after < before for before, after in pairwise(errors)), errors
    assert errors[-1] < errors[0] / 2 ** (len(errors) - 1)


@pytest.mark.parametrize("name", GENERAL)
def test_the_coarsest_prefixes_answer_with_numbers(name: str, tmp_path: Path) -> None:
    """At the finest steps the first chunk is the coarsest: HRA divides by a vector's length."""
    errors = errors_of_prefixes(name, tmp_path, **FINEST)
    assert np.isfinite(errors).all(), errors
    assert errors[-1] < EXACT


def test_the_committed_result_has_every_kind_and_says_how_it_was_made() -> None:
    rows = [(row["name"], row["seed"]) for row in COMMITTED["rows"]]
    assert rows == [(name, seed) for name in EVERY for seed in COMMITTED["seeds"]]
    assert {"peft", "torch", "transformers", "rankcast"} <= set(COMMITTED["versions"])


@pytest.mark.parametrize("document", ["docs/adapters.md", "studies/adapters/README.md"])
def test_the_table_is_what_the_result_says(document: str) -> None:
    blocks = {"adapters": rendered_blocks(ROOT / "studies")["adapters"]}
    assert "<!-- results:adapters -->" in (ROOT / document).read_text("utf-8")
    assert stale_blocks(ROOT / document, blocks) == []
