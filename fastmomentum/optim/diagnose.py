"""What a trace shows, one function for each kind of trouble; :mod:`fastmomentum.diagnosis` asks all of them.

Each is written so that a healthy run gives it no occasion: what it takes for a sign is said with it.

`diagnose`: in words, what happened in a run.
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
"""Steps that an oscillation must last, and the factor by which gradients of a diverging run must have grown."""

REMAINING = 1e-3
"""A run whose gradient has come down to this part of its largest has got somewhere: what it does then is rounding."""

STILL = 10
"""Steps lost in rounding, one after the other, that make a stall."""


class Finding(NamedTuple):
    """One thing that happened.

    Attributes
    ----------
    kind : str
        "zeroed", "written", "cold start", "not finite", "diverging", "oscillating", "stalled" or "unstable".
    steps : tuple of int
        The first and the last step that show it.
    group : int or None
        Where the optimiser has several; None where it has one, or it is of all.
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
    """A velocity that is not, to the bit, what the update before had left, with no reset on the record."""
    several = len(trace.groups) > 1
    for event in trace.written:
        numbers = {"left": event.left, "found": event.found, "array": float(event.array)}
        rest = event.found == 0 or event.inside
        if event.inside:
            words = (
                f"Step {event.step - 1} threw the velocity away: it left a norm of {event.found:.3g}, which is what "
                f"the rule makes of a velocity at rest, where with the one it was given it leaves {event.left:.3g}. "
                "No reset is on the record. Look for a condition in the update that puts the velocity to zero."
            )
        elif rest:
            words = (
                f"The velocity fell to zero before step {event.step} without a reset on the record: the update before "
                f"had left a norm of {event.left:.3g}. Someone wrote to it, or made it anew. If that is meant, say "
                "opt.reset(reason); if not, look for what runs between these two steps."
            )
        else:
            words = (
                f"Someone wrote to the state before step {event.step}: the update before had left a velocity of norm "
                f"{event.left:.6g}, the step found {event.found:.6g}. (Where a rule keeps positions, a write to the "
                "parameters does that.)"
            )
        kind = "zeroed" if rest else "written"
        yield Finding(kind, (event.step - 1, event.step), event.group if several else None, words, numbers)


def cold(trace: Trace) -> Iterator[Finding]:
    """Updates behind it, a gradient, and a velocity at rest that nobody says to have reset."""
    for start in trace.starts:
        if start.at_rest:
            words = (
                f"A cold start: {start.step} updates had been done when the trace began or the run was taken up, but "
                "the velocity was at rest, and no reset is on the record. Most likely the parameters were loaded "
                "without the velocity: save and load the whole state (opt.save, fm.Momentum.load)."
            )
            yield Finding("cold start", (start.step, start.step), None, words, {"steps": float(start.step)})


def not_finite(track: Series, group: int | None) -> Iterator[Finding]:
    """The first step with a NaN or an infinity."""
    for name in ("gradient", "velocity", "step"):
        values = getattr(track, name)
        bad = np.flatnonzero(~np.isfinite(values) & track.present)
        if bad.size:
            at = int(track.steps[bad[0]])
            words = (
                f"The {name} is not finite from step {at} on. Its norm was {_before(values, bad[0])}. See what the run "
                "did just before; skip_nonfinite=True leaves such updates out."
            )
            yield Finding("not finite", (at, int(track.steps[bad[-1]])), group, words, {"step": float(at)})
            return


def diverging(track: Series, group: int | None) -> Iterator[Finding]:
    """Velocity and gradient opposed at every step while the gradient grows, as fast at the end as at the beginning.

    The growth of a good tuning of large κ slows down from its first step on, and a way down from a saddle has velocity
    and gradient in one direction.
    """
    for first, last in _opposed(track):
        size = track.gradient[first:last]
        if _grows(size):
            begin, end = int(track.steps[first]), int(track.steps[last - 1])
            words = (
                f"The run overshoots and diverges: from step {begin} to {end} the gradient grew from {size[0]:.3g} to "
                f"{size[-1]:.3g}, {(size[-1] / size[0]) ** (1 / (len(size) - 1)):.3g} times a step, opposed to the "
                f"velocity throughout. The learning rate is too large: lr/(1 − μ) was {_effective(track, first):.3g}."
            )
            numbers = {"from": float(size[0]), "to": float(size[-1])}
            yield Finding("diverging", (begin, end), group, words, numbers)


