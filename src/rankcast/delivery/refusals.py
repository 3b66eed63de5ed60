"""What The Update Framework refused, in plain words: which attack it looks like, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.ngclient import FetcherInterface

from rankcast.errors import DeliveryError, TrustError, UnavailableError

_KEPT = "What the device already has stays in use."


class Watched(FetcherInterface):
    """A fetcher that remembers what was asked for last, for the words of a refusal."""

    def __init__(self, inner: FetcherInterface) -> None:
        self.inner = inner
        self.last = "the pinned root"

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = url.rpartition("/")[2]
        return self.inner.fetch(url)


@contextmanager
def translated(watched: Watched) -> Iterator[None]:
    """Raise what The Update Framework, the network or the disk raise as errors of ours.

    Raises:
        DeliveryError: network or disk failed.
        TrustError: something must not be trusted.
    """
    try:
        yield
    except (RepositoryError, DownloadError, OSError) as error:
        raise refusal(error, watched.last) from error


def refusal(error: Exception, file: str) -> DeliveryError:
    """Return the error to raise: a TrustError, or a plain one if only the network failed.

    Args:
        error: of The Update Framework, or of the device's own disk.
        file: that was asked for last.
    """
    if isinstance(error, DownloadError):
        return _of_download(error, file)
    if isinstance(error, RepositoryError):
        return TrustError(f"{_of_repository(error, file)} {_KEPT}")
    return DeliveryError(
        f"The device's folder cannot be written ({error}); check space and permissions."
    )


def _of_download(error: DownloadError, file: str) -> DeliveryError:
    match error:
        case DownloadLengthMismatchError():
            return TrustError(
                f"{file} is longer than it may be, so reading was stopped (endless data, or "
                f"tampered with: {error}). {_KEPT}"
            )
        case SlowRetrievalError():
            return UnavailableError(f"The server fell silent ({error}). {_KEPT} Try again later.")
        case DownloadHTTPError() if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return UnavailableError(f"The server cannot answer now ({error}). {_KEPT} Try later.")
        case DownloadHTTPError():
            return DeliveryError(
                f"The server does not have {file} ({error}). {_KEPT} If that lasts, tell its "
                f"operator."
            )
    return UnavailableError(f"{file} could not be fetched ({error}). {_KEPT} Try again later.")


def _of_repository(error: RepositoryError, file: str) -> str:
    match error:
        case ExpiredMetadataError():
            return (
                f"The signature has expired ({error}): someone may be holding back newer releases "
                f"(freeze attack), the publisher has not run rankcast keys refresh, or this "
                f"device's clock is wrong."
            )
        case UnsignedMetadataError():
            return (
                f"{file} has a wrong signature: too few of the keys that this device trusts have "
                f"signed it ({error})."
            )
        case BadVersionNumberError():
            return _of_version(error, file)
        case LengthOrHashMismatchError() if file.endswith((".targets.json", ".snapshot.json")):
            return (
                f"{file} is not the one that was signed for: taken from another release "
                f"(mix-and-match), or tampered with ({error})."
            )
    return f"{file} was tampered with or damaged on the way ({error}). Try again."


def _of_version(error: Exception, file: str) -> str:
    if "root" in file:
        return f"{file} is not the next root ({error}): rolled back or misplaced."
    if "targets" in file:
        return f"{file} is of another release than the snapshot (mix-and-match: {error})."
    return (
        f"{file} would take this device back behind what it has seen (rollback: {error}). If the "
        f"store was restored from an old copy, publish again with higher versions."
    )
