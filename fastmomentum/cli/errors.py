"""Report in one line why a command cannot do its work."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Report arguments or files that cannot be used, in one line: what was expected, and what came."""


class Failure(Exception):
    """Report in one line why a command failed on correct arguments."""


@contextmanager
def system_errors(name: str, kind: type[Failure | UsageError]) -> Iterator[None]:
    """Raise errors of the operating system as `kind`, after the name of the file or option that they belong to.

    A closed pipe is no such error, since it has an exit status of its own.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise kind(f"{name}: {error.strerror or error}") from error
