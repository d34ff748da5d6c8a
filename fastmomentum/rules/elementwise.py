"""Give a rule a mask, or a scale of the learning rate, for each element of an array.

The rule's function takes the arrays after the gradient. Its parts run as they do without them:

    def update(p, velocity, g, mask, lr_scale, lr, momentum, keep):
        p_before = unchanged(p)
        velocity_before = unchanged(velocity)
        lr_of_element = product(lr, lr_scale)
        p, velocity = pytorch(p, velocity, g, lr_of_element, momentum, keep)
        p = select(mask, p, p_before)
        velocity = select(mask, velocity, velocity_before)
        return p, velocity

A kernel of such a rule still is one pass over memory. Symbolic execution cannot read `select`, so there are no kernels
for CUDA.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastmomentum.rules.assemble import Call, Function, identifiers
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import kept_with_rule
from fastmomentum.rules.record import STEP, Record
from fastmomentum.rules.symbolic import Symbol

MASK, LR_SCALE = "mask", "lr_scale"

GIVEN = (MASK, LR_SCALE)
"""The arrays that a rule can be given for each parameter, in the order in which its function takes them."""

LEARNING_RATES = ("lr", "lr_next")


def unchanged(value: Any) -> Any:
    """Return the value itself."""
    return value


def product(value: Any, scale: Any) -> Any:
    """Return the product."""
    return value * scale


def select(mask: Any, new: Any, old: Any) -> Any:
    """Return `new` where the mask is not 0, else `old`; backends that compile scalar code replace this function."""
    return np.where(mask, new, old)


def relax(factor: Any, scale: Any) -> Any:
    """Return 1 − s·(1 − f) in the dtype of the factor f; backends that compile scalar code replace this function."""
    one = type(factor)(1.0)
    return one - scale * (one - factor)


def widen(value: Any) -> Any:
    """Return a NumPy number or array in double precision."""
    return value.astype(np.float64)


def moving(mask: Any, value: Any) -> Any:
    """Return the value where the mask is not 0, else 0."""
    return np.where(mask, value, value.dtype.type(0))


SYMBOLIC: dict[Function, Function] = {
    select: lambda mask, new, old: Symbol("select", (mask, new, old)),
    relax: lambda factor, scale: Symbol("relax", (factor, scale)),
    widen: lambda value: Symbol("widen", (value,)),
    moving: lambda mask, value: Symbol("moving", (mask, value)),
}
"""The operations that a rule itself must not use, for symbols."""


def symbolic(function: Function, count: int = 0) -> Function:
    """Return a function in a form that runs on symbols, too: the wrap for symbolic execution."""
    return SYMBOLIC.get(function, function)


@dataclass(frozen=True, eq=False)
class ElementwiseRule(Rule):
    """Hold a rule whose function takes the arrays `given` after the gradient.

    Attributes
    ----------
    given : tuple of str
        Names among :data:`GIVEN`, in this order.
    """

    @property
    def _is_assembled(self) -> bool:
        return True

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """The key of the compiled code, the treatment of the hyper-parameters included."""
        return *super().structure, tuple(self.given), tuple(scalings(self) if LR_SCALE in self.given else ())

    def program(self, until: Record | None = None) -> tuple[list[str], list[Call], list[str]]:
        """Return the arguments, the calls and the results of the scalar function, or of what runs before a link."""
        arguments, calls, results = super().program(until)
        at = 2 + len(self.slots)
        hyper = arguments[at:]
        taken = {*arguments, *(name for call in calls for name in call.sets)}
        given = dict(zip(self.given, _free_names(self.given, taken)))
        first: list[Call] = []
        last: list[Call] = []
        if MASK in given and until is None:
            written = {name for call in calls for name in call.sets}
            kept = [name for name in results if name in written]
            before = dict(zip(kept, _free_names([f"{name}_before" for name in kept], taken)))
            first += [Call(unchanged, (name,), (before[name],), False) for name in kept]
            # The look-ahead point of an element that does not move is the element itself.
            sources = {results[self.gradient_at]: results[0]}
            others = {name: before.get(sources.get(name, name), sources.get(name, name)) for name in kept}
            last += [Call(select, (given[MASK], name, others[name]), (name,), False) for name in kept]
        if LR_SCALE in given:
            scaled = {name: function for name, function in zip(hyper, scalings(self)) if function is not None}
            names = dict(zip(scaled, _free_names([f"{name}_of_element" for name in scaled], taken)))
            first += [Call(how, (name, given[LR_SCALE]), (names[name],), False) for name, how in scaled.items()]
            calls = [call._replace(takes=tuple(names.get(name, name) for name in call.takes)) for call in calls]
        return [*arguments[:at], *given.values(), *hyper], [*first, *calls, *last], results


def _free_names(names: Iterable[str], taken: set[str]) -> list[str]:
    """Return an identifier for each name, all different and none in `taken`, to which they are added."""
    found = identifiers(names, taken)
    taken.update(found)
    return found


@kept_with_rule
def with_given(rule: Rule, given: tuple[str, ...]) -> Rule:
    """Return the rule whose function takes the arrays with these names after the gradient; `rule` itself for none.

    Raises
    ------
    ValueError
        If the rule cannot take a scale of the learning rate.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(with_given(fm.rules.sgd, ("mask", "lr_scale")).source)
    def update(p, g, mask, lr_scale, lr):
        p_before = unchanged(p)
        lr_of_element = product(lr, lr_scale)
        (p,) = sgd(p, g, lr_of_element)
        p = select(mask, p, p_before)
        return p,
    <BLANKLINE>
    """
    if not given:
        return rule
    fields = {name: value for name, value in vars(rule).items() if name in Rule.__dataclass_fields__}
    del fields["update"]
    return ElementwiseRule(**fields | {"given": given})


PROBES: Sequence[tuple[float, float, float]] = ((0.125, 0.5, 1.0), (0.25, 0.5, 2.0), (0.0625, 0.25, 5.0))
"""Values of lr, of other hyper-parameters and of the step at which :func:`scalings` looks at derived numbers.

