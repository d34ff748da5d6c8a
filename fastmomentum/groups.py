"""Parameter groups: which arrays an optimiser updates, and with which settings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from fastmomentum import checks
from fastmomentum.rules import find
from fastmomentum.settings import settle

SCHEDULED = ("lr", "momentum")
"""The settings that may be functions of the step."""

WHOLE = ("rule", "lookahead", "max_norm", "skip_nonfinite", "backend", "threads")
"""The settings of the optimiser as a whole."""


class Group:
    """Arrays that share their settings.

    Attributes
    ----------
    settings : mapping
        As the user gave them, the rule among them; lr and momentum may be functions of the step.
    update : Update
        The rule with the stages that the settings ask for.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        # A 0-d array could be written to later on; what is kept is the number that it holds now.
        self.settings = {name: checks.held(value) for name, value in settings.items()}
        self.update, self._given = settle(**self.settings)
        self.scheduled = any(callable(self._given.get(name)) for name in SCHEDULED)

    def __reduce__(self) -> Any:
        return type(self), (self.settings,)

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

    def row(self, dtype: np.dtype[Any], given: Mapping[str, Any], first: bool = False) -> tuple[Any, ...]:
        """What the kernel takes, checked and cast, from these values; `first` for an array's first step from rest."""
        # Without momentum nothing is kept of the step before, and every step is a first one, as in torch.optim.SGD.
        if first or given.get("momentum") == 0:
            starting = {name: value for name, value in self.update.first.items() if name in self.update.parameters}
            given = {**given, **starting}
        return checks.hyper(self.update, given, dtype)


class Layout(NamedTuple):
    """What the user passed as `params`, taken apart."""

    params: list[Any]
    names: list[str]
    groups: list[Group]
    group_of: list[int]
    single: bool


def lay_out(params: Any, shared: Mapping[str, Any]) -> Layout:
    """Arrays, their names in messages, and groups, from what the user passed as `params`.

    Raises
    ------
    TypeError, ValueError
        If `params` is neither an array, nor a sequence of arrays, nor one of groups, or holds no array; or if a
        setting cannot be served.
    """
    if isinstance(params, np.ndarray):
        return Layout([params], ["params"], [Group(shared)], [0], True)
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise TypeError(
            "params: expected an array, a sequence of arrays, or a sequence of dicts with 'params'; "
            f"got {checks.shown(params)}"
        )
    if not len(params):
        raise ValueError("params: expected at least one array; got none")
    if not any(isinstance(entry, Mapping) for entry in params):
        names = [f"params[{i}]" for i in range(len(params))]
        return Layout(list(params), names, [Group(shared)], [0] * len(params), False)
    layout = Layout([], [], [], [], False)
    for number, entry in enumerate(params):
        where = f"params[{number}]"
        if not isinstance(entry, Mapping) or "params" not in entry:
            raise TypeError(f"{where}: expected a dict with 'params', as the others are; got {checks.shown(entry)}")
        for name in WHOLE:
            if name in entry:
                raise TypeError(f"{where}: {name} is expected of the optimiser as a whole; got it in a group")
        mine = entry["params"]
        if isinstance(mine, np.ndarray):
            mine = [mine]
        if not isinstance(mine, Sequence) or isinstance(mine, str):
            raise TypeError(f"{where}['params']: expected an array or a sequence of them; got {checks.shown(mine)}")
        settings = {name: value for name, value in entry.items() if name != "params"}
        for name in settings:
            if not isinstance(name, str):
                raise TypeError(f"{where}: expected names of settings; got {name!r}")
        layout.groups.append(Group({**shared, **settings}))
        layout.params.extend(mine)
        layout.names.extend(f"{where}['params'][{i}]" for i in range(len(mine)))
        layout.group_of.extend([number] * len(mine))
        if layout.groups[-1].update.state != layout.groups[0].update.state:
            raise ValueError(f"{where}: expected settings whose state is like that of the other groups")
    if not layout.params:
        raise ValueError("params: expected at least one array; got none")
    return layout
