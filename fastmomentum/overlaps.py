"""Memory that arrays share, which no two of an update may where one is written."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt


def refuse_shared(names: Sequence[str], arrays: Sequence[Any]) -> NoReturn:
    """Name two of the contiguous arrays that share memory, as some of them are known to do."""
    for (ours, first), (theirs, second) in combinations(zip(names, arrays, strict=True), 2):
        if np.may_share_memory(first, second):
            raise ValueError(f"{ours}: expected memory of its own; got memory that it shares with {theirs}")
    raise AssertionError("no two of these arrays share memory")


def apart(names: Sequence[str], arrays: Sequence[Any], read: int = 0) -> npt.NDArray[np.int64]:
    """Refuse contiguous arrays of which two share memory; the last `read` are only read, and may share it.

    Returns
    -------
    ndarray of int64, shape (m, 2)
        Where the memory of those that are written begins and ends, in ascending order; empty arrays left out.
    """
    writes = len(arrays) - read
    spans = [(start := address(a), start + a.nbytes, i) for i, a in enumerate(arrays) if a.size]
    spans.sort()
    reach: dict[bool, tuple[int, int]] = {}  # for written and read arrays, how far they reach, and which does
    for start, stop, i in spans:
        mine = i < writes
        for others in (True, False) if mine else (True,):
            end, other = reach.get(others, (0, 0))
            if end > start:
                ours, theirs = sorted((i, other))
                raise ValueError(
                    f"{names[theirs]}: expected memory of its own; got memory that it shares with {names[ours]}"
                )
        reach[mine] = max(reach.get(mine, (0, 0)), (stop, i))
    return np.array([span[:2] for span in spans if span[2] < writes], np.int64).reshape(-1, 2)


def address(value: Any) -> int:
    """Where the memory of an array begins."""
    return int(value.__array_interface__["data"][0]) if isinstance(value, np.ndarray) else value.address
