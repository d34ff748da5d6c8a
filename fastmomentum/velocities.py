"""Velocities on their way between an optimiser and another framework's arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastmomentum import checkpoint, checks
from fastmomentum.engine import Engine
from fastmomentum.torch_states import form_of
from fastmomentum.turns import free


def take(engine: Engine, name: str, found: Any, steps: int, sign: int, late: bool) -> None:
    """Go on with velocities sign·found, so many updates done; if `late`, None stands for a first step still to come.

    Raises
    ------
    TypeError, ValueError
        If they do not fit the parameters.
    """
    saved = checkpoint.pack(engine)
    given = checks.sequence(name, found if isinstance(found, list | tuple) else [found], len(saved["state"]))
    for i, (velocity, state) in enumerate(zip(given, saved["state"])):
        if velocity is not None or not late:
            array = _times(sign, velocity, f"{name}[{i}]")
            state[0] = checks.array(f"{name}[{i}]", array, like=state[0], write=False)
    saved |= {"steps": checks.whole("steps", steps), "started": [velocity is not None for velocity in given]}
    checkpoint.unpack(saved, engine)


def copies(engine: Engine, method: str, rule: str, sign: int = 1) -> list[Any]:
    """sign·v, on the host, for each array, if the rule is this one.

    Raises
    ------
    ValueError
        If it is another.
    """
    for group in engine.groups:
        form_of(method, group, rule)
    with free(engine.lock):
        engine.finish()
        found = [velocity for (velocity,) in engine.held.fetch()]
    for velocity in found:
        np.multiply(velocity, sign, out=velocity)
    return found


def refuse_known(names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Refuse settings of these names, which what is moved says already.

    Raises
    ------
    TypeError
        If there is one.
    """
    for name in names:
        if name in settings:
            raise TypeError(
                f"{name}: expected to come with what is moved; got {checks.shown(settings[name])} beside it"
            )


def _times(sign: int, value: Any, name: str) -> Any:
    """sign·value, a new array on the host and in order, of an array of whatever framework."""
    try:
        if hasattr(value, "detach"):  # torch's, perhaps on a device; its __array__ lacks what NumPy 2 asks for
            value = value.detach().cpu().numpy()
        found = (value if isinstance(value, np.ndarray) else np.asarray(value)).copy(order="C")
        np.multiply(found, sign, out=found)
    except (TypeError, ValueError, RuntimeError) as error:  # none there, bfloat16, bool, a tensor without data
        raise TypeError(
            f"{name}: expected an array of float32 or float64; got {checks.shown(value)}: {error}"
        ) from error
    return found
