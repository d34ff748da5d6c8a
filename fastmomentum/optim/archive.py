"""Files of saved states: an uncompressed .npz without pickle, written as a whole or not at all.

Every member has a checksum, so that reading a file with a flipped bit raises an error. A file is read in two passes:
first the headers of its arrays, so that the caller can refuse shapes that do not fit, then the arrays. As no member is
compressed, reading takes no more memory than the file has bytes.
"""

import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from secrets import token_hex
from shutil import copymode
from typing import IO, Any, NoReturn

import numpy as np

META = "meta"
"""The member of the file that holds everything except the arrays, as JSON."""

END = b"PK\5\6"
"""The first bytes of the last record of a .zip file, which has 22 bytes if the file has no comment."""

Join = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""``join(arrays, meta)`` returns the saved state that was taken apart into arrays, by name, and the rest."""


def write_archive(path: str | PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write arrays, and everything else as JSON, to a file, and replace the file that exists.

    A new file is written to the same folder, flushed to the disk, and then renamed to `path`, so that `path` holds the
    whole old file or the whole new one at any moment.

    Raises
    ------
    OSError
        If there is anything but a regular file at `path`, or the file cannot be written.
    """
    target = _target(path)
    members = {**arrays, META: np.frombuffer(json.dumps(meta, default=_to_number).encode(), np.uint8)}
    part = target.with_name(f".{token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            copymode(target, part)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # it may name the new file, which is gone
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    _sync_folder(target.parent)


def _target(path: str | PathLike[str]) -> Path:
    """Return the path of the file to write: writing to a link writes to its target.

    Raises
    ------
    OSError
        If something other than a regular file is there, or its folder does not exist.
    """
    name = os.fsdecode(path)
    target = Path(os.path.realpath(name))
    if os.path.basename(name) in ("", os.curdir, os.pardir):
        raise IsADirectoryError(f"path: expected the name of a file; got {name!r}, which names a folder")
    for folder in (os.path.dirname(name) or os.curdir, str(target.parent)):  # the second one if `name` is a link
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"path: expected a folder that exists; there is no folder {folder!r}")
    if os.path.lexists(target) and not stat.S_ISREG(os.lstat(target).st_mode):
        _refuse_special(name, os.lstat(target).st_mode, "to replace")
    return target


def _refuse_special(name: str, mode: int, purpose: str) -> NoReturn:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a link that leads to itself",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = IsADirectoryError if stat.S_ISDIR(mode) else OSError
    raise kind(f"path: expected a regular file {purpose}; {name!r} is {kinds.get(stat.S_IFMT(mode), 'none')}")


@contextmanager
def open_archive(path: str | PathLike[str], writer: str, join: Join) -> Iterator["Archive"]:
    """Open a file of the class called `writer`, and check its headers.

    Raises
    ------
    OSError
        If the file cannot be opened, or is not a regular one.
    ValueError
        If it is damaged, or `join` raises.
    """
    path = os.fsdecode(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # opening a FIFO would wait for its other end
        _refuse_special(path, mode, "to read")
    with open(path, "rb") as file:
        yield Archive(file, path, writer, join)


class Archive:
    """Read a saved state from an open file.

    Attributes
    ----------
    outline : dict
        The saved state with the shapes and dtypes of its arrays, but zeros in place of their numbers. Its arrays take
        no memory.
    """

    def __init__(self, file: IO[bytes], path: str, writer: str, join: Join) -> None:
        self._file, self._path, self._writer, self._join = file, path, writer, join
        with self._damage_is_told(), zipfile.ZipFile(file) as members:
            infos = _checked_members(members, file)
            meta = _read_array(members, infos.pop(META))
            if meta.dtype != np.uint8 or meta.ndim != 1:
                raise ValueError(f"expected {META} to hold bytes; got {meta.dtype}, shape {meta.shape}")
            self._meta = meta.tobytes()
            arrays = {name: _outline(members, info) for name, info in infos.items()}
            self.outline = join(arrays, _parse(self._meta))

    def read(self) -> dict[str, Any]:
        """Return the saved state.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        with self._damage_is_told(), zipfile.ZipFile(self._file) as members:
            infos = _checked_members(members, self._file)
            infos.pop(META)
            arrays = {name: _read_array(members, info) for name, info in infos.items()}
            return self._join(arrays, _parse(self._meta))

    @contextmanager
    def _damage_is_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # zipfile, NumPy and json raise many kinds of errors for a damaged archive
            raise ValueError(
                f"{self._path}: expected a whole file from {self._writer}.save; reading it raised {error!r}"
            ) from error


def _checked_members(members: zipfile.ZipFile, file: IO[bytes]) -> dict[str, zipfile.ZipInfo]:
    """Return the members of a file by the names of their arrays, if :func:`write_archive` can have written it."""
    size = file.seek(-len(END) - 18, os.SEEK_END) + len(END) + 18
    if file.read(len(END)) != END:
        raise ValueError("it has more bytes after its end")
    infos = members.infolist()
    if sum([info.file_size for info in infos]) > size:
        raise ValueError("its members are larger than the file")
    if min([info.header_offset for info in infos]) != 0:
        raise ValueError("it has more bytes before its start")
    found = {info.filename.removesuffix(".npy"): info for info in infos if info.filename.endswith(".npy")}
    if len(found) != len(infos):
        raise ValueError("expected a different name, with .npy, for each member")
    for name, info in found.items():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"expected no compressed member, as save() writes none; {name} is one")
    return found


def _read_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is in Fortran order, and dtype of an array in a member of this size."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected version 1 or 2 of the .npy format; got {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(f"expected an array of numbers; got {dtype}")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"expected as many bytes as {dtype}, shape {shape} takes; got {size - file.tell()}")
    return shape, fortran_order, dtype


def _outline(members: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Return an array of zeros with the shape and dtype of a member, which takes no memory."""
    with members.open(info) as file:
        shape, _, dtype = _read_header(file, info.file_size)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _read_array(members: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Return the array in a member; reading to its end checks the checksum."""
    with members.open(info) as file:
        shape, fortran_order, dtype = _read_header(file, info.file_size)
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran_order else "C")


def _parse(meta: bytes) -> dict[str, Any]:
    """Return the object that is written as JSON."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"expected each key of {META} once; got {[name for name, _ in pairs]}")
        return found

    found = json.loads(meta, object_pairs_hook=unique)
    if not isinstance(found, dict):
        raise ValueError(f"expected {META} to hold a JSON object")
    return found


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
