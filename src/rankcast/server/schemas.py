"""The bodies of requests and answers, with the limits of each field.

Fields are named as they are sent: `rungs` are chunks, `ladder` and `ladders` files of a release.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from rankcast.link.capacity import LARGEST_SNR_DB
from rankcast.release.manifest import LARGEST_BLOB, MOST_CHUNKS, MOST_FILES

MOST_HELD = 8192
_SHA256 = "ab" * 32

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$", max_length=64)]
AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", max_length=64)]
Version = Annotated[int, Field(ge=1, lt=2**31)]
ThroughputBps = Annotated[float, Field(gt=0, le=1e12)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class RadioLink(_Body):
    """A link by SNR and bandwidth."""

    snr_db: float = Field(ge=-LARGEST_SNR_DB, le=LARGEST_SNR_DB, description="Received Es/N0 [dB].")
    bandwidth_hz: float = Field(gt=0, le=1e12, description="Bandwidth [Hz].")
    rate_model: str = Field(
        default="awgn", max_length=64, description="A name of rankcast.link.rate_models."
    )
    rate_params: dict[str, float] = Field(
        default_factory=dict,
        max_length=4,
        description="What the rate model takes, such as m and epsilon of nakagami_outage. Models "
        "of 5G NR take the link's bandwidth and lose nothing unless impl_loss_db says so.",
    )


class MeasuredLink(_Body):
    """A link by its measured throughput."""

    throughput_bps: ThroughputBps = Field(description="As the device measured it [bit/s].")


def _kind_of_link(value: Any) -> str:
    measured = "throughput_bps" in value if isinstance(value, dict) else False
    return "measured" if measured or isinstance(value, MeasuredLink) else "radio"


AnyLink = Annotated[
    Annotated[RadioLink, Tag("radio")] | Annotated[MeasuredLink, Tag("measured")],
    Discriminator(_kind_of_link),
]


class PlanRequest(_Body):
    """The chunks that a device holds, and its link."""

    model_config = _example(
        adapter="sst2", base_fingerprint=_SHA256, deadline_s=1.0, held=[],
        link={"snr_db": 5.0, "bandwidth_hz": 5e6, "rate_model": "awgn"},
    )  # fmt: skip

    adapter: AdapterName
    base_fingerprint: Fingerprint = Field(description="Of the model that the device runs.")
    link: AnyLink
    deadline_s: float = Field(gt=0, le=30 * 86400, description="Time for the transfer [s].")
    held: list[Sha256] = Field(
        default_factory=list, max_length=MOST_HELD, description="Blobs that the device has."
    )
    version: Version | None = Field(
        default=None, description="That the device is to have; the newest if left out."
    )


class BlobBody(_Body):
    """Bytes to fetch from `/blobs`."""

    sha256: Sha256
    n_bytes: int = Field(ge=1, le=LARGEST_BLOB)


class CellBody(_Body):
    """What a device was given of the cell that it shares."""

    name: str
    airtime_share: float = Field(description="Planned of the cell's budget until the deadline.")
    asks_again: bool = Field(description="Whether to ask again once the blobs are here.")
    reason: str = Field(description="For people.")


class PlanAnswer(_Body):
    """The best prefix that arrives in time, and what of it is missing."""

    model_config = _example(
        adapter="sst2", version=3, ladder=0, n_rungs=4, bits=6496, loss=0.31, accuracy=0.864,
        planner="solver", blobs=[{"sha256": _SHA256, "n_bytes": 812}],
        cell={"name": "north", "airtime_share": 0.2, "asks_again": True, "reason": "20% of …"},
    )  # fmt: skip

    adapter: AdapterName
    version: Version
    planner: Literal["solver", "policy"] = Field(description="Who chose the file.")
    ladder: int = Field(ge=0, lt=MOST_FILES, description="Index of the file.")
    n_rungs: int = Field(ge=1, le=MOST_CHUNKS)
    blobs: list[BlobBody] = Field(description="In the order in which to fetch them.")
    bits: int = Field(description="Of these blobs.")
    loss: float | None = Field(description="Expected of the prefix [nats].")
    accuracy: float | None = Field(description="Expected of the prefix, a share.")
    cell: CellBody | None = Field(default=None, description="null where no cell is shared.")


class ReportRequest(_Body):
    """The outcome of a device's sync."""

    model_config = _example(
        adapter="sst2", version=3, ladder=0, n_rungs=4, event="activated", throughput_bps=2.1e6,
        received_bits=61234, elapsed_s=0.8, message="",
    )  # fmt: skip

    adapter: AdapterName
    version: Version
    ladder: int = Field(ge=0, lt=MOST_FILES, description="Index of the file.")
    n_rungs: int = Field(ge=0, le=MOST_CHUNKS)
    event: Literal["fetched", "activated", "rolled-back", "refused", "failed", "unhealthy"] = Field(
        description="unhealthy: it took the release before, and does not work with it."
    )
    throughput_bps: ThroughputBps | None = Field(
        default=None, description="Measured [bit/s]; null where nothing was."
    )
    received_bits: int = Field(default=0, ge=0, lt=2**53)
    elapsed_s: float = Field(default=0.0, ge=0, le=30 * 86400, description="Of the transfer [s].")
    message: str = Field(default="", max_length=2000, description="For people.")


