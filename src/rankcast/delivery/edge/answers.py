"""What a server's answer to a request for a blob means: bytes, a failure that passes, a refusal."""

from __future__ import annotations

import re

import httpx2

from rankcast.delivery.blobs import Blob
from rankcast.errors import DeliveryError

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_REFUSED = {
    401: "the token is missing or wrong: give the device's own with --token-file",
    403: "the token is not allowed to: ask for another",
    404: "it lacks the blob: ask whoever published to publish again",
    410: "it has removed the blob: ask whoever published to publish again",
}
_AGAIN = (408, 416, 425, 429)
_HTTP_OK, _HTTP_PARTIAL, HTTP_RANGE = 200, 206, 416


class Interrupted(Exception):  # noqa: N818 an answer of the link, not an error of ours
    """A try that failed and may be repeated.

    Args:
        words: what happened.
        asked_s: what the server wants to be waited [s].
    """

    def __init__(self, words: str, asked_s: float = 0.0) -> None:
        super().__init__(words)
        self.asked_s = asked_s


def first_byte(answer: httpx2.Response, start: int, blob: Blob) -> int:
    """Return which byte of the blob an answer begins with.

    Raises:
        Interrupted: a failure that may pass.
        DeliveryError: a refusal.
    """
    status = answer.status_code
    if status == _HTTP_OK:
        return 0
    if status == _HTTP_PARTIAL:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start or found[3] not in ("*", str(blob.n_bytes)):
            raise Interrupted(
                f"asked for bytes from {start} of {blob.n_bytes} on, it answered "
                f"{answer.headers.get('Content-Range')!r}"
            )
        return start
    if status in _AGAIN or status >= 500:
        asked = answer.headers.get("Retry-After", "")
        asked_s = float(asked) if asked.isascii() and asked.isdigit() else 0.0
        raise Interrupted(f"it answered {status}", asked_s)
    why = _REFUSED.get(status, "it is no server of adapters, or its address is another")
    raise DeliveryError(
        f"{answer.url.copy_with(query=None)} was refused with status {status}: {why}."
    )
