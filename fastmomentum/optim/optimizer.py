"""The class Optimizer: its public methods, which check arguments and leave the work to the engine and other modules."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Never, Self

from fastmomentum import checks
from fastmomentum.backends.interrupts import one_caller
from fastmomentum.optim import changes, checkpoint, conversion, run_file
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.evaluation import evaluation_points
from fastmomentum.optim.group_settings import GroupSettings, SettingAttribute, grads_in_order, set_settings
from fastmomentum.optim.groups import SHARED
from fastmomentum.optim.params import Layout, parse_params, with_group
from fastmomentum.optim.recorder import start_trace
from fastmomentum.optim.restart import ALL, FUNCTION, Reset, group_index, reset_scope
from fastmomentum.optim.state import check_counts
from fastmomentum.optim.trace import Trace
from fastmomentum.optim.values import check_hyper_names, skips
from fastmomentum.rules.base import Rule

Setting = float | Callable[[int], float]
"""A number, or a function of the step: of the number of updates done before, 0 at the first update."""


class Optimizer:
    """Update one array or many in place by an update rule, each step in one pass over memory.

    Parameters
    ----------
    params : array, sequence or dict of arrays, or sequence of groups
        The parameters, as for :func:`fastmomentum.step`, all on the host or all on one device; they are updated in
        place. A dict of arrays gives each a name. A group is a dict {"params": ..., "lr": ..., ...}, whose "params" is
        any of these: its settings replace the arguments of the same names. A group may have its own value of every
        setting except rule, lookahead, max_norm, restart, skip_nonfinite, backend and threads.
    rule : str or Rule
        The update rule; :func:`fastmomentum.rules.names` lists the names.
    lr : float, callable, or a scalar in device memory, optional
        Learning rate, ≥ 0, if the rule takes it. A callable is called with the number of updates done, 0 for the first
        one, and returns the value for the next update.
    backend, threads, skip_nonfinite : optional
        As for :class:`Momentum`.
    **settings
        The other settings of :class:`Momentum`, and the rule's own hyper-parameters. momentum has no default here: if
        the rule takes it, it must be given, here or in every group.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0, -2.0])
    >>> opt = fm.Optimizer(p, "sgd", lr=0.5)
    >>> opt.step(p.copy())  # the gradient of ½‖p‖²
    >>> p
    array([ 0.5, -1. ])
    """

    def __init__(
        self,
        params: Any,
        rule: str | Rule = "pytorch",
        *positional: Never,
        lr: Any = None,
        backend: str | None = None,
        threads: int | None = None,
        skip_nonfinite: bool | int = False,
        keep_resets: int | None = None,
        **settings: Any,
    ) -> None:
        checks.refuse_positional(type(self).__name__, positional)
        threads, skip_nonfinite = checks.threads(threads), skips(skip_nonfinite)
        given = {"rule": rule, **({} if lr is None else {"lr": lr}), **settings}
        layout = parse_params(params, given)
        hyper = {name for group in layout.groups for name in group.parameters}
        check_hyper_names(hyper, type(self))
        keep_resets = None if keep_resets is None else checks.integer("keep_resets", keep_resets)
        self._engine = Engine(layout, backend, threads, skip_nonfinite, keep_resets)
        self._single, self._given = layout.single, given
        for name in hyper:
            if name not in vars(Optimizer):
                setattr(Optimizer, name, SettingAttribute(name))  # a hyper-parameter of the rule's own

    def step(self, grads: Any, stream: Any = None) -> None:
        """Do one update of all parameters, in place.

        Parameters
        ----------
        grads : array, sequence of arrays or None, or dict
            One array if `params` is one array; else one for each array of all groups, in order, or a dict with the
            names of the arrays. An array whose gradient is None, or not in the dict, keeps its values and its state. As
            for :func:`fastmomentum.step`, gradients have the strides of their parameters, and may be arrays of other
            libraries.
        stream : optional
            As for :func:`fastmomentum.step`.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its parameter, if a parameter has become unusable since the last step (read-only,
            for example), or if a function of the step returns a value out of range; nothing has been changed then.

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
            given = list(grads) if type(grads) is list else grads_in_order(self._engine, grads)
            self._engine.step(given, stream)

    @property
    def params(self) -> Any:
        """The parameters: the array, a list of all groups' arrays in order, or a dict if they have names."""
        return self._one_or_all(self._engine.state.given)

    @property
    def state(self) -> Any:
        """The state as :func:`fastmomentum.step` takes it: None, an array or a tuple; a list of these for many arrays.

        These are the optimiser's own arrays, not copies: the next step starts from the values that you write to them. A
        look-ahead point is not among them.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> fm.Momentum(np.ones(2), rule="heavy_ball", lr=0.5).state
        array([1., 1.])
        """
        end = self._engine.update.gradient_at - 1
        states = [slots[: end if end >= 0 else None] for slots in self._engine.state.slots]
        return self._one_or_all([slots[0] if len(slots) == 1 else slots or None for slots in states])

    @property
    def velocity(self) -> Any:
        """The velocity, for rules that keep one; a list of velocities for many arrays.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum([np.ones(2), np.ones(1)], lr=0.5)
        >>> opt.step([np.ones(2), np.ones(1)])
        >>> opt.velocity
        [array([1., 1.]), array([1.])]
        """
        return self._slots("velocity")

    @property
    def average(self) -> Any:
        """The average of the parameters, for rules of :func:`fastmomentum.averaged`; a list of them for many arrays."""
        return self._slots("average")

    def evaluate(self) -> Any:
        """Return the point at which to evaluate the model, as new arrays: one for one parameter, else a list.

        It is the average of the points for the schedule-free rules, whose parameters are where gradients are taken; the
        :attr:`average` for rules of :func:`fastmomentum.averaged`; else a copy of the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Optimizer(np.ones(1), "schedule_free_sgd", lr=0.5, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.step(np.ones(1))
        >>> opt.params, opt.evaluate()
        (array([0.125]), array([0.25]))
        """
        return self._one_or_all(evaluation_points(self._engine))

    @property
    def point(self) -> Any:
        """The point at which to take the next gradient: the parameters themselves without ``lookahead=True``.

        step, reset and assigning lr or momentum move the point. Writing to the parameters or to the velocity does not:
        assign ``opt.lr = opt.lr`` after that.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.zeros(1), lr=0.5, momentum=0.5, lookahead=True)
        >>> opt.step(np.ones(1))
        >>> opt.params, opt.point
        (array([-0.5]), array([-0.75]))
        """
        at = self._engine.update.gradient_at
        return self._one_or_all([slots[at - 1] for slots in self._engine.state.slots]) if at else self.params

    @property
    def steps(self) -> int:
        """The number of updates done; assign another number, if a run goes on whose state you have set yourself.

        Functions of the step are called with the numbers from there on.
        """
        return self._engine.state.counter.steps

    @steps.setter
    def steps(self, value: int) -> None:
        steps = checks.integer("steps", value)
        check_counts(steps)
        with one_caller(self._engine.lock):
            changes.set_steps(self._engine, steps)

    @property
    def skipped(self) -> int:
        """The number of updates that skip_nonfinite has skipped.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.zeros(1), lr=0.5, skip_nonfinite=True)
        >>> opt.step(np.array([np.nan]))
        >>> opt.skipped, opt.steps
        (1, 0)
        """
        return self._engine.state.counter.skipped

    @property
    def groups(self) -> list[GroupSettings]:
        """The groups, each a mapping of its settings, which can be assigned.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum([{"params": np.ones(2)}, {"params": np.ones(3), "lr": 0.5}], lr=0.1)
        >>> opt.groups[1]["weight_decay"] = 0.25
        >>> opt.lr, opt.weight_decay
        ([0.1, 0.5], [0.0, 0.25])
        """
        return [GroupSettings(self._engine, number) for number in range(len(self._engine.groups))]

    # Not __getattr__, which makes every other attribute slower to read: it cost a step 0.2 µs of 1.5 (measured).
    lr, momentum = SettingAttribute("lr"), SettingAttribute("momentum")
    dampening, weight_decay = SettingAttribute("dampening"), SettingAttribute("weight_decay")
    decoupled_weight_decay, clip_value = SettingAttribute("decoupled_weight_decay"), SettingAttribute("clip_value")
    clip_norm, max_norm = SettingAttribute("clip_norm"), SettingAttribute("max_norm")
    nesterov, maximize, lookahead, correct = map(SettingAttribute, ("nesterov", "maximize", "lookahead", "correct"))
    restart, skip_nonfinite = SettingAttribute("restart"), SettingAttribute("skip_nonfinite")
    mask, lr_scale = SettingAttribute("mask"), SettingAttribute("lr_scale")

    def __setattr__(self, name: str, value: Any) -> None:
        """Use another value of a setting from the next update on: a number, a function of the step, or a list of them.

        A list has a value for each group. All values are checked at once, and if one is refused, none is used. Of the
        other attributes only steps can be assigned.
        """
        if name[0] == "_" or name == "steps":
            super().__setattr__(name, value)
            return
        engine = self._engine
        with one_caller(engine.lock):
            if len(engine.groups) > 1 or not changes.set_value(engine, 0, name, value):
                set_settings(engine, name, value)

    def __repr__(self) -> str:
        engine = self._engine
        taken = [name for name in ("lr", "momentum") if name in engine.groups[0].parameters]
        settings = "".join(f"{name}={getattr(self, name)!r}, " for name in taken)
        rule, arrays = engine.groups[0].name, len(engine.group_of)
        return f"{type(self).__name__}(rule={rule!r}, {settings}arrays={arrays}, steps={self.steps})"

    def _slots(self, name: str) -> Any:
        rule = self._engine.update
        if name not in rule.slots:
            raise AttributeError(f"rule {rule} keeps no {name}; it keeps {', '.join(rule.slots) or 'no state'}")
        number = rule.slots.index(name)
        return self._one_or_all([slots[number] for slots in self._engine.state.slots])

    def _one_or_all(self, values: list[Any]) -> Any:
        if self._single:
            return values[0]
        names = self._engine.state.names
        return list(values) if names is None else dict(zip(names, values))

    def add_group(self, group: Mapping[str, Any]) -> None:
        """Update more arrays from the next step on.

        Parameters
        ----------
        group : mapping
            {"params": ..., "lr": ..., ...}, as for the constructor; settings that it leaves out are those that the
            constructor got. Its arrays have names if those of the other groups do.

        Raises
        ------
        TypeError, ValueError
            If an array or a setting is refused; nothing has been changed then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum([np.ones(2)], lr=0.5)
        >>> opt.step([np.ones(2)])
        >>> opt.add_group({"params": np.ones(1), "lr": 0.25})
        >>> opt.step([None, np.ones(1)])
        >>> opt.params, opt.lr
        ([array([0.5, 0.5]), array([0.75])], [0.5, 0.25])
        """
        engine = self._engine
        with one_caller(engine.lock):
            state = engine.state
            unset: list[Any] = [{} for _ in state.given]  # the state keeps the masks and scales of its own arrays
            layout = Layout(state.given, state.array_names, state.names, engine.groups, engine.group_of, False, unset)
            now = engine.groups[0].settings
            shared = self._given | {name: now[name] for name in SHARED if name in now}
            where = f"groups[{len(engine.groups)}]"
            changes.add_group(engine, with_group(layout, where, group, shared, engine.schedule_step))
            self._single = False

    def replace(self, array: int | str, param: Any) -> None:
        """Update another array in place of one of the parameters, whose state goes along.

        Parameters
        ----------
        array : int or str
            The number of the parameter, counted through all groups, or its name.
        param : array
            The array to update from the next step on, of the same shape and dtype. It is not written to now.

        Raises
        ------
        TypeError, ValueError
            If there is no such parameter, or the array does not fit; nothing has been changed then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.5, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> moved = opt.params.copy()
        >>> opt.replace(0, moved)
        >>> opt.step(np.ones(2))
        >>> moved
        array([-0.25, -0.25])
        """
        with one_caller(self._engine.lock):
            changes.replace(self._engine, self._number_of("array", array), param)

    def _number_of(self, what: str, array: Any) -> int:
        """Return the number of the parameter that a number or a name stands for."""
        names = self._engine.state.names
        if isinstance(array, str) and names is not None:
            if array not in names:
                raise ValueError(f"{what}: expected the name of a parameter; got {array!r}")
            return names.index(array)
        return group_index(what, array, len(self._engine.group_of))

    def reset(
        self,
        reason: str,
        *,
        group: int | None = None,
        array: int | str | None = None,
        rows: int | slice | tuple[int, int] | None = None,
    ) -> None:
        """Set the state back to its initial values: v ← 0, or q ← p for a rule that keeps the previous position.

        The next step of an array counts as its first one again (see dampening in :class:`Momentum`), unless only some
        of its rows are reset.

        Parameters
        ----------
        reason : str
            The reason; :attr:`resets` holds it with the number of updates done.
        group, array : int, optional
            The number of the only group, or of the only array, counted through all groups, to reset; an array may be
            given by its name.
        rows : int, slice or (int, int), optional
            The only rows of `array` to reset, along its first axis: one row, a slice without a step, or (start, stop),
            for new rows of an embedding, for example. `array` may be left out if there is one array.

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
        shapes = [param.shape for param in engine.state.params]
        array = self._number_of("array", array) if isinstance(array, str) else array
        scope = reset_scope(engine.group_of, len(engine.groups), shapes, group, array, rows)
        with one_caller(engine.lock):
            changes.reset(engine, scope.which, scope.rows, (self.steps, str(reason), scope.text))

    def report(self, value: float) -> bool:
        """Report the objective at the current parameters, for ``restart="function"``; reset everything if it has risen.

        Call it before you compute the gradient of the next update.

        Parameters
        ----------
        value : float
            The objective, a finite number.

        Returns
        -------
        bool
            Whether the objective has risen since the last report, so that the state was reset.

        Raises
        ------
        TypeError, ValueError
            If `value` is not a finite number, or the restart scheme is not "function".

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
        value = checks.number("value", value, checks.FINITE)
        if self._engine.restart != FUNCTION:
            raise ValueError(
                f"restart: expected 'function' for an optimiser to report to; got {self._engine.restart!r}"
            )
        with one_caller(self._engine.lock):
            before = self._engine.state.value or 0.0
            reason = f"function scheme: the objective rose from {before:.6g} to {value:.6g}"
            return changes.report(self._engine, value, (self.steps, reason, ALL))

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
        return [Reset(*reset) for reset in self._engine.state.resets]

    def trace(self, every: int = 1) -> Trace:
        """Start to record ‖v‖, ‖g‖, cos∠(v, g), ‖p⁺ − p‖ and the settings of each group, from the next step on.

        Parameters
        ----------
        every : int
            Record every n-th step, beginning with the next one. With n > 1, writes to the velocity between two steps
            are not noticed.

        Returns
        -------
        Trace
            The record; it grows until its ``stop()``, or until another trace of this optimiser starts.

        Raises
        ------
        TypeError, ValueError
            If `every` is not a whole number from 1, or the arrays are on a device.

        Notes
        -----
        Before a recorded update, one more pass over p, the state and g adds up seven sums in double precision. For
        pytorch in float32 it reads 12 bytes an element, where the update moves 20, and takes 0.45 ns an element on one
        core; the update takes 0.11 ns in the caches and 0.36 ns from memory. The sums are added in a fixed order, so
        they have the same bits for any number of threads, and on the NumPy backend. A step that is not recorded costs
        nothing.

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
        return start_trace(self._engine, checks.integer("every", every, 1))

    def convert(self, rule: str | Rule, **settings: Any) -> Self:
        """Return an optimiser of the same parameters that continues this one's trajectory under another rule.

        State and learning rate of each group are converted as by :func:`fastmomentum.convert`, so that the displacement
        of the last step, and the learning rate that multiplies the gradient in it, stay the same. Steps, resets,
        schedules and everything else that :meth:`state_dict` holds are taken over unchanged. This optimiser stays as it
        is, and so does its trace; as both update the same parameters, use only one of them from then on.

        Parameters
        ----------
        rule : str or Rule
            The other rule, of the same method.
        **settings
            Settings of the new optimiser that differ from those of this one, for all groups: nesterov and dampening,
            for example; and lr, if it is a function of the step that the other rule needs in another scale. With a
            setting that changes the method, such as a decay, the run leaves the trajectory.

        Raises
        ------
        TypeError, ValueError
            If there is no exact conversion, now or at later steps:

            - lr is a function of the step, the state of the old rule holds lr and does not follow it (see ``correct``),
              and the state of the new rule does not hold lr;
            - lr is a function of the step, and its value now is not the one that the new rule needs;
            - momentum is a function of the step, and the factor between the two rules' lr, or the conversion of the
              parameters, depends on momentum;
            - dampening is not 0, and an array is still to have its undampened first step;
            - only one of the two rules has a look-ahead;
            - the two rules are in chains of different stages.

        Notes
        -----
        The new optimiser has ``correct=True`` if the state of its rule holds lr and the state of this optimiser's rule
        follows lr, so that both act alike when lr changes.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> p = np.array([4.0, -2.0])
        >>> opt = fm.Momentum(p, lr=0.25, momentum=0.5)
        >>> opt.step(p.copy())
        >>> opt = opt.convert("classical")
        >>> opt.velocity, opt.steps  # lr times the old velocity
        (array([ 1. , -0.5]), 1)
        """
        arguments, saved = conversion.convert_run(self._engine, self._single, rule, settings)
        found = type(self)(**arguments)
        conversion.load_converted(found._engine, saved)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything, except the parameters, that a run needs to continue with the same bits.

        :mod:`fastmomentum.optim.checkpoint` describes the dict.

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
            return checkpoint.to_dict(self._engine)

    def load_state_dict(self, saved: Mapping[str, Any], *, cast: bool = False) -> None:
        """Continue from a dict that :meth:`state_dict` returned; the parameters are left as they are.

        Parameters
        ----------
        saved : mapping
            The dict. Arrays with names are matched by name, in any order; without names, by their position.
        cast : bool
            Whether a state of another precision is converted to that of the parameters.

        Raises
        ------
        TypeError, ValueError
            If the dict does not fit these parameters and this rule; the message lists all differences, and nothing has
            been changed.

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
        checkpoint.load_dict(saved, self._engine, cast)

    def save(self, path: str | PathLike[str], *, fingerprint: bool = True) -> None:
        """Write :meth:`state_dict` to a file: an uncompressed .npz, without pickle.

        A new file is written to the same folder, flushed to the disk and then renamed to `path`. A run that is killed
        at any moment leaves the whole old file or the whole new one at `path`. Writing to a link writes to its target.

        Parameters
        ----------
        path : path-like
            The file to write, or to replace.
        fingerprint : bool
            Whether to write a checksum of each parameter, too, by which :meth:`load` notices that parameters without
            names come in another order. It is computed in one pass over the parameters, at about 1 GB/s.

        Warns
        -----
        UserWarning
            If a run that came from torch has entries of torch's groups that JSON, and so the file, cannot hold.

        Raises
        ------
        OSError
            If the file cannot be written: there is something else than a regular file at `path`, for example.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm, json, os, tempfile
        >>> opt = fm.Momentum(np.ones(2), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "run.npz"))
        ...     with np.load(os.path.join(folder, "run.npz")) as file:  # NumPy alone can read it
        ...         meta, velocity = json.loads(file["meta"].tobytes()), file["state_0_0"]
        >>> meta["rule"], meta["groups"][0]["lr"], velocity
        ('pytorch', 0.1, array([0., 0.]))
        """
        with one_caller(self._engine.lock):
            saved = checkpoint.to_dict(self._engine, fingerprint)
        run_file.write_file(path, saved)

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
        cast: bool = False,
        **settings: Any,
    ) -> Self:
        """Return the optimiser that :meth:`save` wrote, for these parameters, which are not written to.

        Parameters
        ----------
        path : path-like
            The file.
        params : array, sequence or dict of arrays
            All groups' parameters; groups and settings come from the file. A dict is matched by name, in any order, if
            the run was saved with names. A sequence is matched by position: a warning says so if its arrays hold the
            values that others of them had when the run was saved, in any precision.
        rule : Rule, optional
            The rule, if no rule is registered under the saved name.
        lr, momentum, **settings : float, callable or None, or list of them, optional
            Settings, by their names, that replace what was saved, as if they were assigned after loading: None turns an
            option off. One value is for all groups; a list has one for each group, or None for a group that keeps its
            own. Functions of the step other than schedules of :mod:`fastmomentum.schedules` cannot be saved: pass them
            again, or a value in their place. A single one is for the groups that had one, if they had the same one.
        backend, threads
            As for the constructor; the file does not hold them.
        cast : bool
            Whether a state of another precision is converted to that of the parameters.

        Raises
        ------
        TypeError, ValueError
            If the file is damaged or does not fit the parameters (the message lists all differences), if a function of
            the step is missing, or if a setting is refused.
        OSError
            If the file cannot be read, or is not a regular one.

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
        given = {name: value for name, value in (("lr", lr), ("momentum", momentum)) if value is not None} | settings
        executor = {"backend": backend, "threads": threads}
        return run_file.load_file(cls, path, params, given, cast, rule, executor)
