"""Arrays that are in memory only while they are looked at, where an adapter is large."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from tempfile import TemporaryFile
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.tensors import Factors, LazyFactors, LazyTensors
from rankcast.errors import CodecError

Loader = Callable[[], NDArray[Any]]


class Collector:
    """Keeps the arrays of an adapter: the first ones in memory, the others in a temporary file.

    Args:
        most: numbers to keep in memory; None for all.
    """

    def __init__(self, most: int | None) -> None:
        self._left = most
        self._spool: _Spool | None = None

    def factors(self, factors: Iterable[Factors]) -> tuple[Factors, ...] | LazyFactors:
        """Return factors, each of which is let go before the next one is asked for."""
        loaders, ranks = [], []
        for f in factors:
            loaders.append((self._keep(f.left), self._keep(f.right)))
            ranks.append(f.rank)
        lazy = LazyFactors(tuple(ranks), lambda i: Factors(loaders[i][0](), loaders[i][1]()))
        return tuple(lazy) if self._spool is None else lazy

    def tensors(self, tensors: Iterable[tuple[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
        """Return tensors by name, each of which is let go before the next one is asked for."""
        loaders, shapes = {}, {}
        for name, values in tensors:
            loaders[name] = self._keep(values)
            shapes[name] = values.shape, values.dtype
        lazy = LazyTensors(shapes, lambda name: loaders[name]())
        return dict(lazy) if self._spool is None else lazy

    def _keep(self, array: NDArray[Any]) -> Loader:
        if self._left is not None:
            self._left -= array.size
            if self._left < 0:
                self._spool = self._spool or _Spool()
                return self._spool.put(array)
        return lambda: array


class _Spool:
    """A file without a name, which is gone when nobody can ask for its arrays any more."""

    def __init__(self) -> None:
        try:
            self._file = TemporaryFile()  # noqa: SIM115 it outlives this block
        except OSError as error:
            raise _no_room(error) from error
        self._lock = Lock()
        self._end = 0
        weakref.finalize(self, self._file.close)

    def put(self, array: NDArray[Any]) -> Loader:
        """Write an array and return what reads it again.

        Raises:
            CodecError: there is no room.
        """
        start, shape, dtype = self._end, array.shape, array.dtype
        try:
            with self._lock:
                self._file.seek(start)
                self._file.write(np.ascontiguousarray(array).data)
                self._end = self._file.tell()
        except OSError as error:
            raise _no_room(error) from error

        def load() -> NDArray[Any]:
            result = np.empty(shape, dtype)
            with self._lock:
                self._file.seek(start)
                self._file.readinto(result.reshape(-1).view(np.uint8).data)
            return result

        return load


def _no_room(error: OSError) -> CodecError:
    return CodecError(
        f"A large adapter needs room in the folder of temporary files ({error.strerror}); make "
        f"some, or name another one with TMPDIR."
    )
