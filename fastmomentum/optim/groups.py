"""Parameter groups: the settings of some arrays, and the rule that these settings resolve to."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf, nextafter
from typing import Any, Self

import numpy as np

from fastmomentum import checks
from fastmomentum.backends.cuda import scalars
from fastmomentum.checks import DTYPES, RANGES
from fastmomentum.optim.values import PLAIN, as_number, stored
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import MOMENTUM, NORMS, OFF, SWITCHES, resolve, resolve_options, with_options
from fastmomentum.rules.record import STEP, check_hyper, resolve_values
from fastmomentum.rules.registry import find
from fastmomentum.rules.row import inner_limits, make_row

SCHEDULED = ("lr", "momentum")
"""The settings whose values for the following update a look-ahead and the correction for lr use."""

SHARED = ("rule", "lookahead", "max_norm", "restart", "skip_nonfinite", "backend", "threads")
"""The settings that all groups share."""

DEFAULTS: Mapping[str, Any] = {**OFF, **dict.fromkeys(SWITCHES, False), "restart": None, "lr": None, "momentum": 0.0}
"""The values of options that are not given."""

FIXED = ("rule", "lookahead", "backend", "threads")
"""The settings that only the constructor takes, as the state and the backend depend on them."""


class ParamGroup:
    """Hold the settings of a group of arrays, and the rule that they resolve to at the values of one step.

    Parameters
    ----------
    settings : mapping
        The settings as the user gave them, the rule among them: numbers, and functions of the step.
    asked : mapping of str to float
        The value of each function of the step, by which it is decided which options are on.
    dtypes : sequence of dtype
        The dtypes of the group's arrays.

    Attributes
    ----------
    form : Rule
        The rule in the form that the switches nesterov, lookahead and correct ask for.
    update : Rule
        The same rule with the stages of all options that are on.
    live : tuple of str
        The names of the settings whose values can change without another rule.
    values : list of float
        The values of these settings, and of functions their values at the last update.
    """

    def __init__(
        self, settings: Mapping[str, Any], asked: Mapping[str, Any], dtypes: Sequence[np.dtype[Any]] = DTYPES
    ) -> None:
        self.dtypes = tuple(dtypes)
        self.narrowest = self.dtypes[0] if len(self.dtypes) == 1 else min(self.dtypes, key=lambda dtype: dtype.itemsize)
        self._settings = settings = {
            name: value if type(value) in PLAIN else stored(name, value) for name, value in settings.items()
        }
        self.form = _form(settings)
        self.correct = settings.get("correct", False)
        functions = {name for name, value in settings.items() if callable(value)}
        unused = {name for name in functions.intersection(SCHEDULED) if name not in self.form.parameters}
        numbers = {name: asked.get(name, value) for name, value in settings.items() if name not in unused}
        options = {name: value for name, value in numbers.items() if name != "restart"}
        keeps_velocity = getattr(settings.get("momentum"), "keeps_velocity", False) or settings.get("lookahead")
        self._keeps_velocity = bool(keeps_velocity) or self.form.core.at_zero_momentum is None
        self.update, given = resolve(options.pop("rule"), options, MOMENTUM, not self._keeps_velocity)
        taken = self.update.parameters
        if STEP in given:
            raise TypeError(f"{STEP}: expected none, as the optimiser counts the updates of each array")
        self.live = tuple([name for name in numbers if name in given or name in functions])
        self.values = [self._checked(name, numbers[name]) for name in self.live]
        self.places = {name: place for place, name in enumerate(self.live)}
        self.calls = [(self.places[name], name, settings[name]) for name in self.live if name in functions]
        self._constants = {
            name: place
            for name, place in self.places.items()
            if name not in functions and type(self.values[place]) is float
        }
        self._next = [(f"{name}_next", name) for name in functions.intersection(SCHEDULED) if self._takes_next_of(name)]
        self.limits = [self._limits(name) for name in self.live]
        inputs = [(name, *limits) for name, limits in zip(self.live, self.limits)]
        inputs += [(name, *inner_limits(self.update.allowed[name], self.narrowest)) for name, _ in self._next]
        self.row = make_row(self.update, tuple(inputs), self.narrowest)
        self._lacks = [name for name in taken if name not in (*self.live, *self.update.defaults, STEP)]

    def __reduce__(self) -> tuple[type["ParamGroup"], tuple[Any, ...]]:
        return type(self), (self.settings, self._asked, self.dtypes)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the user gave them."""
        live = {name: self._as_given(name, self.values[place]) for name, place in self.places.items()}
        return {name: value if callable(value) else live.get(name, value) for name, value in self._settings.items()}

    @property
    def settings_now(self) -> dict[str, Any]:
        """The settings with the last values of functions of the step; functions that are never called are left out."""
        found = {**self.settings, **self._asked}
        return {name: value for name, value in found.items() if name == "rule" or not callable(value)}

    @property
    def method(self) -> Rule:
        """The rule with the stages of all options that are on, in its form with momentum even while momentum is 0."""
        return resolve_options(**{name: value for name, value in self.settings_now.items() if name != "restart"})[0]

    @property
    def code(self) -> tuple[Any, ...]:
        """The key of the executor's code: the structure of the rule, and which hyper-parameter stands where."""
        return self.update.structure, tuple(self.update.hyper)

    @property
    def name(self) -> str:
        """The name of the rule."""
        rule = find(self._settings["rule"])
        return rule.name or str(rule)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The hyper-parameters that the user gives: those of the rule, and lr and momentum only if it takes them."""
        computed = {STEP, *(f"{name}_next" for name in SCHEDULED if self._looks_ahead(name))}
        return tuple(name for name in self.form.parameters if name not in computed)

    @property
    def uses_step(self) -> bool:
        """Whether a hyper-parameter depends on the number of the update."""
        return STEP in self.update.parameters

    @cached_property
    def keeps_state(self) -> bool:
        """Whether an update changes the state: at momentum 0 some rules leave it alone."""
        core = self.update.core
        return not core.slots or any(slot in part.writes for part in core.parts for slot in core.slots)

    @property
    def differs_at_first(self) -> bool:
        """Whether the rule has other values than those of the settings for the first update of an array."""
        taken = self.update.parameters
        return any(name in taken and self.number(name) != value for name, value in self.update.first.items())

    @property
    def needs_next(self) -> bool:
        """Whether an update uses the next values of functions of the step."""
        return bool(self._next)

    def _looks_ahead(self, name: str) -> bool:
        return bool(self._settings.get("lookahead") or (name == "lr" and self.correct))

    def _takes_next_of(self, name: str) -> bool:
        return f"{name}_next" in self.update.parameters and self._looks_ahead(name)

    def _off_value(self, name: str) -> float | None:
        """Return the value at which an option is off, so that another rule is used; None if there is no such value."""
        if name == "momentum":
            return None if self._keeps_velocity else 0.0
        if name not in OFF or name in self.form.parameters:
            return None
        off = OFF[name]
        return inf if off is None else off

    def _limits(self, name: str) -> tuple[float, float]:
        """Return the least and the greatest value of a live setting at which the rule stays the same."""
        allowed = self.form.allowed.get(name) or RANGES[name]
        low, high = inner_limits(allowed, self.narrowest)
        off = self._off_value(name)
        if off is not None and self.values[self.places[name]] == off:
            return off, off
        return (nextafter(low, inf), high) if off == low or self._stands_for_default(name, low) else (low, high)

    def _stands_for_default(self, name: str, value: Any) -> bool:
        """Return whether the value that turns an option off stands for another default, which a chain has itself."""
        return name in OFF and name in self.form.defaults and value == OFF[name] != self.form.defaults[name]

    def _checked(self, name: str, value: Any) -> Any:
        """Return the value of a live setting as a number, inf for an option that is off without a number."""
        if value is None or callable(self._settings[name]) or isinstance(value, scalars.DeviceScalar):
            return inf if value is None else value
        return checks.number(name, value, self.form.allowed.get(name) or RANGES.get(name, checks.FINITE))

    def _as_given(self, name: str, value: Any) -> Any:
        """Return a value as users give it: None for an option that is off without a number."""
        return None if value == inf and OFF.get(name, inf) is None else value

    @property
    def _asked(self) -> dict[str, Any]:
        """The last values of the functions of the step."""
        return {name: self._as_given(name, self.values[place]) for place, name, _ in self.calls}

    def number(self, name: str) -> Any:
        """Return the value of a setting in the last update, or its default; None for an option that is off."""
        if name in self.places:
            return self._as_given(name, self.values[self.places[name]])
        value = self._settings.get(name)
        if name in self._settings and not callable(value) and not self._stands_for_default(name, value):
            return value
        default = self.form.defaults.get(name, DEFAULTS.get(name))
        return self.number(default) if isinstance(default, str) else default

    def value(self, name: str, step: int) -> Any:
        """Return the setting `name` for the update with this number.

        If a function of the step raises an error, as a table does after its last entry, this is its last value.
        """
        function = self._settings.get(name)
        if not callable(function):
            return self.number(name)
        try:
            return as_number(name, function(step))
        except Exception:
            if name not in self.places:
                raise
            return self.number(name)

    def number_in(self, name: str, values: Sequence[float]) -> Any:
        """Return a setting from the values of one step."""
        return values[self.places[name]] if name in self.places else self.number(name)

    def next_number_in(self, name: str, values: Sequence[float]) -> Any:
        """Return a setting of the following step from the values that :meth:`ask_next` returned."""
        names = [base for _, base in self._next]
        return values[len(self.live) + names.index(name)] if name in names else self.number_in(name, values)

    def ask_next(self, values: Sequence[float], step: int) -> list[float]:
        """Return the values of the following update that the rule needs, after the values of this one.

        If there is no such value, as after the last step of a run, it is taken to be that of this update.
        """
        found = [*values]
        for name_next, name in self._next:
            value = values[self.places[name]]
            try:
                value_next = as_number(name, self._settings[name](step + 1))
                value = value_next if value_next in self.update.allowed[name_next] else value
            except Exception:  # the function is asked again, and its error raised, when the value is needed
                pass
            found.append(value)
        return found

    def at(self, values: Sequence[float]) -> Self:
        """Return this group with the rule for these values of its live settings."""
        asked = {name: self._as_given(name, values[place]) for place, name, _ in self.calls}
        return type(self)(self.settings, asked, self.dtypes)

    def with_settings(self, changed: Mapping[str, Any], step: int) -> Self:
        """Return this group with other settings; new functions are asked for their values at this step."""
        for name, value in changed.items():
            if self._stands_for_default(name, value):
                raise ValueError(
                    f"{name}: expected a value other than {value}, which stands for the default "
                    f"{self.form.defaults[name]} of {self.form}; make the optimiser with a chain without this default"
                )
        settings = self.settings | {name: stored(name, value) for name, value in changed.items()}
        asked = {name: value for name, value in self._asked.items() if name not in changed}
        found = ask_functions({name: settings[name] for name in changed}, step, _form(settings))
        return type(self)(settings, asked | found, self.dtypes)

    def with_dtypes(self, dtypes: Sequence[np.dtype[Any]]) -> Self:
        """Return this group for arrays of these dtypes."""
        if set(dtypes) == set(self.dtypes) or not dtypes:
            return self
        return type(self)(self.settings, self._asked, dtypes)

    def with_value(self, name: str, value: float) -> list[float] | None:
        """Return the values with another number for one setting; None if that needs more than a check of its range."""
        place = self._constants.get(name)
        if place is None or type(value) is not float or self._next:
            return None
        low, high = self.limits[place]
        if not low <= value <= high:
            return None
        values = self.values.copy()
        values[place] = value
        return values if self.row(values, 1) is not None else None

    def exact_row(self, values: Sequence[float], step: int, first: bool = False) -> tuple[float, ...]:
        """Return the hyper-parameters for these values, checked for every dtype of the group.

        Parameters
        ----------
        values : sequence of float
            The values of the live settings, then those that :meth:`ask_next` adds.
        step : int
            The number of the update since the state was at rest.
        first : bool
            Whether to take the values that the rule has for the first update of an array.

        Raises
        ------
        TypeError, ValueError
            If a value is missing or out of range.
        """
        names = (*self.live, *(name for name, _ in self._next))
        taken = self.update.parameters
        given = {name: value for name, value in zip(names, values) if name in taken}
        given |= {STEP: float(step)} if STEP in taken else {}
        given |= {name: value for name, value in self.update.first.items() if first and name in taken}
        first_row, *_ = [check_hyper(self.update, given, dtype, early=True) for dtype in self.dtypes]
        return first_row

    def values_by_name(self, first: bool) -> dict[str, Any]:
        """Return the values of all parameters of the rule, numbers in device memory among them."""
        given = {name: value for name, value in zip(self.live, self.values) if name in self.update.parameters}
        given |= {STEP: 1.0} if self.uses_step else {}
        given |= {name: value for name, value in self.update.first.items() if first and name in self.update.parameters}
        return resolve_values(self.update, given, lambda name, value, allowed: value)

    def check(self) -> None:
        """Check the values of all settings, as far as the group has them.

        Raises
        ------
        TypeError, ValueError
            If a value is missing or out of range.
        """
        values = self.values
        if self._next:
            values = [*values, *[values[self.places[name]] for _, name in self._next]]
        if self._lacks or self.row(values, 1) is None:
            self.exact_row(values, 1)

    def check_device_scalars(self, is_on_host: bool) -> None:
        """Check that the numbers in device memory among the settings are of use there.

        Raises
        ------
        TypeError
            If one is not.
        """
        for name, value in self._settings.items():
            if type(value) is not scalars.DeviceScalar:
                continue
            if is_on_host:
                raise TypeError(f"{name}: expected a number, as the arrays are on the host; got {value.array}")
            if self.correct and name == "lr":
                raise TypeError(
                    "lr: expected a number or a function of the step with correct=True, as a change of a number in "
                    f"device memory cannot be noticed; got {value.array}"
                )
            if name in NORMS or name in self.update.late_parameters:
                raise TypeError(f"{name}: expected a number or a function of the step; got {value.array}")


def _form(settings: Mapping[str, Any]) -> Rule:
    """Return the rule without the stages of options."""
    names = ("nesterov", "lookahead", "correct")
    flags = [value if (value := settings.get(name, False)) is False else checks.boolean(name, value) for name in names]
    return with_options(find(settings["rule"]), frozenset(), *flags)


def make_group(settings: Mapping[str, Any], step: int = 0, dtypes: Sequence[np.dtype[Any]] = DTYPES) -> ParamGroup:
    """Return a group with these settings, after asking the functions of the step for their values at this step."""
    functions = {name: stored(name, value) for name, value in settings.items() if callable(value)}
    return ParamGroup(settings, ask_functions(functions, step, _form(settings)) if functions else {}, dtypes)


def restored_group(settings: Mapping[str, Any], values: Mapping[str, Any], step: int, like: ParamGroup) -> ParamGroup:
    """Return a group with saved settings, for the arrays of the group `like`.

    `values` has saved values of functions of the step; a function without one is asked for its value at this step.
    """
    form = _form(settings)
    functions = {name: value for name, value in settings.items() if callable(value)}
    known = {name: None if values[name] is None else float(values[name]) for name in functions if name in values}
    rest = {name: value for name, value in functions.items() if name not in known}
    return ParamGroup(settings, known | ask_functions(rest, step, form), like.dtypes)


def ask_functions(settings: Mapping[str, Any], step: int, form: Rule) -> dict[str, Any]:
    """Return the values at this step of those functions among `settings` that the rule takes."""
    return {
        name: as_number(name, value(step))
        for name, value in settings.items()
        if callable(value) and (name in form.parameters or name in OFF)
    }
