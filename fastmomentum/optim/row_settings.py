"""The settings of SparseRows: numbers and functions of the step, and the linear rule that their values resolve to."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.advice import did_you_mean
from fastmomentum.optim.values import as_number
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import corrections_of
from fastmomentum.rules.options import LINEAR, MOMENTUM, OFF, SWITCHES, Options, resolve, resolve_options
from fastmomentum.rules.record import STEP, hyper_row, resolve_values
from fastmomentum.theory.linear import Floats, LinearForm

Setting = float | Callable[[int], float]
"""A number, or a function of the step: of the number of updates done before, 0 at the first update."""

NOT_NUMBERS = ("rule", *SWITCHES)
"""The settings that are not numbers, and that are no functions of the step."""

TAKEN = Options((*LINEAR.names, "correct", "rule", "backend"), "fastmomentum.SparseRows")
FLAGS = tuple(name for name in SWITCHES if name in TAKEN.names)
"""The settings that are True or False."""

MOMENTUM_ALONE = tuple(name for name in MOMENTUM.names if name not in (*TAKEN.names, "clip_value"))
"""The options of Momentum that SparseRows does not take."""


class LinearRule(NamedTuple):
    """Hold the values of all settings in a step, and the rule that they resolve to.

    Attributes
    ----------
    values : mapping
        The values of all settings, the rule among them.
    update : Rule
        The rule with the stages that the values ask for.
    hyper : tuple
        Its hyper-parameters as a kernel takes them.
    matrix : ndarray, shape (n, n)
        The matrix by which a step at g = 0 multiplies (p, *state).
    """

    values: Mapping[str, Any]
    update: Rule
    hyper: tuple[Any, ...]
    matrix: Floats


def prepare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with numbers as floats; functions of the step stay, and None is left out.

    Raises
    ------
    TypeError
        If a setting has a wrong type, or belongs to Momentum alone.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name in MOMENTUM_ALONE:
            if value is None or value is False:
                continue
            raise TypeError(f"{name}: expected only by Momentum, not by SparseRows; got {checks.describe(value)}")
        if name == "clip_value" and value is not None:
            raise ValueError(
                f"clip_value: expected None, as clipping is not linear in p, state and g; got {checks.describe(value)}"
                ". Clip the gradients before the step: numpy.clip(grads, -clip_value, clip_value)"
            )
        if name in NOT_NUMBERS or (callable(value) and not isinstance(value, type)):
            found[name] = value
        elif value is not None or OFF.get(name, 0.0) is not None:
            found[name] = as_number(name, value)
    return found


def linearise(values: Mapping[str, Any], dtype: np.dtype[Any]) -> LinearRule:
    """Return the rule that these values of the settings resolve to, with its matrix at g = 0.

    Raises
    ------
    TypeError, ValueError
        If a value has a wrong type or is out of range, or the rule is not linear.
    """
    update, given = resolve(values["rule"], {name: value for name, value in values.items() if name != "rule"}, TAKEN)
    if STEP in update.parameters:
        raise ValueError(f"rule: expected one that is linear in p, state and g; got {update}")
    hyper = hyper_row(update, given, dtype)
    size = 1 + len(update.state)
    try:
        forms = update.update(*(LinearForm({key: 1.0}) for key in range(size)), LinearForm({}), *map(float, hyper))
    except TypeError as error:
        raise ValueError(f"rule: expected one that is linear in p, state and g; got {update}") from error
    matrix = np.array([[form[key] for key in range(size)] for form in forms])
    return LinearRule(values, update, hyper, matrix)


def is_function(name: str, value: Any) -> bool:
    """Return whether this value of a setting, as :func:`prepare` returns it, is a function of the step."""
    return name not in NOT_NUMBERS and callable(value)


def values_at(settings: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the values of settings for the update of this number; functions of the step are called."""
    return {
        name: as_number(name, value(step)) if is_function(name, value) else value for name, value in settings.items()
    }


