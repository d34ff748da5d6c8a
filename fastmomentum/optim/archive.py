"""Files of saved states: an uncompressed .npz without pickle, written as a whole or not at all.

Every member has a checksum, so that reading a file with a flipped bit raises an error.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from secrets import token_hex
from shutil import copymode
from typing import Any

import numpy as np

META = "meta"
"""The member of the file that holds everything except the arrays, as JSON."""


def write_archive(path: str | PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write arrays, and everything else as JSON, to a file, and replace the file that exists.

    A new file is written to the same folder, flushed to the disk, and then renamed to `path`, so that `path` holds the
    whole old file or the whole new one at any moment.
    """
    path = Path(os.path.realpath(path))  # writing to a link writes to its target
    members = {**arrays, META: np.frombuffer(json.dumps(meta, default=_to_number).encode(), np.uint8)}
    part = path.with_name(f".{token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            copymode(path, part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read_archive(
    path: str | PathLike[str], writer: str, join: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return the saved state that `join` makes from the arrays and the rest in a file of the class called `writer`.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, or `join` raises.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                damaged = members.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            file.seek(0)
            with np.load(file, allow_pickle=False) as loaded:
                arrays = {name: loaded[name] for name in loaded.files}
            return join(arrays, json.loads(arrays.pop(META).tobytes()))
        except Exception as error:  # zipfile, NumPy and json raise many kinds of errors for a damaged archive
            raise ValueError(
                f"{os.fspath(path)}: expected a whole file from {writer}.save; reading it raised {error!r}"
            ) from error


def _to_number(value: Any) -> bool | int | float:
    """Return a number of NumPy or of another package as a number that JSON has."""
    item = value.item() if isinstance(value, np.generic) else value
    return item if isinstance(item, bool | int | float) else float(item)


def _sync_folder(folder: Path) -> None:
    """Flush the folder, which holds the new name, to the disk, on systems on which folders can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
