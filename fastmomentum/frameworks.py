"""Runs that come from torch, optax or Keras, and go back, with the velocity that they have gathered.

    torch.optim.SGD   v ← μv + (1−τ)g; p ← p − lr·v    the rule pytorch; an array's first v is g itself
    optax.sgd         t ← μt + g;      p ← p − lr·t    the same without dampening; t is the leaf of TraceState.trace
    Keras's SGD       m ← μm − lr·g;   p ← p + m       the rule classical with m = −v

None of these is imported here: what comes is read as arrays on the host, and what goes is made of NumPy's.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

from fastmomentum import torch_states
from fastmomentum import velocities as moved
from fastmomentum.engine import Engine


class Movable:
    """What :class:`fastmomentum.Momentum` has for moving runs from and to other frameworks."""

    _engine: Engine

    @classmethod
    def from_torch(cls, state_dict: Mapping[str, Any], params: Any, *, steps: int = 0, **settings: Any) -> Self:
        """v ← momentum_buffer, and an array that has none yet is still to have its first step, undamped.

        Parameters
        ----------
        state_dict : mapping
            Of a torch.optim.SGD. Its groups and their settings come along; foreach, fused, differentiable and what
            schedulers keep there do not.
        params : array, or sequence of arrays
            All groups' parameters, flat and in order: ``p.detach().numpy()``, say, on the tensor's own memory.
        steps : int
            The number of updates done, which torch does not save: where a function of the step, assigned to :attr:`lr`
            in place of the number that a scheduler had come to, is to go on.
        **settings
            What else Momentum takes and torch's groups do not say: max_norm, threads and the like.

        Raises
        ------
        TypeError, ValueError
            If it is no state_dict of torch.optim.SGD, or does not fit the parameters.

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
        layout, buffers = torch_states.read(state_dict, params)
        moved.refuse_known((*torch_states.NUMBERS, *torch_states.SWITCHES, "rule"), settings)
        return cls._moved(torch_states.BUFFER, buffers, steps, late=True, rule="pytorch", **layout, **settings)

    def to_torch(self, tensor: Callable[[Any], Any]) -> dict[str, Any]:
        """momentum_buffer ← v, but for arrays whose first step is still to come: torch gives them their own.

        With momentum 0 torch keeps no velocity; v, the last gradient then, goes along all the same, and counts there if
        the momentum is raised.

        Parameters
        ----------
        tensor : callable
            What makes a tensor of an array: ``torch.from_numpy``. torch refuses arrays.

        Returns
        -------
        dict
            What torch.optim.SGD.load_state_dict takes. Where lr or momentum is a function of the step, its value for
            the next update.

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
        return torch_states.write(self._engine, moved.copies(self._engine, "to_torch", "pytorch"), tensor)

    @classmethod
    def from_optax(cls, trace: Any, params: Any, *, lr: Any, momentum: Any, steps: int = 0, **settings: Any) -> Self:
        """v ← the leaves of the trace, for the rule pytorch.

        Parameters
        ----------
        trace : array, or sequence of arrays
            ``jax.tree.leaves(state[0].trace)``, where `state` is that of optax.sgd; one array where `params` is one.
        params : array, sequence of arrays, or sequence of dict
            As for the constructor, in the order of the leaves. Writeable arrays: JAX's own are not.
        lr, momentum : float or callable
            As for the constructor; optax keeps them in its functions, where they cannot be read.
        steps : int
            The number of updates done, ``count`` in optax: where functions of the step are to go on.
        **settings
            What else the constructor takes, nesterov among it, but for rule and lookahead.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be served, or the trace does not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_optax(np.array([4.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.params
        (array([3.]), array([-0.75]))
        """
        moved.refuse_known(("rule",), settings)
        given = {"params": params, "lr": lr, "momentum": momentum}
        return cls._moved("trace", trace, steps, rule="pytorch", **given, **settings)

    def to_optax(self) -> Any:
        """trace ← v: the leaves of optax's trace, in order, as arrays on the host.

        Returns
        -------
        ndarray, or list of ndarray
            Copies; one array where the parameters are one. With `tree` the structure of the parameters,
            ``state[0]._replace(trace=jax.tree.unflatten(tree, opt.to_optax()))`` is the state to go on with.

        Raises
        ------
        ValueError
            If the rule is not pytorch or pytorch_nesterov, or dampens, which optax's trace does not.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(2))
        >>> opt.to_optax()
        array([1., 1.])
        """
        found = moved.copies(self._engine, "to_optax", "pytorch")
        for group in self._engine.groups:
            if dampening := group.settings.get("dampening"):
                raise ValueError(f"to_optax: expected dampening 0, as optax's trace has none; got {dampening}")
        return self._one_or_all(found)

    @classmethod
    def from_keras(
        cls, velocities: Any, params: Any, *, lr: Any, momentum: Any, steps: int = 0, **settings: Any
    ) -> Self:
        """v ← −m, for the rule classical: m ← momentum·m − lr·g; p ← p + m is v ← momentum·v + lr·g; p ← p − v.

        Parameters
        ----------
        velocities : array, or sequence of arrays
            Those of Keras's SGD, ``[m.numpy() for m in optimizer.momentums]``; one array where `params` is one.
        params : array, sequence of arrays, or sequence of dict
            As for the constructor, in the order of the velocities.
        lr, momentum : float or callable
            As for the constructor.
        steps : int
            The number of updates done, ``optimizer.iterations``: where functions of the step are to go on.
        **settings
            What else the constructor takes, nesterov among it, but for rule and lookahead. Keras's weight_decay is
            decoupled_weight_decay here.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be served, or the velocities do not fit the parameters.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum.from_keras(np.array([-1.0]), np.zeros(1), lr=0.25, momentum=0.5)
        >>> opt.step(np.ones(1))
        >>> opt.velocity, opt.to_keras(), opt.params
        (array([0.75]), array([-0.75]), array([-0.75]))
        """
        moved.refuse_known(("rule",), settings)
        given = {"params": params, "lr": lr, "momentum": momentum}
        return cls._moved("velocities", velocities, steps, sign=-1, rule="classical", **given, **settings)

    def to_keras(self) -> Any:
        """m ← −v: the velocities of Keras's SGD.

        Returns
        -------
        ndarray, or list of ndarray
            Copies on the host, to ``assign`` to ``optimizer.momentums``; one array where the parameters are one.

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
        return self._one_or_all(moved.copies(self._engine, "to_keras", "classical", sign=-1))

    @classmethod
    def _moved(cls, name: str, found: Any, steps: int, sign: int = 1, *, late: bool = False, **settings: Any) -> Self:
        """The optimiser with these settings whose velocities are sign·found."""
        if settings.get("lookahead"):
            raise ValueError(
                "lookahead: expected False, as others' parameters are the points; nesterov=True goes on there"
            )
        opt = cls(**settings)
        moved.take(opt._engine, name, found, steps, sign, late)
        return opt

    def _one_or_all(self, values: list[Any]) -> Any:
        """The value of the one array, or the list."""
        raise NotImplementedError
