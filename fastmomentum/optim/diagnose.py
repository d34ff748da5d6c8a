"""The function diagnose(), which finds the troubles of a run in its trace, and a function for each kind of trouble.

These functions are written to find nothing in a healthy run; their docstrings say what they take for a sign of trouble.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from fastmomentum import checks, theory
from fastmomentum.checks import ABOVE_ZERO
from fastmomentum.optim.series import Bools, Floats, Series
from fastmomentum.optim.trace import Trace
from fastmomentum.rules.base import Rule
from fastmomentum.theory.spectrum import check_spectrum

MIN_OSCILLATION = 30
"""The least number of steps of an oscillation that is a finding."""

MIN_GROWTH, MIN_GROWTH_STEPS = 100.0, 10
"""The least factor by which the gradient of a diverging run grows, and the least number of steps in which it does."""

LARGE_GRADIENT = 1e-3
"""The part of the largest gradient of a run above which a gradient is large; below it, rounding may move the run."""

MIN_STALL = 10
"""The least number of consecutive steps of a stall that change no element."""


class Finding(NamedTuple):
    """Hold one trouble of a run.

    Attributes
    ----------
    kind : str
        "zeroed", "written", "cold start", "gap", "not finite", "diverging", "oscillating", "stalled" or "unstable".
    steps : tuple of int
        The first and the last step that show the trouble.
    group : int or None
        The number of the group; None if the optimiser has one group, or if the finding concerns all of them.
    words : str
        What happened, the evidence, and what to do.
    numbers : mapping of str to float
        The evidence.
    """

    kind: str
    steps: tuple[int, int]
    group: int | None
    words: str
    numbers: Mapping[str, float]


def written(trace: Trace) -> Iterator[Finding]:
    """Yield a finding for each velocity that other code than the update has changed, if no reset is on record."""
    several = len(trace.groups) > 1
    for event in trace.written:
        numbers = {"left": event.left, "found": event.found, "array": float(event.array)}
        is_zeroed = event.found == 0 or event.inside
        if event.inside:
            words = (
                f"Step {event.step - 1} discarded the velocity: it left a norm of {event.found:.3g}, as the rule does "
                f"from a zero velocity; from the velocity that it was given it would have left {event.left:.3g}. No "
                "reset is on record. Look for a condition in the update that sets the velocity to zero."
            )
        elif is_zeroed:
            words = (
                f"The velocity fell to zero before step {event.step} without a reset on record: the update before had "
                f"left a norm of {event.left:.3g}. Some code wrote to it, or replaced it. If that is intended, call "
                "opt.reset(reason); if not, look at the code that runs between these two steps."
            )
        else:
            words = (
                f"Some code wrote to the state before step {event.step}: the update before had left a velocity of norm "
                f"{event.left:.6g}, the step found {event.found:.6g}. (If a rule keeps positions, a write to the "
                "parameters has this effect.)"
            )
        kind = "zeroed" if is_zeroed else "written"
        yield Finding(kind, (event.step - 1, event.step), event.group if several else None, words, numbers)


def cold_starts(trace: Trace) -> Iterator[Finding]:
    """Yield a finding for each start of the trace at which the velocity is zero, but should not be."""
    for start in trace.starts:
        if start.at_rest:
            words = (
                f"A cold start: {start.step} updates had been done when the trace began or the run continued, but the "
                "velocity was zero, and no reset is on record. Most likely the parameters were loaded without the "
                "velocity: save and load the whole state (opt.save, fm.Momentum.load)."
            )
            yield Finding("cold start", (start.step, start.step), None, words, {"steps": float(start.step)})


def gaps(trace: Trace) -> Iterator[Finding]:
    """Yield a finding for each run of consecutive updates that were done but not recorded."""
    missed = trace.gaps
    for first, last in _runs([True] * len(missed), np.diff(missed) != trace.every):
        begin, end = missed[first], missed[last - 1]
        words = (
            f"The record has a gap: {last - first} updates, from step {begin} to {end}, were done but not recorded, as "
            "the handler of a signal raised between an update and its record. Writes to the state at the gap are not "
            "found."
        )
        yield Finding("gap", (begin, end), None, words, {"steps": float(last - first)})


def not_finite(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding for the first step with a NaN or an infinity."""
    for name in ("gradient", "velocity", "step"):
        values = getattr(series, name)
        bad = np.flatnonzero(~np.isfinite(values) & series.present)
        if bad.size:
            at = int(series.steps[bad[0]])
            words = (
                f"The {name} is not finite from step {at} on. Its norm was {_norm_before(values, bad[0])}. Look at the "
                "steps before; skip_nonfinite=True skips such updates."
            )
            yield Finding("not finite", (at, int(series.steps[bad[-1]])), group, words, {"step": float(at)})
            return


