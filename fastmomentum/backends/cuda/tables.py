"""Write the tables that kernels read: addresses of arrays, numbers of tiles, and hyper-parameters."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import cuda

from fastmomentum.backends.base import CHUNK, ArrayUpdate, StepRows
from fastmomentum.backends.cuda.device_array import find_reader
from fastmomentum.backends.cuda.kernels import ADDRESSES, HEAD, SIZE, TILE, VECTOR_BYTES, WORD
from fastmomentum.backends.cuda.scalars import DeviceScalar


def address_of(array: Any) -> int:
    """Return the address of a Numba device array."""
    read = find_reader(array)
    assert read is not None
    return read(array)[0].address


class DeviceBuffer:
    """Hold bytes on the host, and a copy of them in device memory that is uploaded in the stream that reads it.

    A captured graph reads the copy at each replay. So a copy that a graph reads is never written again: changed bytes
    are uploaded to a new copy.

    Attributes
    ----------
    address : int
        The address of the copy.
    """

    def __init__(self) -> None:
        self._host: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._copies: list[Any] = []
        self._uploaded = self._in_graph = False
        self.address = 0

    def set(self, numbers: npt.NDArray[np.generic]) -> None:
        """Set the bytes that kernels read after the next upload; their number must not change."""
        new = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
        if new.size != self._host.size or (new != self._host).any():
            self._host, self._uploaded = new.copy(), False

    def upload(self, stream: Any, capturing: bool) -> None:
        """Copy the bytes to the device in this stream, if they have changed since the last upload.

        Raises
        ------
        RuntimeError
            If they have changed and a graph is being captured, as the graph would upload them again at each replay.
        """
        if not self._uploaded:
            if capturing:
                raise RuntimeError(
                    "a step that is captured in a graph must equal the step before it: gradients in the same memory, "
                    "the same settings, and no array in its first step; run one such step before the capture"
                )
            if self._in_graph or not self._copies:
                self._copies.append(cuda.device_array(max(self._host.size, 1), np.uint8))
                self.address, self._in_graph = address_of(self._copies[-1]), False
            if self._host.size:
                self._copies[-1].copy_to_device(self._host, stream=stream)
            self._uploaded = True
        self._in_graph |= capturing


Words = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Describe the arrays that one kernel launch updates: those with the same rule structure and dtype.

    Attributes
    ----------
    job : ArrayUpdate
        The update of the first of these arrays, which has the rule and dtype of all.
    rows : slice
        The rows of these arrays in the table.
    tiles, chunks : int
        The number of tiles and of chunks in all rows.
    ends, chunk_ends : int
        The indices of the words at which the cumulative numbers of tiles, and of chunks, begin.
    first_chunk : int
        The number of the first chunk, counted over all parts.
    hyper : int
        The offset in bytes of the hyper-parameters.
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
        """The number of arrays."""
        return int(self.rows.stop - self.rows.start)


class DerivedRows(NamedTuple):
    """Describe rows of hyper-parameters that the device completes from scalars in its memory.

    Attributes
    ----------
    job : ArrayUpdate
        An update with the rule and dtype of these rows.
    scalars : dict
        The scalars in device memory, by the name of the hyper-parameter.
    values : tuple of float
        The values of the rule's parameters; those of scalars are not used.
    hyper : int
        The offset in bytes of the first row.
    rows : int
        The number of rows.
    """

    job: ArrayUpdate
    scalars: dict[str, DeviceScalar]
    values: tuple[float, ...]
    hyper: int
    rows: int


class LaunchTable:
    """Hold all that kernels read for one set of active arrays: 64-bit words, and bytes of hyper-parameters.

    The words are, in this order: the table with one row for each array, whose columns ``backends.cuda.kernels``
    defines; the cumulative numbers of chunks of all rows; the number of each row's array; for each part the cumulative
    numbers of tiles and of chunks; the number of tiles of each part; and these numbers again, which a kernel may set
    to 0.

    Attributes
    ----------
    members : list of int
        For each row, the number of its array.
    parts : list of Part
        The parts, in the order of the rows.
    derived_rows : list of DerivedRows
        The rows of hyper-parameters that the device completes before an update.
    words, hyper : DeviceBuffer
        The words and the hyper-parameters.
    chunk_ends, index, counts, tiles : int
        The indices of the words at which the chunks of all rows, the arrays' numbers, and the two lists of tiles begin.
    """

    def __init__(self, jobs: Sequence[ArrayUpdate], members: list[int], key: Callable[[int], int]) -> None:
        self._jobs, self.members = jobs, members
        self.words, self.hyper = DeviceBuffer(), DeviceBuffer()
        self.derived_rows: list[DerivedRows] = []
        columns = ADDRESSES + len(jobs[0].arrays) + 1
        self._table = np.zeros((len(members), columns), np.int64)
        for row, i in enumerate(members):
            arrays = jobs[i].arrays
            self._table[row, :-1] = (arrays[0].size, 0, *(array.address for array in arrays))
        self._row = {i: row for row, i in enumerate(members)}
        self._itemsizes = np.array([jobs[i].dtype.itemsize for i in members], np.int64)
        self._arrange_words(key)

    def _arrange_words(self, key: Callable[[int], int]) -> None:
        """Compute the words after the table, and the index of the word at which each list begins."""
        sizes = self._table[:, SIZE]
        self.chunk_ends = self._table.size
        after_table = [_cumulative_pieces(sizes, CHUNK), np.array(self.members, np.int64)]
        word, row, chunk, byte = self.chunk_ends + sum(map(len, after_table)), 0, 0, 0
        self.index = word - len(self.members)
        self.parts: list[Part] = []
        for _, same_kernel in groupby(self.members, key):
            job, rows = self._jobs[self.members[row]], slice(row, row + len(list(same_kernel)))
            tiles, chunks = _cumulative_pieces(sizes[rows], TILE), _cumulative_pieces(sizes[rows], CHUNK)
            part = Part(job, rows, int(tiles[-1]), int(chunks[-1]), word, word + tiles.size, chunk, byte)
            self.parts.append(part)
            after_table += [tiles, chunks]
            word, row, chunk = word + tiles.size + chunks.size, rows.stop, chunk + part.chunks
            byte += -(-part.arrays * len(job.update.hyper) * job.dtype.itemsize // VECTOR_BYTES) * VECTOR_BYTES
        # The numbers of tiles are stored twice: a kernel may set the second copy to 0.
        counts = np.array([part.tiles for part in self.parts], np.int64)
        self.counts, self.tiles, self._bytes = word, word + counts.size, byte
        self._after_table = np.concatenate([*after_table, counts, counts])

    def set_gradient(self, i: int, address: int) -> None:
        """Set the address of the gradient of array i; :meth:`update_words` must follow."""
        self._table[self._row[i], -1] = address

    def update_words(self) -> None:
        """Compute the words again from the addresses that were set."""
        offsets = self._table[:, ADDRESSES:] % VECTOR_BYTES
        aligned = (offsets == offsets[:, :1]).all(axis=1)
        self._table[:, HEAD] = np.where(aligned, -offsets[:, 0] % VECTOR_BYTES // self._itemsizes, TILE)
        self.words.set(np.concatenate([self._table.reshape(-1), self._after_table]))

    def set_hyper(self, rows: StepRows, row_of: Sequence[int]) -> dict[int, npt.NDArray[Any]]:
        """Set the hyper-parameters of all rows; ``row_of[i]`` is the number in `rows` of those of array i.

        Returns
        -------
        dict of int to ndarray
            The row of each array, in which single numbers can be set before :meth:`update_hyper`.
        """
        self._numbers = numbers = np.zeros(self._bytes, np.uint8)
        self.derived_rows = []
        hyper_of: dict[int, npt.NDArray[Any]] = {}
        for part in self.parts:
            job, members = part.job, self.members[part.rows]
            table = np.array([rows.numbers[row_of[i]][: len(job.update.hyper)] for i in members], job.dtype)
            own = numbers[part.hyper : part.hyper + table.nbytes].view(job.dtype).reshape(table.shape)
            own[:] = table
            hyper_of |= dict(zip(members, own))
            offset = part.hyper
            for row, same_row in groupby(members, row_of.__getitem__):
                values, count = rows.values(row), len(list(same_row))
                scalars = {name: value for name, value in values.items() if isinstance(value, DeviceScalar)}
                if scalars:
                    given = tuple(float(values[name]) for name in job.update.parameters)
                    self.derived_rows.append(DerivedRows(job, scalars, given, offset, count))
                offset += count * len(job.update.hyper) * job.dtype.itemsize
        return hyper_of

    def update_hyper(self, stream: Any, capturing: bool = False) -> None:
        """Copy the hyper-parameters to the device in this stream, if they have changed since the last time."""
        self.hyper.set(self._numbers)
        self.hyper.upload(stream, capturing)

    def scalars(self) -> list[tuple[str, DeviceScalar]]:
        """Return the scalars in device memory, each with the name of its hyper-parameter."""
        return [item for rows in self.derived_rows for item in rows.scalars.items()]

    def address(self, word: int) -> int:
        """Return the address of this word in device memory."""
        return self.words.address + word * WORD

    def row(self, part: Part) -> int:
        """Return the address of the first row of this part."""
        return self.address(part.rows.start * self._table.shape[1])


def _cumulative_pieces(sizes: Words, piece: int) -> Words:
    """Return 0, then for each array the number of pieces in all arrays up to this one."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-sizes // piece))])
