"""Plan the sums that a step needs before its update, and derive numbers from them.

A link of a rule may sum over arrays (see :class:`fastmomentum.rules.record.Record`). Its sums are added in one pass
over the arrays. What is summed is computed from the values that the link reads, so all numbers that links before it
derive from their own sums must be known: each link of a rule has a round of its own. A sum over all arrays is added
when every rule with this link has come so far.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from inspect import signature
from operator import add
from typing import Any, NamedTuple

from fastmomentum.advice import describe
from fastmomentum.backends.step_sums import make_square
from fastmomentum.rules.assemble import Function, Wrap, identity
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import MASK, moving, widen
from fastmomentum.rules.record import Record
from fastmomentum.rules.stages import clip_global_norm

Round = Mapping[int, Record]
"""For each parameter the link whose sums a round adds; parameters that have none in this round are left out."""


class Skips(NamedTuple):
    """Hold when an update is skipped.

    Attributes
    ----------
    skip : bool
        Whether to skip an update if a gradient holds a NaN or an infinity.
    most : int
        The number of updates in a row that are skipped at most.
    """

    skip: bool
    most: int


def sum_in_order(values: Any) -> float:
    """Return the sum of the values, added one after another; the sum of Python 3.12 and later compensates errors."""
    return reduce(add, values, 0.0)


def plan_rounds(rules: Sequence[Rule]) -> list[Round]:
    """Return the rounds of sums of parameters with these rules.

    Raises
    ------
    ValueError
        If two rules sum over all arrays in different orders.
    """
    waiting = {i: _numbered(rule.summing_links) for i, rule in enumerate(rules) if rule.summing_links}
    rounds: list[Round] = []
    while waiting:
        blocked = {key for links in waiting.values() for key, link in links[1:] if link.scope == "all"}
        heads = {i: links[0] for i, links in waiting.items()}
        ready = {i: link for i, (key, link) in heads.items() if link.scope == "array" or key not in blocked}
        if not ready:
            raise ValueError("sums: expected links that sum over all arrays in the same order in every group")
        rounds.append(ready)
        for i in ready:
            del waiting[i][0]
        waiting = {i: links for i, links in waiting.items() if links}
    return rounds


def _numbered(links: Sequence[Record]) -> list[tuple[tuple[int, Any], Record]]:
    """Return the links of a rule, each with its key and how many links before it have this key."""
    keys = [*map(link_key, links)]
    return [((keys[:place].count(key), key), link) for place, (key, link) in enumerate(zip(keys, links))]


def link_key(link: Record) -> tuple[Any, ...]:
    """Return what links that share their sums over all arrays have in common."""
    return link.name, tuple(link.sums.items())


def clips_on_device(rule: Rule) -> bool:
    """Return whether the only sum of a rule is the norm of all gradients as they are, which a device uses itself."""
    links = rule.summing_links
    if not links:
        return True
    is_norm = links[0].sums == clip_global_norm.sums and links[0].scope == clip_global_norm.scope
    return is_norm and len(links) == 1 and not rule.program(until=links[0])[1]


def make_summands(rule: Rule, link: Record, wrap: Wrap = identity) -> Function:
    """Return ``summands(p, *state, g, *given, *hyper)``: what each sum of a link adds of one element.

    The values that the link reads are computed in the dtype of the arrays; they and the hyper-parameters are then
    converted to double precision. A frozen element counts as 0.
    """
    arguments, calls, reads = rule.program(until=link)
    start = next(place for place, other in _placed(rule) if other is link)
    hyper = dict(zip(link.hyper, arguments[len(arguments) - len(rule.hyper) + start :]))
    takes = [
        [hyper[name] for name in [*signature(function).parameters][len(reads) :]] for function in link.sums.values()
    ]
    functions, wide = [wrap(call.function, len(call.takes)) for call in calls], wrap(widen, 1)
    choose = wrap(moving, 2)

    def summands(*values: Any) -> tuple[Any, ...]:
        known = dict(zip(arguments, values))
        for call, function in zip(calls, functions):
            found = function(*[known[name] for name in call.takes])
            known.update(zip(call.sets, found if call.packed or len(call.sets) > 1 else (found,)))
        given = [wide(known[name]) for name in reads]
        sums = [
            function(*given, *[wide(known[name]) for name in others])
            for function, others in zip(link.sums.values(), takes)
        ]
        if MASK in rule.given:
            mask = values[2 + len(rule.slots) + rule.given.index(MASK)]
            sums = [choose(mask, value) for value in sums]
        return tuple(sums)

    return summands


def _placed(rule: Rule) -> list[tuple[int, Record]]:
    """Return the links of a rule, each with the place in `hyper` where its hyper-parameters begin."""
    starts, start = [], 0
    for link in rule.links:
        starts.append((start, link))
        start += len(link.hyper)
    return starts


def make_round_summands(with_square: bool, link: Record | None) -> Callable[[Rule, Wrap], Function]:
    """Return the function that makes the summands of one rule in one round: g² first if asked for, then the link's."""

    def make(rule: Rule, wrap: Wrap = identity) -> Function:
        parts = [make_square(rule, wrap)] if with_square else []
        parts += [] if link is None else [make_summands(rule, link, wrap)]
        return lambda *values: tuple(summand for part in parts for summand in part(*values))

    return make


