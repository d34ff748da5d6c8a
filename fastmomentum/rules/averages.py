"""Average the parameters: stages after a rule that read its p and write state of their own."""

from dataclasses import replace
from typing import Any

from fastmomentum import checks
from fastmomentum.checks import UNIT_INTERVAL
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import compose_links
from fastmomentum.rules.registry import find
from fastmomentum.rules.stage import Stage
from fastmomentum.rules.variants import one


def keep_average(average_decay: float) -> float:
    """Return 1 − d."""
    return 1.0 - average_decay


def _mean(p: Any, average: Any, count: Any, one: Any) -> tuple[Any, ...]:
    count = count + one
    return average + (p - average) / count, count


def _exponential(p: Any, average: Any, keep: Any) -> Any:
    return average + keep * (p - average)


def _weighted(p: Any, average: Any, decay: Any, keep: Any) -> Any:
    return decay * average + keep * p


# The mean starts from zero, so that the first mean has the bits of p; from p₀ it would be p₀ + (p − p₀), which rounds.
MEAN = Stage(
    _mean,
    kind="state",
    reads=("p", "average", "count"),
    writes=("average", "count"),
    state=(("average", "zero"), ("count", "zero")),
    name="mean of p",
    hyper=("one",),
    derived={"one": one},
)
EXPONENTIAL = Stage(
    _exponential,
    kind="state",
    reads=("p", "average"),
    writes=("average",),
    state=(("average", "param"),),
    name="exponential average of p",
    hyper=("keep_average",),
    derived={"keep_average": keep_average},
    ranges={"average_decay": UNIT_INTERVAL},
)

# The first update of an array has d = 0. With d·a + (1 − d)·p the average then has the bits of p, and until then it is
# p₀, which a parameter that never gets a gradient keeps. EXPONENTIAL would round: p₀ + (p − p₀).
FROM_FIRST_UPDATE = Stage(
    _weighted,
    kind="state",
    reads=("p", "average"),
    writes=("average",),
    state=(("average", "param"),),
    name="exponential average of p from the first update",
    hyper=("average_decay", "keep_average"),
    derived={"keep_average": keep_average},
    ranges={"average_decay": UNIT_INTERVAL},
    first={"average_decay": 0.0},
)
STARTS = {"initial": EXPONENTIAL, "first update": FROM_FIRST_UPDATE}
"""The stages of exponential averages, by the p at which they start."""


def averaged(
    rule: str | Rule, decay: float | None = None, *, start: str | None = None, name: str | None = None
) -> Rule:
    """Return a rule that also averages the parameters, in the same pass.

    a ← a + (p − a)/n, the mean of all p so far; or a ← a + (1 − d)(p − a), an exponential average.

    Parameters
    ----------
    rule : str or Rule
        The rule that updates p. Pass its Nesterov form by name, ``averaged("pytorch_nesterov")``. Stages that act on p
        before it is averaged belong inside: ``averaged(chain("sgd", stage))``.
    decay : float, optional
        d in [0, 1] of an exponential average, the rule's default for ``average_decay``, a setting that can be a
        function of the step and be assigned. Without it the average is the mean of the parameters after every update
        (Polyak and Ruppert).
    start : {"initial", "first update"}, optional
        The p at which an exponential average starts: "initial", unless given, is p₀, before the first update, and
        "first update" is p₁, after it, as in torch and Keras; p₀ then has no weight. The mean starts with p₁ always.
    name : str, optional
        The name of the averaged rule.

    Returns
    -------
    Rule
        `rule` with more state slots after its own: "average", which is ``opt.average``, and for the mean "count".

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or an argument is out of range.

    Notes
    -----
    Ruppert 1988; Polyak and Juditsky 1992. The mean is that of torch.optim.swa_utils.AveragedModel. With
    start="first update", a ← d·a + (1 − d)·p has the bits of AveragedModel with get_ema_avg_fn(d), and is Keras's
    use_ema=True with ema_momentum=d. With start="initial" p₀ has the weight d^t after t updates: 0.90 after ten with
    d = 0.99. TensorFlow's ExponentialMovingAverage starts there.

    :func:`fastmomentum.step` and SparseRows know no first update: an average there starts at p₀. Pass
    ``average_decay=0`` to the first step() for a start at p₁.

    The exponential average costs one array, 8 bytes of traffic an element in float32. The mean costs two, as elements
    count their own updates (an array that starts later is averaged from its own start); its average is zero before the
    first update, and in float32 a count stays at 2²⁴, from where on it is an exponential average over 2²⁴ steps. The
    exponential one is linear, so the theory covers it; the mean is not, as 1/n changes with the step.

    ``opt.convert(averaged(rule, decay))`` starts an exponential average at the p of that moment, and the mean with the
    next one. If both rules have an average, it goes on; a rule without one drops it.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0])
    >>> opt = fm.Momentum(p, rule=fm.averaged("sgd"), lr=0.5)
    >>> for _ in range(3):
    ...     opt.step(np.array([1.0]))
    >>> p, opt.average
    (array([-0.5]), array([0.]))
    >>> opt = opt.convert(fm.averaged("sgd", 0.75))
    >>> opt.average_decay = 0.5
    >>> opt.step(np.array([1.0]))
    >>> p, opt.average
    (array([-1.]), array([-0.5]))
    """
    if start is not None and (start not in STARTS or decay is None):
        expected = (
            "'first update' or 'initial'" if decay is not None else "None, as the mean starts at the first update"
        )
        raise ValueError(f"start: expected {expected}; got {start!r}")
    stage = MEAN
    if decay is not None:
        default = {"average_decay": checks.number("decay", decay, UNIT_INTERVAL)}
        stage = replace(STARTS[start or "initial"], defaults=default)
    inner = find(rule)
    links = [link for link in (*inner.links, stage) if isinstance(link, Rule | Stage)]
    return compose_links(inner, links, name, nesterov=None)


def is_observer(link: object) -> bool:
    """Return whether a link of a rule is a stage that writes state of its own alone, as an average does."""
    return isinstance(link, Stage) and link.kind == "state" and {*link.writes} <= {slot for slot, _ in link.state}


def without_observers(rule: Rule) -> Rule:
    """Return the rule without the stages that write state of their own alone: p and other state are the same."""
    links = [link for link in rule.links if isinstance(link, Rule | Stage) and not is_observer(link)]
    if len(links) == len(rule.links):
        return rule
    return rule.core if links == [rule.core] else compose_links(rule, links, rule.name, rule.nesterov)
