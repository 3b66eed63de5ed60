"""Arrays that are in memory only while they are looked at, where an adapter is large."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import Factors, LazyFactors, LazyTensors
from rankcast.errors import CodecError

Loader = Callable[[], NDArray[Any]]
_NARROW = tuple(map(np.dtype, (np.int8, np.int16, np.int32)))


@dataclass(frozen=True, eq=False, slots=True)
class QuantisedFactors:
    """Factors of a projection as they were decoded, a quarter of their size in float32 or a half.

    Attributes:
        left: (r, d_out) indices of the left factor's columns.
        right: (r, d_in) indices of the right factor's rows.
        steps: (r,) of the components.
    """

    left: NDArray[np.signedinteger[Any]]
    right: NDArray[np.signedinteger[Any]]
    steps: Float32Array

    def factors(self) -> Factors:
        """Return the middles of the cells."""
        left = np.empty(self.left.shape[::-1], np.float32)
        np.multiply(self.left.T, self.steps, out=left, casting="same_kind", dtype=np.float32)
        right = self.right.astype(np.float32)
        right *= self.steps[:, None]
        return Factors(left, right)


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
        return self._lazy((f.rank, self._both(f.left, f.right, Factors)) for f in factors)

    def quantised(self, factors: Iterable[QuantisedFactors]) -> tuple[Factors, ...] | LazyFactors:
        """Return factors of their indices, which lie on the disk in as few bytes as they need."""
        if self._left is None:
            return tuple(f.factors() for f in factors)
        return self._lazy((len(f.steps), self._quantised(f)) for f in factors)

    def _quantised(self, f: QuantisedFactors) -> Callable[[], Factors]:
        steps = f.steps  # not `f`, which is to be let go
        return self._both(
            _narrowed(f.left),
            _narrowed(f.right),
            lambda left, right: QuantisedFactors(left, right, steps).factors(),
        )

    def _both(
        self, left: NDArray[Any], right: NDArray[Any], made: Callable[..., Factors]
    ) -> Callable[[], Factors]:
        """Keep two arrays; return what makes factors of them again."""
        load_left, load_right = self._keep(left), self._keep(right)
        return lambda: made(load_left(), load_right())

    def _lazy(
        self, kept: Iterable[tuple[int, Callable[[], Factors]]]
    ) -> tuple[Factors, ...] | LazyFactors:
        ranks, loaders = [], []
        for rank, load in kept:
            ranks.append(rank)
            loaders.append(load)
        lazy = LazyFactors(tuple(ranks), lambda i: loaders[i]())
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


def _narrowed(indices: NDArray[Any]) -> NDArray[Any]:
    """Return integers in the narrowest type that has them all."""
    low, high = indices.min(initial=0), indices.max(initial=0)
    fits = (t for t in _NARROW if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return indices.astype(next(fits), copy=False)


def _no_room(error: OSError) -> CodecError:
    return CodecError(
        f"A large adapter needs room in the folder of temporary files ({error.strerror}); make "
        f"some, or name another one with TMPDIR."
    )
