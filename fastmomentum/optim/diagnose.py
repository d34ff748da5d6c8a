"""Says in words what happened in a run, from its trace: one function for each kind of trouble, and diagnose().

Each function is written so that a healthy run gives it no reason to speak; its docstring says what it takes for a sign.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from fastmomentum import checks, theory
from fastmomentum.checks import ABOVE_ZERO
from fastmomentum.optim.trace import Floats, Series, Trace
from fastmomentum.rules.base import Rule
from fastmomentum.theory.spectrum import check_spectrum

SHORTEST, GROWTH = 30, 100.0
"""The steps that an oscillation must last, and the factor by which the gradient of a diverging run must grow."""

REMAINING = 1e-3
"""A run whose gradient has fallen to this part of its largest has made progress: what follows may be rounding."""

STILL = 10
"""The number of consecutive steps lost in rounding that make a stall."""


class Finding(NamedTuple):
    """One thing that happened in a run.

    Attributes
    ----------
    kind : str
        "zeroed", "written", "cold start", "not finite", "diverging", "oscillating", "stalled" or "unstable".
    steps : tuple of int
        The first and the last step that show it.
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
    """Yield a finding for each velocity that is not, to the bit, as the update before left it, without a reset."""
    several = len(trace.groups) > 1
    for event in trace.written:
        numbers = {"left": event.left, "found": event.found, "array": float(event.array)}
        rest = event.found == 0 or event.inside
        if event.inside:
            words = (
                f"Step {event.step - 1} discarded the velocity: it left a norm of {event.found:.3g}, as the rule does "
                f"from a zero velocity; from the velocity that it was given it would have left {event.left:.3g}. No "
                "reset is on record. Look for a condition in the update that sets the velocity to zero."
            )
        elif rest:
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
        kind = "zeroed" if rest else "written"
        yield Finding(kind, (event.step - 1, event.step), event.group if several else None, words, numbers)


def cold(trace: Trace) -> Iterator[Finding]:
    """Yield a finding for each start after updates at which the velocity is zero without a reset on record."""
    for start in trace.starts:
        if start.at_rest:
            words = (
                f"A cold start: {start.step} updates had been done when the trace began or the run continued, but the "
                "velocity was zero, and no reset is on record. Most likely the parameters were loaded without the "
                "velocity: save and load the whole state (opt.save, fm.Momentum.load)."
            )
            yield Finding("cold start", (start.step, start.step), None, words, {"steps": float(start.step)})


