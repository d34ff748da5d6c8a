"""The class Momentum: Optimizer with the defaults of momentum methods, and conversions from and to other frameworks."""

from collections.abc import Callable, Mapping
from typing import Any, Never, Self

from numpy.typing import NDArray

from fastmomentum.optim import interop
from fastmomentum.optim.optimizer import Optimizer, Setting
from fastmomentum.rules.base import Rule


class Momentum(Optimizer):
    """Update one array or many in place by a momentum method, each step in one pass over memory.

    With the rule "pytorch": v ← μv + (1−τ)g; p ← p − lr·v

    As in torch.optim.SGD, the first velocity of an array is its first gradient itself, for any dampening τ.

    Parameters
    ----------
    params
        As for :class:`Optimizer`.
    lr, momentum : float, callable, or a scalar in device memory
        Learning rate ≥ 0 and μ in [0, 1]. As every numeric setting, each is a number or a function of the step, and can
        be assigned at any time: ``opt.lr = 0.01``, ``opt.groups[1]["weight_decay"] = 0.1``. A function is called with
        the number of updates done, 0 for the first one, once in each step; the constructor calls it, too, to check it.
        Numbers may be anything that ``float`` accepts, such as a 0-d array of any library, but no text.
    rule, dampening, nesterov, weight_decay, decoupled_weight_decay, maximize, clip_value, backend, threads, **hyper
        As for :func:`fastmomentum.step`. A folded Nesterov rule takes this step's momentum for μ' as torch does, unless
        ``momentum_next`` is given; ``momentum_next=lambda t: mu(t + 1)`` gives the points of an explicit look-ahead.
    clip_norm : float, optional
        Limit of the Euclidean norm of the gradient of each array, as Keras's clipnorm: f = min(1, clip_norm / norm).
        max_norm applies after it. Both apply after the stages ``scale`` with which a chain begins.
    max_norm : float, optional
        Limit of the Euclidean norm of all gradients, as one vector: the update multiplies them by
        f = min(1, max_norm / (norm + 1e-6)), as torch's clip_grad_norm_ does, but does not write to the arrays of
        gradients. The norm of complex gradients is that of all real and imaginary parts, which is the complex norm. It
        is summed in double precision in a fixed order: within an array, in the order of addresses. As in torch, a NaN
        in a gradient makes f NaN, and an infinite norm makes f 0 (in float64, squares overflow from 1e154 on).
    skip_nonfinite : bool or int
        Skip the whole update, so that parameters, state and :attr:`steps` stay as they are, if any gradient holds a NaN
        or an infinity. :attr:`skipped` counts the skipped updates. n skips at most n updates in a row, and does the
        next one even if its gradients are not finite, as optax's apply_if_finite.
    keep_resets : int, optional
        The number of entries that :attr:`resets` keeps, the last ones; all unless given.
    lookahead : bool
        Nesterov's method with an explicit look-ahead, for pytorch, classical and ema: take gradients at :attr:`point`,
        p − lr·μ·v (classical: p − μ·v) with the next step's lr and μ, if functions of the step have such values (they
        are called for it), else with this step's. Each update computes the point in the same pass
        over memory. Coupled weight decay uses the point, too.
    correct : bool
        Rescale state that holds the learning rate when lr changes, by assignment or as a function of the step: the
        velocity of classical and of its Nesterov form is multiplied by the new rate over the old one, and so is q − p
        of heavy_ball and nesterov_positions. The trajectory is then that of the pytorch form (for positions, if only
        the rule moves p, and at a constant momentum). State that holds lr starts at rest where lr is 0. The state of
        other rules holds no lr, and is not changed. A group may have its own value.
    mask : array of bool, or a sequence or mapping of them, optional
        False where an element is frozen: the bits of its parameter and its state stay as they are, for any gradient
        (NaN, too), weight decay or average. Shaped like the parameter; for a group of several arrays one for each, or
        None, in a sequence or a mapping like its "params". The gradients of frozen elements count as 0 in max_norm,
        clip_norm, skip_nonfinite and :meth:`trace`, and the look-ahead point of a frozen element is the element. The
        optimiser keeps a copy of one byte an element, which the kernel reads in its one pass; reset leaves it alone. A
        mask can be assigned, also from and to None. It is for arrays on the host; of a complex number it freezes both
        parts.
    lr_scale : array of numbers ≥ 0, or a sequence or mapping of them, optional
        Each element is updated as if lr were lr·lr_scale, a product in the arrays' dtype. A factor 1 − lr·λ, as of
        decoupled decay, becomes 1 − s·(1 − factor), and a number proportional to lr is multiplied by s. The form of the
        value is that of `mask`; the copy has the parameter's dtype.
    restart : {"gradient", "function", "schedule"} or int, optional
        When to reset everything, with an entry in :attr:`resets`: "gradient", after an update that went up the
        gradient, g·(p⁺ − p) > 0; "function", if an objective passed to :meth:`report` has risen; "schedule", when lr or
        momentum begins a new period; n, after every n steps. With every scheme but "schedule", functions of the step
        are called with the number of updates since the last reset of everything. O'Donoghue and Candès 2015.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.

    Notes
    -----
    Whether a new learning rate acts at once on the velocity that a run already has, depends on the rule:

    - pytorch, ema and their Nesterov forms, aggmo, quasi_hyperbolic, ema_corrected, signum, lion: it does, as the
      velocity holds gradients, and each step multiplies by the new rate.
    - classical and classical_nesterov: it does not, as the velocity holds lr·g with the old rate (after n updates the
      fraction μ^n of it is left); only new gradients get the new rate.
    - heavy_ball and nesterov_positions: it does not, as in classical; here p − q holds lr·g.

    With ``correct=True`` the state of the last two kinds is multiplied by the new rate over the old one, and the new
    rate acts at once.

    While momentum is 0, the rules pytorch and pytorch_nesterov neither use nor change the velocity, as in torch: after
    a start at 0 it starts at rest when momentum rises. The sequences of theory (fm.schedules.Nesterov, NesterovSimple,
    fm.theory.Chebyshev), whose first momentum is 0, do keep that step's velocity, as they need it. torch also takes
    μ > 1 and τ outside of [0, 1]; both are refused here, like lr < 0, as no published method uses them and each is a
    typical mistake (90 for 0.9).

    Which NaN comes out of an operation on NaNs, its sign and payload, is left open. C's fesetround sets the rounding
    mode of the calling thread alone; the threads of OpenMP keep the mode in which they started. In another mode than
    rounding to nearest, the bits therefore depend on the number of threads.

    Without names for the arrays, a saved state belongs to the arrays by their order. Shapes in another order are
    refused, but arrays of equal shapes in another order cannot be told apart: pass `params` as a dict, and the state is
    matched by name.

    The state of heavy_ball and nesterov_positions starts as a copy of the parameters, which the constructor and reset()
    make. If your code writes to the parameters later, these rules take the difference for velocity: call reset().

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0, -2.0], dtype=np.float32)
    >>> opt = fm.Momentum(p, lr=0.25, momentum=0.5)
    >>> for _ in range(2):
    ...     opt.step(p.copy())  # the gradient of ½‖p‖²
    >>> p, opt.velocity, opt.steps
    (array([ 0.4375, -0.875 ], dtype=float32), array([ 1.25, -2.5 ], dtype=float32), 2)
    >>> opt.mask = np.array([True, False])
    >>> opt.step(np.array([1.0, np.nan], dtype=np.float32))
    >>> p, opt.velocity
    (array([ 0.03125, -0.875  ], dtype=float32), array([ 1.625, -2.5  ], dtype=float32))
    """

    def __init__(
        self,
        params: Any,
        *positional: Never,
        lr: Setting | None = None,
        momentum: Setting = 0.9,
        rule: str | Rule = "pytorch",
        dampening: Setting = 0.0,
        nesterov: bool = False,
        weight_decay: Setting = 0.0,
        decoupled_weight_decay: Setting = 0.0,
        maximize: bool = False,
        clip_value: Setting | None = None,
        clip_norm: Setting | None = None,
        max_norm: Setting | None = None,
        skip_nonfinite: bool | int = False,
        lookahead: bool = False,
        correct: bool = False,
        restart: str | int | None = None,
        mask: Any = None,
        lr_scale: Any = None,
        backend: str | None = None,
        threads: int | None = None,
        **hyper: Any,
    ) -> None:
        super().__init__(
            *(params, rule, *positional),
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            clip_value=clip_value,
            clip_norm=clip_norm,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            lookahead=lookahead,
            correct=correct,
            restart=restart,
            mask=mask,
            lr_scale=lr_scale,
            backend=backend,
            threads=threads,
            **hyper,
        )

    @classmethod
    def from_torch(cls, state_dict: Mapping[str, Any], params: Any, *, steps: int = 0, **settings: Any) -> Self:
        """Return an optimiser that continues a run of torch.optim.SGD.

        v ← momentum_buffer; an array that has no buffer is still to have its first, undampened step.

        Parameters
        ----------
        state_dict : mapping
            The state_dict of a torch.optim.SGD. Its groups and their settings are taken over. Other entries of a group,
            such as foreach and what schedulers keep there, have no effect; :meth:`to_torch` returns them.
        params : array or tensor, sequence or mapping of these
            All groups' parameters, flat and in order: ``model.parameters()``, for example. If `state_dict` has names,
            that of an SGD of ``model.named_parameters()``, they may be a mapping by name in any order.
        steps : int
            The number of updates done, which torch does not save. A function of the step that you assign to :attr:`lr`
            is called with the numbers from there on.
        **settings
            Settings of Momentum that torch's groups do not have: max_norm, threads and so on.

        Raises
        ------
        TypeError, ValueError
            If `state_dict` is not one of torch.optim.SGD, or does not fit the parameters.

        Warns
        -----
        UserWarning
            If a group has entries that neither SGD nor a scheduler of torch knows; the warning has their names.

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
        made, buffers, kept = interop.read_torch(state_dict, params)
        interop.refuse_settings((*interop.NUMBERS, *interop.SWITCHES, "rule"), settings)
        opt = cls(**made, **interop.without_lookahead(settings))
        interop.load_velocities(opt._engine, interop.BUFFER, buffers, steps, sign=1, none_is_unstarted=True)
        opt._engine.state.torch_groups = kept
        return opt

    def to_torch(self, tensor: Callable[[NDArray[Any]], Any]) -> dict[str, Any]:
        """Return a state_dict with which torch.optim.SGD continues this run.

        momentum_buffer ← v, except for arrays whose first step is still to come: torch makes their buffers itself.
        With momentum 0 torch neither uses nor makes buffers, and so does this optimiser.

        Parameters
        ----------
        tensor : callable
            The function that makes a tensor from an array, ``torch.from_numpy``: torch does not load NumPy arrays.

        Returns
        -------
        dict
            The argument of torch.optim.SGD.load_state_dict. If lr or momentum is a function of the step, it holds the
            value for the next update. It has the names of the parameters, if they have names, and what
            :meth:`from_torch` found in the groups.

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
        """Return an optimiser that continues a run of optax.sgd by the rule "pytorch": v ← the leaves of optax's trace.

        Parameters
        ----------
        trace : array, or sequence of arrays
            ``jax.tree.leaves(state[0].trace)``, if `state` is the state of optax.sgd; one array if `params` is one.
        params : array, sequence of arrays, or sequence of dict
            As for the constructor, in the order of the leaves. The arrays must be writeable, which JAX's are not.
        lr, momentum : float or callable
            As for the constructor; optax holds them in closures, where they cannot be read.
        steps : int
            The number of updates done, ``count`` in optax; functions of the step are called with the numbers from there
            on.
        **settings
            Other arguments of the constructor, for example nesterov; not rule and lookahead.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type or value, or the trace does not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_optax(np.array([4.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.params
        (array([3.]), array([-0.75]))
        """
        interop.refuse_settings(("rule",), settings)
        opt = cls(params, lr=lr, momentum=momentum, rule="pytorch", **interop.without_lookahead(settings))
        interop.load_velocities(opt._engine, "trace", trace, steps, sign=1)
        return opt

    def to_optax(self) -> Any:
        """Return the leaves of optax's trace: trace ← v, as arrays on the host.

        Returns
        -------
        ndarray, or list of ndarray
            Copies; one array if the parameters are one. With `tree` the structure of the parameters,
            ``state[0]._replace(trace=jax.tree.unflatten(tree, opt.to_optax()))`` is the state to continue with.

        Raises
        ------
        ValueError
            If the rule is not pytorch or pytorch_nesterov, or if dampening is not 0, as optax's trace has none.

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
            if dampening := group.number("dampening"):
                raise ValueError(f"to_optax: expected dampening 0, as optax's trace has none; got {dampening}")
        return self._one_or_all(found)

    @classmethod
    def from_keras(
        cls, velocities: Any, params: Any, *, lr: Any, momentum: Any, steps: int = 0, **settings: Any
    ) -> Self:
        """Return an optimiser that continues a run of keras.optimizers.SGD by the rule "classical": v ← −m.

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
            The number of updates done, ``optimizer.iterations``; functions of the step are called with the numbers from
            there on.
        **settings
            Other arguments of the constructor, for example nesterov; not rule and lookahead. Keras's weight_decay is
            decoupled_weight_decay here.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type or value, or the velocities do not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_keras(np.array([-1.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.to_keras(), opt.params
        (array([0.75]), array([-0.75]), array([-0.75]))
        """
        interop.refuse_settings(("rule",), settings)
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
