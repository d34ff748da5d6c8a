"""Taking up a run where it stopped: the saved state as a dict and as a file."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

from fastmomentum import checkpoint, files
from fastmomentum.frameworks import Movable
from fastmomentum.records import Update
from fastmomentum.turns import free


class Resumable(Movable):
    """What :class:`fastmomentum.Momentum` has for stopping and going on."""

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to continue with the same bits, beside the parameters; it shares no memory.

        See :mod:`fastmomentum.checkpoint` for what it holds.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.1)
        >>> opt.step(np.ones(2))
        >>> saved = opt.state_dict()
        >>> saved["rule"], saved["steps"], saved["state"]
        ('pytorch', 1, [[array([1., 1.])]])
        """
        with free(self._engine.lock):
            return checkpoint.pack(self._engine)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned; the parameters are left as they are.

        Raises
        ------
        TypeError, ValueError
            If it does not fit these parameters and this rule; all differences are listed, nothing has been changed.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> p = np.ones(2)
        >>> opt, again = fm.Momentum(p, lr=0.1), fm.Momentum(p, lr=0.5)
        >>> opt.step(np.ones(2))
        >>> again.load_state_dict(opt.state_dict())
        >>> again.lr, again.steps, again.velocity
        (0.1, 1, array([1., 1.]))
        """
        checkpoint.unpack(saved, self._engine)

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`state_dict` to a file: an uncompressed .npz, without pickle.

        It is written beside its place, flushed to the disk and then moved there, so that a run killed at any moment
        leaves either the old file whole or the new one.

        Raises
        ------
        OSError
            If it cannot be written.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm, json, os, tempfile
        >>> opt = fm.Momentum(np.ones(2), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "run.npz"))
        ...     with np.load(os.path.join(folder, "run.npz")) as file:  # whoever has NumPy can read it
        ...         meta, velocity = json.loads(file["meta"].tobytes()), file["state_0_0"]
        >>> meta["rule"], meta["groups"][0]["lr"], velocity
        ('pytorch', 0.1, array([0., 0.]))
        """
        files.write(path, self.state_dict())

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        params: Any,
        *,
        rule: str | Update | None = None,
        lr: Any = None,
        momentum: Any = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> Self:
        """The optimiser that :meth:`save` wrote, on these parameters, which it does not write to.

        Parameters
        ----------
        path : path-like
            The file.
        params : ndarray, or sequence of ndarray
            All groups' parameters, flat and in order; groups and settings come from the file.
        rule : Rule or chain, optional
            Needed where the saved one is not known by a name.
        lr, momentum : callable, or list of callable and None, optional
            The functions of the step, where the saved run had any that are not made of :mod:`fastmomentum.schedules`
            alone: these cannot be saved. A list has an entry for each group; one function serves all groups that had
            one, if they had the same. A schedule, which was saved, may be passed too, if it is equal.
        backend, threads
            As for the constructor; these are not saved.

        Raises
        ------
        TypeError, ValueError
            If the file is not whole, or does not fit; the message lists all differences. If a function is missing, or
            a schedule is not the one that was saved.
        OSError
            If it cannot be read.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm, tempfile, os
        >>> p = np.ones(3)
        >>> opt = fm.Momentum(p, lr=fm.schedules.Exponential(0.2, 0.5))
        >>> opt.step(p.copy())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "run.npz"))
        ...     again = fm.Momentum.load(os.path.join(folder, "run.npz"), p)
        >>> again.steps, again.lr, again.velocity
        (1, 0.1, array([1., 1., 1.]))
        """
        saved = files.read(path)
        settings = checkpoint.settings_for(saved, params, rule=rule, lr=lr, momentum=momentum)
        found = cls(**settings | {"backend": backend, "threads": threads})
        found.load_state_dict(saved)
        return found
