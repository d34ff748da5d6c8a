"""Parameter groups: which arrays an optimiser updates, and with which settings."""

from collections.abc import Iterator, Mapping, Sequence, ValuesView
from typing import Any, NamedTuple, Self

import numpy as np

from fastmomentum import checks
from fastmomentum.backends import is_array
from fastmomentum.backends.cuda import scalars
from fastmomentum.backends.cuda.device_array import is_on_device
from fastmomentum.checks import how_to_convert
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import hyper_row
from fastmomentum.rules.registry import find

SCHEDULED = ("lr", "momentum")
"""The settings that may be functions of the step."""

WHOLE = ("rule", "lookahead", "max_norm", "restart", "skip_nonfinite", "backend", "threads")
"""The settings of the optimiser as a whole."""


class ParamGroup:
    """Arrays that share their settings.

    Attributes
    ----------
    settings : mapping
        As the user gave them, the rule among them; lr and momentum may be functions of the step.
    update : Rule
        The rule with the stages that the settings ask for.
    correct : bool
        Whether state goes over to a new lr.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {name: _held(name, value) for name, value in settings.items()}
        self.update, self._given = resolve_options(
            **{name: mine for name, mine in self.settings.items() if name != "restart"}
        )
        self.correct = checks.boolean("correct", self.settings.get("correct", False))
        if self.correct and isinstance(self.settings["lr"], scalars.DeviceScalar):
            raise TypeError(
                "lr: expected a number or a function of the step where correct=True, as nothing tells when what lies "
                f"on a device changes; got {self.settings['lr'].array}"
            )
        self.scheduled = any(callable(self._given.get(name)) for name in SCHEDULED)

    def __reduce__(self) -> Any:
        return type(self), (self.settings,)

    def refuse_scalars(self) -> None:
        """Refuse lr and momentum in device memory, for arrays that are not."""
        for name in SCHEDULED:
            if isinstance(value := self.settings.get(name), scalars.DeviceScalar):
                raise TypeError(f"{name}: expected a number, as the arrays are on the host; got {value.array}")

    @property
    def name(self) -> str:
        """What the rule is called."""
        rule = find(self.settings["rule"])
        return rule.name or str(rule)

    def replace(self, **settings: Any) -> Self:
        """The same group with other settings."""
        return type(self)(self.settings | settings)

    def value(self, name: str, step: int) -> Any:
        """The setting `name` for the update with this number."""
        value = self.settings[name]
        return value(step) if callable(value) else value

    def values(self, step: int) -> dict[str, Any]:
        """The hyper-parameters given to the rule for the update with this number."""
        given = dict(self._given)
        for name in SCHEDULED:
            value = given.get(name)
            if callable(value):
                given[name] = value(step)
                if f"{name}_next" in self.update.parameters:
                    given.setdefault(f"{name}_next", value(step + 1))
        return given

    def starting(self, given: Mapping[str, Any], first: bool) -> Mapping[str, Any]:
        """These values, or those of an array's `first` step from rest."""
        # Without momentum nothing is kept of the step before, and every step is a first one, as in torch.optim.SGD.
        if first or given.get("momentum") == 0:
            starting = {name: value for name, value in self.update.first.items() if name in self.update.parameters}
            return {**given, **starting}
        return given

    def row(self, dtype: np.dtype[Any], given: Mapping[str, Any], first: bool = False) -> tuple[Any, ...]:
        """What the kernel takes, checked and cast, from these values; `first` for an array's first step from rest."""
        return hyper_row(self.update, self.starting(given, first), dtype)


def _held(name: str, value: Any) -> Any:
    """What is kept of a setting: of a 0-d array, which could be written to later on, the number that it holds now.

    A scalar in device memory stays there: it is lr or momentum, to be read at every step.
    """
    if name in SCHEDULED and not isinstance(value, float | int) and is_on_device(value):
        return scalars.DeviceScalar(scalars.view(name, value))
    if name in SCHEDULED and isinstance(value, type):
        raise TypeError(f"{name}: expected a number or a function of the step; got the class {value.__name__} itself")
    return checks.unwrap_scalar(value)


class Layout(NamedTuple):
    """What the user passed as `params`, taken apart."""

    params: list[Any]
    names: list[str]
    groups: list[ParamGroup]
    group_of: list[int]
    single: bool


def _listed(params: Any) -> Any:
    """What can be read but once, as a list: a generator, or the values of a dict."""
    return list(params) if isinstance(params, Iterator | ValuesView) else params


def parse_params(params: Any, shared: Mapping[str, Any]) -> Layout:
    """Arrays, their names in messages, and groups, from what the user passed as `params`.

    Raises
    ------
    TypeError, ValueError
        If `params` is neither an array, nor a sequence of arrays, nor one of groups, or holds no array; or if a
        setting cannot be served.
    """
    if is_array(params):
        return Layout([params], ["params"], [ParamGroup(shared)], [0], True)
    params = _listed(params)
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise TypeError(
            "params: expected an array, a sequence of arrays, or a sequence of dicts with 'params'; "
            f"got {checks.describe(params)}. {how_to_convert(params)}"
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
        for name in WHOLE:
            if name in entry:
                raise TypeError(f"{where}: {name} is expected of the optimiser as a whole; got it in a group")
        mine = [entry["params"]] if is_array(entry["params"]) else _listed(entry["params"])
        if not isinstance(mine, Sequence) or isinstance(mine, str):
            raise TypeError(f"{where}['params']: expected an array or a sequence of them; got {checks.describe(mine)}")
        settings = {name: value for name, value in entry.items() if name != "params"}
        for name in settings:
            if not isinstance(name, str):
                raise TypeError(f"{where}: expected names of settings; got {name!r}")
        layout.groups.append(ParamGroup({**shared, **settings}))
        layout.params.extend(mine)
        layout.names.extend(f"{where}['params'][{i}]" for i in range(len(mine)))
        layout.group_of.extend([number] * len(mine))
        if layout.groups[-1].update.state != layout.groups[0].update.state:
            raise ValueError(f"{where}: expected settings whose state is like that of the other groups")
    if not layout.params:
        raise ValueError("params: expected at least one array; got none")
    return layout
