"""Parameter groups: the arrays that an optimiser updates, and their settings."""

from collections.abc import Iterator, Mapping, Sequence, ValuesView
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np

from fastmomentum import checks
from fastmomentum.backends import is_array
from fastmomentum.backends.cuda import scalars
from fastmomentum.backends.cuda.device_array import is_on_device
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import Record, hyper_row, resolve_values
from fastmomentum.rules.registry import find

SCHEDULED = ("lr", "momentum")
"""The settings that may be functions of the step."""

PLAIN = (float, int, bool, str, type(None))
"""The types of settings that a group stores, and a checkpoint holds, as they are."""

SHARED = ("rule", "lookahead", "max_norm", "restart", "skip_nonfinite", "backend", "threads")
"""The settings that all groups share."""


class ParamGroup:
    """Hold the settings of a group of arrays, and the rule that they resolve to.

    Attributes
    ----------
    settings : mapping
        The settings as the user gave them, the rule among them; lr and momentum may be functions of the step.
    update : Rule
        The rule with the stages that the settings ask for.
    correct : bool
        Whether state that holds lr is rescaled when lr changes.
    max_norm : float or None
        The limit on the norm of all gradients, as one vector.
    """

    def __init__(self, settings: Mapping[str, Any], resolved: tuple[Rule, dict[str, Any]] | None = None) -> None:
        self.settings = settings = {
            name: value if type(value) in PLAIN else _stored(name, value) for name, value in settings.items()
        }
        options = {name: value for name, value in settings.items() if name != "restart"}
        self.update, self._given = resolved or resolve_options(**options)
        default = self.update.defaults.get("momentum", 0.0)
        settings.setdefault("momentum", 0.0 if isinstance(default, str) else default)
        self.correct = settings.get("correct", False)
        limit = settings.get("max_norm")
        self.max_norm = None if limit is None else float(limit)  # a NumPy float32 would make the factor a float32
        if self.correct and isinstance(settings["lr"], scalars.DeviceScalar):
            raise TypeError(
                "lr: expected a number or a function of the step with correct=True, as a change of a number in device "
                f"memory cannot be noticed; got {settings['lr'].array}"
            )
        self._scheduled = {name: self._given[name] for name in SCHEDULED if callable(self._given.get(name))}
        self._rows: dict[tuple[np.dtype[Any], bool], HyperRow] = {}

    def __reduce__(self) -> tuple[type["ParamGroup"], tuple[Mapping[str, Any]]]:
        return type(self), (self.settings,)

    def refuse_device_scalars(self) -> None:
        """Check that lr and momentum are not in device memory, as the arrays are on the host.

        Raises
        ------
        TypeError
            If one is.
        """
        for name in SCHEDULED:
            if isinstance(value := self.settings.get(name), scalars.DeviceScalar):
                raise TypeError(f"{name}: expected a number, as the arrays are on the host; got {value.array}")

    @property
    def name(self) -> str:
        """The name of the rule."""
        rule = find(self.settings["rule"])
        return rule.name or str(rule)

    @property
    def is_scheduled(self) -> bool:
        """Whether lr or momentum is a function of the step."""
        return bool(self._scheduled)

    def with_setting(self, name: str, value: Any) -> Self:
        """Return this group with another lr or momentum."""
        if name not in self._given:  # the rule does not take this setting, but its value is checked all the same
            return type(self)(self.settings | {name: value})
        value = value if type(value) in PLAIN else _stored(name, value)
        found = type(self)(self.settings | {name: value}, (self.update, self._given | {name: value}))
        if type(value) is float and not self.is_scheduled:
            found._rows = {key: row.replace({name: value}) for key, row in self._rows.items()}
        return found

    def value(self, name: str, step: int) -> Any:
        """Return the setting `name` for the update with this number."""
        value = self.settings[name]
        return value(step) if callable(value) else value

    def scheduled_values(self, step: int) -> dict[str, Any]:
        """Return the values of the functions of the step for the update with this number.

        If the rule declares lr_next or momentum_next, the value for the following update is among them.
        """
        found = {}
        for name, function in self._scheduled.items():
            found[name] = function(step)
            if f"{name}_next" in self.update.parameters and f"{name}_next" not in self._given:
                found[f"{name}_next"] = function(step + 1)
        return found

    def values(self, step: int) -> dict[str, Any]:
        """Return the hyper-parameters that the rule gets for the update with this number."""
        return {**self._given, **self.scheduled_values(step)}

    def first_values(self, given: Mapping[str, Any], first: bool) -> Mapping[str, Any]:
        """Return these values or, if `first`, the values of an array's first step from rest."""
        if not self._takes_first(given, first):
            return given
        replaced = {name: value for name, value in self.update.first.items() if name in self.update.parameters}
        return {**given, **replaced}

    def _takes_first(self, given: Mapping[str, Any], first: bool) -> bool:
        if first or not self.update.first:
            return bool(self.update.first)
        # Without momentum no velocity is kept, and every step is a first one, as in torch.optim.SGD.
        momentum = given.get("momentum", self._given.get("momentum"))
        return not isinstance(momentum, np.ndarray) and bool(momentum == 0)  # arrays are refused when the row is made

    def row(self, dtype: np.dtype[Any], scheduled: Mapping[str, Any], first: bool = False) -> tuple[Any, ...]:
        """Return the hyper-parameters as a kernel takes them; `scheduled` has the values of functions of the step."""
        key = dtype, self._takes_first(scheduled, first)
        if key in self._rows:
            cached = self._rows[key]
            return cached.replace(scheduled).row if scheduled else cached.row
        made = HyperRow.make(self.update, dtype, self.first_values({**self._given, **scheduled}, first))
        self._rows[key] = made
        return made.row


