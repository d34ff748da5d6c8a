"""Chooses learning rate and momentum of a minimiser: given, from a spectrum, or by backtracking."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks, theory
from fastmomentum.checks import ABOVE_ZERO, UNIT_INTERVAL, Range
from fastmomentum.rules.registry import find
from fastmomentum.schedules.sequences import Chebyshev, Nesterov
from fastmomentum.theory.spectrum import Spectrum, check_spectrum

RESTARTS = {"gradient": "gradient", "function": "function", False: "never"}

Value = float | Callable[[int], float]


class StepSizes(NamedTuple):
    """The learning rate, momentum and restart scheme of a minimiser.

    Attributes
    ----------
    rule : str
        The rule that runs.
    lr, momentum : float or callable
        Numbers, or functions of the step since the last restart; lr is None if backtracking finds it.
    restart : str
        "gradient", "function" or "never".
    """

    rule: str
    lr: Value | None
    momentum: Value
    restart: str = "never"


def choose_step_sizes(
    rule: Any, lr: Any, momentum: Any, spectrum: Any, restart: Any, estimate: Callable[[], Spectrum]
) -> StepSizes:
    """Return the step sizes that the user's arguments ask for.

    Parameters
    ----------
    rule : str
        One of :data:`RULES`.
    lr, momentum : float, callable or None
        The given ones.
    spectrum : Spectrum, (m, L), True or None
        True stands for the result of `estimate`.
    restart : str, False or None
        One of :data:`RESTARTS`; None leaves it to the rule.

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, or two do not go together.
    """
    name = rule if isinstance(rule, str) else getattr(rule, "name", None)
    if name not in RULES or (rule is not name and find(name) is not rule):
        raise ValueError(
            f"rule: expected one of {', '.join(RULES)} (pytorch, classical, ema: heavy_ball); got {rule!r}"
        )
    for what, value, allowed in (("lr", lr, ABOVE_ZERO), ("momentum", momentum, UNIT_INTERVAL)):
        if value is not None and not callable(value):
            checks.number(what, value, allowed)
    if restart is not None and (not isinstance(restart, str | bool) or restart not in RESTARTS):
        raise ValueError(f"restart: expected 'gradient', 'function', False or None; got {restart!r}")
    if lr is not None and spectrum is not None and (name != "nesterov_positions" or momentum is not None):
        raise ValueError("spectrum: expected None, as lr is given and the spectrum would not be used; got one")
    if spectrum is True or (spectrum is None and name in ("heavy_ball", "chebyshev") and lr is None):
        spectrum = estimate()
    found = RULES[name](lr, momentum, spectrum)
    return found if restart is None else found._replace(restart=RESTARTS[restart])


def _sgd(lr: Any, momentum: Any, spectrum: Any) -> StepSizes:
    if momentum is not None and momentum != 0.0:
        raise ValueError(f"momentum: expected none with rule 'sgd', which has none; got {momentum!r}")
    if lr is None and spectrum is not None:
        lr = theory.tune(spectrum, rule="sgd").lr
    return StepSizes("nesterov_positions", lr, 0.0)


def _heavy_ball(lr: Any, momentum: Any, spectrum: Any) -> StepSizes:
    if lr is None:
        if momentum is not None:
            raise ValueError("lr: expected with momentum for rule 'heavy_ball', whose best lr depends on it; got None")
        tuned = theory.tune(spectrum, rule="heavy_ball")
        lr, momentum = tuned.lr, tuned.momentum
    return StepSizes("heavy_ball", lr, 0.9 if momentum is None else momentum)


def _nesterov(lr: Any, momentum: Any, spectrum: Any) -> StepSizes:
    if spectrum is not None:
        m, L, m_error, L_error = check_spectrum(spectrum)
        known = theory.standard(m - m_error, L + L_error, rule="nesterov_positions")
        lr, momentum = known.lr if lr is None else lr, known.momentum if momentum is None else momentum
    if momentum is None:
        return StepSizes("nesterov_positions", lr, Nesterov(), "gradient")
    return StepSizes("nesterov_positions", lr, momentum)


def _chebyshev(lr: Any, momentum: Any, spectrum: Any) -> StepSizes:
    if lr is not None or momentum is not None:
        raise ValueError("lr, momentum: expected none with rule 'chebyshev', which takes them from the spectrum")
    tuned = theory.tune(spectrum, rule="heavy_ball")
    sequence = Chebyshev(tuned.m, tuned.L)
    return StepSizes("heavy_ball", sequence.lr, sequence.momentum)


RULES = {"sgd": _sgd, "heavy_ball": _heavy_ball, "nesterov_positions": _nesterov, "chebyshev": _chebyshev}
"""The methods by name; all run rules that keep positions, as proximal maps need these."""


class StepTable:
    """A value for each step since a restart, as an array whose last number holds for all later steps."""

    def __init__(self, name: str, value: Value, allowed: Range, most: int) -> None:
        self._name, self._value, self._allowed, self._most = name, value, allowed, most
        self._known = np.empty(0)

    def upto(self, steps: int) -> Any:
        """Return values for at least this number of steps, and some more, so that single steps need not extend it."""
        value, known = self._value, self._known
        if not callable(value):
            wanted = 1
        elif steps > known.size:
            wanted = max(steps, min(2 * known.size, self._most))
        else:
            wanted = known.size
        more = [value(k) if callable(value) else value for k in range(known.size, wanted)]
        if more:
            self._known = np.append(known, [checks.number(self._name, each, self._allowed) for each in more])
        return self._known

    def at(self, step: int) -> float:
        """Return the value at this step."""
        known = self.upto(step + 1)
        return float(known[min(step, known.size - 1)])