class AssignedAnswer(_Body):
    """The version of an adapter that a device is to have."""

    model_config = _example(
        adapter="sst2", version=2, holds=False, rollout=7,
        reason="Rollout 7 to version 3 is running.",
    )  # fmt: skip

    adapter: AdapterName
    version: Version | None = Field(description="null for the newest.")
    holds: bool = Field(description="Whether the device keeps what it has.")
    rollout: int | None = Field(description="Number of the rollout that decides.")
    reason: str = Field(description="For people.")


class BaseModelBody(_Body):
    """The model that an adapter fits."""

    name: str | None
    fingerprint: Fingerprint


class AdapterBody(_Body):
    """An adapter that is published."""

    name: AdapterName
    version: Version
    base: BaseModelBody
    n_rungs: list[int] = Field(description="Chunks of each file.")
    n_bytes: int = Field(description="Of all blobs, each once.")
    manifest: str = Field(description="Path of the manifest on this server.")


class AdaptersAnswer(_Body):
    """All adapters by name."""

    adapters: list[AdapterBody]


class ProjectionBody(_Body):
    """A linear map that an adapter changes."""

    name: str
    kind: str = Field(examples=["q"])
    layer: int
    rank: int = Field(description="Components that were packed.")


class ChunkBody(_Body):
    """A chunk, and what the prefix that ends with it is worth."""

    n_bytes: int = Field(description="Of the chunk.")
    loss: float | None = Field(description="Expected of the prefix [nats].")
    accuracy: float | None = Field(description="Expected of the prefix, a share.")
    ranks: list[int] | None = Field(
        description="Components of each projection that have arrived with the prefix."
    )


class FileBody(_Body):
    """One file of a release."""

    header_bytes: int
    projections: list[ProjectionBody] = Field(
        description="Empty where the file is too large to look into, and then no chunk has ranks."
    )
    rungs: list[ChunkBody]


class AdapterContents(AdapterBody):
    """The files and chunks of an adapter."""

    ladders: list[FileBody]


class DeviceBody(_Body):
    """A device, and what it did among the newest 20,000 events of all."""

    name: str
    is_revoked: bool = Field(description="Whether its token was revoked.")
    last_s: float | None = Field(description="When it last asked or reported [s since 1970].")
    plan: dict[str, Any] | None = Field(description="The last, as /v1/events sends it.")
    report: dict[str, Any] | None = Field(description="The last, likewise.")
    n_rolled_back: int = Field(description="How often it reported a roll-back.")


class DevicesAnswer(_Body):
    """All devices that the caller may see, by name."""

    caller: str = Field(description="Whose token it is.")
    sees_all: bool = Field(description="Whether the caller sees other devices than itself.")
    sequence: int = Field(description="Number of the newest event; go on with ?after= this.")
    devices: list[DeviceBody]


class Failure(_Body):
    """An error: what was wrong and what to do about it."""

    type: str = Field(examples=["InfeasibleDeadlineError"])
    message: str


class ErrorAnswer(_Body):
    """The body of every error."""

    error: Failure
