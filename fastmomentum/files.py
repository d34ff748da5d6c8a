"""Saved states as files: uncompressed .npz, without pickle, written whole or not at all.

A flipped bit in an .npz raises, as every member has a checksum; what is read is held against what was written in full.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from secrets import token_hex
from shutil import copymode
from typing import Any

import numpy as np

META = "meta"


def write(path: str | PathLike[str], saved: Mapping[str, Any]) -> None:
    """Write a saved state (see :mod:`fastmomentum.checkpoint`) in place of what the path held."""
    path = Path(os.path.realpath(path))  # of a link, what it points to
    arrays = {f"state_{i}_{j}": slot for i, state in enumerate(saved["state"]) for j, slot in enumerate(state)}
    meta = {name: value for name, value in saved.items() if name != "state"}
    meta["slots"] = [len(state) for state in saved["state"]]
    arrays[META] = np.frombuffer(json.dumps(meta, default=_as_number).encode(), np.uint8)
    part = path.with_name(f".{token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            copymode(path, part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """The saved state in a file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not whole, or no saved state.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                damaged = members.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                meta = json.loads(arrays[META].tobytes())
                slots = meta.pop("slots")
                state = [[arrays[f"state_{i}_{j}"] for j in range(count)] for i, count in enumerate(slots)]
                if len(arrays.files) != 1 + sum(slots):
                    raise ValueError("it holds more than its table of contents says")
        except Exception as error:  # what a damaged archive raises is anybody's guess: it is refused all the same
            raise ValueError(
                f"{os.fspath(path)}: expected a whole file from Momentum.save; got one of which {error!r}"
            ) from error
    return {**meta, "state": state, "resets": [tuple(reset) for reset in meta["resets"]]}


def _as_number(value: Any) -> Any:
    """A number of NumPy's, or another, as one of Python's that JSON has."""
    item = value.item() if isinstance(value, np.generic) else value
    return item if isinstance(item, bool | int | float) else float(item)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too, on systems where folders can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