They are powers of two: neither a doubled lr nor 1 − lr·λ is rounded.
"""


@kept_with_rule
def scalings(rule: Rule) -> tuple[Function | None, ...]:
    """Return for each entry of `rule.hyper` the function of the entry and s that replaces lr by lr·s; None if no lr.

    - lr itself, and a derived number that is proportional to lr (lr/K, lr·λ), is multiplied by s: :func:`product`.
    - A factor 1 − lr·λ becomes 1 − s·(1 − f): :func:`relax`.
    - A ratio of two learning rates stays as it is.

    Records do not declare how derived numbers depend on lr; it is found out by doubling lr.

    Raises
    ------
    ValueError
        If the rule has no lr, or a derived number depends on lr in another way.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> rule = fm.chain(fm.stages.decoupled_weight_decay(0.5), "classical")
    >>> rule.hyper, [how and how.__name__ for how in scalings(rule)]
    (('shrink', 'lr', 'momentum'), ['relax', 'product', None])
    """
    found = [_scaling_of(rule, link, name) for link in rule.links for name in link.hyper]
    if not any(found):
        raise ValueError(f"lr_scale: expected a rule with a learning rate; got {rule}")
    return tuple(found)


def _scaling_of(rule: Rule, link: Record, name: str) -> Function | None:
    """Return the function that replaces lr by lr·s in one entry of `hyper`; None if lr is not in it."""
    derive, sources = link.derived.get(name), link.sources.get(name, (name,))
    if not {*sources}.intersection(LEARNING_RATES):
        return None
    if derive is None:
        return product
    refused = ValueError(
        f"lr_scale: expected a rule whose derived numbers are proportional to lr, or 1 minus such a number; {name} of "
        f"rule {rule} is not"
    )
    pairs = []
    for values, is_usual in _probes(link, sources):
        doubled = [2.0 * value if source in LEARNING_RATES else value for source, value in zip(sources, values)]
        try:
            pairs.append((derive(*values), derive(*doubled)))
        except Exception as error:  # a user's function may refuse these values
            if is_usual:
                raise refused from error
    telling = [(before, after) for before, after in pairs if before or after]
    if all(after == before for before, after in telling):
        return None
    if all(after == 2.0 * before for before, after in telling):
        return product
    if all(1.0 - after == 2.0 * (1.0 - before) for before, after in pairs):
        return relax
    raise refused


def _probes(link: Record, sources: Sequence[str]) -> Iterator[tuple[list[float], bool]]:
    """Yield values for the sources of a derived number, and whether a function must accept them.

    A number that is derived from sums or memory may depend on lr in another way at their first values, or if a sum is
    negative: a function may refuse that.
    """
    at_first = {**dict.fromkeys(link.sums, 0.0), **link.memory}
    for lr, other, step in PROBES:
        known = dict.fromkeys(sources, other) | dict.fromkeys(LEARNING_RATES, lr) | {STEP: step}
        negative = dict.fromkeys(link.sums, -other)
        for more, is_usual in (({}, True), (at_first, False), ({**link.memory}, False), (negative, False)):
            if is_usual or {*more}.intersection(sources):
                yield [(known | more)[source] for source in sources], is_usual
