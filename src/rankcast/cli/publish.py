"""`rankcast publish`: what the owner of an adapter does for each release; torch only to plan."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rankcast.cli.common import print_json, refuse_both
from rankcast.cli.keys import SigningOptions
from rankcast.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from rankcast.codec.container import Container
    from rankcast.release.manifest import Choice, Manifest
    from rankcast.release.proof import Proof
    from rankcast.release.runs_on import BaseCopy


@dataclass(frozen=True, kw_only=True)
class Publish(SigningOptions):
    """Sign and publish a release: one file, or several of one adapter.

    rankcast publish demo.rcast --name demo --store store --keys ~/keys

    rankcast publish fine.rcast small.rcast --name demo --store store --keys ~/keys

    rankcast publish runs/demo --name demo --store store --keys ~/keys

    rankcast publish runs/demo --name demo --store store --keys ~/keys --planner policy
    --snr-db -5 0 5 10 15

    rankcast publish my.rcast --base-model models/llama --name demo --store store --keys ~/keys

    rankcast publish my.rcast --base-model models/llama --runs-on llama-Q4_K_M.gguf --name demo
    --store store --keys ~/keys

    A folder is packed first, as rankcast pack does. Publishing the same again changes nothing. The
    store can be handed out by any web server; the keys make the difference.
    """

    files: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(required)")
    ]
    """Files of rankcast pack, or folders of runs; the first is the one to prefer."""
    name: str
    """Name of the adapter: lower-case letters, digits, dots, dashes, underscores."""
    planner: Literal["policy", "solver"] | None = None
    """For one run: pack a file for each of several links and measure what it is worth. With policy,
    the run's policy chooses ranks, and devices get the file that it chose for their link; with
    solver, ranks and steps are chosen together by what the run has learned, and devices get the
    best that arrives."""
    allocator: str | None = None
    """An allocator of your own in the place of the run's policy, as package.module:Class."""
    snr_db: tuple[float, ...] = ()
    """Those links [dB], with --planner or --allocator."""
    bandwidth_hz: float | None = None
    """Bandwidth of those links [Hz]; the run's own if left out."""
    deadline_s: float | None = None
    """Deadline of transfers over those links [s]; the run's own if left out."""
    base_model: Path | None = None
    """Folder of the base model, by whose fingerprint a release names it: for adapters of PEFT that
    were packed without --base-model, to check --runs-on, and to record what the adapter changes."""
    runs_on: tuple[Path, ...] | None = None
    """Copies of the base model that devices may have: GGUF files, or folders of safetensors. Those
    of the release before stay if left out."""
    proof: bool = True
    """Whether to record with --base-model what a language model's adapter changes, so that devices
    can prove that they answer with it; this needs torch."""
    update_from: tuple[int, ...] | None = None
    """Versions from which devices may get the difference in the place of whole files; the active
    one if left out. A device with another version fetches whole files."""
    updates: bool = True
    """Whether to make such differences."""
    allow_new_base: bool = False
    """Accept another base model than that of the release before."""
    older: tuple[int, ...] | None = None
    """Versions that devices may go back to, of those that the release before allows and itself; the
    newest four if left out."""
    divide: Literal["auto", "always", "never"] = "auto"
    """Whether the signed list of a store's releases is divided, so that a device fetches the part
    with its adapter; auto divides it once it has more than 32 adapters."""
    mqtt: str | None = None
    """Broker to tell once the release is active, mqtt://HOST:PORT or mqtts:// for TLS; user and
    password in the address, or in RANKCAST_MQTT_USER and RANKCAST_MQTT_PASSWORD."""

    def run(self, argv: Sequence[str]) -> int:
        """Publish, tell the broker, and print what is active."""
        from rankcast.release.publish import check_publisher, publish

        if not self.files:
            raise ConfigError("Name what to publish: rankcast publish FILE.rcast --name NAME …")
        refuse_both(planner=self.planner, allocator=self.allocator, base_model=self.base_model)
        announce = self._announcer()
        keys, store = self.opened()
        if self.planner or self.allocator:
            check_publisher(store, keys, datetime.now(UTC))  # planning takes minutes
            source, choices = self._planned()
        else:
            source, choices = self._as_they_are(), ()
        copies, proof = self._copies(source), self._proof(source)
        manifest = publish(
            source, self.name, store, keys, datetime.now(UTC), choices=choices,
            allow_new_base=self.allow_new_base,
            update_from=self.update_from if self.updates else (), runs_on=copies, proof=proof,
            divide=self.divide, older=self.older,
        )  # fmt: skip
        n_bytes, was_announced = sum(blob.n_bytes for blob in manifest.blobs), announce(manifest)
        if self.json:
            print_json(
                {
                    "name": manifest.name,
                    "version": manifest.version,
                    "base_model": manifest.base.name,
                    "base_fingerprint": manifest.base.fingerprint,
                    "ladders": len(manifest.files),
                    "planner": manifest.planner,
                    "bytes": n_bytes,
                    "updates": _sizes(manifest),
                    "runs_on": [copy.to_plain() for copy in manifest.runs_on],
                    "proof": manifest.proof is not None,
                    "broker_told": was_announced,
                }
            )
            return 0
        base = manifest.base.name or f"the base model {str(manifest.base.fingerprint)[:12]}…"
        print(
            f"{manifest.name} version {manifest.version} is active: {n_bytes:,} bytes in "
            f"{len(manifest.blobs)} blobs, for {base}."
        )
        for copy in manifest.runs_on:
            how = "not compared" if copy.error is None else f"weights off by {copy.error:.1%}"
            print(f"Runs on {copy.words(manifest.base.name)}, {how}.")
        for file in _sizes(manifest):
            for size in file["bytes"]:
                print(
                    f"File {file['ladder']}: devices with an older version need {size:,} bytes in "
                    f"the place of {file['whole_bytes']:,}."
                )
        if manifest.version == 1:
            print(
                f"Next: rankcast devices add DEVICE > TOKEN-FILE; rankcast serve --store "
                f"{store.root}; and on a device, with TOKEN-FILE and "
                f"{store.metadata / 'root.json'} copied to it:\nrankcast edge sync --server "
                f"http://SERVER:8080 --adapter {manifest.name} --folder FOLDER --base-model MODEL "
                f"--root root.json --token-file TOKEN-FILE"
            )
        return 0

    def _as_they_are(self) -> list[Container]:
        from rankcast.packaging.pack import load_or_pack, pack

        if self.snr_db or self.bandwidth_hz is not None or self.deadline_s is not None:
            raise ConfigError(
                "--snr-db, --bandwidth-hz and --deadline-s say for which links to plan; say who "
                "plans with --planner policy, --planner solver, or --allocator."
            )
        base = self.base_model
        if base is None:
            return [load_or_pack(path) for path in self.files]
        from rankcast.codec.container import load
        from rankcast.packaging.base_model import with_base

        return [
            pack(path, base_model=base) if path.is_dir() else with_base(load(path), base)
            for path in self.files
        ]

    def _copies(self, source: Sequence[Container]) -> list[BaseCopy] | None:
        """Return what --runs-on names; each is compared with the base model if that is here."""
        if self.runs_on is None:
            return None
        from rankcast.packaging.copies import copy_of

        return [copy_of(path, self.base_model, source[0].header) for path in self.runs_on]

    def _proof(self, source: Sequence[Container]) -> Proof | None:
        """Return what the adapter changes; None where nobody asks, or nothing can be measured."""
        task = source[0].header.task.get("task_type")
        if self.base_model is None or not self.proof or task != "CAUSAL_LM":
            return None
        from importlib.util import find_spec

        if find_spec("torch") is None or find_spec("peft") is None:
            print(
                "rankcast: what the adapter changes is not recorded: that takes pip install "
                "'rankcast[train]'.",
                file=sys.stderr,
            )
            return None
        from rankcast.packaging.prove import make_proof

        proof = make_proof(source, self.base_model)
        if proof is None:
            print(
                "rankcast: the adapter changes no next word by an amount that can be measured, so "
                "that devices cannot prove that they answer with it.",
                file=sys.stderr,
            )
        return proof

    def _planned(self) -> tuple[Sequence[Container], Sequence[Choice]]:
        """Return a file for each link, and what a policy or an allocator chose for which link."""
        from rich.console import Console
        from rich.progress import Progress

        from rankcast.packaging.planned import planned_files

        if len(self.files) != 1 or not self.files[0].is_dir() or not self.snr_db:
            raise ConfigError(
                "--planner and --allocator take one run and its links: RUN --planner policy "
                "--snr-db …"
            )
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("planning and measuring", total=len(self.snr_db))
            planned = planned_files(
                self.files[0],
                self.planner or "policy",
                self.snr_db,
                bandwidth_hz=self.bandwidth_hz,
                deadline_s=self.deadline_s,
                allocator=self.allocator,
                on_link=lambda done: progress.update(task, completed=done),
            )
        if planned.left_out_db:
            links = ", ".join(f"{value:g} dB" for value in planned.left_out_db)
            print(f"rankcast: nothing arrives in time at {links}.", file=sys.stderr)
        return planned.containers, planned.choices

    def _announcer(self) -> Callable[[Manifest], bool]:
        """Return a function that tells the broker of a release, and returns whether that worked.

        Raises:
            ConfigError: no address of a broker, or a missing extra.
        """
        if self.mqtt is None:
            return lambda manifest: False  # noqa: ARG005 there is no broker
        from rankcast.release.notify import Broker, mqtt_client, notify

        broker = Broker.of(self.mqtt)
        mqtt_client(broker)  # a missing extra is reported before anything is published

        def announce(manifest: Manifest) -> bool:
            try:
                notify(broker, manifest.name, manifest.version)
            except UnavailableError as error:
                print(f"rankcast: {error}", file=sys.stderr)
                return False
            return True

        return announce


def _sizes(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the bytes of each file that has updates, and those of each update."""
    return [
        {
            "ladder": index,
            "whole_bytes": sum(blob.n_bytes for blob in file.blobs()),
            "bytes": [update.blob.n_bytes for update in file.updates],
        }
        for index, file in enumerate(manifest.files)
        if file.updates
    ]