def diverging(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding if the gradient grows as fast at the end as at the start, opposed to the velocity at every step.

    A good tuning at large κ is no finding, as the growth of its gradient slows down from the first step on. Nor is the
    way down from a saddle, on which velocity and gradient have the same direction.
    """
    for first, last in _opposed(series):
        size = series.gradient[first:last]
        if _grows(size):
            begin, end = int(series.steps[first]), int(series.steps[last - 1])
            words = (
                f"The run overshoots and diverges: from step {begin} to {end} the gradient grew from {size[0]:.3g} to "
                f"{size[-1]:.3g}, {(size[-1] / size[0]) ** (1 / (len(size) - 1)):.3g} times a step, opposed to the "
                "velocity throughout. The learning rate is too large: lr/(1 − μ) was "
                f"{_effective_lr(series, first):.3g}."
            )
            numbers = {"from": float(size[0]), "to": float(size[-1])}
            yield Finding("diverging", (begin, end), group, words, numbers)


def oscillating(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding if velocity and gradient oppose each other for four decay times, and the gradient does not fall.

    The decay time is 1/(1 − √μ) steps. A slow oscillation that momentum damps is no finding, as velocity and gradient
    oppose each other only half of the time; nor is a damped zigzag, as the gradient falls by e⁻² in two decay times. A
    run in its last digits, or whose gradient has fallen a thousandfold, is no finding, either.
    """
    for first, last in _opposed(series):
        size, part = series.gradient[first:last], slice(first, last)
        momentum = float(np.nanmax(series.momentum[part]))
        decay_time = 1.0 / (1.0 - math.sqrt(momentum)) if momentum < 1 else math.inf
        if len(size) < max(MIN_OSCILLATION, 4.0 * decay_time) or _grows(size):
            continue
        middle = len(size) // 2
        early, late = np.median(size[middle : middle + 5]), np.median(size[-5:])
        ratio = float(late / early)
        if ratio >= 0.9 and _is_far(series, part) and np.median(series.cosine[part]) < -0.5:
            begin, end = int(series.steps[first]), int(series.steps[last - 1])
            words = (
                f"The run oscillates: from step {begin} to {end} velocity and gradient were opposed at every step "
                f"(median cosine {np.median(series.cosine[part]):.2f}), and the gradient no longer fell "
                f"({early:.3g} half-way, {late:.3g} at the end). Lower the learning rate; lr/(1 − μ) was "
                f"{_effective_lr(series, last - 1):.3g}."
            )
            numbers = {"cosine": float(np.median(series.cosine[part])), "ratio": ratio}
            yield Finding("oscillating", (begin, end), group, words, numbers)


def stalled(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding for consecutive steps that change no element, though lr > 0 and the gradient is still large."""
    unchanged = (series.step == 0) & (series.left > 0) & (series.lr > 0) & (series.gradient > 0)
    large = series.gradient > LARGE_GRADIENT * np.nanmax(series.gradient, initial=0.0)
    for first, last in _runs(unchanged & large):
        if last - first >= MIN_STALL:
            begin, end = int(series.steps[first]), int(series.steps[last - 1])
            words = (
                f"The run has stalled: from step {begin} to {end} no step changed any parameter, though the gradient's "
                f"norm is {series.gradient[last - 1]:.3g} and the velocity's {series.left[last - 1]:.3g}. lr "
                f"{series.lr[last - 1]:.3g} makes steps smaller than the dtype can add to parameters of norm "
                f"{series.size[last - 1]:.3g}. Raise lr, or use float64."
            )
            numbers = {"gradient": float(series.gradient[last - 1]), "lr": float(series.lr[last - 1])}
            yield Finding("stalled", (begin, end), group, words, numbers)


def _grows(size: Floats) -> bool:
    """Return whether gradients grow a hundredfold, and about as fast in the second half as in the first."""
    if len(size) < MIN_GROWTH_STEPS:
        return False
    with np.errstate(all="ignore"):
        early, late = np.log(size[len(size) // 2] / size[0]), np.log(size[-1] / size[len(size) // 2])
    return bool(early > 0 and late > 0.7 * early and early + late > math.log(MIN_GROWTH))


def _opposed(series: Series) -> Iterator[tuple[int, int]]:
    """Yield the ranges of consecutive steps in which velocity and gradient oppose each other."""
    with np.errstate(invalid="ignore"):
        opposed = (series.cosine < 0) & np.isfinite(series.gradient) & (series.lr > 0)
    yield from _runs(opposed, np.diff(series.steps) != 1)


def _runs(values: Bools | Sequence[bool], breaks: Bools | None = None) -> Iterator[tuple[int, int]]:
    """Yield the longest ranges (first, stop) of true values; ``breaks[i]`` separates the values i and i + 1."""
    first = None
    for i, each in enumerate(values):
        if first is not None and (not each or (breaks is not None and breaks[i - 1])):
            yield first, i
            first = None
        if each and first is None:
            first = i
    if first is not None:
        yield first, len(values)


def _is_far(series: Series, part: slice) -> bool:
    """Return whether the gradient is still large and steps exceed rounding (of float32, which may be the dtype)."""
    largest = np.nanmax(np.where(np.isfinite(series.gradient), series.gradient, 0.0))
    large = series.gradient[part][-1] > LARGE_GRADIENT * largest
    return bool(large and np.median(series.step[part]) > 16 * 2.0**-24 * np.median(series.size[part]))


def _norm_before(values: Floats, at: int) -> str:
    return f"{values[at - 1]:.3g} at the record before" if at else "not finite from the first record on"


def _effective_lr(series: Series, at: int) -> float:
    momentum = series.momentum[at]
    return float(series.lr[at] / (1 - momentum)) if momentum < 1 else math.inf


SLACK = 1e-9
"""The distance from 1 up to which rounding may lift the radius of a tuning on the edge of stability, which is 1."""


class Diagnosis(Sequence[Finding]):
    """Hold findings as a sequence; str() returns their texts, or "nothing found"."""

    def __init__(self, found: Sequence[Finding]) -> None:
        self._found = tuple(found)

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, at: int) -> Finding: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, at: Any) -> Any:
        return self._found[at]

    @property
    def kinds(self) -> list[str]:
        """The kind of each finding."""
        return [finding.kind for finding in self._found]

    def __str__(self) -> str:
        lines = [
            f"[{each.kind}]{'' if each.group is None else f' group {each.group}:'} {each.words}" for each in self._found
        ]
        return "\n".join(lines) or "nothing found"

    __repr__ = __str__


def diagnose(trace: Trace, spectrum: Any = None) -> Diagnosis:
    """Find the troubles of a run in its trace, and describe each in words.

    It finds writes to the velocity, starts without velocity, overshooting, oscillation, stalls, NaN and infinities, and
    learning rates that are too large for a spectrum.

    Parameters
    ----------
    trace : Trace
        The trace of an optimiser (:meth:`fastmomentum.Momentum.trace`) or of your own loop.
    spectrum : (m, L), Spectrum, or float, optional
        The least and the greatest curvature, or the greatest alone. If it is given, learning rates are compared with
        the largest that converges (:func:`fastmomentum.theory.max_stable_lr`).

    Returns
    -------
    Diagnosis
        A sequence of findings. As text it says what happened, the evidence, and what to do, or "nothing found".

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.

    Notes
    -----
    If all steps of an optimiser are recorded, every change of the bits of the velocity's norm between two steps is
    found, except by a reset or a load on record. In your own loop, changes are found that rounding does not explain.
    With ``every`` > 1 writes, oscillation and overshooting are not found, as they show only in consecutive steps; other
    troubles are found if a step that shows them is recorded.

    For sgd, which keeps no velocity, divergence and oscillation are found only by the spectrum and by numbers that are
    not finite.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0, 2.0])
    >>> opt = fm.Momentum(p, rule="ema", lr=0.1)
    >>> trace = opt.trace()
    >>> for step in range(3):
    ...     opt.step(p.copy())
    ...     opt.velocity[:] *= step != 1  # a bug
    >>> fm.diagnose(trace).kinds
    ['zeroed']
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace: expected a Trace; got {checks.describe(trace)}")
    ends = None if spectrum is None else _ends(spectrum)
    found = [*written(trace), *cold_starts(trace), *gaps(trace)]
    groups = trace.groups
    for number, (series, update) in enumerate(zip(groups, trace.updates)):
        group = number if len(groups) > 1 else None
        for find_trouble in (not_finite, diverging, oscillating, stalled):
            found += find_trouble(series, group)
        if ends is not None:
            found += _unstable(series, group, *update, ends)
    return Diagnosis(sorted(found, key=lambda finding: finding.steps))


