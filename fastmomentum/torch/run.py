"""Update the tensors of one device that have dense gradients, by an engine on the memory of the tensors."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Protocol

import torch

from fastmomentum.backends.cpu.headers import identities
from fastmomentum.backends.interrupts import one_caller
from fastmomentum.optim.changes import set_setting
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.params import parse_params
from fastmomentum.rules.base import Rule
from fastmomentum.rules.record import STEP
from fastmomentum.rules.registry import find
from fastmomentum.torch.layouts import (
    Copies,
    OutdatedError,
    Reader,
    check_memory,
    copy_all,
    is_sparse_tensor,
    layout_of,
)
from fastmomentum.torch.names import COUNTED, MEMORY, SLOT_NAMES, TORCH_MEMORY

Groups = Sequence[Mapping[str, Any]]


class RuleOptimizer(Protocol):
    """Hold what a run needs to know of its optimiser, :class:`fastmomentum.torch.Optimizer`."""

    rule: Rule
    max_norm: float | None
    skip_nonfinite: bool | int
    threads: int | None
    steps: int
    state: Any
    param_groups: list[dict[str, Any]]

    @property
    def setting_names(self) -> frozenset[str]:
        """The names of the settings that a group can have."""

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""

    @staticmethod
    def rule_of(rule: Rule, groups: Groups) -> Rule:
        """Return the rule of these groups."""


def groups_of(params: Sequence[Any], groups: Groups) -> list[int]:
    """Return the number of the group of each of these parameters."""
    number_of = {id(param): number for number, group in enumerate(groups) for param in group["params"]}
    return [number_of[id(param)] for param in params]


def plain(value: Any) -> Any:
    """Return a setting as an engine takes it: a whole number, or a tensor of one element, as a float."""
    return float(value) if type(value) is int or isinstance(value, torch.Tensor) else value


def rule_at(rule: Rule, settings: Groups) -> Rule:
    """Return the rule of a run: without velocity if momentum is 0 in all groups, as torch makes no state then."""
    simple = rule.core.at_zero_momentum if rule.core is rule else None
    if simple is None or any([callable(own["momentum"]) or own["momentum"] != 0 for own in settings]):
        return rule
    return find(simple)


def settings_of(group: Mapping[str, Any], optimizer: RuleOptimizer) -> dict[str, Any]:
    """Return the settings in a group, by the names of the rule's hyper-parameters."""
    names = optimizer.setting_names
    return {name: plain(value) for name, value in optimizer.translated(group).items() if name in names}


def rules_of(optimizer: RuleOptimizer) -> tuple[Rule, Rule]:
    """Return the rule that the groups ask for, and the same or a simpler one that does for their settings."""
    groups = optimizer.param_groups
    rule = optimizer.rule_of(optimizer.rule, groups)
    return rule, rule_at(rule, [settings_of(group, optimizer) for group in groups])


PLAIN = (float, int, bool, str, type(None))
"""The types of entries of groups that cannot change but by another value."""


class Entries:
    """Tell which entries of a group have other values than before."""

    def __init__(self, group: Mapping[str, Any]) -> None:
        self._names = [name for name in group if name != "params"]
        self._count, self._get = len(group), itemgetter(*self._names)
        self._values = self._get(group)
        each = [part for value in self._values for part in (value if type(value) is tuple else (value,))]
        self._can_compare = all([type(value) in PLAIN or callable(value) for value in each])

    def changed(self, group: Mapping[str, Any]) -> list[str] | None:
        """Return the names of entries with other values; None if that cannot be told, as a tensor changes in place."""
        if len(group) != self._count or not self._can_compare:
            return None
        now = self._get(group)
        if now == self._values:
            return []
        return [name for name, old, new in zip(self._names, self._values, now) if old != new]

    def accept(self, group: Mapping[str, Any]) -> None:
        """Compare with the values that the group has now from here on."""
        self._values = self._get(group)


