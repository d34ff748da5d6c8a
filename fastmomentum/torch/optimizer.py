"""The class Optimizer: torch's interface to an update rule."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from fastmomentum import checks
from fastmomentum.advice import did_you_mean
from fastmomentum.backends.cpu.headers import identities
from fastmomentum.backends.interrupts import uninterrupted
from fastmomentum.checks import RANGES
from fastmomentum.optim.groups import make_group
from fastmomentum.optim.norms import check_groups
from fastmomentum.optim.recorder import start_trace
from fastmomentum.optim.trace import Trace
from fastmomentum.optim.values import skips
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import OFF
from fastmomentum.rules.registry import find
from fastmomentum.torch.layouts import OutdatedError, is_sparse_tensor
from fastmomentum.torch.run import Run, rules_of, settings_of
from fastmomentum.torch.sparse import SparseRun


class Option:
    """Hold an option of an optimiser that all groups share; the next step uses what is assigned."""

    def __init__(self, check: Callable[[Any], Any]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else vars(optimizer)[self._name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        vars(optimizer)[self._name] = self._check(value)
        optimizer._drop_runs()


def _check_max_norm(value: Any) -> float | None:
    return None if value is None else checks.number("max_norm", value, RANGES["max_norm"])


class Optimizer(torch.optim.Optimizer):
    """Update tensors in place by an update rule, with the interface of torch.optim.Optimizer.

    Parameters
    ----------
    params : iterable of tensors, of pairs (name, tensor), or of dicts
        As for every optimiser of torch: parameters, ``module.named_parameters()``, or groups.
    rule : str or Rule
        The update rule; :func:`fastmomentum.rules.names` lists the names.
    max_norm : float, optional
        Limit of the Euclidean norm of all gradients, as one vector. The gradients themselves are not written, unlike
        by ``torch.nn.utils.clip_grad_norm_``.
    skip_nonfinite : bool or int
        Skip the whole update if a gradient holds a NaN or an infinity; n skips at most n updates in a row.
    threads : int, optional
        The greatest number of threads; None for ``torch.get_num_threads()``.
    foreach, fused, capturable : optional
        Accepted and ignored, as they choose among implementations of torch.
    differentiable : bool
        Must be False.
    **settings
        lr, and the rule's other hyper-parameters; weight_decay, decoupled_weight_decay, clip_value, clip_norm,
        nesterov, maximize, as for :class:`fastmomentum.Momentum`. They become entries of ``param_groups``, and are read
        from there at each step: numbers, tensors of one element, or functions of the step.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value. In ``step``: if a tensor cannot be updated; nothing has been written
        to any tensor of its device then.

    Notes
    -----
    Tensors of float32, float64, complex64 and complex128 whose elements fill their memory are updated where they are,
    in any order of their dimensions. Other floating tensors, of bfloat16 or with holes between their elements, are
    copied to a dense tensor before each step and back after it: arithmetic is in float32, and each result is rounded
    once. Sparse gradients are added by torch. No two parameters may share an element.

    State is made at a parameter's first gradient. If several groups share the optimiser and only some have momentum 0,
    the parameters of these have a velocity, too, which is not part of ``state``. One step updates the tensors of each
    device on its own, and max_norm is then that of each device.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> opt = fastmomentum.torch.Optimizer([weight], rule="ema", lr=0.5, momentum=0.5)
    >>> weight.grad = torch.tensor([1.0, -1.0])
    >>> opt.step()
    >>> weight.detach(), opt.state[weight]["velocity"]
    (tensor([0.7500, 1.2500]), tensor([ 0.5000, -0.5000]))
    """

    ignored: ClassVar[tuple[str, ...]] = ("foreach", "differentiable", "fused")
    """The names of the ignored arguments that become entries of groups, those of torch's optimiser of this name."""

    _runs: list[Run | SparseRun] | None = None
    _steps = 0
    max_norm, skip_nonfinite, threads = Option(_check_max_norm), Option(skips), Option(checks.threads)

    def __init__(
        self,
        params: Any,
        rule: str | Rule = "pytorch",
        *,
        max_norm: float | None = None,
        skip_nonfinite: bool | int = False,
        threads: int | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        **settings: Any,
    ) -> None:
        if differentiable:
            raise ValueError("differentiable: expected False, as a compiled update has no derivative; got True")
        self.rule, self.max_norm = find(rule), max_norm
        self.skip_nonfinite, self.threads = skip_nonfinite, threads
        if unknown := self.translated(settings).keys() - self.setting_names:
            hint = did_you_mean(min(unknown), sorted(self.setting_names))
            raise TypeError(f"expected settings of rule {self.rule}; got {', '.join(sorted(unknown))}{hint}")
        given = {"foreach": foreach, "capturable": capturable, "differentiable": False, "fused": fused}
        super().__init__(params, settings | {name: given[name] for name in self.ignored})

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        return group

    @staticmethod
    def rule_of(rule: Rule, groups: Sequence[Mapping[str, Any]]) -> Rule:
        """Return the rule of these groups: the given one, or that for the value of a switch such as amsgrad."""
        return rule

    @property
    def setting_names(self) -> frozenset[str]:
        """The names of the settings that a group can have."""
        rules = [self.rule, *([find(self.rule.nesterov)] if self.rule.nesterov else [])]
        options = {"lr", "momentum", *OFF, "nesterov", "maximize"} - {"max_norm"}
        return frozenset(options.union(*[rule.parameters for rule in rules]))

    @property
    def steps(self) -> int:
        """The number of updates done, with which functions of the step are called.

        A state_dict does not hold it: assign it after a load, if a setting is a function.
        """
        return max([run.steps for run in self._runs or ()], default=self._steps)

    @steps.setter
    def steps(self, value: int) -> None:
        steps = checks.integer("steps", value)
        self._drop_runs()
        self._steps = steps

    def _drop_runs(self) -> None:
        """Let the next step make the runs again."""
        self._steps, self._runs = self.steps, None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with settings of its own."""
        for name in ("max_norm", "skip_nonfinite", "threads"):
            if name in param_group:
                raise TypeError(f"{name}: expected as an argument of {type(self).__name__}, as all groups share it")
        super().add_param_group(param_group)
        try:
            settings = settings_of(self.param_groups[-1], self)
            check_groups("cpu", [make_group({"rule": self.rule, "max_norm": self.max_norm, **settings})])
        except BaseException:
            del self.param_groups[-1]
            raise

    @torch._disable_dynamo  # type: ignore[attr-defined]  # torch.compiler.disable would import the compiler
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one update of all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            A function that computes the gradients, and returns the loss.

        Returns
        -------
        object
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params]
        runs = self._runs
        try:
            if runs is None or not self._is_current(params, grads):
                runs = self._prepare(params, grads)
            for run in runs:
                run.use_settings(self.param_groups)
        except OutdatedError:
            runs = self._prepare(params, grads)
        if len(runs) == 1 and runs[0].is_one_call:
            self._run(runs, params, grads)
            return loss
        with uninterrupted():
            if self._run(runs, params, grads):
                self._watch_state()
        return loss

    def _run(self, runs: Sequence[Run | SparseRun], params: list[Any], grads: list[Any]) -> bool:
        """Do one update of each device; return whether the state has new entries."""
        is_new = False
        for place, run in enumerate(runs):
            try:
                is_new |= run.step(grads)
            except OutdatedError:  # this run has written nothing, but those before it have
                done = {i for other in runs[:place] for i in other.places}
                left = [None if i in done else grad for i, grad in enumerate(grads)]
                for other in self._prepare(params, left):
                    is_new |= other.step(left)
                break
        return is_new

    def _is_current(self, params: list[Any], grads: list[Any]) -> bool:
        """Return whether the runs belong to these parameters, and to the state as it is."""
        if self.state is not self._state or identities(params) != self._param_ids:
            return False
        if identities([*self.state.values()]) != self._entry_ids:
            return False
        for i in self._idle:
            if grads[i] is not None:
                return False
        return all([run.is_current() for run in self._runs or ()])

    def _watch_state(self) -> None:
        """Note the entries of the state, to see later whether they have been replaced."""
        self._state, self._entries = self.state, [*self.state.values()]  # so that they live, and keep their addresses
        self._entry_ids = identities(self._entries)

    def _prepare(self, params: list[Any], grads: list[Any], every: bool = False) -> list[Run | SparseRun]:
        """Return the runs of these parameters, one for each device; if `every`, also for those without gradient."""
        self._drop_runs()
        places: dict[tuple[Any, bool], list[int]] = {}
        is_stateless = not rules_of(self)[1].slots  # then a run may have parameters that never get a gradient
        for i, (param, grad) in enumerate(zip(params, grads)):
            state = self.state.get(param) or {}
            is_sparse = any(map(is_sparse_tensor, state.values() if grad is None else [grad]))
            if grad is not None or state or ((every or is_stateless) and param.requires_grad):
                places.setdefault((param.device, is_sparse), []).append(i)
        runs = [(SparseRun if is_sparse else Run)(self, params, own) for (_, is_sparse), own in places.items()]
        self._params, self._param_ids = params, identities(params)
        self._watch_state()
        self._idle = sorted({*range(len(params))}.difference(*places.values()))
        self._runs = runs
        return runs

    def trace(self, every: int = 1) -> Trace:
        """Start to record ‖v‖, ‖g‖, cos∠(v, g), ‖p⁺ − p‖ and the settings of each group, from the next step on.

        It makes the state of all parameters that require a gradient. The record ends when parameters get a state for
        another reason than their gradient: after a load, or with another group.

        Parameters
        ----------
        every : int
            Record every n-th step.

        Returns
        -------
        Trace
            The record, for :func:`fastmomentum.diagnose` and :mod:`fastmomentum.plots`.

        Raises
        ------
        TypeError, ValueError
            If the parameters are not all on the host.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        runs = self._prepare(params, [param.grad for param in params], every=True)
        if len(runs) != 1 or not isinstance(runs[0], Run):
            raise TypeError("trace: expected parameters with dense gradients on one device")
        return start_trace(runs[0].engine, checks.integer("every", every, 1))

    def __getstate__(self) -> dict[str, Any]:
        own = ("rule", "max_norm", "skip_nonfinite", "threads")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}, "_steps": self.steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._drop_runs()
        super().__setstate__(state)
