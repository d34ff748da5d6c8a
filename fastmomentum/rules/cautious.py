"""Make the cautious variant of a rule."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmomentum.rules.adaptive import zero
from fastmomentum.rules.assemble import Function, Part, define
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import replace_core
from fastmomentum.rules.elementwise import unchanged
from fastmomentum.rules.registry import find
from fastmomentum.rules.variants import one


def rescale(size: float, aligned: float) -> float:
    """Return n/(k + 1) for k of n elements."""
    return size / (aligned + 1.0)


def _align(p: Any, before: Any, g: Any, rescale: Any, masked: Any) -> Any:
    d = p - before
    return before + np.where(d * g < masked, rescale * d, masked)


def cautious(rule: str | Rule) -> Rule:
    """Return the cautious variant of a rule: it leaves out the elements whose step goes up the gradient.

        d = the rule's step; d ← d·n/(k + 1) where d·g < 0, else 0

    k is the number of the n elements of an array where d·g < 0. The state is that of the rule itself.

    Parameters
    ----------
    rule : str or Rule
        The rule. Decoupled weight decay, that of "adamw" included, is done before and is not masked.

    Raises
    ------
    ValueError
        If the rule itself sums over arrays.

    References
    ----------
    Liang et al. 2024, Cautious Optimizers: Improving Training with One Line of Code, Algorithm 1. timm and newer
    versions of the authors' code scale by n/k instead.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0, 1.0])
    >>> opt = fm.Optimizer(p, fm.cautious("pytorch"), lr=0.5, momentum=0.5)
    >>> opt.step(np.array([1.0, 1.0]))
    >>> opt.step(np.array([1.0, -0.25]))  # the velocity of the second element still goes the other way
    >>> p.round(3)
    array([-0.083,  0.667])
    """
    inner = find(rule)
    core = inner.core
    if core.sums or core.memory:
        raise ValueError(f"cautious: expected a rule that does not sum over arrays itself; got {core}")
    hyper = tuple(core.hyper)
    decay, rest = _decay_and_rest(core)
    return replace_core(
        inner,
        CautiousRule(
            name=f"cautious {core.name or core}",
            parts=[
                *decay,
                Part(unchanged, ("p",), ("before",), ()),
                *rest,
                Part(_align, ("p", "before", "g"), ("p",), ("rescale", "masked")),
            ],
            state=core.state,
            hyper=(*hyper, "rescale", "masked", "counted"),
            derived={**core.derived, "rescale": rescale, "masked": zero, "counted": one},
            sums=_make_sums(core),
            defaults=core.defaults,
            ranges=core.ranges,
            first=core.first,
            formula=f"d = the step of {core.name or core}; d ← d·n/(k + 1) where d·g < 0, else 0",
            inner=core,
        ),
    )


def _decay_and_rest(core: Rule) -> tuple[list[Part], list[Part]]:
    """Return the parts of a rule that are decoupled decay, and the others."""
    decay = [part for part in core.parts if part.reads == part.writes == ("p",)]
    return decay, [part for part in core.parts if part not in decay]


def _make_sums(core: Rule) -> dict[str, Function]:
    """Return the sums k and n of the cautious variant of a rule."""
    decay, rest = _decay_and_rest(core)
    values, hyper = ("p", *core.slots, "g"), tuple(core.hyper)
    record: dict[str, Any] = {"state": core.state, "hyper": hyper}
    after = Rule(parts=[*decay, *rest], derived=core.derived, **record).build()
    decayed = Rule(parts=decay, derived=core.derived, **record).build() if decay else None
    arguments = ", ".join((*values, *hyper))
    lines = [
        f"def aligned({arguments}, counted, masked):",
        f"    before = {f'decayed({arguments})[0]' if decayed else 'p'}",
        f"    return where((after({arguments})[0] - before) * g < masked, counted, masked)",
    ]
    namespace = {"after": after, "decayed": decayed, "where": np.where}
    aligned = define("aligned", "\n".join(lines) + "\n", namespace)
    return {"aligned": aligned, "size": define("size", SIZE.format(arguments=", ".join(values)), {})}


SIZE = """def size({arguments}, counted):
    return counted
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class CautiousRule(Rule):
    """Hold the cautious variant of a rule, whose sums pickle cannot save and the rule `inner` makes again."""

    inner: Rule

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "sums"}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        super().__setstate__({**saved, "sums": _make_sums(saved["inner"])})
