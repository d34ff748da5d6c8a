"""Choose learning rate and momentum of a minimiser: as given, from a spectrum, or by backtracking."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks, theory
from fastmomentum.checks import ABOVE_ZERO, UNIT_INTERVAL, Range
from fastmomentum.rules.base import Rule
from fastmomentum.rules.registry import find
from fastmomentum.rules.summing import fire
from fastmomentum.schedules.sequences import Chebyshev, Nesterov
from fastmomentum.theory.spectrum import Spectrum, check_spectrum

RESTARTS = {"gradient": "gradient", "function": "function", False: "never"}
"""The restart scheme for each value of the argument `restart`, except None."""

Value = float | Callable[[int], float]
"""A number, or a function of the step since the last restart."""

SETTINGS = {"fire": tuple(name for name in fire.defaults if name != "lr")}
"""The names of a method's own settings, for each method that has some."""

REFUSED = {
    "fire": {
        "momentum": "whose velocity is mixed with the force; alpha_start and alpha_shrink set how much",
        "spectrum": "whose time step adapts itself; lr and max_dt are its first and its greatest value",
        "restart": "which stops the motion itself when it goes up the gradient",
        "l1": "which has no proximal map; other rules of minimize have one",
        "bounds": "which has no proximal map; other rules of minimize have one",
    }
}
"""The arguments of minimize that a method refuses because of what it is, each with the reason."""


class StepSizes(NamedTuple):
    """Hold the rule, learning rate, momentum and restart scheme of a minimiser.

    Attributes
    ----------
    rule : str
        "nesterov_positions", "heavy_ball" or "fire".
    lr, momentum : float or callable
        Numbers, or functions of the step since the last restart; lr is None if backtracking finds it.
    restart : str
        "gradient", "function" or "never".
    """

    rule: str
    lr: Value | None
    momentum: Value
    restart: str = "never"


def method_name(rule: str | Rule) -> str:
    """Return the name of the method, one of :data:`METHODS`, that a rule stands for.

    Raises
    ------
    ValueError
        If no method uses this rule.
    """
    name = rule if isinstance(rule, str) else getattr(rule, "name", None)
    if name not in METHODS or (rule is not name and not _are_same(find(name), find(rule))):
        raise ValueError(
            f"rule: expected one of {', '.join(METHODS)}; got {rule!r}. In place of pytorch, classical or ema pass "
            "'heavy_ball', and in place of their Nesterov forms 'nesterov_positions'"
        )
    return name


def _are_same(rule: Rule, other: Rule) -> bool:
    """Return whether two rules have the same functions, names and defaults, as copies of one rule have."""
    return rule.functions == other.functions and rule.description == other.description


def check_accepted(method: str, **given: object) -> None:
    """Check that each argument that the method refuses (:data:`REFUSED`) is None.

    Raises
    ------
    ValueError
        If one is not.
    """
    for name, reason in REFUSED.get(method, {}).items():
        if given[name] is not None:
            got = checks.describe(given[name])
            raise ValueError(f"{name}: expected none with rule {method!r}, {reason}; got {got}")


def choose_step_sizes(
    method: str,
    lr: Value | None,
    momentum: Value | None,
    spectrum: Spectrum | tuple[float, float] | bool | None,
    restart: str | bool | None,
    estimate: Callable[[], Spectrum],
) -> StepSizes:
    """Return the step sizes that the user's arguments ask for.

    Parameters
    ----------
    method : str
        The name of one of :data:`METHODS`.
    lr, momentum : float, callable or None
        The values that the user gave.
    spectrum : Spectrum, (m, L), True or None
        True stands for the result of `estimate`.
    restart : str, False or None
        One of :data:`RESTARTS`; None stands for the default of the rule.
    estimate : callable
        Returns the spectrum at the start.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value, or two arguments exclude each other.
    """
    for argument, value, allowed in (("lr", lr, ABOVE_ZERO), ("momentum", momentum, UNIT_INTERVAL)):
        if value is not None and not callable(value):
            checks.number(argument, value, allowed)
    if restart is not None and (not isinstance(restart, str | bool) or restart not in RESTARTS):
        raise ValueError(f"restart: expected 'gradient', 'function', False or None; got {restart!r}")
    if lr is not None and spectrum is not None and (method != "nesterov_positions" or momentum is not None):
        raise ValueError("spectrum: expected None, as lr is given and the spectrum would not be used; got one")
    if spectrum is not None:
        spectrum = estimate() if spectrum is True else check_spectrum(spectrum)
    found = METHODS[method](lr, momentum, spectrum, estimate)
    return found if restart is None else found._replace(restart=RESTARTS[restart])


