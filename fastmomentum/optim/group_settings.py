"""The settings of an optimiser's groups, as users read and assign them."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.advice import did_you_mean
from fastmomentum.backends.interrupts import one_caller
from fastmomentum.optim import changes
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.groups import DEFAULTS, FIXED, SHARED, ParamGroup
from fastmomentum.optim.values import skips
from fastmomentum.rules.elementwise import GIVEN
from fastmomentum.rules.options import MOMENTUM, OFF, SWITCHES

ENGINE_SETTINGS = ("skip_nonfinite",)
"""The settings that belong to no group."""

READ_ONLY = {
    "params": ". opt.replace(i, array) updates another array in place of parameter i",
    **dict.fromkeys(("state", "velocity"), ". Write to the values of these arrays: array[...] = values"),
}
"""The ends of messages about attributes of an optimiser that cannot be assigned."""


WHOLE = (*ENGINE_SETTINGS, *GIVEN)
"""The settings whose lists are no lists with a value for each group."""


def is_setting(group: ParamGroup, name: str) -> bool:
    """Return whether a group has a setting of this name, given or not."""
    return name in group.parameters or name in DEFAULTS


class GroupSettings(MutableMapping[str, Any]):
    """The settings of one group, and its arrays under "params".

    Reading a setting returns its value for the next update. A value that is assigned, a number or a function of the
    step, is used from the next update on. Settings cannot be deleted: assign the value that turns an option off.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> opt = fm.Momentum(np.ones(2), lr=0.5)
    >>> group = opt.groups[0]
    >>> group["lr"] = fm.schedules.Linear(0.5, 0.0, steps=2)
    >>> opt.step(np.ones(2))
    >>> group["lr"], group["weight_decay"], group["params"]
    (0.25, 0.0, [array([0.5, 0.5])])
    """

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine, self._number = engine, number

    def __getitem__(self, name: str) -> Any:
        engine, group = self._engine, self._engine.groups[self._number]
        if name == "params":
            return [p for p, number in zip(engine.state.given, engine.group_of) if number == self._number]
        if name in ENGINE_SETTINGS:
            return getattr(engine, name)
        if name in GIVEN:
            return self._elements(name)
        if not is_setting(group, name):
            if name in SHARED:
                return group.settings.get(name)
            raise KeyError(f"{name}: no such setting{_hint(str(name), group)}")
        value = group.value(name, engine.schedule_step)
        return getattr(value, "owner", value)  # the user's own scalar in device memory

    def __setitem__(self, name: str, value: Any) -> None:
        engine = self._engine
        with one_caller(engine.lock):
            if name in SHARED and name not in FIXED and len(engine.groups) > 1:
                raise TypeError(f"{name}: expected as an attribute of the optimiser, as all groups share it")
            if name in GIVEN:
                changes.set_elements(engine, [self._number], name, [value])
                return
            check_setting(engine.groups[self._number], name)
            if name in ENGINE_SETTINGS:
                set_settings(engine, name, value)
            else:
                changes.set_setting(engine, [self._number], name, [value])

    def _elements(self, name: str) -> Any:
        """Return copies of the masks, or of the scales of lr, in the form in which they are assigned."""
        engine = self._engine
        pairs = zip(engine.state.elements, engine.group_of)
        found = [given.given(name) for given, number in pairs if number == self._number]
        return found[0] if len(found) == 1 else found

    def __delitem__(self, name: str) -> None:
        off = f"{OFF[name]!r}, which turns it off" if name in OFF else "another value"
        raise TypeError(f"{name}: a setting cannot be deleted; assign {off}")

    def __iter__(self) -> Iterator[str]:
        group = self._engine.groups[self._number]
        elements = [
            each for each, number in zip(self._engine.state.elements, self._engine.group_of) if number == self._number
        ]
        given = [name for name in GIVEN if any(name in each.names for each in elements)]
        return iter(dict.fromkeys(("params", "rule", *group.parameters, *OFF, *SWITCHES, *group.settings, *given)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return repr(dict(self))


class SettingAttribute:
    """Read a setting of an optimiser: its value for the next update, or a list with one for each of several groups.

    Raises
    ------
    AttributeError
        If the rule has no such setting.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, opt: Any, owner: type | None = None) -> Any:
        if opt is None:
            return self
        engine, name = opt._engine, self._name
        groups = engine.groups
        if name not in (*ENGINE_SETTINGS, *GIVEN) and not any([is_setting(group, name) for group in groups]):
            raise AttributeError(f"{name}: rule {groups[0].form} has no such setting")
        found = [GroupSettings(engine, number).get(name) for number in range(len(groups))]
        return found[0] if len(found) == 1 or name in SHARED else found


