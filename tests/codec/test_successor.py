"""An adapter packed as the next version of a file: turned towards it, with its steps and chunks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from rankcast.codec.chunks import plan_of_chunk
from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.header import BaseModel
from rankcast.codec.layout import Layout
from rankcast.codec.packing import Source
from rankcast.codec.quantiser import step_of
from rankcast.codec.successor import pack_after, turned
from rankcast.codec.tensors import AdapterTensors, Factors, LazyFactors
from rankcast.codec.update import make_update
from rankcast.errors import CodecError

WIDTHS = ((64, 64), (64, 96))
MODULES = {"classifier.weight": (2, 64), "classifier.bias": (2,)}


def source(tensors: AdapterTensors, **about: int) -> Source:
    return Source(tensors, BaseModel("tiny", "0" * 64), {"task_type": "SEQ_CLS"}, **about)


def rotated(tensors: AdapterTensors, seed: int) -> AdapterTensors:
    """Return the same adapter with the components of each projection mixed."""
    rng = np.random.default_rng(seed)
    factors = []
    for f in tensors.factors:
        q, _ = np.linalg.qr(rng.normal(size=(f.rank, f.rank)))
        left, right = f.left @ q, q.T @ f.right
        factors.append(Factors(left.astype(np.float32), right.astype(np.float32)))
    return replace(tensors, factors=tuple(factors))


def size_of_update(old: Container, new: Container) -> int:
    return len(make_update(old.to_bytes(), new.to_bytes()))


def plans(file: Container) -> list:
    layout = Layout.of(file.header)
    return [plan_of_chunk(layout, chunk) for chunk in file.chunks]


def test_a_sign_and_a_quarter_turn_are_taken_back() -> None:
    old = Factors(np.float32([[2, 0], [0, 1]]), np.float32([[2, 0], [0, 1]]))
    turn = np.float32([[0, -1], [1, 0]])
    new = Factors(old.left @ turn, turn.T @ old.right)
    back = turned(new, old)
    assert back.left == pytest.approx(old.left)
    assert back.right == pytest.approx(old.right)
    minus = turned(Factors(-old.left, -old.right), old)
    assert minus.left == pytest.approx(old.left)
    # Where it would hardly help, and where there is nothing, the factors stay as they are.
    near = Factors(old.left + np.float32(1e-3), old.right - np.float32(2e-3))
    assert turned(near, old) is near
    nothing = Factors(np.zeros((2, 0), np.float32), np.zeros((0, 2), np.float32))
    assert turned(nothing, old).rank == 0


def test_turning_keeps_what_the_factors_are() -> None:
    new, old = (random_adapter(seed, ranks=(4, 3)) for seed in (1, 2))
    for f, g in zip(rotated(new, 0).factors, old.factors, strict=True):
        assert turned(f, g).delta_weight() == pytest.approx(f.delta_weight(), abs=1e-6)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_rotated_adapter_costs_next_to_nothing(lazy: bool) -> None:
    tensors = random_adapter(0, WIDTHS, (4, 4), MODULES)
    old = packed(tensors, finest=-30)
    new = rotated(old.tensors(), 1)
    if lazy:
        factors = list(new.factors)
        new = replace(new, factors=LazyFactors((4, 4), factors.__getitem__))
    after = pack_after(source(new), old)
    assert plans(after) == plans(old)
    assert size_of_update(old, after) < 0.1 * len(old.to_bytes())
    plain = pack_at_exponent(source(rotated(old.tensors(), 1)), -30)
    assert size_of_update(old, plain) > 5 * size_of_update(old, after)


def test_a_weight_keeps_its_cell_as_long_as_it_was_told() -> None:
    tensors = random_adapter(0, WIDTHS, (2, 2), MODULES)
    old = packed(tensors, n_steps=1)
    step = step_of(plans(old)[-1].exponent)
    (first, second), before = old.tensors().factors, old.tensors()
    left = first.left.copy()
    left[0, 0] += 0.7 * step
    left[1, 0] -= 0.9 * step
    new = replace(before, factors=(Factors(left, first.right), second))
    at = {keep: pack_after(source(new), old, keep).tensors().factors[0].left for keep in (0.5, 0.8)}
    moved = [np.rint((at[keep] - first.left) / step)[:2, 0].tolist() for keep in (0.5, 0.8)]
    assert moved == [[1, -1], [0, -1]]
    for keep in (0.49, 1.01):
        with pytest.raises(CodecError, match="within"):
            pack_after(source(new), old, keep)


def test_a_new_step_of_training_is_taken() -> None:
    tensors = random_adapter(0, WIDTHS, (2, 2))
    old = packed(tensors, n_steps=1)
    new = pack_after(source(rotated(tensors, 1), exponent=-26), old)
    assert plans(new)[-1].exponent == -26
    assert plans(pack_after(source(tensors, exponent=-24), old)) == plans(old)


def test_components_that_appear_later_are_packed() -> None:
    """The file before has one component of a projection, the others rounded to nothing."""
    tensors = random_adapter(0, WIDTHS, (3, 3))
    weak = np.float32([1, 1e-4, 1e-4])
    few = tuple(Factors(f.left * weak, f.right * weak[:, None]) for f in tensors.factors)
    old = packed(replace(tensors, factors=few), n_steps=1)
    assert old.tensors().ranks.tolist() == [1, 1]
    new = pack_after(source(tensors), old)
    assert new.tensors().ranks.tolist() == packed(tensors, n_steps=1).tensors().ranks.tolist()


def test_whole_numbers_and_centres_stay() -> None:
    rng = np.random.default_rng(0)
    names = {"ids": np.arange(90), "scale": np.float32(1 + 0.01 * rng.normal(size=300))}
    made = replace(random_adapter(0), modules=names, carriage=dict.fromkeys(names, "own"),
                   config={"use_dora": True})  # fmt: skip
    old = packed(made)
    assert size_of_update(old, pack_after(source(made), old)) < 0.2 * len(old.to_bytes())
    far = replace(made, modules=names | {"scale": names["scale"] + np.float32(1e-4)})
    after = pack_after(source(far), old)
    assert (after.tensors().modules["ids"] == np.arange(90)).all()
    assert after.tensors().modules["scale"] == pytest.approx(far.modules["scale"], abs=1e-4)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (random_adapter(0, ((64, 64), (64, 80)), (2, 2)), "projections"),
        (random_adapter(0, WIDTHS, (2, 1)), "ranks"),
        (random_adapter(0, WIDTHS, (2, 2), MODULES), "tensors beside"),
    ],
)
def test_a_file_of_another_adapter_is_refused(other: AdapterTensors, what: str) -> None:
    file = packed(random_adapter(0, WIDTHS, (2, 2)))
    with pytest.raises(CodecError, match=what):
        pack_after(source(other), file)
    with pytest.raises(CodecError, match="cut short"):
        pack_after(source(other), file.prefix(1))
