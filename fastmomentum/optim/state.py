"""The state of an optimiser: its arrays, and the other values that a checkpoint holds."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum import backends, checks
from fastmomentum.advice import is_tensor
from fastmomentum.backends.base import StepCounter
from fastmomentum.backends.host_arrays import flat_view, read
from fastmomentum.checks import Array, array, describe, real_dtype, same_strides
from fastmomentum.optim.elements import read_elements
from fastmomentum.optim.groups import SCHEDULED
from fastmomentum.optim.params import Layout
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import corrections_of
from fastmomentum.rules.record import hyper_row

LAST_COUNT = 2**61
"""The count at which no further step is done. Saved states hold counts up to 2⁶².

Counts are checked when a step is planned; 2⁶¹ more steps, which compiled code counts unchecked, take 70 years at 1 ns.
"""

ALL_ROWS = slice(None)
"""All rows of an array, also of one that has no axis."""

INITIAL = {"zero": "numpy.zeros_like", "param": "numpy.array"}
"""The function of the parameter with which a user makes each initial value of a slot, for messages."""


def check_state(rule: Rule, value: object, like: Array, dense: bool) -> tuple[Array, ...]:
    """Return the state slots of one parameter, as `rule` declares them, from None, an array, or a tuple of arrays.

    `like` is the parameter; `dense` says whether it is on the host and not C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If the number of arrays, a dtype or a shape is wrong.
    """
    slots = rule.slots
    if len(slots) == 1 and value is not None and not isinstance(value, tuple):
        return (array("state", value, like=like, dense=dense),)
    given: tuple[object, ...] = value if isinstance(value, tuple) else () if value is None else (value,)
    if len(given) != len(slots):
        expected = ("None", "an array", f"a tuple of {len(slots)} arrays")[min(len(slots), 2)]
        param = checks.array_of_param(like)
        each = ", ".join(f"{slot} (initially {INITIAL[initial]}({param}))" for slot, initial in rule.state)
        meaning = f", like param in dtype, shape and layout: {each}" if slots else ""
        raise TypeError(f"state: rule {rule} expects {expected}{meaning}; got {describe(value)}")
    return tuple(array(f"state[{i}]", slot, like=like, dense=dense) for i, slot in enumerate(given))


def check_counts(*counts: int) -> None:
    """Check that one more update can be counted.

    Raises
    ------
    ValueError
        If one of the numbers of updates done or skipped is too large.
    """
    if max(counts) >= LAST_COUNT:
        raise ValueError(f"steps: expected fewer than 2**61 updates, done or skipped, before a step; got {max(counts)}")


class State:
    """Hold the parameters and their state, on the host or on a device, and the counts and resets of a run.

    Attributes
    ----------
    given : list of arrays
        The parameters, as the user passed them.
    params : list of arrays
        The same parameters as plain arrays, which the last :meth:`check_arrays` made.
    slots : list of tuple of arrays
        The state slots of each parameter; the optimiser owns these arrays.
    elements : list of Elements
        The mask and the scale of lr of each parameter.
    names : list of str or None
        The names that the user gave to the parameters.
    array_names : list of str
        The names of the parameters in messages.
    memory : list of list of float
        For each parameter the numbers that its rule keeps from step to step; with the scope "all" one list for all.
    shares_memory : bool
        Whether it is one list for all.
    counter : StepCounter
        The numbers of updates done and skipped.
    resets : deque of (int, str, str)
        For each reset the number of updates done before it, the reason, and the scope.
    last_reset : int
        The number of updates done before the last reset of everything.
    value : float or None
        The objective that was reported last.
    device : int
        The CUDA device of the arrays; 0 on the host.
    torch_groups : list of dict
        The entries of the groups of torch.optim.SGD that have no meaning here, for the way back to torch.
    """

    def __init__(self, layout: Layout, backend: str, keep_resets: int | None = None) -> None:
        self.given, self.names, self.array_names, self._backend = layout.params, layout.keys, layout.names, backend
        self._grad_names = _names_of_grads(layout)
        self._slot_names = layout.groups[0].update.slots
        self._arrays = backends.arrays_of(backend)
        params = [self._array(name, p) for name, p in zip(self.array_names, self.given)]
        self.device = self._arrays.one_device(self.array_names, params)
        self.elements = read_elements(layout.elements, params, backend)
        with self._arrays.on(self.device):
            if layout.slots is None:
                self.slots = [tuple(self._arrays.empty_like(p) for _ in self._slot_names) for p in params]
            else:
                self.slots = [tuple(self._arrays.view("state", slot) for slot in slots) for slots in layout.slots]
        self.params: list[Any] = params
        core = layout.groups[0].update.core
        self._first_memory, self.shares_memory = [*map(float, core.memory.values())], core.scope == "all"
        one = self._first_memory.copy()
        self.memory = [one if self.shares_memory else one.copy() for _ in params]
        self.counter = StepCounter()
        self._tally = [0] * len(params), 0, [False] * len(params)  # updates, the step when they were counted, and which
        self.resets: deque[tuple[int, str, str]] = deque(maxlen=keep_resets)
        self.last_reset = 0
        self.value: float | None = None
        self.torch_groups: list[dict[str, Any]] = []

    @property
    def updates(self) -> list[int]:
        """For each parameter the number of updates that it has had since its state was at rest.

        It is worked out from the number of steps when it is read, so that counting costs a step nothing.
        """
        updates, steps_then, counts = self._tally
        steps = self.counter.steps
        if new := steps - steps_then:
            updates = [n + new if counted else n for n, counted in zip(updates, counts)]
            self._tally = updates, steps, counts  # in one assignment, which no signal interrupts
        return updates

    @updates.setter
    def updates(self, values: Sequence[int]) -> None:
        self._tally = list(values), self.counter.steps, self._tally[2]

    @property
    def started(self) -> list[bool]:
        """For each parameter whether it has had its first step."""
        return [n > 0 for n in self.updates]

    def count_updates_of(self, counts: list[bool]) -> None:
        """Count, from the next step on, the updates of these parameters."""
        updates, steps = self.updates, self.counter.steps
        check_counts(steps, self.counter.skipped, *updates)
        self._tally = updates, steps, counts

    def with_arrays(self, layout: Layout) -> "State":
        """Return this state with the arrays that `layout` has after its own; the counters are shared.

        The slots of new arrays have undefined values, which :meth:`initialise` writes.

        Raises
        ------
        TypeError, ValueError
            If a kernel cannot work on a new array.
        """
        count = len(self.given)
        added = {name: getattr(layout, name)[count:] for name in ("params", "names", "elements")}
        new = State(layout._replace(**added), self._backend)
        found = copy(self)
        found.given, found.names, found.array_names = layout.params, layout.keys, layout.names
        found._grad_names = _names_of_grads(layout)
        found.params, found.slots = [*self.params, *new.params], [*self.slots, *new.slots]
        found.elements = [*self.elements, *new.elements]
        shared = self.memory[:1] * len(new.memory) if self.shares_memory else []
        found.memory = [*self.memory, *(shared or new.memory)]
        counts = [*self._tally[2], *[False] * len(new.params)]
        found._tally = [*self.updates, *new.updates], self.counter.steps, counts
        return found

    def with_param(self, i: int, param: Any) -> "State":
        """Return this state with another array as parameter i; its slots, mask and scale get the new array's layout.

        Raises
        ------
        TypeError, ValueError
            If the array has another shape or dtype, or a kernel cannot work on it.
        """
        name, old = self.array_names[i], self.params[i]
        new = self._array(name, param)
        _check_unchanged(name, new, old, any_layout=True)
        slots, elements = self.slots[i], self.elements[i]
        if getattr(new, "strides", None) != getattr(old, "strides", None):
            slots = tuple(self._arrays.empty_like(new) for _ in slots)
            for target, source in zip(slots, self.slots[i]):
                self._arrays.copy(target, source)
            elements = elements.laid_out_like(new)
        found = copy(self)
        found.given, found.params = list(self.given), list(self.params)
        found.given[i], found.params[i] = param, new
        found.slots = [*self.slots[:i], slots, *self.slots[i + 1 :]]
        found.elements = [*self.elements[:i], elements, *self.elements[i + 1 :]]
        return found

    def _array(self, name: str, value: Any, like: Any = None, write: bool = True) -> Any:
        dense = self._backend != "cuda" and not (like is not None and like.flags.c_contiguous)
        return array(name, self._arrays.view(name, value), like=like, write=write, dense=dense)

    def read(self, grads: list[Any]) -> list[Any]:
        """Return the gradients, with ndarrays for arrays of other libraries in host memory."""
        if self._backend == "cuda":
            return grads
        named = zip(self._grad_names, grads, self.params)
        return [grad if grad is None else read(name, grad, param) for name, grad, param in named]

    def check_arrays(self, grads: Sequence[Any]) -> tuple[list[Any], npt.NDArray[np.int64]]:
        """Check all arrays, these gradients among them.

        Returns
        -------
        list
            The gradients as plain arrays.
        ndarray of int64, shape (m, 2)
            The intervals of memory that an update writes to.

        Raises
        ------
        TypeError, ValueError
            If an array has a wrong dtype, shape or layout, or shares memory with an array that is written, or if a
            parameter has another dtype, shape or layout than its state.
        """
        params = [self._array(name, param) for name, param in zip(self.array_names, self.given)]
        for name, new, old in zip(self.array_names, params, self.params):
            _check_unchanged(name, new, old)
        self.params = params
        written = dict(zip(self.array_names, self.params))
        for name, param, slots in zip(self.array_names, self.params, self.slots):
            for slot, values in zip(self._slot_names, slots):
                written[f"the {slot} of {name}"] = self._array(f"the {slot} of {name}", values, param)
        plain = [
            grad if grad is None else self._array(name, grad, param, write=False)
            for name, grad, param in zip(self._grad_names, grads, self.params)
        ]
        read = {name: grad for name, grad in zip(self._grad_names, plain) if grad is not None}
        arrays = [*written.values(), *read.values()]
        self._arrays.one_device([*written, *read], arrays)
        return plain, checks.disjoint_intervals([*written, *read], arrays, read=len(read))

    def dtypes_of(self, group_of: Sequence[int], group: int) -> list[np.dtype[Any]]:
        """Return the dtypes of a group's arrays; ``group_of[i]`` is the number of the group of array i."""
        found = {real_dtype(param.dtype) for number, param in zip(group_of, self.params) if number == group}
        return [dtype for dtype in checks.DTYPES if dtype in found]

    def arrays_of(self, i: int) -> tuple[Any, ...]:
        """Return one parameter and its state slots as plain arrays."""
        return (self.params[i], *(self._arrays.view("state", values) for values in self.slots[i]))

    def initialise(self, rule: Rule, which: Sequence[int], rows: slice) -> None:
        """Write the initial state of these parameters, in these rows.

        What the rule keeps from step to step begins anew for whole arrays; with the scope "all", if all begin anew.
        """
        with self._arrays.on(self.device):
            for i in which:
                for values, (_, initial) in zip(self.slots[i], rule.state):
                    if initial == "param":
                        self._arrays.copy(values, self.params[i], rows)
                    else:
                        self._arrays.zero(values, rows)
        if self._first_memory and rows is ALL_ROWS:
            is_whole = not self.shares_memory or {*which} >= {*range(len(self.params))}
            for i in which if is_whole else ():
                self.memory[i][:] = self._first_memory

    def is_moving(self, i: int, rule: Rule) -> bool:
        """Return whether a slot of this parameter that starts from zero is not zero."""
        with self._arrays.on(self.device):
            return any(
                self._arrays.is_moving(values)
                for values, (_, initial) in zip(self.slots[i], rule.state)
                if initial == "zero"
            )

    def point_rows(
        self, which: Iterable[int], group_of: Sequence[int], then: Callable[[int, str], Any]
    ) -> list[tuple[int, tuple[Any, ...]]]:
        """Return the lr and momentum for the look-ahead point of each of these parameters.

        ``then(group, name)`` returns the value of a setting in the update whose gradient is taken at the point.
        """
        with self._arrays.on(self.device):
            found = []
            for i in which:
                values = [self._arrays.number(then(group_of[i], name)) for name in SCHEDULED]
                found.append((i, tuple(map(real_dtype(self.params[i].dtype).type, values))))
            return found

    def write_points(self, rule: Rule, rows: Iterable[tuple[int, tuple[Any, ...]]], stream: Any = None) -> None:
        """Write the look-ahead points of these parameters, from the rows that :meth:`point_rows` returned."""
        with self._arrays.on(self.device):
            for i, row in rows:
                if self.elements[i].names:
                    self.elements[i].write_point(rule, self.arrays_of(i), row)
                else:
                    self._arrays.point(rule, self.arrays_of(i), row, stream)

    def lr_corrections(self, i: int, rule: Rule, lr: float, lr_next: float) -> list[tuple[Any, Any]]:
        """Return the slots of a parameter that hold lr, each with its values for the new lr, on the host."""
        if lr == lr_next:
            return []
        found = []
        with self._arrays.on(self.device):
            for number, stage in corrections_of(rule):
                slot = self.slots[i][number]
                copies = self._arrays.fetch(self.params[i]), self._arrays.fetch(slot)
                (factor,) = hyper_row(stage, {"lr": lr, "lr_next": lr_next}, real_dtype(copies[0].dtype))
                with np.errstate(all="ignore"):
                    values = stage.function(*map(flat_view, copies), factor)
                values = values.view(copies[0].dtype).reshape(copies[0].shape)
                found.append((slot, self.elements[i].where_moving(values, slot)))
        return found

    def write(self, slots: Iterable[tuple[Any, Any]]) -> None:
        """Write these values to these slots."""
        with self._arrays.on(self.device):
            for slot, values in slots:
                self._arrays.copy(slot, values)

    def number(self, value: Any) -> Any:
        """Return the number in a scalar in device memory, and any other setting as it is."""
        with self._arrays.on(self.device):
            return self._arrays.number(value) if hasattr(value, "owner") else value

    def fetch_slots(self) -> list[list[Any]]:
        """Return copies of the state slots, on the host and in C order."""
        with self._arrays.on(self.device):
            return [[self._arrays.fetch(values) for values in slots] for slots in self.slots]

    def fetch_params(self) -> list[Any]:
        """Return copies of the parameters, which are read where they are now, on the host and in C order."""
        with self._arrays.on(self.device):
            views = [self._arrays.view(name, param) for name, param in zip(self.array_names, self.given)]
            return [self._arrays.fetch(view) for view in views]

    def __copy__(self) -> "State":
        found = object.__new__(State)
        found.__dict__.update(self.__dict__)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}  # a module

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._arrays = backends.arrays_of(self._backend)
        for i, param in enumerate(self.given):
            if is_tensor(param):  # pickle keeps its layout, but turns an array that is like it into one in C order
                self.__dict__.update(self.with_param(i, param).__dict__)


def _check_unchanged(name: str, new: Any, old: Any, any_layout: bool = False) -> None:
    """Check that a parameter has the dtype, the shape and the layout for which its state was made.

    A call such as ``module.double()`` changes the tensors of a module under an optimiser.

    Raises
    ------
    ValueError
        If it has not.
    """
    then, now = describe(old), describe(new)
    if (new.dtype, new.shape) == (old.dtype, old.shape):
        if any_layout or not isinstance(new, np.ndarray) or same_strides(new, old):
            return
        then, now = f"strides {old.strides}", f"strides {new.strides}"
    advice = "Make an optimiser of the parameters as they are now"
    if new.shape == old.shape:
        advice += ", and let it go on with this one's state: new.load_state_dict(opt.state_dict(), cast=True)"
    raise ValueError(f"{name}: expected {then}, as when its state was made; got {now}. {advice}")


def _names_of_grads(layout: Layout) -> list[str]:
    """Return the names of the gradients in messages."""
    indices = range(len(layout.params)) if layout.keys is None else map(repr, layout.keys)
    return ["grads"] if layout.single else [f"grads[{i}]" for i in indices]
