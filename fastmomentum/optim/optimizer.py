"""Learning rate and momentum of an optimiser: reading them, and changing them in mid-run.

Putting state to rest, on purpose and on the record: all of it, a group's, an array's or that of some rows.

A run that goes on under another rule: the same parameters, the same trajectory, another state.

Runs that come from torch, optax or Keras, and go back, with the velocity that they have gathered.

    torch.optim.SGD   v ← μv + (1−τ)g; p ← p − lr·v    the rule pytorch; an array's first v is g itself
    optax.sgd         t ← μt + g;      p ← p − lr·t    the same without dampening; t is the leaf of TraceState.trace
    Keras's SGD       m ← μm − lr·g;   p ← p + m       the rule classical with m = −v

None of these is imported here: what comes is read as arrays on the host, and what goes is made of NumPy's.

Taking up a run where it stopped: the saved state as a dict and as a file.

Watching an optimiser: how its steps come to a trace.

The optimiser object: parameters, state, step, reset.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Self

from fastmomentum import backends, checks
from fastmomentum.checks import FINITE, did_you_mean
from fastmomentum.optim import interop
from fastmomentum.optim.checkpoint import constructor_arguments, load_dict, read_file, to_dict, write_file
from fastmomentum.optim.conversion import plan_conversion
from fastmomentum.optim.engine import Engine, one_caller
from fastmomentum.optim.groups import WHOLE, parse_params
from fastmomentum.optim.restart import ALL, FUNCTION, Reset, _scope
from fastmomentum.optim.trace import Recorder, Trace
from fastmomentum.rules.base import Rule


class Adjustable:
    """What :class:`fastmomentum.Momentum` has for reading and changing its settings."""

    _engine: Engine

    @property
    def lr(self) -> Any:
        """The learning rate of the next update, a list where groups differ; may be set, to a function too.

        What a new one does to a run that has velocity, at once and without ``correct=True``:

        - pytorch, ema and their Nesterov forms, aggmo, quasi_hyperbolic, ema_corrected: the velocity holds gradients,
          and all of it goes on at the new rate.
        - classical and classical_nesterov: the velocity holds lr·g, and goes on at the old rate until it has died out
          (a share μ^n is left after n updates); only new gradients get the new one.
        - heavy_ball and nesterov_positions: as classical; it is p − q that holds lr·g.
        - sgd, signum, lion: nothing is kept that lr was multiplied with.

        With ``correct=True`` the second and third go over to the new rate as the first do.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> for correct in (False, True):
        ...     opt = fm.Momentum(np.zeros(1), rule="classical", lr=1.0, momentum=0.5, correct=correct)
        ...     opt.step(np.ones(1))
        ...     opt.lr = 0.25
        ...     opt.step(np.zeros(1))
        ...     print(opt.params)
        [-1.5]
        [-1.125]
        """
        return self._setting("lr")

    @lr.setter
    def lr(self, value: Any) -> None:
        self._set("lr", value)

    @property
    def momentum(self) -> Any:
        """The momentum of the next update, a list where groups differ; may be set, to a function too.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.1, momentum=fm.schedules.Linear(0.5, 0.9, steps=4))
        >>> opt.step(np.ones(2))
        >>> opt.momentum
        0.6
        """
        return self._setting("momentum")

    @momentum.setter
    def momentum(self, value: Any) -> None:
        self._set("momentum", value)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):  # which would do nothing, and say nothing
            raise AttributeError(
                f"{name}: expected lr or momentum, which may be set{did_you_mean(name, ('lr', 'momentum'))}"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        engine = self._engine
        settings = f"lr={self.lr!r}, momentum={self.momentum!r}, arrays={len(engine.group_of)}, steps={engine.steps}"
        return f"{type(self).__name__}(rule={engine.groups[0].name!r}, {settings})"

    def _setting(self, name: str) -> Any:
        values = [group.value(name, self._engine.time) for group in self._engine.groups]
        same = all(value == values[0] for value in values)
        values = [getattr(value, "owner", value) for value in values]  # of a scalar in device memory
        return values[0] if same else values

    def _set(self, name: str, value: Any) -> None:
        count = len(self._engine.groups)
        values = checks.sequence(name, value if isinstance(value, list | tuple) else [value] * count, count)
        with one_caller(self._engine.lock):
            self._engine.adjust(name, values)


class Resettable:
    """What :class:`fastmomentum.Momentum` has for putting its state to rest."""

    _engine: Engine

    def reset(
        self,
        reason: str,
        *,
        group: int | None = None,
        array: int | None = None,
        rows: int | slice | tuple[int, int] | None = None,
    ) -> None:
        """v ← 0, q ← p, whatever rest is to the rule's state; the next step is a first step again.

        Parameters
        ----------
        reason : str
            Why; kept in :attr:`resets` with the number of updates done.
        group, array : int, optional
            The number of a group, or of an array, flat and in the order of all groups: only its state is reset.
        rows : int, slice or (int, int), optional
            Only these entries along the array's first axis, a range without a step, as new rows of an embedding need.
            Where there is one array `array` may be left out. A range is at rest, but has no first step of its own, as
            the array has had it: with dampening, the rows' first velocity is dampened.

        Raises
        ------
        TypeError, ValueError
            If no reason is given, or there is no such group, array or range; nothing has been changed.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum([np.ones(2), np.ones(3)], lr=0.1)
        >>> opt.step([np.ones(2), np.ones(3)])
        >>> opt.reset("a new word", array=1, rows=2)
        >>> opt.velocity
        [array([1., 1.]), array([1., 1., 0.])]
        >>> opt.reset("the data changed")
        >>> opt.resets[-1]
        Reset(step=1, reason='the data changed', scope='all')
        """
        if not isinstance(reason, str):
            raise TypeError(f"reason: expected a str that says why; got {checks.describe(reason)}")
        if not reason.strip():
            raise ValueError("reason: expected a str that says why; got an empty one")
        engine = self._engine
        which, part, said = _scope(engine.group_of, [param.shape for param in engine.held.params], group, array, rows)
        with one_caller(engine.lock):
            engine.reset(which, part, Reset(engine.steps, str(reason), said))

    @property
    def restart(self) -> str | int | None:
        """The restart scheme.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> fm.Momentum(np.ones(2), lr=0.1, restart="gradient").restart
        'gradient'
        """
        return self._engine.restart

    def report(self, value: float) -> bool:
        """Tell the objective at the parameters as they are; with ``restart="function"`` a rise resets the whole.

        To be called before the gradient of the next update is taken.

        Parameters
        ----------
        value : float
            The objective.

        Returns
        -------
        bool
            Whether it had risen since the last report, and state is at rest now.

        Raises
        ------
        TypeError, ValueError
            If it is no finite number, or the restart scheme is another.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> p = np.array([1.0])
        >>> opt = fm.Momentum(p, lr=1.0, momentum=0.9, restart="function")
        >>> for _ in range(4):
        ...     if opt.report(float(p[0] ** 2)):
        ...         print(opt.resets[-1])
        ...     opt.step(p.copy())
        Reset(step=2, reason='function scheme: the objective rose from 0 to 0.81', scope='all')
        """
        engine = self._engine
        value = checks.number("value", value, FINITE)
        if engine.restart != FUNCTION:
            raise ValueError(
                f"restart: expected 'function' of the optimiser that is told values; got {engine.restart!r}"
            )
        with one_caller(engine.lock):
            reason = f"function scheme: the objective rose from {engine.value or 0.0:.6g} to {value:.6g}"
            return engine.report(value, Reset(engine.steps, reason, ALL))

    @property
    def resets(self) -> list[Reset]:
        """All resets: (step, reason, scope).

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones((3, 2)), lr=0.1)
        >>> opt.reset("a new row", rows=1)
        >>> opt.resets
        [Reset(step=0, reason='a new row', scope='array 0, rows 1:2')]
        """
        return [Reset(*reset) for reset in self._engine.resets]


class Convertible:
    """What :class:`fastmomentum.Momentum` has for going on under another rule."""

    _engine: Engine
    _single: bool

    def convert(self, rule: str | Rule, **settings: Any) -> Self:
        """An optimiser of the same parameters that continues this one's trajectory under another rule.

        State and learning rate of each group go over as :func:`fastmomentum.convert` has it: the displacement of the
        last step is kept, and the rate that multiplies the gradient in it. Steps, resets, schedules and what else is
        saved of a run go over as they are. This optimiser, and a trace of it, is left as it was; only one of both is to
        go on.

        Parameters
        ----------
        rule : str, Rule or chain
            The other rule, of the same method.
        **settings
            What the other is to have otherwise than this one, for all groups: nesterov and dampening, say; and lr,
            where it is a function of the step that the other rule needs in another scale. What changes the method, a
            decay say, leaves the trajectory.

        Returns
        -------
        Momentum
            The optimiser to go on with.

        Raises
        ------
        TypeError, ValueError
            If there is no exact conversion, now or at later steps: where lr is a function of the step and the old
            rule's state does not follow it (see ``correct``), or momentum is one and the share of the gradient that a
            rule takes depends on it; where an array is still to have a first step undampened; with a look-ahead on one
            side alone; between chains of other stages.

        Notes
        -----
        Where lr may change later on, a rule whose state carries lr gets ``correct=True``, if the old one's followed it.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> p = np.array([4.0, -2.0])
        >>> opt = fm.Momentum(p, lr=0.25, momentum=0.5)
        >>> opt.step(p.copy())
        >>> opt = opt.convert("classical")
        >>> opt.velocity, opt.steps  # lr times what it was
        (array([ 1. , -0.5]), 1)
        """
        engine = self._engine
        for name in ("params", "momentum"):
            if name in settings:
                raise TypeError(
                    f"{name}: expected none, as it goes over as it is; got {checks.describe(settings[name])}"
                )
        shared = {name: settings.pop(name, getattr(engine, name)) for name in ("backend", "threads", "skip_nonfinite")}
        with one_caller(engine.lock):
            saved, params = to_dict(engine), engine.held.fetch_params()
            turns = [plan_conversion(group, rule, settings, engine) for group in engine.groups]
        for turn, started in ((turns[number], started) for number, started in zip(engine.group_of, engine.started)):
            if turn.values["dampening"] and not started:
                raise ValueError("dampening: expected 0, as an array is still to have its first step, undampened")
        found = self._made_anew([turn.after.settings for turn in turns], shared)
        ours = to_dict(found._engine)
        for number, param, slots, kept in zip(engine.group_of, params, ours["state"], saved["state"]):
            state, _, _ = turns[number].over(kept[0] if kept else None, param)
            slots[:1] = [] if state is None else [state]
        lasting = {name: saved[name] for name in ("steps", "skipped", "resets", "value", "started")}
        load_dict(ours | lasting, found._engine)
        found._engine.look_ahead(range(len(params)))
        return found

    def _made_anew(self, groups: list[dict[str, Any]], shared: dict[str, Any]) -> Self:
        """An optimiser of the same parameters, with these settings for each group, and these for all."""
        engine = self._engine
        whole = {name: value for name, value in groups[0].items() if name in WHOLE} | shared
        own = [{name: value for name, value in group.items() if name not in WHOLE} for group in groups]
        members: list[list[Any]] = [[] for _ in groups]
        for number, param in zip(engine.group_of, engine.held.given):
            members[number].append(param)
        parts = [{"params": mine, **settings} for mine, settings in zip(members, own)]
        given = parts[0] | {"params": members[0][0]} if self._single else {"params": parts, "lr": own[0]["lr"]}
        return type(self)(**given, **whole)


class Movable:
    """What :class:`fastmomentum.Momentum` has for moving runs from and to other frameworks."""

    _engine: Engine

    @classmethod
    def from_torch(cls, state_dict: Mapping[str, Any], params: Any, *, steps: int = 0, **settings: Any) -> Self:
        """v ← momentum_buffer, and an array that has none yet is still to have its first step, undamped.

        Parameters
        ----------
        state_dict : mapping
            Of a torch.optim.SGD. Its groups and their settings come along; foreach, fused, differentiable and what
            schedulers keep there do not.
        params : array, or sequence of arrays
            All groups' parameters, flat and in order: ``p.detach().numpy()``, say, on the tensor's own memory.
        steps : int
            The number of updates done, which torch does not save: where a function of the step, assigned to :attr:`lr`
            in place of the number that a scheduler had come to, is to go on.
        **settings
            What else Momentum takes and torch's groups do not say: max_norm, threads and the like.

        Raises
        ------
        TypeError, ValueError
            If it is no state_dict of torch.optim.SGD, or does not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> group = {"lr": 0.25, "momentum": 0.5, "dampening": 0.5, "params": [0, 1]}
        >>> saved = {"state": {0: {"momentum_buffer": np.array([4.0])}}, "param_groups": [group]}
        >>> opt = fm.Momentum.from_torch(saved, [np.zeros(1), np.zeros(1)])
        >>> opt.step([np.ones(1), np.ones(1)])  # the second one's first step: its velocity is the gradient
        >>> opt.velocity
        [array([2.5]), array([1.])]
        """
        layout, buffers = interop.read_torch(state_dict, params)
        interop.refuse_known((*interop.NUMBERS, *interop.SWITCHES, "rule"), settings)
        return cls._moved(interop.BUFFER, buffers, steps, late=True, rule="pytorch", **layout, **settings)

    def to_torch(self, tensor: Callable[[Any], Any]) -> dict[str, Any]:
        """momentum_buffer ← v, but for arrays whose first step is still to come: torch gives them their own.

        With momentum 0 torch keeps no velocity; v, the last gradient then, goes along all the same, and counts there if
        the momentum is raised.

        Parameters
        ----------
        tensor : callable
            What makes a tensor of an array: ``torch.from_numpy``. torch refuses arrays.

        Returns
        -------
        dict
            What torch.optim.SGD.load_state_dict takes. Where lr or momentum is a function of the step, its value for
            the next update.

        Raises
        ------
        ValueError
            If torch.optim.SGD has no such rule, or an option is on that it does not have.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> opt.to_torch(np.asarray)["state"]  # with torch: sgd.load_state_dict(opt.to_torch(torch.from_numpy))
        {0: {'momentum_buffer': array([1., 1.])}}
        """
        return interop.write_torch(self._engine, interop.velocity_copies(self._engine, "to_torch", "pytorch"), tensor)

    @classmethod
    def from_optax(cls, trace: Any, params: Any, *, lr: Any, momentum: Any, steps: int = 0, **settings: Any) -> Self:
        """v ← the leaves of the trace, for the rule pytorch.

        Parameters
        ----------
        trace : array, or sequence of arrays
            ``jax.tree.leaves(state[0].trace)``, where `state` is that of optax.sgd; one array where `params` is one.
        params : array, sequence of arrays, or sequence of dict
            As for the constructor, in the order of the leaves. Writeable arrays: JAX's own are not.
        lr, momentum : float or callable
            As for the constructor; optax keeps them in its functions, where they cannot be read.
        steps : int
            The number of updates done, ``count`` in optax: where functions of the step are to go on.
        **settings
            What else the constructor takes, nesterov among it, but for rule and lookahead.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be served, or the trace does not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_optax(np.array([4.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.params
        (array([3.]), array([-0.75]))
        """
        interop.refuse_known(("rule",), settings)
        given = {"params": params, "lr": lr, "momentum": momentum}
        return cls._moved("trace", trace, steps, rule="pytorch", **given, **settings)

    def to_optax(self) -> Any:
        """trace ← v: the leaves of optax's trace, in order, as arrays on the host.

        Returns
        -------
        ndarray, or list of ndarray
            Copies; one array where the parameters are one. With `tree` the structure of the parameters,
            ``state[0]._replace(trace=jax.tree.unflatten(tree, opt.to_optax()))`` is the state to go on with.

        Raises
        ------
        ValueError
            If the rule is not pytorch or pytorch_nesterov, or dampens, which optax's trace does not.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> opt.to_optax()
        array([1., 1.])
        """
        found = interop.velocity_copies(self._engine, "to_optax", "pytorch")
        for group in self._engine.groups:
            if dampening := group.settings.get("dampening"):
                raise ValueError(f"to_optax: expected dampening 0, as optax's trace has none; got {dampening}")
        return self._one_or_all(found)

    @classmethod
    def from_keras(
        cls, velocities: Any, params: Any, *, lr: Any, momentum: Any, steps: int = 0, **settings: Any
    ) -> Self:
        """v ← −m, for the rule classical: m ← momentum·m − lr·g; p ← p + m is v ← momentum·v + lr·g; p ← p − v.

        Parameters
        ----------
        velocities : array, or sequence of arrays
            Those of Keras's SGD, ``[m.numpy() for m in optimizer.momentums]``; one array where `params` is one.
        params : array, sequence of arrays, or sequence of dict
            As for the constructor, in the order of the velocities.
        lr, momentum : float or callable
            As for the constructor.
        steps : int
            The number of updates done, ``optimizer.iterations``: where functions of the step are to go on.
        **settings
            What else the constructor takes, nesterov among it, but for rule and lookahead. Keras's weight_decay is
            decoupled_weight_decay here.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be served, or the velocities do not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_keras(np.array([-1.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.to_keras(), opt.params
        (array([0.75]), array([-0.75]), array([-0.75]))
        """
        interop.refuse_known(("rule",), settings)
        given = {"params": params, "lr": lr, "momentum": momentum}
        return cls._moved("velocities", velocities, steps, sign=-1, rule="classical", **given, **settings)

    def to_keras(self) -> Any:
        """m ← −v: the velocities of Keras's SGD.

        Returns
        -------
        ndarray, or list of ndarray
            Copies on the host, to ``assign`` to ``optimizer.momentums``; one array where the parameters are one.

        Raises
        ------
        ValueError
            If the rule is not classical or classical_nesterov.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), rule="classical", lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> opt.to_keras()
        array([-0.25, -0.25])
        """
        return self._one_or_all(interop.velocity_copies(self._engine, "to_keras", "classical", sign=-1))

    @classmethod
    def _moved(cls, name: str, found: Any, steps: int, sign: int = 1, *, late: bool = False, **settings: Any) -> Self:
        """The optimiser with these settings whose velocities are sign·found."""
        if settings.get("lookahead"):
            raise ValueError(
                "lookahead: expected False, as others' parameters are the points; nesterov=True goes on there"
            )
        opt = cls(**settings)
        interop.load_velocities(opt._engine, name, found, steps, sign, late)
        return opt

    def _one_or_all(self, values: list[Any]) -> Any:
        """The value of the one array, or the list."""
        raise NotImplementedError


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
        with one_caller(self._engine.lock):
            return to_dict(self._engine)

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
        load_dict(saved, self._engine)

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
        write_file(path, self.state_dict())

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        params: Any,
        *,
        rule: str | Rule | None = None,
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
        saved = read_file(path)
        settings = constructor_arguments(saved, params, rule=rule, lr=lr, momentum=momentum)
        found = cls(**settings | {"backend": backend, "threads": threads})
        found.load_state_dict(saved)
        return found


class Watchable:
    """What :class:`fastmomentum.Momentum` has for being watched."""

    _engine: Engine

    def trace(self, every: int = 1) -> Trace:
        """Keep a light record of the steps to come: ‖v‖, ‖g‖, cos∠(v, g), ‖p⁺ − p‖ and settings, of each group.

        Parameters
        ----------
        every : int
            Record each so many steps, the next one first. With more than 1, what is written to the velocity between
            two steps is told only where both are recorded, that is never; it costs as much less.

        Returns
        -------
        Trace
            It grows until its ``stop()``, or until another trace of this optimiser begins.

        Raises
        ------
        TypeError, ValueError
            If `every` is no whole number from 1, or the arrays are on a device.

        Notes
        -----
        A recorded step makes one pass more over p, the state and g, in front of the update and with its own formula: 12
        bytes an element beside 20 for pytorch in float32. Seven sums in double precision take longer than those bytes
        on one core: 0.45 ns an element, where the update takes 0.11 in the caches and 0.36 from memory (float32), so
        ask for every=10 where that matters. The tree of the sums is fixed: they are the same at any number of threads,
        and by the reference backend. A step that is not recorded, or not traced, makes none.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> p = np.array([3.0, 4.0])
        >>> opt = fm.Momentum(p, lr=0.5, momentum=0.5)
        >>> trace = opt.trace()
        >>> for _ in range(2):
        ...     opt.step(p.copy())
        >>> trace.velocity, trace.gradient, trace.step
        (array([0., 5.]), array([5. , 2.5]), array([2.5, 2.5]))
        """
        engine, every = self._engine, checks.integer("every", every, 1)
        engine.check_watchable("trace")
        trace = Trace(engine.update)
        trace.every, trace._groups = every, [group.settings for group in engine.groups]
        trace._told_by = engine
        watch = Recorder(trace, engine)
        with one_caller(engine.lock):
            engine.watch(watch, engine.slope)

        def end() -> None:
            with one_caller(engine.lock):
                trace._resets, trace._told_by = trace.resets, None
                if engine.observer is watch:
                    engine.watch(None, engine.slope)

        trace._end = end
        return trace


class Momentum(Adjustable, Resettable, Convertible, Resumable, Watchable):
    """Momentum updates of one array or many, in place, each step in one pass over memory.

    With the rule "pytorch": v ← μv + (1−τ)g; p ← p − lr·v, as torch.optim.SGD has it, its first step included: an
    array's first velocity, from rest, is g itself, whatever the dampening τ; an array that gets its first gradient
    later starts later. The other rules are in :mod:`fastmomentum.rules`, the options as for :func:`fastmomentum.step`.

    Parameters
    ----------
    params : array, sequence of arrays, or sequence of dict
        As for step(), all on the host or all on one device; updated in place. A dict {"params": ..., "lr": ..., ...} is
        a group, whose settings override those given beside `params`; all but rule, backend and threads may differ.
    lr, momentum : float, callable, or a scalar in device memory
        As for step(); a callable gets the number of the update to come, from 0, and returns the value for it.
    rule, dampening, nesterov, weight_decay, decoupled_weight_decay, maximize, clip_value, backend, threads, **hyper
        As for step(). Where momentum is a function of the step, a folded Nesterov rule gets its next value too
        (so does a look-ahead, with lr's): the function is asked for one step beyond the last.
    max_norm : float, optional
        Clip the Euclidean norm of all gradients together, as given: they enter the update times
        f = min(1, max_norm / (norm + 1e-6)), which is torch's clip_grad_norm_ without its writing to them. The norm is
        summed in double precision by a fixed tree within each array, then over the arrays in order. As in torch, a
        NaN makes the factor NaN, and an infinity (also of float64 squares, from 1e154 on) makes it 0.
    skip_nonfinite : bool
        Leave the whole update out, state, counts and all, if any gradient holds a NaN or an infinity; :attr:`skipped`
        counts these.
    lookahead : bool
        Nesterov's method with an explicit look-ahead, for pytorch, classical and ema: gradients are to be taken at
        :attr:`point`, p − lr·μ·v (classical: p − μ·v), which each update writes in its own pass, for the next step's lr
        and momentum. Coupled decay is taken at the point too.
    correct : bool
        Let state that carries the learning rate follow it: where lr changes, by assignment or as a function of the
        step, the velocity of classical and its Nesterov form is multiplied by the new over the old, and the q − p of
        heavy_ball and nesterov_positions, so that the trajectory is that of the pytorch form (of positions, where
        nothing beside the rule moves p, and at a constant momentum). lr must be > 0 then. Other rules' state carries
        no lr. A group may have its own. See :mod:`fastmomentum.carrying`.
    restart : {"gradient", "function", "schedule"} or int, optional
        Reset the whole, on the record, behind an update that went up the gradient, g·(p⁺ − p) > 0; where an objective
        told to :meth:`report` has risen; where lr or momentum begins a new period; or behind so many steps. But for
        "schedule", functions of the step count from the last reset of the whole. See :mod:`fastmomentum.restarts`.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be served.

    Notes
    -----
    heavy_ball and nesterov_positions start from a copy of the parameters, made here and by reset(): whatever else
    writes to the parameters later looks like velocity to them.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0, -2.0], dtype=np.float32)
    >>> opt = fm.Momentum(p, lr=0.25, momentum=0.5)
    >>> for _ in range(2):
    ...     opt.step(p.copy())  # the gradient of ½‖p‖²
    >>> p, opt.velocity, opt.steps
    (array([ 0.4375, -0.875 ], dtype=float32), array([ 1.25, -2.5 ], dtype=float32), 2)
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float | Callable[[int], float],
        momentum: float | Callable[[int], float] = 0.9,
        rule: str | Rule = "pytorch",
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: float = 0.0,
        maximize: bool = False,
        clip_value: float | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        lookahead: bool = False,
        correct: bool = False,
        restart: str | int | None = None,
        backend: str | None = None,
        threads: int | None = None,
        **hyper: float,
    ) -> None:
        shared = {
            "rule": rule,
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "clip_value": clip_value,
            "max_norm": max_norm,
            "lookahead": lookahead,
            "correct": correct,
            "restart": restart,
            **hyper,
        }
        skip = checks.boolean("skip_nonfinite", skip_nonfinite)
        self._engine = Engine(parse_params(params, shared), backend, checks.threads(threads), skip)
        self._single = backends.is_array(params)

    def step(self, grads: Any, stream: Any = None) -> None:
        """One update of all parameters, in place.

        Parameters
        ----------
        grads : array, or sequence of arrays or None
            Where `params` is one array, one like it; else one for each array of all groups, in order. None leaves
            its array alone, state included.
        stream : optional
            As for :func:`fastmomentum.step`.

        Raises
        ------
        TypeError, ValueError
            If a gradient, or meanwhile a parameter, is not as it must be, or a function of the step returns a value
            out of range; nothing has been changed then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> w, b = np.zeros(2), np.zeros(1)
        >>> opt = fm.Momentum([w, b], lr=0.5)
        >>> opt.step([np.ones(2), None])
        >>> w, b
        (array([-0.5, -0.5]), array([0.]))
        """
        if self._single:
            self._engine.step([grads], stream)
        else:
            given = list(grads) if type(grads) is list else checks.sequence("grads", grads, len(self.params))
            self._engine.step(given, stream)

    @property
    def params(self) -> Any:
        """The parameters: the array, or a list of all groups' arrays in order."""
        return self._one_or_all(self._engine.held.given)

    @property
    def state(self) -> Any:
        """The state as :func:`fastmomentum.step` takes it: None, an array or a tuple; a list of these for many arrays.

        A look-ahead point is no part of it. The arrays are the optimiser's own: what is written to them is
        what the next step starts from.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> fm.Momentum(np.ones(2), rule="heavy_ball", lr=0.5).state
        array([1., 1.])
        """
        kept = slice(None, self._engine.update.gradient_at - 1 if self._engine.update.gradient_at else None)
        states = [state[kept] for state in self._engine.held.states]
        return self._one_or_all([state[0] if len(state) == 1 else state or None for state in states])

    @property
    def velocity(self) -> Any:
        """The velocity, for rules whose state has one; a list of these for many arrays.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum([np.ones(2), np.ones(1)], lr=0.5)
        >>> opt.step([np.ones(2), np.ones(1)])
        >>> opt.velocity
        [array([1., 1.]), array([1.])]
        """
        update = self._engine.update
        if "velocity" not in update.slots:
            raise AttributeError(f"rule {update} keeps no velocity; it keeps {', '.join(update.slots) or 'no state'}")
        slot = update.slots.index("velocity")
        return self._one_or_all([state[slot] for state in self._engine.held.states])

    @property
    def point(self) -> Any:
        """Where to take the next gradient: the parameters themselves, unless there is a look-ahead.

        A step, reset() and assigning lr or momentum put it right. What else is written, to the parameters or to the
        velocity, does not: assign ``opt.lr = opt.lr`` then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.zeros(1), lr=0.5, momentum=0.5, lookahead=True)
        >>> opt.step(np.ones(1))
        >>> opt.params, opt.point
        (array([-0.5]), array([-0.75]))
        """
        at = self._engine.update.gradient_at
        return self._one_or_all([state[at - 1] for state in self._engine.held.states]) if at else self.params

    def _one_or_all(self, values: list[Any]) -> Any:
        return values[0] if self._single else list(values)

    @property
    def steps(self) -> int:
        """The number of updates done."""
        return self._engine.steps

    @property
    def skipped(self) -> int:
        """The number of updates left out by skip_nonfinite.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.zeros(1), lr=0.5, skip_nonfinite=True)
        >>> opt.step(np.array([np.nan]))
        >>> opt.skipped, opt.steps
        (1, 0)
        """
        return self._engine.skipped
