"""Keep the machine code of CPU kernels in a folder, for later processes."""

import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba.core import serialize
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys

from fastmomentum.backends.cpu.fingerprint import fingerprint

VARIABLE = "FASTMOMENTUM_CACHE"
"""The environment variable that names the folder."""

SUFFIX, UNFINISHED = ".kernel", ".kernel-part"
"""The ends of the names of kept kernels, and of those that a process is writing."""

MAGIC = b"fastmomentum kernel 1\n"
"""The first bytes of every file."""

SIZE = 2**28
"""The number of bytes that the folder may hold."""

ABANDONED = 3600
"""The age in seconds at which an unfinished file belongs to a process that was killed."""


def set_cache(folder: str | os.PathLike[str] | None) -> None:
    """Keep compiled CPU kernels in this folder, so that the next process loads them instead of compiling them.

    A kernel takes 0.2 to 1 s to compile and 5 ms to load (measured). Kernels that this process has compiled before the
    call are not kept. The environment variable FASTMOMENTUM_CACHE does the same from a program's start.

    Parameters
    ----------
    folder : str or path, or None
        The folder, which is made if it is missing. It may be read-only: then kernels are loaded, and none are added.
        None keeps no kernels, which is the default.

    Raises
    ------
    OSError
        If the folder cannot be made, or is a file.
    TypeError
        If `folder` is not a path.

    Notes
    -----
    **Trust**: the folder holds machine code. Whoever can write to it can run code in every process that uses it, so
    name no folder to which people can write whom you do not trust.

    A kernel is found by a digest of everything that it is made of: the bytecode of the rule and of all functions that
    it calls, the sources of this package, the versions of Python, NumPy and Numba, Numba's settings, and the features
    of the processor. A file that is damaged, or of another origin, is compiled anew. Several processes may use one
    folder at once. It holds at most 256 MiB: those kernels go first that were not used for the longest time. A rule is
    compiled in every process if it uses an object of which the digest cannot tell what it does in compiled code, such
    as a module of yours. Code for CUDA is not kept.

    Examples
    --------
    >>> import tempfile, fastmomentum as fm
    >>> fm.set_cache(tempfile.mkdtemp())
    >>> fm.set_cache(None)
    """
    global _folder
    if folder is None:
        _folder = None
        return
    path = Path(folder).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    _folder = path


def kept_on_disk(dispatcher: Any) -> Any:
    """Return a dispatcher of Numba after telling it to look in the folder before it compiles.

    While Numba's compiler is switched off, it makes no dispatchers, and a plain function is returned as it is.
    """
    if isinstance(dispatcher, Dispatcher):
        dispatcher._cache = KernelCache(dispatcher)  # type: ignore[attr-defined]  # Numba has no types
    return dispatcher


class KernelCache(_Cache):  # type: ignore[misc]  # Numba has no types
    """Load and save what Numba compiles of one function: the cache of its dispatcher."""

    def __init__(self, dispatcher: Any) -> None:
        self._function: Callable[..., Any] = dispatcher.py_func
        self._options, self._name = dispatcher.targetoptions, dispatcher.py_func.__qualname__
        self._digests: dict[Any, str] = {}

    @property
    def cache_path(self) -> str | None:
        """Return the folder."""
        return str(_folder) if _folder else None

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Return what is kept of this signature, or None."""
        if _folder is None:
            return None
        self._function.__qualname__ = self._name
        digest = fingerprint(self._function, self._options, sig)
        if digest is None:
            return None
        # Names of functions are global in a process: this one says what the function is made of, in every process.
        self._digests[sig] = digest
        self._function.__qualname__ = f"{self._name}_{digest}"
        content = read(_folder / (digest + SUFFIX), digest)
        if content is None:
            return None
        rtsys.initialize(target_context)  # the part of Numba's start that machine code needs; all of it takes 0.25 s
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(content))
        except Exception:  # whatever a foreign file makes pickle or Numba raise, the kernel can be compiled
            return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Keep what Numba compiled for this signature, if it means the same in another process."""
        digest = self._digests.pop(sig, None)
        if _folder is None or digest is None or cres.objectmode or cres.lifted or cres.library.has_dynamic_globals:
            return
        (name, kind, (_, shared)), *others = cres._reduce()
        write(_folder, digest, serialize.dumps(((name, kind, (_emit(cres, digest), shared)), *others)))

    def enable(self) -> None:
        """Do nothing: the folder decides."""

    def disable(self) -> None:
        """Do nothing: the folder decides."""

    def flush(self) -> None:
        """Do nothing: the folder is for all kernels."""


def _emit(cres: Any, digest: str) -> bytes:
    """Return the machine code of a compiled function, in which only names with its digest can be seen from outside.

    The functions that it calls are named by a count, which starts anew in every process. Were these names seen, two
    kernels of two processes could take each other's functions when a third process loads both.
    """
    library = cres.library
    module = library._final_module.clone()
    for function in module.functions:
        if not function.is_declaration and digest not in function.name:
            function.linkage = "internal"
    code: bytes = library._codegen._tm.emit_object(module)
    return code


def read(path: Path, digest: str) -> bytes | None:
    """Return the content of a kept file; None if there is none, or if it is not whole or not of this name."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = _head(digest, data[len(MAGIC) + 64 + 32 :])
    if not data.startswith(head):
        return None
    with suppress(OSError):
        os.utime(path)  # it was used now
    return data[len(head) :]


def write(folder: Path, digest: str, content: bytes) -> None:
    """Keep this content; warn once if the folder cannot be written to."""
    try:
        file, name = tempfile.mkstemp(UNFINISHED, dir=folder)
        try:
            with open(file, "wb") as stream:
                stream.write(_head(digest, content) + content)
            os.replace(name, folder / (digest + SUFFIX))
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        _remove_oldest(folder)
    except OSError as error:
        warnings.warn(f"compiled kernels are not kept, and the next process compiles them anew: {error}", stacklevel=2)


def _head(digest: str, content: bytes) -> bytes:
    """Return what stands before the content: the file's kind, its name, and a checksum."""
    return MAGIC + digest.encode() + sha256(content).digest()


def _remove_oldest(folder: Path) -> None:
    """Remove the kernels that were not used for the longest time, if all together take more than SIZE bytes."""
    with os.scandir(folder) as entries:
        files = [(entry, entry.stat()) for entry in entries if entry.name.endswith((SUFFIX, UNFINISHED))]
    kept = sorted((file for file in files if file[0].name.endswith(SUFFIX)), key=lambda file: -file[1].st_mtime)
    total = 0
    for entry, state in kept:
        total += state.st_size
        if total > SIZE:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)
    for entry, state in files:
        if entry.name.endswith(UNFINISHED) and time.time() - state.st_mtime > ABANDONED:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)


_folder: Path | None = None

if os.environ.get(VARIABLE):
    try:
        set_cache(os.environ[VARIABLE])
    except OSError as error:
        warnings.warn(f"compiled kernels are not kept, as {VARIABLE} names no folder: {error}", stacklevel=2)