class Derivation:
    """Derive the numbers of one link from sums and memory, for parameters that share them.

    Attributes
    ----------
    members : list of int
        The parameters: several if the sums are over all arrays.
    key : tuple or None
        What identifies the sums over all arrays; None if the sums are those of the one member.
    """

    def __init__(self, rule: Rule, link: Record, row: int, member: int, memory: list[float]) -> None:
        start = next(place for place, other in _placed(rule) if other is link)
        hyper, kept = list(link.hyper), list(link.memory)
        known = (*link.sums, *link.memory, *rule.late_parameters)
        self.members, self.key = [member], link_key(link) if link.scope == "all" else None
        self._link, self._row, self._first, self._memory = link, row, len(rule.hyper), memory if kept else []
        self._entries = [
            (
                *(name, start + hyper.index(name) if name in hyper else None),
                *(kept.index(name) if name in kept else None, function),
                *([known.index(source) for source in link.sources[name]], link.ranges and name in link.ranges),
            )
            for name, function in link.derived.items()
            if name in link.late
        ]

    def derive(self, sums: Sequence[float], numbers: Sequence[Sequence[float]]) -> list[tuple[int, float]]:
        """Return place and value of each number in the row of hyper-parameters; keep those of memory.

        `sums` begins with those of the link; more may follow, of links with more sums in the same round. `numbers`
        holds the rows, each with the values that users give at its end. Values of memory are kept in :attr:`next` until
        the update is done.

        Raises
        ------
        ValueError
            If a number is not in its range.
        """
        known = (*sums[: len(self._link.sums)], *self._memory, *numbers[self._row][self._first :])
        found = []
        self.next: list[tuple[int, float]] = []
        for name, place, index, function, sources, is_limited in self._entries:
            value = self._call(name, function, [known[source] for source in sources])
            if is_limited and value not in self._link.range_of(name):
                given = dict(zip(self._link.sources[name], [known[source] for source in sources]))
                raise ValueError(f"{name}: expected {self._link.range_of(name)}; got {value!r}, derived from {given}")
            if place is not None:
                found.append((place, value))
            if index is not None:
                self.next.append((index, value))
        return found

    def _call(self, name: str, function: Callable[..., float], given: Sequence[float]) -> float:
        """Return what a function of `derived` makes of these values; an error that it raises says of which."""
        try:
            value = function(*given)
        except Exception as error:
            known = dict(zip(self._link.sources[name], given))
            error.add_note(f"raised by the function that derives {name} from {known}")
            raise
        if type(value) is float:
            return value
        try:
            number: float = value.__float__()
            return number
        except (AttributeError, TypeError):
            raise TypeError(f"derived: expected a number for {name}; got {describe(value)}") from None

    def remember(self) -> None:
        """Let the memory have its next values."""
        for index, value in self.next:
            self._memory[index] = value


def check_agreement(derivations: Sequence[Derivation]) -> None:
    """Check that parameters that share memory derive the same next values of it.

    Raises
    ------
    ValueError
        If they do not.
    """
    known: dict[int, Derivation] = {}
    for derivation in derivations:
        first = known.setdefault(id(derivation._memory), derivation)
        if repr(first.next) != repr(derivation.next):  # NaN is unlike itself, its text is not
            names = [*derivation._link.memory]
            then, now = ({names[index]: value for index, value in each.next} for each in (first, derivation))
            raise ValueError(
                f"memory: expected the same next values in all groups, as they share it (scope='all'); got {then} and "
                f"{now}. Give the groups the same settings where these depend on them"
            )


def plan_derivations(
    links: Round, rules: Sequence[Rule], row_of: Sequence[int], memories: Sequence[list[float]], active: Sequence[int]
) -> list[Derivation]:
    """Return what is derived in a round for these active parameters; ``row_of[i]`` is the row of parameter i."""
    found: dict[Any, Derivation] = {}
    for i in active:
        if i in links:
            link = links[i]
            shared = (row_of[i], id(link), id(memories[i]) if link.memory else None) if link.scope == "all" else i
            if shared in found:
                found[shared].members.append(i)
            else:
                found[shared] = Derivation(rules[i], link, row_of[i], i, memories[i])
    return list(found.values())
