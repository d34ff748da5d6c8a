"""How an optimiser's steps are carried out: what is kept between them, and what is looked at again."""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.checks import Array
from fastmomentum.compose import Chain, LookAhead
from fastmomentum.groups import SCHEDULED, Group, Layout
from fastmomentum.launch import CompiledLaunch, Job, Launch, ReferenceLaunch
from fastmomentum.records import Update


class Engine:
    """Parameters, their state and settings, and the kernel calls that update them.

    A step takes the quick way, one look at all arrays in compiled code and the update; where other arrays than in the
    last step have a gradient, or hyper-parameters are new, the calls are made anew; and where the look finds anything
    that is not as it must be, everything is checked again.

    Attributes
    ----------
    given : list of ndarray
        The parameters, as the user passed them.
    states : list of tuple of ndarray
        For each parameter its state slots.
    started : list of bool
        For each parameter whether it has had its first step.
    groups : list of Group
        The settings.
    group_of : list of int
        For each parameter the number of its group.
    steps, skipped : int
        Updates done, and updates left out because a gradient was not finite.
    skip_nonfinite : bool
        Whether an update is left out if any gradient holds a NaN or an infinity.
    """

    def __init__(self, layout: Layout, backend: str, skip_nonfinite: bool) -> None:
        self._launch: Launch
        self._active: list[bool]
        self.given, self._names, self.groups, self.group_of = (
            layout.params,
            layout.names,
            layout.groups,
            layout.group_of,
        )
        self._grad_names = ["grads"] if layout.single else [f"grads[{i}]" for i in range(len(self.given))]
        self._backend = backend
        self.skip_nonfinite = skip_nonfinite
        self.steps = self.skipped = 0
        params = [checks.array(name, p) for name, p in zip(self._names, self.given)]
        self.states = [tuple(np.empty_like(p) for _ in self.update.state) for p in params]
        self._build([None] * len(params))
        self.check_groups(self.groups, 0)
        self.rest()
        self.take_groups(self.groups)

    @property
    def update(self) -> Update:
        """The rule, which all groups share but for their stages."""
        return self.groups[0].update

    def step(self, grads: Sequence[Any]) -> None:
        """One update; a refused one changes nothing."""
        usable = self._ready and isinstance(grads, (list, tuple)) and len(grads) == len(self.given)
        # A list of our own keeps the gradients alive while the kernel, which holds no lock, runs.
        if not (usable and self._run(list(grads))):
            self._step_anew(grads)

    def _run(self, grads: list[Any]) -> bool:
        """Count an update, done or skipped; or answer False, with nothing written, if it cannot be."""
        if self._measures:
            squares = self._launch.measure(grads)
            if squares < 0:
                return False
            if self.skip_nonfinite and not is_finite(squares, grads):
                self.skipped += 1
                return True
            if self._max_norm is not None:
                factor = self._max_norm / (math.sqrt(squares) + 1e-6)
                self._launch.take_factor(1.0 if factor > 1.0 else factor)  # a NaN stays one
        if not self._launch.run(grads):
            return False
        self.steps += 1
        return True

    def rest(self) -> None:
        """Put the state to rest; the next step of every array is its first again."""
        for param, state in zip(self._params, self.states):
            for values, (_, rest) in zip(state, self.update.state):
                values[...] = param if rest == "param" else 0.0
        self.started = [False] * len(self.given)
        self._ready = False

    def check_groups(self, groups: Sequence[Group], step: int) -> None:
        """Refuse settings that the kernel of some array could not take at this step."""
        for number, dtype in {(number, param.dtype) for number, param in zip(self.group_of, self._params)}:
            groups[number].row(dtype, step)

    def take_groups(self, groups: list[Group]) -> None:
        """Use these settings, which have been checked."""
        self._max_norm = groups[0].settings.get("max_norm")
        self._measures = self.skip_nonfinite or self._max_norm is not None
        compiled = [group.update.functions for group in self.groups]
        self.groups = groups
        self._ready = False
        if [group.update.functions for group in groups] != compiled:
            self._build([None] * len(self.given))
        self.look_ahead(range(len(self.given)))

    def _step_anew(self, grads: Sequence[Any]) -> None:
        """A step that updates other arrays than the last, or with other hyper-parameters, or that must be refused."""
        checks.sequence("grads", grads, len(self.given))
        self._ready = False
        before = self.steps
        active = [grad is not None for grad in grads]
        first = self._at_first_step(active)
        usual = self._launch.checks and self._launched(list(grads), active, first)
        # Else something is wrong, and is refused in _build, or it is unusual, and gets a table that allows for it.
        if not usual and not self._launched(self._build(grads), active, first):
            raise RuntimeError("arrays were changed by another thread during the step; nothing was written")
        if self.steps == before:
            return
        self.started = [started or a for started, a in zip(self.started, active)]
        scheduled = any(group.scheduled for group in self.groups)
        if scheduled:
            self.look_ahead([i for i, a in enumerate(active) if not a])
        self._ready = usual and any(active) and not first and not scheduled

    def _launched(self, grads: list[Any], active: list[bool], first: set[int]) -> bool:
        if active != self._active:
            self._launch.select(active)
            self._active = active
        row_of = cache(lambda group, dtype, first: self.groups[group].row(dtype, self.steps, first))
        self._launch.take_hyper(row_of, first)
        return self._run(grads)

    def _at_first_step(self, active: list[bool]) -> set[int]:
        """The arrays whose first step from rest this is, where the rule has one of its own.

        A state that was written to is not at rest, and continues by the raw formula.
        """
        waiting = (i for i, (started, a) in enumerate(zip(self.started, active)) if a and not started)
        return {i for i in waiting if self.update.first and not self._moves(i)}

    def _moves(self, i: int) -> bool:
        return any(values.any() for values, (_, rest) in zip(self.states[i], self.update.state) if rest == "zero")

    def look_ahead(self, which: Iterable[int]) -> None:
        """Put the points of these arrays where the momentum of the next update will carry them."""
        rule = self.update.rule if isinstance(self.update, Chain) else self.update
        if not isinstance(rule, LookAhead):
            return
        for i in which:
            param, (velocity, point), group = self._params[i], self.states[i], self.groups[self.group_of[i]]
            point[...] = rule.ahead(param, velocity, *(param.dtype.type(group.value(n, self.steps)) for n in SCHEDULED))

    def _build(self, grads: Sequence[Any]) -> list[Array | None]:
        """Check all arrays; make the table of them; return the gradients as plain arrays."""
        self._params = [checks.array(name, param) for name, param in zip(self._names, self.given)]
        writes = dict(zip(self._names, self._params))
        for name, param, state in zip(self._names, self._params, self.states):
            for slot, values in zip(self.update.slots, state):
                writes[f"the {slot} of {name}"] = checks.array(f"the {slot} of {name}", values, like=param)
        plain = [
            grad if grad is None else checks.array(name, grad, like=param, write=False)
            for name, grad, param in zip(self._grad_names, grads, self._params)
        ]
        reads = {name: grad for name, grad in zip(self._grad_names, plain) if grad is not None}
        written = checks.apart([*writes, *reads], [*writes.values(), *reads.values()], read=len(reads))
        jobs = [
            Job((param, *state), self.groups[group].update, group)
            for param, state, group in zip(self._params, self.states, self.group_of)
        ]
        self._launch = ReferenceLaunch(jobs) if self._backend == "numpy" else CompiledLaunch(jobs, written)
        self._active = []
        self._ready = False
        return plain

    def __getstate__(self) -> dict[str, Any]:
        made = ("_params", "_launch", "_active", "_ready")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._build([None] * len(self.given))


def is_finite(squares: float, grads: Sequence[Any]) -> bool:
    """Whether all gradients are finite; their sum of squares tells, unless it has overflowed."""
    return math.isfinite(squares) or all(np.isfinite(grad).all() for grad in grads if grad is not None)
