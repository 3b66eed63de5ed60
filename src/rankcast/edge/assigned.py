"""Ask the server which version a device is to have, and find it among what is signed.

The server may name any version that the signed release names, and nothing else: it can keep a
device on an older version that the publisher still allows, as a rollout in stages does, but bring
it nothing unsigned. Where nobody answers such questions, as at a web server of plain files, the
newest release is meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

import httpx2

from rankcast.edge.fetch import BlobCache, Fetcher
from rankcast.edge.manifests import KeptManifests
from rankcast.errors import DeliveryError, TrustError, UnavailableError
from rankcast.release.http import AS_IT_LIES, is_about_tokens, may_pass, shown, why_refused
from rankcast.release.manifest import Manifest, blob_of

LARGEST_ANSWER = 2**16
"""Bytes."""
_WAIT_S = 10.0
_MOST_REJECTED = 8
_REJECTED = re.compile(r".*-v([0-9]{1,16})-l[0-9]+-n[0-9]+-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a server says of a device's version.

    Attributes:
        version: that the device is to have; None for the newest.
        holds: whether it is to keep what it has.
        reason: for people.
    """

    version: int | None = None
    holds: bool = False
    reason: str = ""


def ask_assigned(
    http: httpx2.Client, adapter: str, active: int | None, rejected: Iterable[str]
) -> Assigned:
    """Ask for the version, telling which one is active and which ones failed their proof here.

    Args:
        http: the connection to the server.
        adapter: name of the adapter.
        active: version that is active; None for none.
        rejected: labels of prefixes that failed.

    Raises:
        UnavailableError: the server cannot say now; taking the newest could be too early.
        DeliveryError: it does not accept the device's token.
    """
    versions = {int(m[1]) for label in rejected if (m := _REJECTED.fullmatch(label))}
    question: dict[str, list[int]] = {} if active is None else {"active": [active]}
    if versions:
        question["rejected"] = sorted(versions, reverse=True)[:_MOST_REJECTED]
    path = f"v1/adapters/{adapter}/assigned"
    try:
        with http.stream(
            "GET", path, params=question or None, headers=AS_IT_LIES, timeout=_WAIT_S
        ) as response:
            if response.status_code != HTTPStatus.OK:
                return _without_answer(response)
            body = bytearray()
            for received in response.iter_raw():
                body += received
                if len(body) > LARGEST_ANSWER:
                    return Assigned()
    except httpx2.HTTPError as error:
        raise UnavailableError(
            f"The server does not say which version this device is to have ({error}). The active "
            f"adapter stays. Try again later."
        ) from error
    return _understood(bytes(body), adapter)


def _without_answer(response: httpx2.Response) -> Assigned:
    """Return what a refusal means: nobody there knows of such questions, or it is an error."""
    status = response.status_code
    if may_pass(status) and status != HTTPStatus.NOT_IMPLEMENTED:
        raise UnavailableError(
            f"{shown(response.url)}: HTTP status {status}: {why_refused(response)}. The active "
            f"adapter stays. Try again later."
        )
    if is_about_tokens(response) and "Authorization" in response.request.headers:
        raise DeliveryError(
            f"{shown(response.url)}: HTTP status {status}: {why_refused(response)}."
        )
    return Assigned()


def _understood(body: bytes, adapter: str) -> Assigned:
    """Return an answer; a page or another program's JSON is none, and so the newest is meant."""
    try:
        raw = json.loads(body)
        if raw["adapter"] != adapter:
            return Assigned()
        version, holds, reason = raw["version"], raw["holds"], raw["reason"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Assigned()
    is_whole = isinstance(version, int) and not isinstance(version, bool)
    return Assigned(version if is_whole else None, holds is True, str(reason)[:500])


def assigned_manifest(
    newest: Manifest,
    assigned: Assigned,
    kept: KeptManifests,
    *,
    cache: BlobCache,
    fetcher: Fetcher,
    deadline_s: float,
) -> Manifest:
    """Return the release of the version that a device is to have.

    Args:
        newest: the newest release, which names older ones; trusted.
        assigned: what the server says.
        kept: manifests that are here.
        cache: blobs that are here.
        fetcher: gets the manifest of an older version into that cache.
        deadline_s: time for that [s].

    Raises:
        TrustError: the newest release does not name the version; nothing was fetched.
        UnavailableError: it is newer than what has come here, or its manifest did not arrive.
        DeliveryError: its manifest is none.
    """
    version = assigned.version
    if version is None or version == newest.version:
        return newest
    if version > newest.version:
        raise UnavailableError(
            f"The server says version {version} of {newest.name}, and the newest release that has "
            f"come here is {newest.version}. The active adapter stays. Try again later."
        )
    listed = next((older for older in newest.older if older.version == version), None)
    if listed is None:
        versions = ", ".join(str(o.version) for o in (newest, *newest.older))
        raise TrustError(
            f"The server says version {version} of {newest.name}, and the signed release names "
            f"{versions}. Nothing was fetched; ask whoever runs the server."
        )
    here = kept.get(version)
    if here is not None and blob_of(here.listed()) == listed.blob:
        return here
    if fetcher.fetch([listed.blob], deadline_s).missing:
        raise UnavailableError(
            f"The manifest of version {version} did not arrive in {deadline_s:g} s. The next sync "
            f"goes on with it."
        )
    manifest = Manifest.from_bytes(cache.read(listed.blob.sha256))
    cache.drop([listed.blob])
    if (manifest.name, manifest.version) != (newest.name, version):
        raise TrustError(
            f"The manifest signed as version {version} of {newest.name} is of {manifest.name} "
            f"version {manifest.version}: swapped by the publisher."
        )
    kept.put(manifest)
    return manifest
