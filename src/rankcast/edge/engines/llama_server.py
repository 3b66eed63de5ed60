"""Bring adapters into a running llama.cpp server, without a restart of its process.

The server is started with two adapter files (`llama_slots`), both of scale 0. A new adapter goes
into the file that is not in use. The server reads its files when it loads the model, which it does
when it wakes: with `--sleep-idle-seconds` it puts the model away when it has nothing to do, and the
next request wakes it. Where it never sleeps, a command of the owner's makes it read.

The new adapter is proved by requests that name it for themselves alone, while all others are still
answered with the old one. Then one request to the server scales the new one to 1 and the old to 0.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from rankcast.codec.formats.gguf import write_gguf
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.edge.activate import Candidate
from rankcast.edge.engines.folder import run_hook
from rankcast.edge.engines.llama_api import LlamaApi, ServedAdapter
from rankcast.edge.engines.llama_slots import SLOTS, Slots
from rankcast.errors import DeliveryError, UnavailableError

_STEP_S = 0.2
"""Between two looks at the server [s]."""


@dataclass(frozen=True)
class LlamaServer:
    """Loads adapters into a running llama.cpp server.

    Attributes:
        api: of the server.
        slots: the files that it was started with.
        architecture: of the base model, by what the adapter's release says of it.
        hook: program and arguments that make the server read its adapter files again, such as by a
            restart; without it, the server has to sleep.
        hook_timeout_s: after which it is ended and counts as failed [s].
        patience_s: time for the server to fall asleep, or to load its model [s].
        clock: gives seconds that never run backwards.
        sleep: waits [s].
    """

    api: LlamaApi
    slots: Slots
    architecture: Callable[[Candidate], GgufArchitecture]
    hook: Sequence[str] = ()
    hook_timeout_s: float = 60.0
    patience_s: float = 120.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def active(self) -> str | None:
        """Return the label of the one slot that the server answers with."""
        served = self._ours(self._all())
        used = [slot for slot in SLOTS if served[slot].scale != 0.0]
        if len(used) != 1 or served[used[0]].scale != 1.0:
            return None
        content = self.slots.content(used[0])
        return content.label if content is not None and content.read else None

    def activate(self, candidate: Candidate) -> None:
        """Write, let the server read, prove, and scale; until then the one before stays active.

        Raises:
            UnavailableError: the server does not answer, or has no time to read; try again.
            DeliveryError: it does not answer with the adapter as it should.
            CodecError: the adapter does not fit the server's model.
        """
        slot = self._load(candidate)
        self._prove(candidate, slot)
        self._select(slot)

    def restore(self, candidate: Candidate) -> None:
        """Make an adapter active that was proved before."""
        self._select(self._load(candidate))

    def deactivate(self) -> None:
        """Let the base model answer alone."""
        self._select(None)

    def discard(self, keep: AbstractSet[str]) -> None:
        """Keep both files: the server needs them."""

    def _load(self, candidate: Candidate) -> str:
        """Return the slot that has an adapter, which the server has read."""
        label, served = candidate.prefix.label, self._ours(self._all())
        slot = next((s for s in SLOTS if self._label(s) == label), None)
        if slot is None:
            slot = self._spare(served)
            architecture = self.architecture(candidate)
            self.slots.write(
                slot, label, lambda path: write_gguf(candidate.tensors, path, architecture)
            )
        content = self.slots.content(slot)
        if content is None or not content.read:
            self._let_read(slot, label)
            self.slots.mark_read(slot)
        return slot

    def _spare(self, served: dict[str, ServedAdapter]) -> str:
        """Return a slot that is not in use, nor was before the server forgot its scales.

        One that was started with `--lora` answers with both files at once; that ends here.
        """
        idle = [slot for slot in SLOTS if served[slot].scale == 0.0]
        if not idle:
            self._select(None)
            idle = [*SLOTS]
        return min(idle, key=lambda slot: slot == self.slots.used())

    def _let_read(self, slot: str, label: str) -> None:
        """Wait until the server has read its files again.

        Raises:
            UnavailableError: it had no time to.
            DeliveryError: the hook failed, or the server ended as it read; the slot is empty then.
        """
        before = self._all()
        if self.hook:
            variables = {"RANKCAST_ADAPTER": str(self.slots.path(slot)), "RANKCAST_RELEASE": label}
            run_hook(self.hook, variables, self.hook_timeout_s)
            self._wait(self._answers, "does not answer after the hook")
            self.api.set_scales(before)  # a restarted server has others
            return
        self._wait(
            self.api.is_sleeping,
            "did not fall asleep, and it reads adapter files only as it wakes. Start it with "
            "--sleep-idle-seconds 5, or so few that it sleeps at times; or name a command that "
            "restarts it with --hook",
        )
        try:
            if self.api.adapters() != before:
                self.api.set_scales(before)
        except UnavailableError as error:
            self.slots.clear(slot)
            raise DeliveryError(
                f"llama-server at {self.api.url} ended as it read {self.slots.path(slot)}, or took "
                f"longer than {self.api.timeout_s:g} s. The file was emptied; see the server's log."
            ) from error

    def _wait(self, done: Callable[[], bool], why: str) -> None:
        """Look until something is so.

        Raises:
            UnavailableError: it did not come about in time.
        """
        until_s = self.clock() + self.patience_s
        while not done():
            if self.clock() >= until_s:
                raise UnavailableError(f"In {self.patience_s:g} s llama-server {why}.")
            self.sleep(_STEP_S)

    def _answers(self) -> bool:
        try:
            self.api.adapters()
        except UnavailableError:
            return False
        return True

    def _prove(self, candidate: Candidate, slot: str) -> None:
        """Compare what the server says with and without the adapter with what was published.

        Raises:
            DeliveryError: the change is another one.
        """
        proof = None if candidate.manifest is None else candidate.manifest.proof
        prefix = candidate.prefix
        expected = None if proof is None else proof.expected(prefix.file_index, prefix.n_chunks)
        if proof is None or expected is None:
            return
        adapters = self._all()
        number = self._ours(adapters)[slot].number
        without = {served.number: 0.0 for served in adapters}
        verdict = proof.judge(
            expected,
            lambda prompt, tokens: self.api.logprobs(prompt, tokens, without),
            lambda prompt, tokens: self.api.logprobs(prompt, tokens, {**without, number: 1.0}),
        )
        if not verdict.passes:
            raise DeliveryError(
                f"llama-server at {self.api.url} does not answer with {prefix.label} as it was "
                f"published: {verdict.words}."
            )

    def _select(self, slot: str | None) -> None:
        """Let the server answer with one slot or none, in one step; other adapters stay."""
        before = self._all()
        ours = self._ours(before)
        numbers = {ours[s].number: float(s == slot) for s in SLOTS}
        wanted = [replace(x, scale=numbers.get(x.number, x.scale)) for x in before]
        self.api.set_scales(wanted)
        found = {s: served.scale for s, served in self._ours(self._all()).items()}
        if found != {s: float(s == slot) for s in SLOTS}:
            raise DeliveryError(
                f"llama-server at {self.api.url} took the scales and did not set them: {found}."
            )
        self.slots.note_used(slot)

    def _label(self, slot: str) -> str | None:
        content = self.slots.content(slot)
        return None if content is None else content.label

    def _all(self) -> tuple[ServedAdapter, ...]:
        """Return all adapters that the server has.

        Raises:
            UnavailableError: it does not answer. What it has not read is taken out of its files,
                for it may be what it ended of.
        """
        self.slots.prepare()
        try:
            return self.api.adapters()
        except UnavailableError:
            for slot in SLOTS:
                content = self.slots.content(slot)
                if content is not None and not content.read:
                    self.slots.clear(slot)
            raise

    def _ours(self, adapters: Sequence[ServedAdapter]) -> dict[str, ServedAdapter]:
        """Return our two of the adapters that the server has.

        Raises:
            DeliveryError: it was started with other files.
        """
        found = {slot: _of_path(adapters, self.slots.path(slot)) for slot in SLOTS}
        both = {slot: served for slot, served in found.items() if served is not None}
        if len(both) < len(SLOTS):
            raise DeliveryError(
                f"llama-server at {self.api.url} was not started with the adapter files of "
                f"{self.slots.name}. Start it so: {start_command(self.slots)}"
            )
        return both


def start_command(slots: Slots, idle_s: int = 5) -> str:
    """Return how to start a server that adapters can be brought into.

    Not with `--lora-init-without-apply`, which leaves scales at 1 in some versions of the server.
    """
    files = ",".join(f"{slots.path(slot)}:0" for slot in SLOTS)
    words = ("llama-server", "--model", str(slots.base.absolute()), "--lora-scaled", files)
    return f"{shlex.join(words)} --sleep-idle-seconds {idle_s}"


def _of_path(adapters: Sequence[ServedAdapter], path: Path) -> ServedAdapter | None:
    """Return the adapter of a file; by its name alone where the server sees another folder."""
    same = [x for x in adapters if Path(x.path).absolute() == path]
    alike = [x for x in adapters if Path(x.path).name == path.name]
    found = same or alike
    return found[0] if len(found) == 1 else None
