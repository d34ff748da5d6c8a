"""The look at all arrays that every step begins with, and which needs no work on the device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.cuda import home
from fastmomentum.backends.cuda.arrays import DeviceArray, Look, find_reader
from fastmomentum.device.tables import Tables
from fastmomentum.launch import Job


class Looks:
    """What was last seen of the gradients.

    Parameters
    ----------
    jobs : sequence of Job
        The arrays that must not have changed.
    written : ndarray of int64, shape (m, 2)
        Where the memory of all that is written begins and ends.
    device : int
        Where all of it must lie.
    """

    def __init__(self, jobs: Sequence[Job], written: npt.NDArray[np.int64], device: int) -> None:
        self._jobs, self._written, self._device = jobs, written, device
        self._seen: list[Look | None] = [None] * len(jobs)

    def forget(self) -> None:
        """See all gradients as new."""
        self._seen = [None] * len(self._jobs)

    def over(self, grads: Sequence[Any], active: Sequence[bool], tables: Tables) -> list[int | None] | None:
        """The streams that the arrays belong to; None where anything needs to be checked.

        Gradients that lie elsewhere than in the last step are taken down in the tables.
        """
        streams: dict[int | None, None] = {}
        new: dict[int, Look] = {}
        for i, (job, grad, is_active) in enumerate(zip(self._jobs, grads, active)):
            if not is_active or grad is None:
                if is_active or grad is not None:
                    return None
                continue
            try:
                (param, of_param), (look, of_grad) = read(job.arrays[0].owner), read(grad)
            except (TypeError, ValueError, RuntimeError):
                return None  # the checks will say what it is
            streams[of_param] = streams[of_grad] = None
            if param != job.arrays[0].look:
                return None
            if look != self._seen[i]:
                if not self._fits(i, DeviceArray(grad, look)):
                    return None
                new[i] = look
        for i, look in new.items():
            tables.put(i, look.address)
        if new:
            tables.write()
        for i, look in new.items():
            self._seen[i] = look
        return list(streams)

    def is_apart(self, array: DeviceArray) -> bool:
        """Whether the array has no byte in common with what is written."""
        before = int(np.searchsorted(self._written[:, 0], array.address + array.nbytes)) - 1
        return not array.size or before < 0 or bool(self._written[before, 1] <= array.address)

    def _fits(self, i: int, grad: DeviceArray) -> bool:
        param = self._jobs[i].arrays[0]
        if (
            grad.dtype != param.dtype
            or grad.shape != param.shape
            or not (grad.flags.c_contiguous and grad.flags.aligned)
        ):
            return False
        if home.device_of(grad) not in (None, self._device):
            return False
        return self.is_apart(grad)


def read(array: Any) -> tuple[Look, int | None]:
    """The look of an array, and its stream."""
    if type(array) is DeviceArray:
        return array.look, array.stream
    reader = find_reader(array)
    if reader is None:
        raise TypeError("not in device memory")
    return reader(array)
