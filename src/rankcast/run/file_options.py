"""What the commands on `.rcast` files take; see `options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Which texts and which model, where an adapter's folder does not say."""

    texts: str | None = None
    """Labelled texts: a file, a folder with one file a split, or a data set on the Hugging Face
    hub. A run of rankcast knows its own."""
    base_model: str | None = None
    """The base model: a folder, or its name on the hub. A run knows its own."""
    text_column: str = "text"
    """Column of the texts in --texts."""
    label_column: str = "label"
    """Column of the classes in --texts."""


@dataclass(frozen=True, kw_only=True)
class Pack(Texts):
    """Code an adapter in few bytes, so that every prefix of the chunks is an adapter.

    rankcast pack runs/demo --output demo.rcast

    rankcast pack my-peft-lora --output my.rcast --budget-bits 200000

    rankcast pack runs/demo --output demo.rcast --snr-db 5 --bandwidth-hz 1e5 --deadline-s 1

    rankcast pack runs/demo --output demo.rcast --measure

    Takes runs of rankcast, and LoRA and AdaLoRA adapters that PEFT saved. Needs no torch, unless
    texts are to say where precision matters. For the fewest bytes, rankcast finish comes first.
    """

    source: tyro.conf.Positional[Path]
    """Folder of a run or of an adapter."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write, NAME.rcast."""
    quality: Literal["fine", "good", "small"] | None = None
    """Quantiser step beside the root mean square of the weights: half, one, or two. good if nothing
    else is asked for."""
    budget_bits: float | None = None
    """Choose the finest step at which the whole file has at most so many bits."""
    snr_db: float | None = None
    """Choose it for a link: received Es/N0 [dB], with --bandwidth-hz and --deadline-s."""
    bandwidth_hz: float | None = None
    """Bandwidth of that link [Hz]."""
    deadline_s: float | None = None
    """Time in which the file has to arrive over that link [s]."""
    rate_model: str = "awgn"
    """How SNR becomes rate: awgn (Shannon), or what 5G NR gets through, nr_64qam or nr_256qam."""
    planned: bool = False
    """For a run and a budget or link: choose the rank and the step of each projection together, by
    the gains that the run has learned, instead of one step for all."""
    measure: bool = False
    """Run the model: coarser steps where weights matter less, and in the file what loss and
    accuracy each prefix reaches on the validation texts. --texts implies it."""
    json: bool = False
    """Print what was written as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Finish(Texts):
    """Train an adapter some minutes more on rounded weights, so that it codes much smaller.

    rankcast finish runs/demo --output runs/demo/finished

    rankcast pack runs/demo/finished --output demo.rcast

    Takes what rankcast pack takes. Ctrl-C keeps what was trained; the same command goes on.
    """

    source: tyro.conf.Positional[Path]
    """Folder of a run or of an adapter."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write, for rankcast pack and rankcast.adapters.export.load_adapter."""
    steps: int = 400
    """Training steps."""
    lr: float = 1e-3
    """Learning rate at the beginning; it falls to zero."""
    relative_step: float = 3.0
    """Quantiser step beside the root mean square of the weights: larger codes smaller."""
    bit_weight: float = 6e-7
    """What one bit may cost [nats]: larger codes smaller."""
    labels: bool = False
    """Train towards the labels instead of towards what the adapter answers now."""
    json: bool = False
    """Print what was reached as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Unpack:
    """Write the adapter that a file, or the first chunks of it, amount to: a LoRA for PEFT.

    See `rankcast export` for other formats.

    rankcast unpack demo.rcast --output adapters/demo

    rankcast unpack arrived-so-far.rcast --output adapters/demo --prefix
    """

    file: tyro.conf.Positional[Path]
    """What `rankcast pack` wrote."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write."""
    chunks: int | None = None
    """Use so many chunks; all of them if left out."""
    prefix: bool = False
    """Accept a file that was cut short, and use the chunks that are complete."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Info:
    """Show what a file holds: ranks and bits of each projection, and the ladder of chunks.

    rankcast info demo.rcast
    """

    file: tyro.conf.Positional[Path]
    """What `rankcast pack` wrote."""
    prefix: bool = False
    """Accept a file that was cut short."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Verify:
    """Check that a file is whole and unchanged and that every prefix of it decodes.

    rankcast verify demo.rcast
    """

    file: tyro.conf.Positional[Path]
    """What `rankcast pack` wrote."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Export:
    """Write an adapter for PEFT, vLLM or llama.cpp, or the base model with the adapter merged in.

    rankcast export a.rcast --output adapters/a

    rankcast export a.rcast --format gguf --base-model models/llama --output a.gguf

    rankcast export --run runs/demo --snr-db 5 --output adapters/at-5-db

    From a file of `rankcast pack`, or from a run: then the plan for a link, as a LoRA for PEFT.
    """

    output: Path
    """Folder or, for gguf, file to write."""
    file: tyro.conf.Positional[Path | None] = None
    """What `rankcast pack` wrote."""
    format: Literal["peft", "vllm", "gguf", "merged"] = "peft"
    """peft: LoRA with a rank for each projection. vllm: padded to one rank, as vLLM and SGLang need
    it. gguf: for llama.cpp. merged: the whole model, which needs torch."""
    chunks: int | None = None
    """Use so many chunks of the file; all of them if left out."""
    prefix: bool = False
    """Accept a file that was cut short, and use the chunks that are complete."""
    base_model: Path | None = None
    """Folder of the base model: for gguf (its config.json), for merged, and where a module travels
    as a difference."""
    run: Path | None = None
    """Folder of a trained run."""
    snr_db: float | None = None
    """Received Es/N0 [dB]; with --run."""
    bandwidth_hz: float | None = None
    """Bandwidth [Hz]; the run's own if left out."""
    deadline_s: float | None = None
    """Time in which the plan has to arrive [s]; the run's own if left out."""
    debug: bool = False
    """Show the traceback of an error."""
