"""Numbers that the host writes and kernels read.

What kernels read of an optimiser: where its arrays lie, how they are shared out, and their hyper-parameters.
"""

from collections.abc import Callable, Container, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import cuda

from fastmomentum.backends.base import CHUNK, ArrayUpdate, RowFunction
from fastmomentum.backends.cuda.device_array import find_reader
from fastmomentum.backends.cuda.kernels import ADDRESSES, BYTES, HEAD, SIZE, TILE, WORD
from fastmomentum.backends.cuda.scalars import DeviceScalar


def address_of(array: Any) -> int:
    """Where one of our own arrays begins."""
    read = find_reader(array)
    assert read is not None
    return read(array)[0].address


class DeviceBuffer:
    """An array on the host, and its copy in device memory, which is made in the stream that will read it.

    A captured graph reads the copy at each replay: what was sent to a graph is never written to again, and the next
    change goes to another copy.

    Attributes
    ----------
    address : int
        Where the copy begins.
    """

    def __init__(self) -> None:
        self._host: npt.NDArray[Any] = np.empty(0, np.uint8)
        self._copies: list[Any] = []
        self._sent = self._in_graph = False
        self.address = 0

    def take(self, numbers: npt.NDArray[Any]) -> None:
        """What is to be read from now on: always as many bytes."""
        new = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
        if new.size != self._host.size or (new != self._host).any():
            self._host, self._sent = new.copy(), False

    def send(self, stream: Any, capturing: bool) -> None:
        """See to it that kernels read it in this stream.

        Raises
        ------
        RuntimeError
            If there is something to send while a graph is captured, which would send it again at each replay.
        """
        if not self._sent:
            if capturing:
                raise RuntimeError(
                    "a step that is captured in a graph must be like the one before it: the same gradients' memory, "
                    "the same settings, and no array's first step; run one such step before the capture"
                )
            if self._in_graph or not self._copies:
                self._copies.append(cuda.device_array(max(self._host.size, 1), np.uint8))
                self.address, self._in_graph = address_of(self._copies[-1]), False
            if self._host.size:
                self._copies[-1].copy_to_device(self._host, stream=stream)
            self._sent = True
        self._in_graph |= capturing


Words = npt.NDArray[np.int64]


class Part(NamedTuple):
    """The arrays that one launch updates: those that share code and dtype.

    Attributes
    ----------
    job : Job
        One of them, for its code and dtype.
    rows : slice
        Theirs in the table.
    tiles, chunks : int
        How many they have of each.
    ends, chunk_ends : int
        The words from which on these are counted, row by row.
    first_chunk : int
        The number of their first among all chunks.
    hyper : int
        The byte at which their hyper-parameters begin.
    """

    job: ArrayUpdate
    rows: slice
    tiles: int
    chunks: int
    ends: int
    chunk_ends: int
    first_chunk: int
    hyper: int

    @property
    def arrays(self) -> int:
        """How many arrays there are."""
        return int(self.rows.stop - self.rows.start)


class Settled(NamedTuple):
    """Rows of hyper-parameters, from this byte on, that are to be completed from scalars in device memory."""

    job: ArrayUpdate
    scalars: dict[str, DeviceScalar]
    values: tuple[float, ...]
    hyper: int
    rows: int