def oscillating(track: Series, group: int | None) -> Iterator[Finding]:
    """Velocity and gradient opposed at every step, for four times as long as momentum remembers, and no progress.

    A swing that momentum damps is opposed for half its way only; a damped zigzag falls by e⁻² within half of that time.
    What a run does in the last digits, or when it has come down a thousand times, does not count.
    """
    for first, last in _opposed(track):
        size, part = track.gradient[first:last], slice(first, last)
        momentum = float(np.nanmax(track.momentum[part]))
        memory = 1.0 / (1.0 - math.sqrt(momentum)) if momentum < 1 else math.inf
        need = max(SHORTEST, 4.0 * memory)
        if len(size) < need or _grows(size):
            continue
        middle = len(size) // 2
        early, late = np.median(size[middle : middle + 5]), np.median(size[-5:])
        ratio = float(late / early)
        if ratio >= 0.9 and _is_far(track, part) and np.median(track.cosine[part]) < -0.5:
            begin, end = int(track.steps[first]), int(track.steps[last - 1])
            words = (
                f"The run oscillates: from step {begin} to {end} velocity and gradient were opposed at every step "
                f"(median cosine {np.median(track.cosine[part]):.2f}), and the gradient did not fall any more "
                f"({early:.3g} half-way, {late:.3g} at the end). Lower the learning rate; lr/(1 − μ) was "
                f"{_effective(track, last - 1):.3g}."
            )
            numbers = {"cosine": float(np.median(track.cosine[part])), "ratio": ratio}
            yield Finding("oscillating", (begin, end), group, words, numbers)


def stalled(track: Series, group: int | None) -> Iterator[Finding]:
    """Steps that change no element at all, though lr > 0 and the gradient is still large."""
    still = (track.step == 0) & (track.left > 0) & (track.lr > 0) & (track.gradient > 0)
    far = track.gradient > REMAINING * np.nanmax(track.gradient, initial=0.0)
    for first, last in _runs(still & far):
        if last - first >= STILL:
            begin, end = int(track.steps[first]), int(track.steps[last - 1])
            words = (
                f"The run has stalled: from step {begin} to {end} no step changed any parameter, though the gradient's "
                f"norm is {track.gradient[last - 1]:.3g} and the velocity's {track.left[last - 1]:.3g}. lr "
                f"{track.lr[last - 1]:.3g} makes steps smaller than what the dtype can add to parameters of norm "
                f"{track.size[last - 1]:.3g}. Raise it, or use float64."
            )
            numbers = {"gradient": float(track.gradient[last - 1]), "lr": float(track.lr[last - 1])}
            yield Finding("stalled", (begin, end), group, words, numbers)