Estimate = Callable[[], Spectrum]


def _sgd(lr: Value | None, momentum: Value | None, spectrum: Spectrum | None, estimate: Estimate) -> StepSizes:
    if momentum is not None and momentum != 0.0:
        raise ValueError(f"momentum: expected none with rule 'sgd', which has no momentum; got {momentum!r}")
    if lr is None and spectrum is not None:
        lr = theory.tune(spectrum, rule="sgd").lr
    return StepSizes("nesterov_positions", lr, 0.0)


def _heavy_ball(lr: Value | None, momentum: Value | None, spectrum: Spectrum | None, estimate: Estimate) -> StepSizes:
    if lr is not None:
        return StepSizes("heavy_ball", lr, 0.9 if momentum is None else momentum)
    if momentum is not None:
        raise ValueError(
            "lr: expected a value if momentum is given, as the best lr of rule 'heavy_ball' depends on it; got None"
        )
    tuned = theory.tune(spectrum or estimate(), rule="heavy_ball")
    return StepSizes("heavy_ball", tuned.lr, tuned.momentum)


def _nesterov(lr: Value | None, momentum: Value | None, spectrum: Spectrum | None, estimate: Estimate) -> StepSizes:
    if spectrum is not None:
        m, L, m_error, L_error = spectrum
        tuned = theory.standard(m - m_error, L + L_error, rule="nesterov_positions")
        lr, momentum = tuned.lr if lr is None else lr, tuned.momentum if momentum is None else momentum
    if momentum is None:
        return StepSizes("nesterov_positions", lr, Nesterov(), "gradient")
    return StepSizes("nesterov_positions", lr, momentum)


def _chebyshev(lr: Value | None, momentum: Value | None, spectrum: Spectrum | None, estimate: Estimate) -> StepSizes:
    if lr is not None or momentum is not None:
        raise ValueError("lr, momentum: expected none with rule 'chebyshev', which takes them from the spectrum")
    tuned = theory.tune(spectrum or estimate(), rule="heavy_ball")
    sequence = Chebyshev(tuned.m, tuned.L)
    return StepSizes("heavy_ball", sequence.lr, sequence.momentum)


def _fire(lr: Value | None, momentum: Value | None, spectrum: Spectrum | None, estimate: Estimate) -> StepSizes:
    if callable(lr):
        raise TypeError(
            f"lr: expected a number with rule 'fire', whose first time step it is; got {checks.describe(lr)}. The time "
            "step changes by dt_growth and dt_shrink"
        )
    return StepSizes("fire", float(fire.defaults["lr"]) if lr is None else lr, 0.0)


METHODS: dict[str, Callable[[Value | None, Value | None, Spectrum | None, Estimate], StepSizes]] = {
    "sgd": _sgd,
    "heavy_ball": _heavy_ball,
    "nesterov_positions": _nesterov,
    "chebyshev": _chebyshev,
    "fire": _fire,
}
"""The methods by name. All except fire use rules whose state is a position, as only these can take a proximal map."""


class StepTable:
    """Tabulate a setting over the steps since a restart, in an array whose last number holds for all later steps.

    Parameters
    ----------
    name : str
        The setting's name in messages.
    value : float or callable
        The setting.
    allowed : Range
        The values that it may have.
    maxiter : int
        The number of steps for which values may be needed.
    """

    def __init__(self, name: str, value: Value, allowed: Range, maxiter: int) -> None:
        self._name, self._value, self._allowed, self._maxiter = name, value, allowed, maxiter
        self._values = np.empty(0)

    def values_for(self, steps: int) -> npt.NDArray[np.float64]:
        """Return the values for at least this number of steps.

        The table grows by doubling, so that runs that take one step per call seldom extend it.
        """
        size, value = self._values.size, self._value
        if not callable(value):
            if size == 0:
                self._values = np.array([checks.number(self._name, value, self._allowed)])
        elif steps > size:
            wanted = max(steps, min(2 * size, self._maxiter))
            more = [checks.number(self._name, value(step), self._allowed) for step in range(size, wanted)]
            self._values = np.append(self._values, more)
        return self._values

    def at(self, step: int) -> float:
        """Return the value at this step."""
        values = self.values_for(step + 1)
        return float(values[min(step, values.size - 1)])
