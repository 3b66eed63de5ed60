"""An adapter's way through rankcast: saved by PEFT, packed, exported, loaded by stock PEFT."""

from __future__ import annotations

from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.peft_methods import Method, loaded, trained
from helpers.tiny_models import build, error_of
from rankcast import pack
from rankcast.codec.container import Container
from rankcast.errors import RankcastError
from rankcast.packaging.export import export

FINEST = {"budget_bits": 1e12}
"""Options of `pack`: the finest steps there are."""


@dataclass(frozen=True)
class RoundTrip:
    """What came of one adapter.

    Attributes:
        effect: ‖wanted − base‖ / ‖base‖: by how much the adapter changes what the model says.
        stock: error of what PEFT itself loads from what it saved; every error is of the logits,
            beside what the adapter changes in them.
        outcome: `low-rank` or `general`, the form in which it was packed, or `refused`.
        refusal: what was said then.
        finest: error after a round trip at the finest steps, None if refused.
        good: error after a round trip at the default quality.
        merged: error of the merged model at the finest steps, None if it cannot be merged.
        saved_bytes: of the tensors that PEFT saved.
        good_bytes: of the file at the default quality.
    """

    effect: float
    stock: float
    outcome: str
    refusal: str | None
    finest: float | None
    good: float | None
    merged: float | None
    saved_bytes: int
    good_bytes: int | None


def round_trip(method: Method, folder: Path, seed: int = 1) -> RoundTrip:
    """Train, save, pack, export and load an adapter of one kind, in a folder.

    The folder is the current one meanwhile, so that messages name no path of this machine.
    """
    with chdir(folder):
        return _round_trip(method, seed)


def _round_trip(method: Method, seed: int) -> RoundTrip:
    saved, wanted = trained(method, Path(), seed)
    model = build(method.model)
    base = method.answers(model)
    effect = float((wanted - base).norm() / base.norm())
    stock = error_of(loaded(method, saved), wanted, base)
    n_saved = (saved / "adapter_model.safetensors").stat().st_size
    try:
        finest, good = (packed(method, saved, **how) for how in (FINEST, {}))
    except RankcastError as error:
        return RoundTrip(effect, stock, "refused", str(error), None, None, None, n_saved, None)

    def error_after(container: Container, name: str) -> float:
        container.export("peft", name)
        return error_of(loaded(method, Path(name)), wanted, base)

    merged = merged_model(method, finest, Path("merged"))
    return RoundTrip(
        effect,
        stock,
        "general" if good.tensors().is_general else "low-rank",
        None,
        error_after(finest, "finest"),
        error_after(good, "good"),
        None if merged is None else error_of(method.answers(merged), wanted, base),
        n_saved,
        len(good.to_bytes()),
    )


def packed(method: Method, saved: Path, **how: Any) -> Container:
    """Pack with the options that this kind of adapter asks for."""
    options = dict(method.options)
    if options.get("base_model"):
        options["base_model"] = base_folder(method, saved.parent)
    if options.get("initial_adapter"):
        options["initial_adapter"] = saved.parent / "initial"
    return pack(saved, **options, **how)


def merged_model(method: Method, container: Container, folder: Path) -> Any:
    """Return the model with the adapter merged, read by transformers; None if that is refused."""
    model = build(method.model)
    if not hasattr(model, "save_pretrained"):  # none of transformers'
        return None
    try:
        export(container, "merged", folder, base_model=base_folder(method, folder.parent))
    except RankcastError:
        return None
    return type(model).from_pretrained(folder).eval()


def base_folder(method: Method, parent: Path) -> Path:
    """Save the base model, once, and return its folder."""
    folder = parent / "base"
    if not folder.exists():
        build(method.model).save_pretrained(folder)
    return folder
