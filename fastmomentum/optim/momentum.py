"""The class Momentum: Optimizer with the defaults of momentum methods, and ways from and to other frameworks."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from numpy.typing import NDArray

from fastmomentum.optim import interop
from fastmomentum.optim.optimizer import Optimizer, Setting
from fastmomentum.rules.base import Rule


class Momentum(Optimizer):
    """Updates one array or many in place by a momentum method, each step in one pass over memory.

    With the rule "pytorch": v ← μv + (1−τ)g; p ← p − lr·v, as torch.optim.SGD has it, its first step included: an
    array's first velocity is g itself, whatever the dampening τ, also if it gets its first gradient later than others.

    Parameters
    ----------
    params
        As for :class:`Optimizer`.
    lr, momentum : float, callable, or a scalar in device memory
        Learning rate ≥ 0 and μ in [0, 1]. A callable gets the number of the update to come, from 0. If momentum is a
        function of the step, a folded Nesterov rule also gets its next value (a look-ahead that of lr as well): the
        function is asked for one step beyond the last.
    rule, dampening, nesterov, weight_decay, decoupled_weight_decay, maximize, clip_value, backend, threads, **hyper
        As for :func:`fastmomentum.step`.
    max_norm : float, optional
        Limit of the Euclidean norm of all gradients together: they enter the update times
        f = min(1, max_norm / (norm + 1e-6)), as with torch's clip_grad_norm_, but the arrays of gradients are not
        written. The norm is summed in double precision in a fixed order. As in torch, a NaN makes f NaN, and an
        infinity (also of float64 squares, from 1e154 on) makes it 0.
    skip_nonfinite : bool
        Skip the whole update, state and count included, if any gradient holds a NaN or an infinity; :attr:`skipped`
        counts these.
    lookahead : bool
        Nesterov's method with an explicit look-ahead, for pytorch, classical and ema: take gradients at :attr:`point`,
        p − lr·μ·v (classical: p − μ·v), which each update writes in its own pass, for the next step's lr and momentum.
        Coupled decay is taken at the point too.
    correct : bool
        Let state that carries the learning rate follow it: if lr changes, by assignment or as a function of the step,
        the velocity of classical and its Nesterov form is multiplied by the new rate over the old one, and so is q − p
        of heavy_ball and nesterov_positions. The trajectory is then that of the pytorch form (for positions, if nothing
        beside the rule moves p, and at a constant momentum). lr must be > 0. Other rules' state carries no lr. A group
        may have its own value.
    restart : {"gradient", "function", "schedule"} or int, optional
        Reset everything, on record, after an update that went up the gradient, g·(p⁺ − p) > 0; if an objective passed
        to :meth:`report` has risen; when lr or momentum begins a new period; or after every n steps. Except for
        "schedule", functions of the step count from the last reset of everything. O'Donoghue and Candès 2015.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused.

    Notes
    -----
    heavy_ball and nesterov_positions start from a copy of the parameters, made here and by reset(): anything else that
    writes to the parameters later looks like velocity to them.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0, -2.0], dtype=np.float32)
    >>> opt = fm.Momentum(p, lr=0.25, momentum=0.5)
    >>> for _ in range(2):
    ...     opt.step(p.copy())  # the gradient of ½‖p‖²
    >>> p, opt.velocity, opt.steps
    (array([ 0.4375, -0.875 ], dtype=float32), array([ 1.25, -2.5 ], dtype=float32), 2)
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: Setting,
        momentum: Setting = 0.9,
        rule: str | Rule = "pytorch",
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: float = 0.0,
        maximize: bool = False,
        clip_value: float | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        lookahead: bool = False,
        correct: bool = False,
        restart: str | int | None = None,
        backend: str | None = None,
        threads: int | None = None,
        **hyper: Any,
    ) -> None:
        super().__init__(
            *(params, rule),
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            clip_value=clip_value,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            lookahead=lookahead,
            correct=correct,
            restart=restart,
            backend=backend,
            threads=threads,
            **hyper,
        )

    @classmethod
    def from_torch(cls, state_dict: Mapping[str, Any], params: Any, *, steps: int = 0, **settings: Any) -> Self:
        """Return an optimiser that goes on with a run of torch.optim.SGD.

        v ← momentum_buffer. An array that has no buffer is still to have its first, undampened step.

        Parameters
        ----------
        state_dict : mapping
            The state_dict of a torch.optim.SGD. Its groups and their settings are taken over, except foreach, fused,
            differentiable and what schedulers keep there.
        params : array, or sequence of arrays
            All groups' parameters, flat and in order: ``p.detach().numpy()``, for example, on the tensor's own memory.
        steps : int
            The number of updates done, which torch does not save. Functions of the step, assigned to :attr:`lr` in
            place of the number that a scheduler had come to, go on from there.
        **settings
            What else Momentum takes and torch's groups do not say: max_norm, threads and so on.

        Raises
        ------
        TypeError, ValueError
            If it is not a state_dict of torch.optim.SGD, or does not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> group = {"lr": 0.25, "momentum": 0.5, "dampening": 0.5, "params": [0, 1]}
        >>> saved = {"state": {0: {"momentum_buffer": np.array([4.0])}}, "param_groups": [group]}
        >>> opt = fm.Momentum.from_torch(saved, [np.zeros(1), np.zeros(1)])
        >>> opt.step([np.ones(1), np.ones(1)])  # the second one's first step: its velocity is the gradient
        >>> opt.velocity
        [array([2.5]), array([1.])]
        """
        made, buffers = interop.read_torch(state_dict, params)
        interop.refuse_known((*interop.NUMBERS, *interop.SWITCHES, "rule"), settings)
        opt = cls(**made, **interop.without_lookahead(settings))
        interop.load_velocities(opt._engine, interop.BUFFER, buffers, steps, sign=1, none_is_unstarted=True)
        return opt

    def to_torch(self, tensor: Callable[[NDArray[Any]], Any]) -> dict[str, Any]:
        """Return a state_dict with which torch.optim.SGD goes on.

        momentum_buffer ← v, except for arrays whose first step is still to come: torch gives them a buffer of its own.
        With momentum 0 torch keeps no velocity; v, the last gradient then, is passed on all the same, and has an effect
        there if the momentum is raised.

        Parameters
        ----------
        tensor : callable
            The function that makes a tensor of an array, ``torch.from_numpy``, as torch refuses arrays.

        Returns
        -------
        dict
            The argument of torch.optim.SGD.load_state_dict. If lr or momentum is a function of the step, it holds the
            value for the next update.

        Raises
        ------
        ValueError
            If torch.optim.SGD has no such rule, or an option is on that it does not have.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> opt.to_torch(np.asarray)["state"]  # with torch: sgd.load_state_dict(opt.to_torch(torch.from_numpy))
        {0: {'momentum_buffer': array([1., 1.])}}
        """
        return interop.write_torch(self._engine, interop.velocity_copies(self._engine, "to_torch", "pytorch"), tensor)

    @classmethod
    def from_optax(cls, trace: Any, params: Any, *, lr: Any, momentum: Any, steps: int = 0, **settings: Any) -> Self:
        """Return an optimiser that goes on with a run of optax.sgd: v ← the leaves of its trace, rule "pytorch".

        Parameters
        ----------
        trace : array, or sequence of arrays
            ``jax.tree.leaves(state[0].trace)``, if `state` is the state of optax.sgd; one array if `params` is one.
        params : array, sequence of arrays, or sequence of dict
            As for the constructor, in the order of the leaves. The arrays must be writeable, which JAX's are not.
        lr, momentum : float or callable
            As for the constructor; optax keeps them in its functions, where they cannot be read.
        steps : int
            The number of updates done, ``count`` in optax: functions of the step go on from there.
        **settings
            What else the constructor takes, nesterov among it, except rule and lookahead.

        Raises
        ------
        TypeError, ValueError
            If an argument is refused, or the trace does not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_optax(np.array([4.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.params
        (array([3.]), array([-0.75]))
        """
        interop.refuse_known(("rule",), settings)
        opt = cls(params, lr=lr, momentum=momentum, rule="pytorch", **interop.without_lookahead(settings))
        interop.load_velocities(opt._engine, "trace", trace, steps, sign=1)
        return opt

    def to_optax(self) -> Any:
        """Return the leaves of optax's trace: trace ← v, as arrays on the host.

        Returns
        -------
        ndarray, or list of ndarray
            Copies; one array if the parameters are one. With `tree` the structure of the parameters,
            ``state[0]._replace(trace=jax.tree.unflatten(tree, opt.to_optax()))`` is the state to go on with.

        Raises
        ------
        ValueError
            If the rule is not pytorch or pytorch_nesterov, or has dampening, which optax's trace does not.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> opt.to_optax()
        array([1., 1.])
        """
        found = interop.velocity_copies(self._engine, "to_optax", "pytorch")
        for group in self._engine.groups:
            if dampening := group.settings.get("dampening"):
                raise ValueError(f"to_optax: expected dampening 0, as optax's trace has none; got {dampening}")
        return self._one_or_all(found)

    @classmethod
    def from_keras(
        cls, velocities: Any, params: Any, *, lr: Any, momentum: Any, steps: int = 0, **settings: Any
    ) -> Self:
        """Return an optimiser that goes on with a run of keras.optimizers.SGD: v ← −m, rule "classical".

        Keras's m ← momentum·m − lr·g; p ← p + m is v ← momentum·v + lr·g; p ← p − v.

        Parameters
        ----------
        velocities : array, or sequence of arrays
            ``[m.numpy() for m in optimizer.momentums]``; one array if `params` is one.
        params : array, sequence of arrays, or sequence of dict
            As for the constructor, in the order of the velocities.
        lr, momentum : float or callable
            As for the constructor.
        steps : int
            The number of updates done, ``optimizer.iterations``: functions of the step go on from there.
        **settings
            What else the constructor takes, nesterov among it, except rule and lookahead. Keras's weight_decay is
            decoupled_weight_decay here.

        Raises
        ------
        TypeError, ValueError
            If an argument is refused, or the velocities do not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_keras(np.array([-1.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.to_keras(), opt.params
        (array([0.75]), array([-0.75]), array([-0.75]))
        """
        interop.refuse_known(("rule",), settings)
        opt = cls(params, lr=lr, momentum=momentum, rule="classical", **interop.without_lookahead(settings))
        interop.load_velocities(opt._engine, "velocities", velocities, steps, sign=-1)
        return opt

    def to_keras(self) -> Any:
        """Return the velocities of Keras's SGD: m ← −v.

        Returns
        -------
        ndarray, or list of ndarray
            Copies on the host, to ``assign`` to ``optimizer.momentums``; one array if the parameters are one.

        Raises
        ------
        ValueError
            If the rule is not classical or classical_nesterov.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), rule="classical", lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> opt.to_keras()
        array([-0.25, -0.25])
        """
        return self._one_or_all(interop.velocity_copies(self._engine, "to_keras", "classical", sign=-1))
