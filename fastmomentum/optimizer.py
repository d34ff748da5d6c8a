"""The optimiser object: parameters, state, step, reset."""

from collections.abc import Callable
from typing import Any

from fastmomentum import backends, checks
from fastmomentum.adjusting import Adjustable
from fastmomentum.converting import Convertible
from fastmomentum.engine import Engine
from fastmomentum.groups import lay_out
from fastmomentum.records import Update
from fastmomentum.resets import Resettable
from fastmomentum.resume import Resumable
from fastmomentum.watching import Watchable


class Momentum(Adjustable, Resettable, Convertible, Resumable, Watchable):
    """Momentum updates of one array or many, in place, each step in one pass over memory.

    With the rule "pytorch": v ← μv + (1−τ)g; p ← p − lr·v, as torch.optim.SGD has it, its first step included: an
    array's first velocity, from rest, is g itself, whatever the dampening τ; an array that gets its first gradient
    later starts later. The other rules are in :mod:`fastmomentum.rules`, the options as for :func:`fastmomentum.step`.

    Parameters
    ----------
    params : array, sequence of arrays, or sequence of dict
        As for step(), all on the host or all on one device; updated in place. A dict {"params": ..., "lr": ..., ...} is
        a group, whose settings override those given beside `params`; all but rule, backend and threads may differ.
    lr, momentum : float, callable, or a scalar in device memory
        As for step(); a callable gets the number of the update to come, from 0, and returns the value for it.
    rule, dampening, nesterov, weight_decay, decoupled_weight_decay, maximize, clip_value, backend, threads, **hyper
        As for step(). Where momentum is a function of the step, a folded Nesterov rule gets its next value too
        (so does a look-ahead, with lr's): the function is asked for one step beyond the last.
    max_norm : float, optional
        Clip the Euclidean norm of all gradients together, as given: they enter the update times
        f = min(1, max_norm / (norm + 1e-6)), which is torch's clip_grad_norm_ without its writing to them. The norm is
        summed in double precision by a fixed tree within each array, then over the arrays in order. As in torch, a
        NaN makes the factor NaN, and an infinity (also of float64 squares, from 1e154 on) makes it 0.
    skip_nonfinite : bool
        Leave the whole update out, state, counts and all, if any gradient holds a NaN or an infinity; :attr:`skipped`
        counts these.
    lookahead : bool
        Nesterov's method with an explicit look-ahead, for pytorch, classical and ema: gradients are to be taken at
        :attr:`point`, p − lr·μ·v (classical: p − μ·v), which each update writes in its own pass, for the next step's lr
        and momentum. Coupled decay is taken at the point too.
    correct : bool
        Let state that carries the learning rate follow it: where lr changes, by assignment or as a function of the
        step, the velocity of classical and its Nesterov form is multiplied by the new over the old, and the q − p of
        heavy_ball and nesterov_positions, so that the trajectory is that of the pytorch form (of positions, where
        nothing beside the rule moves p, and at a constant momentum). lr must be > 0 then. Other rules' state carries
        no lr. A group may have its own. See :mod:`fastmomentum.carrying`.
    restart : {"gradient", "function", "schedule"} or int, optional
        Reset the whole, on the record, behind an update that went up the gradient, g·(p⁺ − p) > 0; where an objective
        told to :meth:`report` has risen; where lr or momentum begins a new period; or behind so many steps. But for
        "schedule", functions of the step count from the last reset of the whole. See :mod:`fastmomentum.restarts`.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be served.

    Notes
    -----
    heavy_ball and nesterov_positions start from a copy of the parameters, made here and by reset(): whatever else
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
        lr: float | Callable[[int], float],
        momentum: float | Callable[[int], float] = 0.9,
        rule: str | Update = "pytorch",
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
        **hyper: float,
    ) -> None:
        shared = {
            "rule": rule,
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "clip_value": clip_value,
            "max_norm": max_norm,
            "lookahead": lookahead,
            "correct": correct,
            "restart": restart,
            **hyper,
        }
        skip = checks.switch("skip_nonfinite", skip_nonfinite)
        self._engine = Engine(lay_out(params, shared), backend, checks.threads(threads), skip)
        self._single = backends.is_array(params)

    def step(self, grads: Any, stream: Any = None) -> None:
        """One update of all parameters, in place.

        Parameters
        ----------
        grads : array, or sequence of arrays or None
            Where `params` is one array, one like it; else one for each array of all groups, in order. None leaves
            its array alone, state included.
        stream : optional
            As for :func:`fastmomentum.step`.

        Raises
        ------
        TypeError, ValueError
            If a gradient, or meanwhile a parameter, is not as it must be, or a function of the step returns a value
            out of range; nothing has been changed then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> w, b = np.zeros(2), np.zeros(1)
        >>> opt = fm.Momentum([w, b], lr=0.5)
        >>> opt.step([np.ones(2), None])
        >>> w, b
        (array([-0.5, -0.5]), array([0.]))
        """
        if self._single:
            self._engine.step([grads], stream)
        else:
            given = list(grads) if type(grads) is list else checks.sequence("grads", grads, len(self.params))
            self._engine.step(given, stream)

    @property
    def params(self) -> Any:
        """The parameters: the array, or a list of all groups' arrays in order."""
        return self._one_or_all(self._engine.held.given)

    @property
    def state(self) -> Any:
        """The state as :func:`fastmomentum.step` takes it: None, an array or a tuple; a list of these for many arrays.

        A look-ahead point is no part of it. The arrays are the optimiser's own: what is written to them is
        what the next step starts from.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> fm.Momentum(np.ones(2), rule="heavy_ball", lr=0.5).state
        array([1., 1.])
        """
        kept = slice(None, self._engine.update.gradient_at - 1 if self._engine.update.gradient_at else None)
        states = [state[kept] for state in self._engine.held.states]
        return self._one_or_all([state[0] if len(state) == 1 else state or None for state in states])

    @property
    def velocity(self) -> Any:
        """The velocity, for rules whose state has one; a list of these for many arrays.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum([np.ones(2), np.ones(1)], lr=0.5)
        >>> opt.step([np.ones(2), np.ones(1)])
        >>> opt.velocity
        [array([1., 1.]), array([1.])]
        """
        update = self._engine.update
        if "velocity" not in update.slots:
            raise AttributeError(f"rule {update} keeps no velocity; it keeps {', '.join(update.slots) or 'no state'}")
        slot = update.slots.index("velocity")
        return self._one_or_all([state[slot] for state in self._engine.held.states])

    @property
    def point(self) -> Any:
        """Where to take the next gradient: the parameters themselves, unless there is a look-ahead.

        A step, reset() and assigning lr or momentum put it right. What else is written, to the parameters or to the
        velocity, does not: assign ``opt.lr = opt.lr`` then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.zeros(1), lr=0.5, momentum=0.5, lookahead=True)
        >>> opt.step(np.ones(1))
        >>> opt.params, opt.point
        (array([-0.5]), array([-0.75]))
        """
        at = self._engine.update.gradient_at
        return self._one_or_all([state[at - 1] for state in self._engine.held.states]) if at else self.params

    def _one_or_all(self, values: list[Any]) -> Any:
        return values[0] if self._single else list(values)

    @property
    def steps(self) -> int:
        """The number of updates done."""
        return self._engine.steps

    @property
    def skipped(self) -> int:
        """The number of updates left out by skip_nonfinite.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.zeros(1), lr=0.5, skip_nonfinite=True)
        >>> opt.step(np.array([np.nan]))
        >>> opt.skipped, opt.steps
        (1, 0)
        """
        return self._engine.skipped