class LaunchTable:
    """The words that tell of arrays, with the numbers of tiles and chunks, and the bytes of hyper-parameters.

    Attributes
    ----------
    members : list of int
        The number of the array that each row tells of.
    parts : list of Part
        In the order of the rows.
    settled : list of Settled
        What is to be completed before an update.
    words, hyper : Mirror
        What kernels read.
    """

    def __init__(self, jobs: Sequence[ArrayUpdate], members: list[int], key: Callable[[int], int]) -> None:
        self._jobs, self.members = jobs, members
        self.words, self.hyper = DeviceBuffer(), DeviceBuffer()
        self.settled: list[Settled] = []
        columns = ADDRESSES + len(jobs[0].arrays) + 1
        self._table = np.zeros((len(members), columns), np.int64)
        for row, i in enumerate(members):
            arrays = jobs[i].arrays
            self._table[row, :-1] = (arrays[0].size, 0, *(array.address for array in arrays))
        self._row = {i: row for row, i in enumerate(members)}
        self._itemsizes = np.array([jobs[i].dtype.itemsize for i in members], np.int64)
        self._share_out(key)

    def _share_out(self, key: Callable[[int], int]) -> None:
        sizes = self._table[:, SIZE]
        self.chunk_ends = self._table.size
        behind = [_ends(sizes, CHUNK), np.array(self.members, np.int64)]
        at, row, chunk, byte = self.chunk_ends + sum(map(len, behind)), 0, 0, 0
        self.index = at - len(self.members)
        self.parts: list[Part] = []
        for _, alike in groupby(self.members, key):
            job, rows = self._jobs[self.members[row]], slice(row, row + len(list(alike)))
            tiles, chunks = _ends(sizes[rows], TILE), _ends(sizes[rows], CHUNK)
            part = Part(job, rows, int(tiles[-1]), int(chunks[-1]), at, at + tiles.size, chunk, byte)
            self.parts.append(part)
            behind += [tiles, chunks]
            at, row, chunk = at + tiles.size + chunks.size, rows.stop, chunk + part.chunks
            byte += -(-part.arrays * len(job.update.hyper) * job.dtype.itemsize // BYTES) * BYTES
        # The numbers of tiles twice: as they are, and as a kernel may lower them.
        counts = np.array([part.tiles for part in self.parts], np.int64)
        self.counts, self.tiles, self._bytes = at, at + counts.size, byte
        self._behind = np.concatenate([*behind, counts, counts])

    def put(self, i: int, grad: int) -> None:
        """Take down where the gradient of this array lies."""
        self._table[self._row[i], -1] = grad

    def write(self) -> None:
        """Make the words from what was taken down."""
        places = self._table[:, ADDRESSES:] % BYTES
        alike = (places == places[:, :1]).all(axis=1)
        self._table[:, HEAD] = np.where(alike, -places[:, 0] % BYTES // self._itemsizes, TILE)
        self.words.take(np.concatenate([self._table.reshape(-1), self._behind]))

    def take_hyper(self, rows: RowFunction, first: Container[int]) -> None:
        """Use these hyper-parameters; `first` holds the arrays that take their first step from rest."""
        numbers = np.zeros(self._bytes, np.uint8)
        self.settled = []
        for part in self.parts:
            job, members = part.job, self.members[part.rows]
            table = np.array([rows(self._jobs[i].group, job.dtype, i in first) for i in members], job.dtype)
            numbers[part.hyper : part.hyper + table.nbytes] = table.reshape(-1).view(np.uint8)
            at = part.hyper
            for (group, starts), alike in groupby(members, lambda i: (self._jobs[i].group, i in first)):
                values, count = rows.values(group, starts), len(list(alike))
                scalars = {name: value for name, value in values.items() if isinstance(value, DeviceScalar)}
                if scalars:
                    given = tuple(float(values[name]) for name in job.update.parameters)
                    self.settled.append(Settled(job, scalars, given, at, count))
                at += count * len(job.update.hyper) * job.dtype.itemsize
        self.hyper.take(numbers)

    def scalars(self) -> list[tuple[str, DeviceScalar]]:
        """The scalars in device memory, with the names that they are given for."""
        return [item for settled in self.settled for item in settled.scalars.items()]

    def address(self, word: int) -> int:
        """Where this word lies in device memory."""
        return self.words.address + word * WORD

    def row(self, part: Part) -> int:
        """Where the part's rows begin."""
        return self.address(part.rows.start * self._table.shape[1])


def _ends(sizes: Words, each: int) -> Words:
    """0, and for each of the sizes the pieces up to its last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-sizes // each))])