class HyperRow(NamedTuple):
    """Hold the hyper-parameters of a rule as a kernel takes them, and the values that they were computed from.

    Attributes
    ----------
    record : Record
        The rule.
    dtype : dtype
        The arrays' dtype.
    given : mapping
        The hyper-parameters that the user gave.
    values : mapping of str to float
        All parameters of the rule, with defaults, in double precision.
    row : tuple
        The hyper-parameters in the order of ``record.hyper``, derived ones included, in the arrays' dtype.
    """

    record: Record
    dtype: np.dtype[Any]
    given: Mapping[str, Any]
    values: Mapping[str, float]
    row: tuple[Any, ...]

    @classmethod
    def make(cls, record: Record, dtype: np.dtype[Any], given: Mapping[str, Any]) -> "HyperRow":
        """Return the row of these values, checked as :func:`hyper_row` checks them."""
        row = hyper_row(record, given, dtype)
        return cls(record, dtype, given, resolve_values(record, given), row)

    def replace(self, changed: Mapping[str, Any]) -> "HyperRow":
        """Return the row with other values of some hyper-parameters, and compute only the numbers that depend on them.

        If a value is not a float strictly inside its range, the whole row is made anew, with all checks.
        """
        record, cast, (least, most) = self.record, self.dtype.type, _finite(self.dtype)
        given, values, row = {**self.given, **changed}, {**self.values, **changed}, list(self.row)
        for name, value in changed.items():
            low, high = record.allowed[name][:2]
            if type(value) is not float or not max(low, least) < value < min(high, most):
                return self.make(record, self.dtype, given)
            if name in record.default_sources:
                return self.make(record, self.dtype, given)
            for place, derive, sources in record.places[name]:
                number = value if derive is None else derive(*[values[source] for source in sources])
                inside = low < cast(value) < high if derive is None else record.hyper[place] not in record.ranges
                if not inside or not least < number < most:
                    return self.make(record, self.dtype, given)
                row[place] = cast(number)
        return HyperRow(record, self.dtype, given, values, tuple(row))


