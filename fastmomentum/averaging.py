"""`averaged`: any rule with an average of the parameters, written in the same pass.

An average kept beside the optimiser costs a second pass over memory; as a further state slot it costs its own bytes.
"""

from dataclasses import dataclass, replace
from typing import Any

from fastmomentum import checks
from fastmomentum.compose import Composite
from fastmomentum.parts import Function, Part, Wrap, as_it_is
from fastmomentum.ranges import UNIT_INTERVAL
from fastmomentum.records import Update
from fastmomentum.rules import find
from fastmomentum.variants import one


def keep_average(average_decay: float) -> float:
    """1 − d."""
    return 1.0 - average_decay


def _mean(p: Any, average: Any, count: Any, one: Any) -> tuple[Any, ...]:
    count = count + one
    return average + (p - average) / count, count


def _exponential(p: Any, average: Any, keep: Any) -> tuple[Any, ...]:
    return (average + keep * (p - average),)


@dataclass(frozen=True, eq=False)
class Follower(Part):
    """State slots that follow the parameter: ``function(p, *slots, *hyper) -> slots``."""

    function: Function
    slots: tuple[tuple[str, str], ...]

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (self.function,)


# At rest at zero, so that the first mean is p itself to the bit; from p₀ it would be p₀ + (p − p₀).
MEAN = Follower(_mean, (("average", "zero"), ("count", "zero")), name="mean of p", hyper=("one",), derived={"one": one})
EXPONENTIAL = Follower(
    _exponential,
    (("average", "param"),),
    name="exponential average of p",
    hyper=("keep_average",),
    derived={"keep_average": keep_average},
    ranges={"average_decay": UNIT_INTERVAL},
)


def _followed(update: Function, follow: Function, slots: int, own: int, taken: int) -> Function:
    """`update`, with so many slots and hyper-parameters, and `follow` with slots of its `own` behind it."""
    inner, grad, first, behind = slots + 1, slots + own + 1, slots + own + 2, slots + own + 2 + taken

    def composed(*everything: Any) -> Any:
        out = update(*everything[:inner], everything[grad], *everything[first:behind])
        return (*out, *follow(out[0], *everything[inner:grad], *everything[behind:]))

    return composed


@dataclass(frozen=True, eq=False, kw_only=True)
class Averaged(Composite):
    """A rule, or a chain, and slots that follow the parameter; made by :func:`averaged`."""

    follower: Follower

    @property
    def parts(self) -> tuple[Part, ...]:
        """The rule and what follows the parameter."""
        return self.rule, self.follower

    def build(self, wrap: Wrap = as_it_is) -> Function:
        """See :class:`Update`."""
        rule, own = self.rule, len(self.follower.slots)
        follow = wrap(self.follower.function)
        return wrap(_followed(rule.build(wrap), follow, len(rule.state), own, len(rule.hyper)))


def averaged(rule: str | Update, decay: float | None = None, *, name: str | None = None) -> Averaged:
    """a ← a + (p − a)/n, the mean of all p so far, or a ← a + (1 − d)(p − a), in the rule's own pass.

    Parameters
    ----------
    rule : str, Rule or chain
        What updates p. Its Nesterov form by name, ``averaged("pytorch_nesterov")``. Stages that shall act on p before
        it is averaged belong inside: ``averaged(chain("sgd", stage))``.
    decay : float, optional
        d in [0, 1] of an exponential average, the rule's default for ``average_decay``. Without it the average is the
        mean of the parameters after every update (Polyak and Ruppert).
    name : str, optional
        What it is called.

    Returns
    -------
    Update
        `rule` with state slots behind its own: "average", and for the mean "count".

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or `decay` is out of range.

    Notes
    -----
    Ruppert 1988; Polyak and Juditsky 1992. In torch it is torch.optim.swa_utils.AveragedModel, the exponential one with
    get_ema_multi_avg_fn(d) (which starts at the first p that it sees, not at p₀); in Keras use_ema=True.

    Memory: the exponential average costs one array, 8 bytes of traffic an element in float32. The mean costs two, as
    elements count their own updates (an array that starts later is averaged from its own start); its average is zero
    before the first update, and in float32 a count stays at 2²⁴, from where on it is an exponential average over as
    many steps. The exponential one is linear, and has a theory; the mean has none, as 1/n changes with the step.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0])
    >>> opt = fm.Momentum(p, rule=fm.averaged("sgd"), lr=0.5)
    >>> for _ in range(3):
    ...     opt.step(np.array([1.0]))
    >>> average, count = opt.state
    >>> p, average, count
    (array([-0.5]), array([0.]), array([3.]))
    """
    inner = find(rule)
    follower = MEAN
    if decay is not None:
        follower = replace(EXPONENTIAL, defaults={"average_decay": checks.number("decay", decay, UNIT_INTERVAL)})
    return Averaged(
        rule=inner,
        follower=follower,
        name=name,
        state=(*inner.state, *follower.slots),
        first=inner.first,
        hyper=(*inner.hyper, *follower.hyper),
        defaults={**inner.defaults, **follower.defaults},
        ranges={**inner.ranges, **follower.ranges},
        formula=f"{inner.formula}; a ← {'mean of p' if decay is None else 'd·a + (1−d)p'}",
    )