def _ends(spectrum: Any) -> tuple[float, float]:
    if isinstance(spectrum, tuple | list):
        found = check_spectrum(spectrum)
        return found.m, found.L
    greatest = checks.number("spectrum", spectrum, ABOVE_ZERO)
    return greatest, greatest


def _unstable(
    series: Series, group: int | None, rule: Rule, options: dict[str, Any], ends: tuple[float, float]
) -> Iterator[Finding]:
    """Yield a finding for each pair of lr and momentum with which errors grow, if the rule is linear."""
    pairs, which = np.unique(np.stack([series.lr, series.momentum]), axis=1, return_inverse=True)
    for number, (lr, momentum) in enumerate(pairs.T):
        radius = _radius(rule, options, float(lr), float(momentum), ends)
        if not radius > 1 + SLACK:
            continue
        at = series.steps[which.reshape(-1) == number]
        limit = float(theory.max_stable_lr(float(momentum), ends[1], rule=rule, **options))
        effective = lr / (1 - momentum) if momentum < 1 else math.inf
        words = (
            f"The learning rate of {len(at)} steps, {at[0]} to {at[-1]}, is too large for the spectrum: lr {lr:.3g} "
            f"with momentum {momentum:.3g}, lr/(1 − μ) = {effective:.3g}; the largest that converges on curvature "
            f"{ends[1]:.3g} is {limit:.3g}. Errors grow {radius:.4g} times a step. Lower lr below {limit:.3g}."
        )
        numbers = {"lr": float(lr), "momentum": float(momentum), "radius": radius, "limit": limit}
        yield Finding("unstable", (int(at[0]), int(at[-1])), group, words, numbers)


def _radius(rule: Rule, options: dict[str, Any], lr: float, momentum: float, ends: tuple[float, float]) -> float:
    """Return the larger spectral radius at the two ends of the spectrum; NaN if it is not defined."""
    if lr != lr or momentum != momentum:
        return math.nan
    try:
        return float(np.max(theory.spectral_radius(lr, momentum, np.array(sorted(set(ends))), rule=rule, **options)))
    except ValueError:  # a rule that is not linear has no radius
        return math.nan