class RowSettings:
    """Hold the settings of SparseRows, and the rule that they resolve to, for which functions are called once a step.

    Attributes
    ----------
    given : mapping
        The settings that are not None: numbers as floats, and functions of the step.

    Parameters
    ----------
    given : mapping
        The settings.
    values : mapping
        Their values in the update of number `step`.
    dtype : dtype
        The table's dtype.
    step : int or None
        The number of an update, or None if `values` are those of a former one.

    Examples
    --------
    >>> import numpy as np
    >>> settings = RowSettings.make({"rule": "sgd", "lr": [0.5, 0.25].__getitem__}, np.dtype(np.float32))
    >>> settings.rule_at(1).hyper
    (np.float32(0.25),)
    >>> settings.last_values(2)["lr"]  # the list has no further value
    0.25
    """

    def __init__(
        self, given: Mapping[str, Any], values: Mapping[str, Any], dtype: np.dtype[Any], step: int | None
    ) -> None:
        self.given, self._dtype, self._last = given, dtype, (step, linearise(values, dtype))
        self._has_functions = any(is_function(name, value) for name, value in given.items())
        if callable(given["lr"]):
            self._refuse_change_of_lr()

    @classmethod
    def make(cls, settings: Mapping[str, Any], dtype: np.dtype[Any]) -> "RowSettings":
        """Return the settings from the arguments of the constructor; functions of the step are called for step 0."""
        given = prepare(settings)
        return cls(given, values_at(given, 0), dtype, 0)

    @property
    def last(self) -> LinearRule:
        """The rule of the last update for which functions of the step were called and had values in range."""
        return self._last[1]

    def changed(self, settings: Mapping[str, Any], step: int) -> "RowSettings":
        """Return the settings with some of them replaced; new functions of the step are called for this step.

        Raises
        ------
        TypeError, ValueError
            If a setting has a wrong type or value, or the rule would keep another state.
        """
        if "rule" in settings:
            given = settings["rule"]
            raise TypeError(f"rule: expected only by the constructor, as the state belongs to the rule; got {given!r}")
        new = prepare(settings)
        given = {name: value for name, value in self.given.items() if name not in settings} | new
        now = {**self.last_values(step), **values_at(new, step)}
        is_known = self._last[0] == step or not self._has_functions  # not if one of the other functions raised
        found = RowSettings(given, {name: now[name] for name in given}, self._dtype, step if is_known else None)
        found.check_state(self)
        if found.last.values["lr"] != self.last.values["lr"]:
            found._refuse_change_of_lr()
        return found

    def check_state(self, own: "RowSettings") -> None:
        """Check that with these settings the rule keeps the same state as with the settings `own`."""
        slots = [", ".join(settings.last.update.slots) or "no state" for settings in (own, self)]
        if self.last.update.state != own.last.update.state:
            raise ValueError(f"settings: expected those with which the rule keeps {slots[0]}; got {slots[1]}")

    def rule_at(self, step: int) -> LinearRule:
        """Return the rule of the update of this number; each function of the step is called once for it.

        A function is called again if it has raised, or if a value was out of range.
        """
        if self._has_functions and step != self._last[0]:
            values, last = values_at(self.given, step), self.last
            self._last = step, last if values == last.values else linearise(values, self._dtype)
        return self.last

    def last_values(self, step: int) -> Mapping[str, Any]:
        """Return the values for the update of this number, or for the last one if a function raises."""
        try:
            return self.rule_at(step).values
        except Exception:
            return self.last.values

    def find(self, name: str, step: int) -> float:
        """Return the value of a setting other than the rule as :meth:`last_values` does, or its default.

        Raises
        ------
        AttributeError
            If there is no such setting.
        """
        known = {name: value for name, value in self.last_values(step).items() if name != "rule"}
        if name not in known:
            update, given = resolve_options(**self.last_values(step))
            off = {name: value for name, value in OFF.items() if value is not None} | dict.fromkeys(FLAGS, False)
            known = {**off, **known, **resolve_values(update, given)}
        if name not in known:
            hint = did_you_mean(name, known)
            raise AttributeError(f"{name}: expected one of the settings {', '.join(known)}{hint}")
        value: float = known[name]
        return value

    def _refuse_change_of_lr(self) -> None:
        if corrections_of(self.last.update):
            raise ValueError(
                "lr: expected a number that stays as it is with correct=True, as SparseRows does not rescale state; "
                f"got {checks.describe(self.given['lr'])}. Leave correct out, or use a rule such as 'pytorch'"
            )
