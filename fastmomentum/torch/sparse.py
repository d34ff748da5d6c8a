"""Update tensors that have sparse gradients."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch.optim.sgd import sgd

from fastmomentum.rules.options import OFF
from fastmomentum.torch.layouts import OutdatedError
from fastmomentum.torch.run import Groups, RuleOptimizer, groups_of

SPARSE_SETTINGS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
"""The settings of torch.optim.SGD, with which parameters can have sparse gradients."""


class SparseRun:
    """Update tensors that have sparse gradients, by torch's own functions for SGD.

    Parameters
    ----------
    optimizer : RuleOptimizer
        The optimiser, whose groups and state are read.
    params : sequence of tensors
        The parameters of all groups.
    places : list of int
        The numbers of those that this run updates.

    Attributes
    ----------
    places : list of int
        The same numbers.
    steps : int
        The number of updates done.

    Raises
    ------
    TypeError
        If the rule is not that of torch, or the optimiser has an option that torch does not have.
    """

    is_one_call = False

    def __init__(self, optimizer: RuleOptimizer, params: Sequence[Any], places: list[int]) -> None:
        if optimizer.rule.name != "pytorch" or optimizer.max_norm is not None or optimizer.skip_nonfinite:
            self._refuse(f"rule {optimizer.rule}, max_norm or skip_nonfinite")
        own = [params[i] for i in places]
        self.places, self._members = places, [*zip(places, own, groups_of(own, optimizer.param_groups))]
        self._state, self._groups = optimizer.state, optimizer.param_groups
        self._setting_names, self.steps = optimizer.setting_names, optimizer.steps
        self.use_settings(optimizer.param_groups)

    def is_current(self) -> bool:
        """Return True: the state is read at each step."""
        return True

    def use_settings(self, groups: Groups) -> None:
        """Check the settings that the groups have now.

        Raises
        ------
        TypeError
            If one is an option that torch does not have, or a function of the step.
        """
        for group in [groups[number] for _, _, number in self._members]:
            for name in self._setting_names.intersection(group):
                if callable(group[name]) or (name not in SPARSE_SETTINGS and group[name] != OFF.get(name)):
                    self._refuse(f"{name} = {group[name]!r}")

    @staticmethod
    def _refuse(options: str) -> NoReturn:
        raise TypeError(
            f"expected dense gradients with {options}; got a sparse one. Make the embedding with sparse=False, or give "
            "it an optimiser of its own, fastmomentum.torch.SGD, with settings of torch.optim.SGD alone"
        )

    def step(self, grads: list[Any]) -> bool:
        """Do one update; return whether the state has new entries."""
        is_new = False
        if any([grads[i] is not None and grads[i].layout == torch.strided for i in self.places]):
            raise OutdatedError
        for i, param, number in self._members:
            grad, group = grads[i], self._groups[number]
            if grad is None:
                continue
            momentum = group["momentum"]
            buffers = [self._state[param].get("momentum_buffer") if momentum else None]
            is_new |= bool(momentum) and buffers[0] is None
            settings = {name: group.get(name, 0) for name in SPARSE_SETTINGS}
            with torch.no_grad():
                sgd([param], [grad], buffers, has_sparse_grad=True, **settings)
            if momentum:
                self._state[param]["momentum_buffer"] = buffers[0]
        self.steps += 1
        return is_new