def _grows(size: Floats) -> bool:
    """Whether gradients grow a hundredfold, and as fast in the second half as in the first."""
    if len(size) < STILL:
        return False
    with np.errstate(all="ignore"):
        early, late = np.log(size[len(size) // 2] / size[0]), np.log(size[-1] / size[len(size) // 2])
    return bool(early > 0 and late > 0.7 * early and early + late > math.log(GROWTH))


def _opposed(track: Series) -> Iterator[tuple[int, int]]:
    """Where velocity and gradient are opposed, without a gap between the steps."""
    with np.errstate(invalid="ignore"):
        opposed = (track.cosine < 0) & np.isfinite(track.gradient) & (track.lr > 0)
    yield from _runs(opposed, np.diff(track.steps) != 1)


def _runs(true: Any, breaks: Any = None) -> Iterator[tuple[int, int]]:
    """From where to where it is true without a break; `breaks` has an entry for each two neighbours."""
    first = None
    for i, each in enumerate(true):
        if first is not None and (not each or (breaks is not None and breaks[i - 1])):
            yield first, i
            first = None
        if each and first is None:
            first = i
    if first is not None:
        yield first, len(true)


def _is_far(track: Series, part: slice) -> bool:
    """Whether the gradient is still large, and steps are more than rounding (of float32, which may be the dtype)."""
    large = track.gradient[part][-1] > REMAINING * np.nanmax(np.where(np.isfinite(track.gradient), track.gradient, 0.0))
    return bool(large and np.median(track.step[part]) > 16 * 2.0**-24 * np.median(track.size[part]))


def _before(values: Floats, at: int) -> str:
    return f"{values[at - 1]:.3g} at the record before" if at else "not finite from the first record on"


def _effective(track: Series, at: int) -> float:
    momentum = track.momentum[at]
    return float(track.lr[at] / (1 - momentum)) if momentum < 1 else math.inf


SLACK = 1e-9
"""How far the radius may be above 1: the sharpest tunings touch it, but for rounding."""


class Diagnosis(Sequence[Finding]):
    """All findings; as text, in plain words."""

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
        """The kind of each."""
        return [finding.kind for finding in self._found]

    def __str__(self) -> str:
        lines = [
            f"[{each.kind}]{'' if each.group is None else f' group {each.group}:'} {each.words}" for each in self._found
        ]
        return "\n".join(lines) or "nothing found"

    __repr__ = __str__


def diagnose(trace: Trace, spectrum: Any = None) -> Diagnosis:
    """In words what happened: a velocity written to, a cold start, overshooting, oscillation, a stall, too large an lr.

    Parameters
    ----------
    trace : Trace
        Of :meth:`fastmomentum.Momentum.trace`, or recorded by hand.
    spectrum : (m, L), Spectrum, or float, optional
        The least and the greatest curvature, or the greatest alone: with it the learning rate is held against the
        largest that converges, (:func:`fastmomentum.theory.max_stable_lr`).

    Returns
    -------
    Diagnosis
        A sequence of findings; as text it says what happened, the evidence, and what to do, or "nothing found".

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be.

    Notes
    -----
    Where an optimiser's steps are all recorded, each knows to the bit what the one before left: whatever changes the
    velocity's norm between them is told, unless a reset or a load is on the record. Of loops by hand what rounding does
    not explain is told. With ``every`` > 1 nothing is known between records: writes, oscillation and overshooting,
    which are told by neighbouring steps, are missed, others are seen where a record falls on them.

    Divergence and oscillation are told by the velocity; sgd, which has none, is told by the spectrum, and by what is
    not finite.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0, 2.0])
    >>> opt = fm.Momentum(p, rule="ema", lr=0.1)
    >>> trace = opt.trace()
    >>> for step in range(3):
    ...     opt.step(p.copy())
    ...     opt.velocity[:] *= step != 1  # who does that?
    >>> fm.diagnose(trace).kinds
    ['zeroed']
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace: expected a Trace; got {checks.describe(trace)}")
    ends = None if spectrum is None else _ends(spectrum)
    found = [*written(trace), *cold(trace)]
    groups = trace.groups
    for number, (track, update) in enumerate(zip(groups, trace.updates)):
        group = number if len(groups) > 1 else None
        for look in (not_finite, diverging, oscillating, stalled):
            found += look(track, group)
        if ends is not None:
            found += _unstable(track, group, update, ends)
    return Diagnosis(sorted(found, key=lambda finding: finding.steps))


def _ends(spectrum: Any) -> tuple[float, float]:
    if isinstance(spectrum, tuple | list):
        found = check_spectrum(spectrum)
        return found.m, found.L
    greatest = checks.number("spectrum", spectrum, ABOVE_ZERO)
    return greatest, greatest


def _unstable(track: Series, group: int | None, rule: Any, ends: tuple[float, float]) -> Iterator[Finding]:
    """Learning rates beyond the largest that converges, where the rule is linear; ascending ones are not."""
    update, options = rule
    pairs, which = np.unique(np.stack([track.lr, track.momentum]), axis=1, return_inverse=True)
    for number, (lr, momentum) in enumerate(pairs.T):
        radius = _radius(update, options, float(lr), float(momentum), ends)
        if not radius > 1 + SLACK:
            continue
        at = track.steps[which.reshape(-1) == number]
        limit = float(theory.max_stable_lr(float(momentum), ends[1], rule=update, **options))
        effective = lr / (1 - momentum) if momentum < 1 else math.inf
        words = (
            f"The spectrum does not bear the learning rate of {len(at)} steps, {at[0]} to {at[-1]}: lr {lr:.3g} with "
            f"momentum {momentum:.3g}, lr/(1 − μ) = {effective:.3g}, where the largest that converges on curvature "
            f"{ends[1]:.3g} is lr {limit:.3g}. Errors grow {radius:.4g} times a step. Lower lr below {limit:.3g}."
        )
        numbers = {"lr": float(lr), "momentum": float(momentum), "radius": radius, "limit": limit}
        yield Finding("unstable", (int(at[0]), int(at[-1])), group, words, numbers)


def _radius(update: Rule, options: Any, lr: float, momentum: float, ends: tuple[float, float]) -> float:
    if lr != lr or momentum != momentum:
        return math.nan
    try:
        return float(np.max(theory.spectral_radius(lr, momentum, np.array(sorted(set(ends))), rule=update, **options)))
    except ValueError:  # a rule that is not linear has none
        return math.nan
