"""Write adapters into folders that other programs read: LoRA of PEFT, GGUF, or the file as it came.

`versions/LABEL` is written whole beside the old ones, `current` leads to the active one and is
switched in one step, and the owner's own command (the hook) makes a server read it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankcast.codec.formats.gguf import write_gguf
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.formats.peft import write_peft
from rankcast.codec.header import Header
from rankcast.codec.tensors import AdapterTensors
from rankcast.edge.activate import Candidate
from rankcast.errors import ConfigError, DeliveryError
from rankcast.files import disk_errors, flush_file, flush_folder, new_folder

_TAIL = 500
"""Bytes of a hook's output that an error repeats."""
_SUMS = "rankcast_release.json"
Format = Literal["peft", "vllm", "gguf", "rcast"]


def run_hook(command: Sequence[str], variables: Mapping[str, str], timeout_s: float) -> None:
    """Run a program to its end, or end it and what it started.

    Args:
        command: program and arguments; no shell reads them.
        variables: of its environment, beside ours.
        timeout_s: after which it is ended [s].

    Raises:
        DeliveryError: it cannot be started, took too long, or left with another status than 0.
    """
    words = shlex.join(command)
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603 the owner's own command, without a shell
                list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **variables}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DeliveryError(f"The hook {words} cannot be run: {error.strerror}.") from error
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise DeliveryError(
                f"The hook {words} took longer than {timeout_s:g} s and was ended."
            ) from error
        except BaseException:
            _end(process)
            raise
        if status:
            output.seek(0)
            tail = output.read()[-_TAIL:].decode("utf-8", "replace").strip()
            raise DeliveryError(
                f"The hook {words} left with status {status}: {tail or 'no output'}."
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a hook and what it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


@dataclass(frozen=True)
class AdapterFolder:
    """`versions/LABEL`, each written once and whole, and `current`, a link to the active one.

    Attributes:
        format: `peft`; `vllm`: padded to one rank; `gguf`: for llama.cpp; `rcast`: as it came.
        root: the folder.
        architecture: of the base model by what the adapter's release says of it, for `gguf`.
        in_full: adds the base model's tensors to what travels as a difference.
    """

    format: Format
    root: Path
    architecture: Callable[[Candidate], GgufArchitecture] | None = None
    in_full: Callable[[AdapterTensors, Header], AdapterTensors] | None = None

    def version(self, label: str) -> Path:
        """Return where a version lies."""
        return self.root.absolute() / "versions" / label

    def active(self) -> str | None:
        """Return the label of the version that `current` leads to.

        None if it leads nowhere, or to files that were damaged or are of another format.
        """
        try:
            label = (self.root / "current").readlink().name
        except OSError:
            return None
        return label if self._is_whole(self.version(label)) else None

    def checked(self, label: str) -> Path:
        """Return the folder of a version whose files are those that were written.

        Raises:
            DeliveryError: it is missing, was changed, or is of another format.
        """
        folder = self.version(label)
        try:
            written = json.loads((folder / _SUMS).read_text("utf-8"))["format"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DeliveryError(
                f"{folder} holds no adapter that rankcast edge wrote. Sync again, with --format "
                f"{self.format} and the same --output."
            ) from error
        if written != self.format:
            raise DeliveryError(
                f"{folder} is of the format {written!r}. Sync with --format {self.format}."
            )
        if not self._is_whole(folder):
            raise DeliveryError(
                f"{folder} is damaged: its files are not those that were written. Sync again: that "
                f"writes it anew."
            )
        return folder

    def write(self, candidate: Candidate) -> Path:
        """Write a version, unless it lies here unchanged, and return its folder.

        Raises:
            UnavailableError: the disk is full.
            CodecError: the format cannot carry the adapter.
            ConfigError: the format needs the base model.
        """
        container, tensors = candidate.container, candidate.tensors
        folder = self.version(candidate.prefix.label)
        if self._is_whole(folder):
            return folder
        with disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with new_folder(folder) as new:
                if self.format == "rcast":
                    container.save(new / "adapter.rcast")
                elif self.format == "gguf":
                    write_gguf(tensors, new / "adapter.gguf", self._known_architecture(candidate))
                else:
                    if self.in_full is not None and "difference" in tensors.carriage.values():
                        tensors = self.in_full(tensors, container.header)
                    header = container.header
                    write_peft(
                        tensors, new, base_model_name=header.base.name,
                        task_type=header.task.get("task_type"), uniform_rank=self.format == "vllm",
                    )  # fmt: skip
                (new / _SUMS).write_text(json.dumps(self._sums(new), indent=2) + "\n", "utf-8")
                for path in new.iterdir():
                    flush_file(path)
                flush_folder(new)
            flush_folder(folder.parent)
        return folder

    def switch(self, label: str | None) -> None:
        """Let `current` lead to another version in one step; None removes it.

        Raises:
            UnavailableError: the disk does not take it.
        """
        link, new = self.root / "current", self.root / ".current.tmp"
        with disk_errors(link):
            if label is None:
                link.unlink(missing_ok=True)
            else:
                new.unlink(missing_ok=True)
                new.symlink_to(Path("versions") / label, target_is_directory=True)
                new.replace(link)
            flush_folder(self.root)

    def discard(self, keep: AbstractSet[str]) -> None:
        """Remove every version but those to keep and the active one."""
        versions, active = self.root / "versions", self.active()
        for path in sorted(versions.iterdir()) if versions.is_dir() else ():
            if path.name not in keep and path.name != active:
                shutil.rmtree(path, ignore_errors=True)

    def _known_architecture(self, candidate: Candidate) -> GgufArchitecture:
        if self.architecture is None:
            raise ConfigError("GGUF needs to know the base model: name it with --base-model.")
        return self.architecture(candidate)

    def _sums(self, folder: Path) -> dict[str, str]:
        return {"format": self.format} | {
            path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != _SUMS
        }

    def _is_whole(self, folder: Path) -> bool:
        """Return whether the files of a version are those that were written, in this format."""
        try:
            return json.loads((folder / _SUMS).read_text("utf-8")) == self._sums(folder)
        except (OSError, ValueError):
            return False


def _sha256(path: Path) -> str:
    """Return the digest of a file that may be larger than what a device has free."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class WriteAdapter(AdapterFolder):
    """Writes the adapter into a new folder, switches `current` to it, and runs a command.

    Attributes:
        hook: program and arguments that make whoever serves read `current` again, and check it; it
            finds the adapter's folder in `RANKCAST_ADAPTER` and its label in `RANKCAST_RELEASE`.
            Any status but 0 means that the adapter before is put back.
        hook_timeout_s: after which it is ended and counts as failed [s].
        fits: raises for an adapter that the base model cannot take.
    """

    hook: Sequence[str] = ()
    hook_timeout_s: float = 60.0
    fits: Callable[[Header], None] | None = None

    def activate(self, candidate: Candidate) -> None:
        """Write, switch, run the hook; put the version before back if the hook fails.

        Raises:
            DeliveryError: the hook failed, or the disk is full.
            CodecError: the format cannot carry the adapter.
            ConfigError: the format needs the base model.
        """
        label, before = candidate.prefix.label, self.active()
        if self.fits is not None:
            self.fits(candidate.container.header)
        self.write(candidate)
        self.switch(label)
        try:
            self._run_hook(label)
        except DeliveryError as error:
            if before == label:
                raise
            self._switch_back(before)
            raise DeliveryError(f"{error} {before or 'No adapter'} is active again.") from error

    def restore(self, candidate: Candidate) -> None:
        """Write and switch, whether the hook succeeds or not."""
        self.write(candidate)
        self._switch_back(candidate.prefix.label)

    def deactivate(self) -> None:
        """Remove `current` and run the hook, which finds an empty `RANKCAST_ADAPTER`."""
        self._switch_back(None)

    def _switch_back(self, label: str | None) -> None:
        self.switch(label)
        with contextlib.suppress(DeliveryError):
            self._run_hook(label)

    def _run_hook(self, label: str | None) -> None:
        if self.hook:
            variables = {
                "RANKCAST_ADAPTER": "" if label is None else str(self.version(label)),
                "RANKCAST_RELEASE": label or "",
            }
            run_hook(self.hook, variables, self.hook_timeout_s)