class Run:
    """Update the tensors of one device that have dense gradients.

    Parameters
    ----------
    optimizer : RuleOptimizer
        The optimiser, whose groups and state are read. No reference to it is kept, which would make a cycle.
    params : sequence of tensors
        The parameters of all groups.
    places : list of int
        The numbers of those that this run updates.

    Attributes
    ----------
    engine : Engine
        The engine.
    places : list of int
        The numbers of the parameters that this run updates.
    """

    def __init__(self, optimizer: RuleOptimizer, params: Sequence[Any], places: list[int]) -> None:
        groups = optimizer.param_groups
        self.places, self._has_all = places, len(places) == len(params)
        self._params, self._state = [params[i] for i in places], optimizer.state
        self._group_of = groups_of(self._params, groups)
        self._setting_names, self._translated = optimizer.setting_names, optimizer.translated
        settings = [self._settings(group) for group in groups]
        self._given_rule, self._rule_of = optimizer.rule, optimizer.rule_of
        self._full_rule, self._rule = rules_of(optimizer)
        names = SLOT_NAMES.get(self._full_rule.name, {})
        self._names = [names.get(slot, slot) for slot in self._rule.slots]
        updates, self._slots, self._new = self._take_state()
        tensors = [[param, *slots] for param, slots in zip(self._params, self._slots)]
        self._copies = [Copies(i, each) for i, each in enumerate(tensors) if Copies.are_needed(each[0])]
        if self._copies:
            check_memory(self._params)
        arrays = list(tensors)
        for copies in self._copies:
            arrays[copies.place] = copies.copies
        members: list[list[Any]] = [[] for _ in groups]
        for number, (first, *_) in zip(self._group_of, arrays):
            members[number].append(first)
        parts = [{"params": own, **self._of_rule(given)} for own, given in zip(members, settings)]
        layout = parse_params(parts, {"rule": self._rule, "max_norm": optimizer.max_norm})
        layout = layout._replace(slots=[tuple(slots) for _, *slots in arrays])
        self._torch_threads = torch.get_num_threads() if optimizer.threads is None else None
        threads = self._torch_threads or optimizer.threads
        reader = Reader([first for first, *_ in arrays], tensors)
        self.engine = Engine(layout, None, threads, optimizer.skip_nonfinite, read=reader)
        self.engine.state.counter.steps, self.engine.state.updates = optimizer.steps, updates
        uses_step = any([group.uses_step for group in self.engine.groups])
        self._memory_names = [*self._rule.core.memory]
        self._take_memory()
        self._counts = self._counters(updates) if uses_step or self._full_rule.name in COUNTED else []
        self._seen, self._watched_groups = settings, [*map(Entries, groups)]
        self._is_direct = all([self._translated(group) is group for group in groups]) and self._rule is self._full_rule
        self._watch()

    @property
    def steps(self) -> int:
        """The number of updates done."""
        return self.engine.state.counter.steps

    @property
    def is_one_call(self) -> bool:
        """Whether a step writes in one call of compiled code, which no signal interrupts."""
        return not (self._new or self._copies or self._counts or self._memory_names)

    def _take_state(self) -> tuple[list[int], list[list[Any]], list[int]]:
        """Return the number of updates and the slots of each parameter, and which parameters have new slots.

        A slot that is missing beside others, as after amsgrad is switched on, begins from rest; the others are kept.
        """
        updates, found, new = [], [], []
        for place, param in enumerate(self._params):
            entry = self._state.get(param, {})
            slots = [entry.get(name) for name in self._names]
            is_missing = [slot is None for slot in slots]
            for number, (name, slot, (_, initial)) in enumerate(zip(self._names, slots, self._rule.state)):
                if slot is None:
                    slots[number] = _first_slot(param, initial)
                    continue
                if slot.shape != param.shape:
                    raise ValueError(
                        f"{name}: expected shape {tuple(param.shape)}, as its parameter has; got {tuple(slot.shape)}. "
                        "Delete the entry, del opt.state[param], to begin with new state"
                    )
                is_copied = Copies.are_needed(param) and not is_sparse_tensor(slot)
                if layout_of(slot) != layout_of(param) and not is_copied:
                    entry[name] = slots[number] = torch.empty_like(param.detach()).copy_(slot.to_dense())
            if any(is_missing):
                new.append(place)
            updates.append(0 if is_missing and all(is_missing) else int(entry.get(STEP, 1)))
            found.append(slots)
        return updates, found, new

    def _take_memory(self) -> None:
        """Let the engine go on with what the state holds of the numbers that the rule keeps from step to step."""
        in_torch = TORCH_MEMORY.get(self._full_rule.name, {})
        for param, memory in zip(self._params, self.engine.state.memory if self._memory_names else ()):
            entry = self._state.get(param, {})
            kept = entry.get(MEMORY, {})
            for place, name in enumerate(self._memory_names):
                value = kept.get(name)
                other = entry.get(in_torch.get(name))
                if other is not None and (value is None or torch.tensor(value, dtype=other.dtype) != other):
                    value = other  # torch's own optimiser has gone on since
                if value is not None:
                    memory[place] = float(value)

    def _write_memory(self, grads: Sequence[Any]) -> None:
        """Make the numbers that the rule keeps from step to step part of the state of the parameters that they are of.

        These are the updated parameters; all, if they share the numbers.
        """
        in_torch, is_shared = TORCH_MEMORY.get(self._full_rule.name, {}), self.engine.state.shares_memory
        for param, memory, grad in zip(self._params, self.engine.state.memory, grads):
            if (is_shared or grad is not None) and param in self._state:
                entry, values = self._state[param], dict(zip(self._memory_names, memory))
                entry[MEMORY] = values
                entry.update({other: torch.tensor(values[name]) for name, other in in_torch.items()})

    def _settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a group."""
        return {name: plain(value) for name, value in self._translated(group).items() if name in self._setting_names}

    def _of_rule(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return those settings that the rule of this run takes."""
        left_out = () if self._rule is self._full_rule else ("momentum", "dampening", "nesterov")
        return {name: value for name, value in settings.items() if name not in left_out}

    def _counters(self, updates: Sequence[int]) -> list[Any]:
        """Return for each parameter the number of its updates, as a tensor that is part of its state."""
        found = []
        for place, (param, count) in enumerate(zip(self._params, updates)):
            entry = self._state.get(param, {})
            counter = entry.get(STEP)
            if not isinstance(counter, torch.Tensor):  # torch of before 1.12 has a number there
                counter = torch.tensor(float(count))
                if place not in self._new:
                    entry[STEP] = counter
            found.append(counter)
        return found

    def _watch(self) -> None:
        """Note the tensors of the state, to see later whether they have been replaced."""
        new = {*self._new}
        known = [i for i in range(len(self._params)) if i not in new]
        entries = [self._state[self._params[i]] for i in known] if self._names else []
        slots = [[self._slots[i][number] for i in known] for number in range(len(self._names))]
        self._watched = [(itemgetter(name), entries, identities(own)) for name, own in zip(self._names, slots)]
        if self._counts:
            self._watched.append((itemgetter(STEP), entries, identities([self._counts[i] for i in known])))
        self._versions = [count._version for count in self._counts]

    def is_current(self) -> bool:
        """Return whether the tensors of the state are those that this run updates, and torch has as many threads."""
        if self._torch_threads is not None and self._torch_threads != torch.get_num_threads():
            return False
        try:
            for get, entries, slots in self._watched:
                if identities([*map(get, entries)]) != slots:
                    return False
        except KeyError:
            return False
        return [count._version for count in self._counts] == self._versions

    def use_settings(self, groups: Groups) -> None:
        """Use the settings that the groups have now.

        Raises
        ------
        OutdatedError
            If the rule changes: if momentum is no longer 0 in a run whose rule has no velocity, for example.
        """
        for number, (group, entries) in enumerate(zip(groups, self._watched_groups)):
            names = entries.changed(group)
            if names == []:
                continue
            if names is None or not self._is_direct:
                now, seen = self._settings(group), self._seen[number]
                if self._rule_of(self._given_rule, groups) is not self._full_rule or self._asks_for_velocity(now):
                    raise OutdatedError
                now = self._of_rule(now)
                self._set(number, {name: now[name] for name in now if name not in seen or seen[name] != now[name]})
            else:
                self._set(number, {name: plain(group[name]) for name in names if name in self._setting_names})
            if names is None:
                self._watched_groups[number] = Entries(group)
            else:
                entries.accept(group)

    def _asks_for_velocity(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the rule of a run without velocity has one with these settings."""
        return self._rule is not self._full_rule and rule_at(self._full_rule, [settings]) is self._full_rule

    def _set(self, number: int, changed: Mapping[str, Any]) -> None:
        """Use other values of settings of one group."""
        for name, value in changed.items():
            with one_caller(self.engine.lock):
                set_setting(self.engine, [number], name, [value])
            self._seen[number][name] = value

    def step(self, grads: list[Any]) -> bool:
        """Do one update; return whether the state has new entries."""
        engine = self.engine
        own = grads if self._has_all else [grads[i] for i in self.places]
        if not (self._copies or self._new or engine.skip_nonfinite):
            engine.step(own)
            self._note(own)
            return False
        own = list(own)
        copied = [copies for copies in self._copies if own[copies.place] is not None]
        tensors = [tensor for copies in copied for tensor in copies.tensors]
        targets = [copy for copies in copied for copy in copies.copies]
        for copies in copied:
            copies.check(own[copies.place])
        copy_all([*targets, *[copies.grad for copies in copied]], [*tensors, *[own[each.place] for each in copied]])
        for copies in copied:
            own[copies.place] = copies.grad
        skips = engine.skip_nonfinite
        before = engine.state.counter.steps if skips else 0
        engine.step(own)
        copy_all(tensors, targets)
        if skips and engine.state.counter.steps == before:  # skipped
            return False
        has_new = bool(self._new) and self._publish(own)
        self._note(own)
        return has_new

    def _note(self, grads: Sequence[Any]) -> None:
        """Count the update of each parameter, and note what the rule remembers of it, in the state of torch."""
        if self._counts:
            counts = [count for count, grad in zip(self._counts, grads) if grad is not None]
            if counts:
                torch._foreach_add_(counts, 1.0)
            self._versions = [count._version for count in self._counts]
        if self._memory_names:
            self._write_memory(grads)

    def _publish(self, grads: Sequence[Any]) -> bool:
        """Make the slots of parameters that have had their first update part of the state."""
        left, before = [], len(self._new)
        for place in self._new:
            number = self._group_of[place]
            if grads[place] is None or not self.engine.groups[number].keeps_state:
                left.append(place)
                continue
            entry = self._state[self._params[place]]
            entry.update(zip(self._names, self._slots[place]))
            if self._counts:
                entry[STEP] = self._counts[place]
        self._new = left
        self._watch()
        return len(left) < before


def _first_slot(param: Any, initial: str) -> Any:
    """Return a new slot of the state, in the layout of its parameter."""
    param = param.detach()
    return param.clone() if initial == "param" else torch.zeros_like(param)
