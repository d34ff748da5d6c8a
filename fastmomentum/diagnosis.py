"""`diagnose`: in words, what happened in a run."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from fastmomentum import checks, findings, theory
from fastmomentum.findings import Finding
from fastmomentum.ranges import ABOVE_ZERO
from fastmomentum.records import Update
from fastmomentum.theory.spectra import check_spectrum
from fastmomentum.traces import Trace
from fastmomentum.tracks import Track

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
        raise TypeError(f"trace: expected a Trace; got {checks.shown(trace)}")
    ends = None if spectrum is None else _ends(spectrum)
    found = [*findings.written(trace), *findings.cold(trace)]
    groups = trace.groups
    for number, (track, update) in enumerate(zip(groups, trace.updates)):
        group = number if len(groups) > 1 else None
        for look in (findings.not_finite, findings.diverging, findings.oscillating, findings.stalled):
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


def _unstable(track: Track, group: int | None, rule: Any, ends: tuple[float, float]) -> Iterator[Finding]:
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


def _radius(update: Update, options: Any, lr: float, momentum: float, ends: tuple[float, float]) -> float:
    if lr != lr or momentum != momentum:
        return math.nan
    try:
        return float(np.max(theory.spectral_radius(lr, momentum, np.array(sorted(set(ends))), rule=update, **options)))
    except ValueError:  # a rule that is not linear has none
        return math.nan
