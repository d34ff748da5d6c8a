"""Numbers that the host writes and kernels read."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from fastmomentum.backends.cuda.arrays import find_reader


def address_of(array: Any) -> int:
    """Where one of our own arrays begins."""
    read = find_reader(array)
    assert read is not None
    return read(array)[0].address


class Mirror:
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
