"""Learning rate and momentum of an optimiser: reading them, and changing them in mid-run."""

from typing import Any

from fastmomentum import checks
from fastmomentum.engine import Engine
from fastmomentum.hints import meant
from fastmomentum.turns import free


class Adjustable:
    """What :class:`fastmomentum.Momentum` has for reading and changing its settings."""

    _engine: Engine

    @property
    def lr(self) -> Any:
        """The learning rate of the next update, a list where groups differ; may be set, to a function too.

        What a new one does to a run that has velocity, at once and without ``correct=True``:

        - pytorch, ema and their Nesterov forms, aggmo, quasi_hyperbolic, ema_corrected: the velocity holds gradients,
          and all of it goes on at the new rate.
        - classical and classical_nesterov: the velocity holds lr·g, and goes on at the old rate until it has died out
          (a share μ^n is left after n updates); only new gradients get the new one.
        - heavy_ball and nesterov_positions: as classical; it is p − q that holds lr·g.
        - sgd, signum, lion: nothing is kept that lr was multiplied with.

        With ``correct=True`` the second and third go over to the new rate as the first do.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> for correct in (False, True):
        ...     opt = fm.Momentum(np.zeros(1), rule="classical", lr=1.0, momentum=0.5, correct=correct)
        ...     opt.step(np.ones(1))
        ...     opt.lr = 0.25
        ...     opt.step(np.zeros(1))
        ...     print(opt.params)
        [-1.5]
        [-1.125]
        """
        return self._setting("lr")

    @lr.setter
    def lr(self, value: Any) -> None:
        self._set("lr", value)

    @property
    def momentum(self) -> Any:
        """The momentum of the next update, a list where groups differ; may be set, to a function too.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.1, momentum=fm.schedules.Linear(0.5, 0.9, steps=4))
        >>> opt.step(np.ones(2))
        >>> opt.momentum
        0.6
        """
        return self._setting("momentum")

    @momentum.setter
    def momentum(self, value: Any) -> None:
        self._set("momentum", value)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):  # which would do nothing, and say nothing
            raise AttributeError(f"{name}: expected lr or momentum, which may be set{meant(name, ('lr', 'momentum'))}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        engine = self._engine
        settings = f"lr={self.lr!r}, momentum={self.momentum!r}, arrays={len(engine.group_of)}, steps={engine.steps}"
        return f"{type(self).__name__}(rule={engine.groups[0].name!r}, {settings})"

    def _setting(self, name: str) -> Any:
        values = [group.value(name, self._engine.time) for group in self._engine.groups]
        same = all(value == values[0] for value in values)
        values = [getattr(value, "owner", value) for value in values]  # of a scalar in device memory
        return values[0] if same else values

    def _set(self, name: str, value: Any) -> None:
        count = len(self._engine.groups)
        values = checks.sequence(name, value if isinstance(value, list | tuple) else [value] * count, count)
        with free(self._engine.lock):
            self._engine.adjust(name, values)