@cache
def _finite(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the lowest and the highest finite number of a dtype."""
    limits = np.finfo(dtype)
    return float(limits.min), float(limits.max)


class StepRows:
    """Compute the hyper-parameters of one step of all groups, and call every function of the step only once."""

    def __init__(self, groups: Sequence[ParamGroup], step: int) -> None:
        self._groups, self._scheduled = groups, [group.scheduled_values(step) for group in groups]

    def __call__(self, group: int, dtype: np.dtype[Any], first: bool) -> tuple[Any, ...]:
        """Return the group's hyper-parameters as a kernel takes them; `first` stands for an array's first step."""
        return self._groups[group].row(dtype, self._scheduled[group], first)

    def differ(self, group: int) -> bool:
        """Return whether an array's first step from rest has other values than its later steps."""
        return bool(self._groups[group].update.first) and self.values(group, True) != self.values(group, False)

    def values(self, group: int, first: bool) -> dict[str, Any]:
        """Return the group's hyper-parameters by name, as users give them."""
        settings = self._groups[group]
        given = settings.first_values({**settings._given, **self._scheduled[group]}, first)
        return resolve_values(settings.update, given, lambda name, value, allowed: value)


def _stored(name: str, value: Any) -> Any:
    """Return a setting as a group stores it: a 0-d array as the number in it, since the array may be written to later.

    lr or momentum in device memory stays there, and kernels read it at every step.
    """
    if name in SCHEDULED and is_on_device(value):
        return scalars.DeviceScalar(scalars.view(name, value))
    if name in SCHEDULED and isinstance(value, type):
        raise TypeError(f"{name}: expected a number or a function of the step; got the class {value.__name__} itself")
    return checks.unwrap_scalar(value)


class Layout(NamedTuple):
    """Hold the arrays and groups of the argument `params`.

    Attributes
    ----------
    params : list of arrays
        All groups' arrays, in order.
    names : list of str
        The names of the arrays in messages.
    groups : list of ParamGroup
        The groups.
    group_of : list of int
        The number of each array's group.
    single : bool
        Whether the user passed one array.
    """

    params: list[Any]
    names: list[str]
    groups: list[ParamGroup]
    group_of: list[int]
    single: bool


def _to_list(params: Any) -> Any:
    """Return an iterator, or the values of a dict, as a list, and anything else as it is."""
    return list(params) if isinstance(params, Iterator | ValuesView) else params


def parse_params(params: Any, shared: Mapping[str, Any]) -> Layout:
    """Return the arrays and groups of the argument `params`; `shared` has the other arguments.

    Raises
    ------
    TypeError, ValueError
        If `params` is neither an array nor a sequence of arrays or groups, if it holds no array, or if a setting is
        refused.
    """
    if is_array(params):
        return Layout([params], ["params"], [ParamGroup(shared)], [0], True)
    params = _to_list(params)
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise TypeError(
            "params: expected an array, a sequence of arrays, or a sequence of dicts with 'params'; "
            f"got {checks.describe(params)}. {checks.how_to_convert(params)}"
        )
    if not len(params):
        raise ValueError("params: expected at least one array; got none")
    if not any(isinstance(entry, Mapping) for entry in params):
        names = [f"params[{i}]" for i in range(len(params))]
        return Layout(list(params), names, [ParamGroup(shared)], [0] * len(params), False)
    layout = Layout([], [], [], [], False)
    for number, entry in enumerate(params):
        where = f"params[{number}]"
        if not isinstance(entry, Mapping):
            raise TypeError(f"{where}: expected a dict with 'params', as the others are; got {checks.describe(entry)}")
        if "params" not in entry:
            raise TypeError(f"{where}: expected a dict with 'params', its array or arrays; got one with {list(entry)}")
        for name in SHARED:
            if name in entry:
                raise TypeError(f"{where}: expected no {name}, as all groups share it: pass it as an argument")
        arrays = [entry["params"]] if is_array(entry["params"]) else _to_list(entry["params"])
        if not isinstance(arrays, Sequence) or isinstance(arrays, str):
            raise TypeError(
                f"{where}['params']: expected an array or a sequence of them; got {checks.describe(arrays)}"
            )
        settings = {name: value for name, value in entry.items() if name != "params"}
        for name in settings:
            if not isinstance(name, str):
                raise TypeError(f"{where}: expected names of settings; got {name!r}")
        layout.groups.append(ParamGroup({**shared, **settings}))
        layout.params.extend(arrays)
        layout.names.extend(f"{where}['params'][{i}]" for i in range(len(arrays)))
        layout.group_of.extend([number] * len(arrays))
        if layout.groups[-1].update.state != layout.groups[0].update.state:
            raise ValueError(
                f"{where}: expected settings under which the rule keeps the same state as in the other groups"
            )
    if not layout.params:
        raise ValueError("params: expected at least one array; got none")
    return layout
