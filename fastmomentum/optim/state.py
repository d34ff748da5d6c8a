"""Every check of a user's arguments, in one place.

A refused argument gets a TypeError or a ValueError that names it, says what was expected and what came. Nothing here
writes to an array, so a step refused here has changed nothing. NaN and infinite *gradients* are data and pass.

The arrays of an optimiser: parameters, as the user passed them, and the state that it keeps for each.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.checks import Array, array, describe
from fastmomentum.optim.groups import SCHEDULED, Layout, ParamGroup
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import corrections_of
from fastmomentum.rules.record import hyper_row

REST = {"zero": "numpy.zeros_like(param)", "param": "param.copy()"}  # how users make it


def check_state(rule: Rule, value: object, like: Array) -> tuple[Array, ...]:
    """The state slots of one parameter, as `rule` declares them: None, an array, or a tuple of arrays."""
    slots = rule.slots
    if len(slots) == 1 and value is not None and not isinstance(value, tuple):
        return (array("state", value, like=like),)
    given: tuple[object, ...] = value if isinstance(value, tuple) else () if value is None else (value,)
    if len(given) != len(slots):
        expected = ("None", "an array", f"a tuple of {len(slots)} arrays")[min(len(slots), 2)]
        each = ", ".join(f"{slot} ({REST[at]} at rest)" for slot, at in rule.state)
        meaning = f", like param in dtype and shape: {each}" if slots else ""
        raise TypeError(f"state: rule {rule} expects {expected}{meaning}; got {describe(value)}")
    return tuple(array(f"state[{i}]", slot, like=like) for i, slot in enumerate(given))


ALL_ROWS = slice(None)
"""The whole of an array, also of one that has no axis."""


class State:
    """Parameters and their state, on the host or on a device.

    Attributes
    ----------
    given : list of arrays
        The parameters, as the user passed them.
    params : list of arrays
        The same as plain arrays, as of the last :meth:`look`.
    states : list of tuple of arrays
        For each parameter its state slots; arrays of our own.
    """

    def __init__(self, layout: Layout, backend: str, update: Rule) -> None:
        self.given, self._names, self._backend = layout.params, layout.names, backend
        self._grad_names = ["grads"] if layout.single else [f"grads[{i}]" for i in range(len(self.given))]
        self._slots = update.slots
        params = [self._array(name, p) for name, p in zip(self._names, self.given)]
        self.device = self._home.one_device(self._names, params)
        with self._home.on(self.device):
            self.states = [tuple(self._home.empty_like(p) for _ in self._slots) for p in params]
        self.params: list[Any] = params

    @property
    def _home(self) -> Any:
        return backends.arrays_of(self._backend)

    def _array(self, name: str, value: Any, **how: Any) -> Any:
        return checks.array(name, self._home.view(name, value), **how)

    def look(self, grads: Sequence[Any]) -> tuple[list[Any], Any]:
        """Check all arrays, these gradients among them.

        Returns
        -------
        list
            The gradients as plain arrays.
        ndarray
            Where the memory of all that is written begins and ends.
        """
        self.params = [self._array(name, param) for name, param in zip(self._names, self.given)]
        writes = dict(zip(self._names, self.params))
        for name, param, state in zip(self._names, self.params, self.states):
            for slot, values in zip(self._slots, state):
                writes[f"the {slot} of {name}"] = self._array(f"the {slot} of {name}", values, like=param)
        plain = [
            grad if grad is None else self._array(name, grad, like=param, write=False)
            for name, grad, param in zip(self._grad_names, grads, self.params)
        ]
        reads = {name: grad for name, grad in zip(self._grad_names, plain) if grad is not None}
        arrays = [*writes.values(), *reads.values()]
        self._home.one_device([*writes, *reads], arrays)
        return plain, checks.disjoint_intervals([*writes, *reads], arrays, read=len(reads))

    def arrays(self, i: int) -> tuple[Any, ...]:
        """One parameter and its state as plain arrays."""
        return (self.params[i], *(self._home.view("state", values) for values in self.states[i]))

    def rest(self, update: Rule, which: Iterable[int], rows: slice) -> None:
        """Put the state of these parameters to rest, in these rows."""
        with self._home.on(self.device):
            for i in which:
                for values, (_, rest) in zip(self.states[i], update.state):
                    if rest == "param":
                        self._home.copy(values, self.params[i], rows)
                    else:
                        self._home.zero(values, rows)

    def is_moving(self, i: int, update: Rule) -> bool:
        """Whether the state of this parameter is anywhere but at rest at zero."""
        with self._home.on(self.device):
            return any(
                self._home.is_moving(values)
                for values, (_, rest) in zip(self.states[i], update.state)
                if rest == "zero"
            )

    def look_ahead(
        self, which: Iterable[int], rule: Rule, groups: Sequence[ParamGroup], step: int, stream: Any = None
    ) -> None:
        """Put the points of these parameters where the momentum of the update to come will carry them.

        `groups` has the group of each parameter.
        """
        with self._home.on(self.device):
            values = {i: [self._home.number(groups[i].value(name, step)) for name in SCHEDULED] for i in which}
            for i, (lr, momentum) in values.items():
                cast = self.params[i].dtype.type
                self._home.point(rule, self.arrays(i), (cast(lr), cast(momentum)), stream)

    def moved(self, i: int, update: Rule, lr: float, lr_next: float) -> list[tuple[Any, Any]]:
        """The state slots of a parameter that go over to a new lr, each with what it comes to, on the host."""
        if lr == lr_next:
            return []
        found = []
        with self._home.on(self.device):
            for slot_number, stage in corrections_of(update):
                slot = self.states[i][slot_number]
                (number,) = hyper_row(stage, {"lr": lr, "lr_next": lr_next}, self.params[i].dtype)
                with np.errstate(all="ignore"):
                    values = stage.function(self._home.fetch(self.params[i]), self._home.fetch(slot), number)
                found.append((slot, values))
        return found

    def put(self, moved: Iterable[tuple[Any, Any]]) -> None:
        """Write what :meth:`moved` found."""
        with self._home.on(self.device):
            for slot, values in moved:
                self._home.copy(slot, values)

    def number(self, value: Any) -> Any:
        """A setting as it can be saved: of a scalar in device memory, the number that it holds."""
        with self._home.on(self.device):
            return self._home.number(value) if hasattr(value, "owner") else value

    def fetch(self) -> list[list[Any]]:
        """Copies of the state on the host."""
        with self._home.on(self.device):
            return [[self._home.fetch(values) for values in state] for state in self.states]

    def fetch_params(self) -> list[Any]:
        """Copies of the parameters on the host."""
        with self._home.on(self.device):
            return [self._home.fetch(param) for param in self.params]

    def write(self, states: Sequence[Sequence[Any]]) -> None:
        """Write these to the state."""
        with self._home.on(self.device):
            for state, slots in zip(self.states, states):
                for values, loaded in zip(state, slots):
                    self._home.copy(values, loaded)