def not_finite(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding for the first step with a NaN or an infinity."""
    for name in ("gradient", "velocity", "step"):
        values = getattr(series, name)
        bad = np.flatnonzero(~np.isfinite(values) & series.present)
        if bad.size:
            at = int(series.steps[bad[0]])
            words = (
                f"The {name} is not finite from step {at} on. Its norm was {_before(values, bad[0])}. Look at the "
                "steps before; skip_nonfinite=True skips such updates."
            )
            yield Finding("not finite", (at, int(series.steps[bad[-1]])), group, words, {"step": float(at)})
            return


def diverging(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding if the gradient grows, as fast at the end as at the start, opposed to the velocity at every step.

    With a good tuning at large κ growth slows down from the first step on; on the way down from a saddle, velocity and
    gradient have one direction.
    """
    for first, last in _opposed(series):
        size = series.gradient[first:last]
        if _grows(size):
            begin, end = int(series.steps[first]), int(series.steps[last - 1])
            words = (
                f"The run overshoots and diverges: from step {begin} to {end} the gradient grew from {size[0]:.3g} to "
                f"{size[-1]:.3g}, {(size[-1] / size[0]) ** (1 / (len(size) - 1)):.3g} times a step, opposed to the "
                f"velocity throughout. The learning rate is too large: lr/(1 − μ) was {_effective(series, first):.3g}."
            )
            numbers = {"from": float(size[0]), "to": float(size[-1])}
            yield Finding("diverging", (begin, end), group, words, numbers)


def oscillating(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding if velocity and gradient oppose each other for four times momentum's memory, without progress.

    In a swing that momentum damps they oppose each other on half of the way only; a damped zigzag falls by e⁻² within
    half of that time. A run in its last digits, or whose gradient has fallen a thousandfold, does not count.
    """
    for first, last in _opposed(series):
        size, part = series.gradient[first:last], slice(first, last)
        momentum = float(np.nanmax(series.momentum[part]))
        memory = 1.0 / (1.0 - math.sqrt(momentum)) if momentum < 1 else math.inf
        need = max(SHORTEST, 4.0 * memory)
        if len(size) < need or _grows(size):
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
                f"{_effective(series, last - 1):.3g}."
            )
            numbers = {"cosine": float(np.median(series.cosine[part])), "ratio": ratio}
            yield Finding("oscillating", (begin, end), group, words, numbers)


def stalled(series: Series, group: int | None) -> Iterator[Finding]:
    """Yield a finding for steps that change no element, though lr > 0 and the gradient is still large."""
    still = (series.step == 0) & (series.left > 0) & (series.lr > 0) & (series.gradient > 0)
    far = series.gradient > REMAINING * np.nanmax(series.gradient, initial=0.0)
    for first, last in _runs(still & far):
        if last - first >= STILL:
            begin, end = int(series.steps[first]), int(series.steps[last - 1])
            words = (
                f"The run has stalled: from step {begin} to {end} no step changed any parameter, though the gradient's "
                f"norm is {series.gradient[last - 1]:.3g} and the velocity's {series.left[last - 1]:.3g}. lr "
                f"{series.lr[last - 1]:.3g} makes steps smaller than the dtype can add to parameters of norm "
                f"{series.size[last - 1]:.3g}. Raise it, or use float64."
            )
            numbers = {"gradient": float(series.gradient[last - 1]), "lr": float(series.lr[last - 1])}
            yield Finding("stalled", (begin, end), group, words, numbers)


def _grows(size: Floats) -> bool:
    """Return whether gradients grow a hundredfold, and as fast in the second half as in the first."""
    if len(size) < STILL:
        return False
    with np.errstate(all="ignore"):
        early, late = np.log(size[len(size) // 2] / size[0]), np.log(size[-1] / size[len(size) // 2])
    return bool(early > 0 and late > 0.7 * early and early + late > math.log(GROWTH))


def _opposed(series: Series) -> Iterator[tuple[int, int]]:
    """Yield the ranges of records, without a gap, in which velocity and gradient oppose each other."""
    with np.errstate(invalid="ignore"):
        opposed = (series.cosine < 0) & np.isfinite(series.gradient) & (series.lr > 0)
    yield from _runs(opposed, np.diff(series.steps) != 1)


def _runs(true: Any, breaks: Any = None) -> Iterator[tuple[int, int]]:
    """Yield the ranges in which `true` holds without a break; `breaks` has an entry for each two neighbours."""
    first = None
    for i, each in enumerate(true):
        if first is not None and (not each or (breaks is not None and breaks[i - 1])):
            yield first, i
            first = None
        if each and first is None:
            first = i
    if first is not None:
        yield first, len(true)


def _is_far(series: Series, part: slice) -> bool:
    """Return whether the gradient is still large and steps exceed rounding (of float32, which may be the dtype)."""
    large = series.gradient[part][-1] > REMAINING * np.nanmax(
        np.where(np.isfinite(series.gradient), series.gradient, 0.0)
    )
    return bool(large and np.median(series.step[part]) > 16 * 2.0**-24 * np.median(series.size[part]))


def _before(values: Floats, at: int) -> str:
    return f"{values[at - 1]:.3g} at the record before" if at else "not finite from the first record on"


def _effective(series: Series, at: int) -> float:
    momentum = series.momentum[at]
    return float(series.lr[at] / (1 - momentum)) if momentum < 1 else math.inf


SLACK = 1e-9
"""The amount by which rounding may lift the radius above 1, which the sharpest tunings reach."""


class Diagnosis(Sequence[Finding]):
    """A sequence of findings; its text says all of them in words."""

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
    """Say in words what happened in a run.

    It finds writes to the velocity, cold starts, overshooting, oscillation, stalls, and too large learning rates.

    Parameters
    ----------
    trace : Trace
        The record, of :meth:`fastmomentum.Momentum.trace` or of a loop by hand.
    spectrum : (m, L), Spectrum, or float, optional
        The least and the greatest curvature, or the greatest alone. With it the learning rate is compared with the
        largest that converges (:func:`fastmomentum.theory.max_stable_lr`).

    Returns
    -------
    Diagnosis
        A sequence of findings; as text it says what happened, the evidence, and what to do, or "nothing found".

    Raises
    ------
    TypeError, ValueError
        If an argument is refused.

    Notes
    -----
    If all steps of an optimiser are recorded, each change of the velocity's norm between two steps is found, to the
    bit, unless a reset or a load is on record. In loops by hand, changes that rounding does not explain are found. With
    ``every`` > 1 nothing is known between records: writes, oscillation and overshooting, which show in neighbouring
    steps, are missed; other troubles are found if a record falls on them.

    Divergence and oscillation show in the velocity. For sgd, which keeps none, only the spectrum and numbers that are
    not finite show them.

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
    found = [*written(trace), *cold(trace)]
    groups = trace.groups
    for number, (series, update) in enumerate(zip(groups, trace.updates)):
        group = number if len(groups) > 1 else None
        for find in (not_finite, diverging, oscillating, stalled):
            found += find(series, group)
        if ends is not None:
            found += _unstable(series, group, update, ends)
    return Diagnosis(sorted(found, key=lambda finding: finding.steps))


def _ends(spectrum: Any) -> tuple[float, float]:
    if isinstance(spectrum, tuple | list):
        found = check_spectrum(spectrum)
        return found.m, found.L
    greatest = checks.number("spectrum", spectrum, ABOVE_ZERO)
    return greatest, greatest


def _unstable(series: Series, group: int | None, rule: Any, ends: tuple[float, float]) -> Iterator[Finding]:
    """Yield a finding for each learning rate beyond the largest that converges, if the rule is linear."""
    update, options = rule
    pairs, which = np.unique(np.stack([series.lr, series.momentum]), axis=1, return_inverse=True)
    for number, (lr, momentum) in enumerate(pairs.T):
        radius = _radius(update, options, float(lr), float(momentum), ends)
        if not radius > 1 + SLACK:
            continue
        at = series.steps[which.reshape(-1) == number]
        limit = float(theory.max_stable_lr(float(momentum), ends[1], rule=update, **options))
        effective = lr / (1 - momentum) if momentum < 1 else math.inf
        words = (
            f"The learning rate of {len(at)} steps, {at[0]} to {at[-1]}, is too large for the spectrum: lr {lr:.3g} "
            f"with momentum {momentum:.3g}, lr/(1 − μ) = {effective:.3g}; the largest that converges on curvature "
            f"{ends[1]:.3g} is {limit:.3g}. Errors grow {radius:.4g} times a step. Lower lr below {limit:.3g}."
        )
        numbers = {"lr": float(lr), "momentum": float(momentum), "radius": radius, "limit": limit}
        yield Finding("unstable", (int(at[0]), int(at[-1])), group, words, numbers)


def _radius(update: Rule, options: Any, lr: float, momentum: float, ends: tuple[float, float]) -> float:
    if lr != lr or momentum != momentum:
        return math.nan
    try:
        return float(np.max(theory.spectral_radius(lr, momentum, np.array(sorted(set(ends))), rule=update, **options)))
    except ValueError:  # a rule that is not linear has no radius
        return math.nan