def check_setting(group: ParamGroup, name: str) -> None:
    """Check that a setting of this name can be assigned.

    Raises
    ------
    AttributeError
        If there is no such setting, or only the constructor takes it.
    """
    if name in FIXED:
        raise AttributeError(f"{name}: expected by the constructor alone, as it cannot change during a run")
    if name not in ENGINE_SETTINGS and not is_setting(group, name):
        expected = f"{name}: expected a setting of rule {group.form}, which takes {', '.join(group.parameters)}"
        raise AttributeError(f"{expected}{READ_ONLY.get(name) or _hint(str(name), group)}")


def _hint(name: str, group: ParamGroup) -> str:
    """Return the end of a message about an unknown setting: a near one that can be assigned, if there is one."""
    settable = [each for each in (*group.parameters, *DEFAULTS, *ENGINE_SETTINGS, *GIVEN) if each not in FIXED]
    return did_you_mean(name, settable, MOMENTUM.function)


def set_settings(engine: Engine, name: str, value: Any) -> None:
    """Use `value` for all groups, or, if it is a list, a tuple or an array, one of its values for each group.

    Raises
    ------
    AttributeError, TypeError, ValueError
        If there is no such setting, or a value is refused; no group has been changed then.
    """
    count = len(engine.groups)
    if name in GIVEN:
        values = [value] * count if count == 1 or value is None else checks.sequence(name, value, count)
        changes.set_elements(engine, range(count), name, values)
        return
    for group in engine.groups:
        check_setting(group, name)
    if name in ENGINE_SETTINGS:
        changes.set_skips(engine, skips(value))
        return
    values = checks.sequence(name, list(value) if is_list(value) else [value] * count, count)
    if name in SHARED and any(each is not values[0] and each != values[0] for each in values):
        raise ValueError(f"{name}: expected one value, as all groups share it; got several")
    changes.set_setting(engine, range(count), name, values)


def for_groups(name: str, value: Any, count: int) -> dict[int, Any]:
    """Return the value of a setting for each group, by number, from a value for all or a list with one for each.

    A list may be a tuple or an array of numbers; groups for which it has None are left out.

    Raises
    ------
    ValueError
        If a list has another length than there are groups.
    """
    if not is_list(value):
        return dict.fromkeys(range(count), value)
    return {i: each for i, each in enumerate(checks.sequence(name, list(value), count)) if each is not None}


def is_list(value: Any) -> bool:
    """Return whether a value of a setting is a list with one value for each group."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def assign_settings(engine: Engine, whole: Mapping[str, Any], by_group: Mapping[str, Mapping[int, Any]]) -> None:
    """Use these settings: those of `whole` in all groups, those of `by_group` in the groups with these numbers.

    Raises
    ------
    TypeError, ValueError
        If there is no such setting, or a value is refused.
    """
    try:
        for name, value in whole.items():
            set_settings(engine, name, value)
        for name, values in by_group.items():
            if len(values) == len(engine.groups):
                set_settings(engine, name, [*values.values()])
                continue
            for number, value in values.items():
                GroupSettings(engine, number)[name] = value
    except AttributeError as error:
        raise TypeError(str(error)) from None


def grads_in_order(engine: Engine, grads: Any) -> list[Any]:
    """Return the gradients in the order of the parameters; a mapping holds them by the names of the parameters.

    Raises
    ------
    TypeError, ValueError
        If it is neither a sequence of the right length nor a mapping of known names.
    """
    state = engine.state
    if state.names is None or not isinstance(grads, Mapping):
        return checks.sequence("grads", grads, len(state.given))
    known = set(state.names)
    for name in grads:
        if name not in known:
            hint = did_you_mean(str(name), state.names)
            raise ValueError(f"grads: expected names of parameters; got {name!r}{hint}")
    return [grads.get(name) for name in state.names]
