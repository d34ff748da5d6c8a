"""Keep the machine code of CPU kernels in a folder, for later processes."""

import os
import pickle
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from numba.core import serialize
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.environment import Environment
from numba.core.runtime import rtsys

from fastmomentum.backends.cpu.fingerprint import fingerprint, prepare

VARIABLE = "FASTMOMENTUM_CACHE"
"""The environment variable that names the folder."""

SUFFIX, UNFINISHED = ".kernel", ".kernel-part"
"""The ends of the names of kept kernels, and of those that a process is writing."""

MAGIC = b"fastmomentum kernel 1\n"
"""The first bytes of every file."""

ENVIRONMENT = "_ZN08NumbaEnv"
"""The beginning of the names of environments in machine code."""

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
    OSError, RuntimeError
        If the folder cannot be made, is a file, or is in the home of an unknown user.
    TypeError, ValueError
        If `folder` is not a path, or is empty.

    Notes
    -----
    **Trust**: the folder holds machine code. Anybody who can write to it can run code in every process that uses it,
    so name a folder to which only people whom you trust can write.

    A kernel is found by a digest of everything that it is made of: the bytecode of the rule and of all functions that
    it calls, the sources of this package, the versions of Python, NumPy and Numba, Numba's settings, and the features
    of the processor. A file that is damaged, or of another origin, is compiled anew. Several processes may use one
    folder at once. It holds at most 256 MiB: those kernels go first that were not used for the longest time. A rule is
    compiled in every process if it uses an object of which the digest cannot tell what it does in compiled code, such
    as a module of yours. So it is if it calls a function of yours that uses globals, and that Numba has compiled before
    this call (with the variable, before the first kernel) or with other values of them. Code for CUDA is not kept.

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
    if not os.fspath(folder):
        raise ValueError("folder: expected the path of a folder, or None to keep no kernels; got an empty text")
    path = Path(folder).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    prepare()
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
        folder = _folder  # another thread may change it
        if folder is None:
            return None
        self._function.__qualname__ = self._name
        digest = fingerprint(self._function, self._options, sig)
        if digest is None:
            return None
        # Names of functions are global in a process: this one says what the function is made of, in every process.
        self._digests[sig] = digest
        self._function.__qualname__ = f"{self._name}_{digest}"
        content = read(folder / (digest + SUFFIX), digest)
        if content is None:
            return None
        rtsys.initialize(target_context)  # the part of Numba's start that machine code needs; all of it takes 0.25 s
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(content))
        except Exception:  # a foreign file can make pickle and Numba raise any error; the kernel is compiled, then
            return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Keep what Numba compiled for this signature, if it means the same in another process."""
        folder, digest = _folder, self._digests.pop(sig, None)
        if folder is None or digest is None or cres.objectmode or cres.lifted or cres.library.has_dynamic_globals:
            return
        try:
            content = _serialize(cres, digest)
        except Exception:  # an object of the user can make pickle raise any error; the kernel runs without being kept
            return
        write(folder, digest, content)

    def enable(self) -> None:
        """Do nothing: the folder decides."""

    def disable(self) -> None:
        """Do nothing: the folder decides."""

    def flush(self) -> None:
        """Do nothing: the folder is for all kernels."""


def _serialize(cres: Any, digest: str) -> bytes:
    """Return a compiled function in which only names with its digest can be seen from outside.

    The functions that it calls, and their environments, which hold Python objects for compiled code, are named by a
    count, which starts anew in every process. Were these names seen, two kernels of two processes could take each
    other's parts when a third process loads both.
    """
    library = cres.library
    module = library._final_module.clone()
    for variable in module.global_variables:
        if variable.name.startswith(ENVIRONMENT):
            variable.name = _with_digest(variable.name, digest)
    own = []
    for function in module.functions:
        if not function.is_declaration and digest in function.name:
            own.append(function)
        elif not function.is_declaration:
            function.linkage = "internal"
    code = library._codegen._tm.emit_object(module)
    for function in own:
        function.linkage = "linkonce_odr"  # as Numba has it in code that other functions are linked with
    (name, kind, _), *others, environments = cres._reduce()
    renamed = []
    for environment in environments:
        copy = Environment(environment.globals)
        copy.consts[:], copy.env_name = environment.consts, _with_digest(environment.env_name, digest)
        renamed.append(copy)
    content: bytes = serialize.dumps(((name, kind, (code, module.as_bitcode())), *others, tuple(renamed)))
    return content


def _with_digest(name: str, digest: str) -> str:
    return name if digest in name else f"{name}_{digest}"


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
    part = folder / f"{digest}-{uuid4().hex}{UNFINISHED}"
    try:
        try:
            with open(part, "xb") as stream:  # with the user's permissions for new files, as others may load it
                stream.write(_head(digest, content) + content)
            os.replace(part, folder / (digest + SUFFIX))
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
        _remove_oldest(folder)
    except OSError as error:
        _warn(f"and the next process compiles them anew: {folder}: {error.strerror or error}")


def _warn(why: str) -> None:
    """Warn once that kernels are not kept; Python forgets what it has shown whenever Numba compiles."""
    if why not in _warned:
        _warned.add(why)
        warnings.warn(f"compiled kernels are not kept, {why}", stacklevel=4)


def _head(digest: str, content: bytes) -> bytes:
    """Return what stands before the content: the file's kind, its name, and a checksum."""
    return MAGIC + digest.encode() + sha256(content).digest()


def _remove_oldest(folder: Path) -> None:
    """Remove the kernels that were not used for the longest time, if all together take more than SIZE bytes."""
    kept, now, total = [], time.time(), 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # another process may remove or rename a file at any time
                if entry.name.endswith(SUFFIX):
                    state = entry.stat(follow_symlinks=False)
                    kept.append((state.st_mtime, state.st_size, entry.path))
                elif entry.name.endswith(UNFINISHED) and now - entry.stat().st_mtime > ABANDONED:
                    os.unlink(entry.path)
    for _, size, path in sorted(kept, reverse=True):
        total += size
        if total > SIZE:
            with suppress(OSError):
                os.unlink(path)


_folder: Path | None = None
_warned: set[str] = set()

if os.environ.get(VARIABLE):
    try:
        set_cache(os.environ[VARIABLE])
    except (OSError, RuntimeError) as error:
        warnings.warn(f"compiled kernels are not kept, as {VARIABLE} names no folder: {error}", stacklevel=2)
