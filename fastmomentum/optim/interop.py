"""Move runs between an optimiser and other frameworks: torch's state_dict, and the velocities of optax and Keras.

    torch.optim.SGD   v ← μv + (1−τ)g; p ← p − lr·v    the rule pytorch; an array's first v is g itself
    optax.sgd         t ← μt + g;      p ← p − lr·t    the rule pytorch with τ = 0; t is a leaf of TraceState.trace
    Keras's SGD       m ← μm − lr·g;   p ← p + m       the rule classical with m = −v

This file imports none of them: it copies their arrays to NumPy arrays, and returns NumPy arrays.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.backends import is_array
from fastmomentum.backends.host_arrays import flat_view
from fastmomentum.backends.interrupts import one_caller
from fastmomentum.optim.checkpoint import copies_of, load_dict, plain_number, to_dict
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.params import to_list
from fastmomentum.rules.convert import same_method
from fastmomentum.rules.elementwise import GIVEN
from fastmomentum.rules.options import OFF
from fastmomentum.rules.registry import find
from fastmomentum.rules.stage import LR_CORRECTION

BUFFER = "momentum_buffer"
NUMBERS = ("lr", "momentum", "dampening", "weight_decay")
SWITCHES = ("nesterov", "maximize")
IMPLEMENTATION = {"foreach": None, "differentiable": False, "fused": None}
"""The settings by which torch chooses an implementation, with torch's defaults; they have no meaning here."""

MEMBERS, NAMES = "params", "param_names"
OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""The entries that torch's schedulers keep in groups for themselves."""

OF_OTHERS = ("betas", "eps", "capturable", "history_size")
"""Settings of which each of torch's optimisers other than SGD has one at least."""


def read_torch(state_dict: Mapping[str, Any], params: Any) -> tuple[dict[str, Any], list[Any], list[dict[str, Any]]]:
    """Return what an optimiser with the groups of torch is made of: arguments, momentum buffers, other entries.

    The buffer of an array that has not had its first step is None. A warning lists those entries of the groups that
    neither torch.optim.SGD nor a scheduler of torch has.

    Raises
    ------
    TypeError, ValueError
        If `state_dict` is not one of torch.optim.SGD, or belongs to other parameters.
    """
    if not _has_form(state_dict):
        raise TypeError(
            "state_dict: expected that of a torch.optim.SGD, a dict with 'state' and 'param_groups'; "
            f"got {checks.describe(state_dict)}"
        )
    state, groups = state_dict["state"], state_dict["param_groups"]
    if differences := [*_torch_differences(state, groups)]:
        raise ValueError("state_dict: expected that of a torch.optim.SGD:\n  " + "\n  ".join(differences))
    keys = [key for group in groups for key in group[MEMBERS]]
    buffers = [state.get(key, {}).get(BUFFER) for key in keys]
    settings = [
        {"momentum": 0.0} | {name: plain_number(group[name]) for name in (*NUMBERS, *SWITCHES) if name in group}
        for group in groups
    ]
    settings_of_torch = (MEMBERS, *NUMBERS, *SWITCHES)
    kept = copies_of([{name: group[name] for name in group if name not in settings_of_torch} for group in groups])
    members = _members(groups, params)
    if unknown := sorted({str(name) for group in kept for name in group.keys() - {*ENTRIES}}):
        warnings.warn(
            f"state_dict: the groups have entries that torch.optim.SGD does not know: {', '.join(unknown)}. They have "
            "no effect here; to_torch returns them",
            stacklevel=3,
        )
    if len(groups) == 1:
        return {"params": params if is_array(params) else members[0], **settings[0]}, buffers, kept
    parts = [{"params": own, **each} for own, each in zip(members, settings)]
    return {"params": parts, "lr": settings[0]["lr"]}, buffers, kept


ENTRIES = (MEMBERS, NAMES, *NUMBERS, *SWITCHES, *IMPLEMENTATION, *OF_SCHEDULERS)
"""The known entries of a group."""


def _members(groups: Sequence[Mapping[str, Any]], params: Any) -> list[Any]:
    """Return the arrays of each group: a list, or a dict if the user passed a mapping by name.

    Raises
    ------
    TypeError, ValueError
        If `params` has another number of arrays, or other names.
    """
    counts = [len(group[MEMBERS]) for group in groups]
    if not isinstance(params, Mapping):
        rest = iter(checks.sequence("params", [params] if is_array(params) else to_list(params), sum(counts)))
        return [[next(rest) for _ in range(count)] for count in counts]
    names = [name for group in groups for name in group.get(NAMES, ())]
    if not names:
        raise TypeError(
            f"params: expected a sequence of {sum(counts)} in torch's order, as state_dict has no names; got a dict. "
            "torch saves names for an optimiser of module.named_parameters()"
        )
    if missing := [name for name in names if name not in params]:
        raise ValueError(f"params: expected the names that state_dict has; got none of {', '.join(missing)}")
    if unknown := [str(name) for name in params if name not in names]:
        raise ValueError(f"params: expected the names that state_dict has; got also {', '.join(unknown)}")
    return [{name: params[name] for name in group[NAMES]} for group in groups]


def _has_form(state_dict: object) -> bool:
    if not isinstance(state_dict, Mapping):
        return False
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list | tuple):
        return False
    return all(isinstance(entry, Mapping) for entry in (*groups, *state.values()))


def _torch_differences(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not groups:
        yield "param_groups: expected at least one; got none"
    for number, group in enumerate(groups):
        for name in [name for name in OF_OTHERS if name in group]:
            yield f"param_groups[{number}]: {name} is not a setting of SGD; it has {', '.join(NUMBERS + SWITCHES)}"
        for name in sorted({"lr", "params"} - group.keys()):
            yield f"param_groups[{number}]: {name} is missing"
        if not isinstance(keys := group.get("params", []), list | tuple) or not all(
            isinstance(key, int) for key in keys
        ):
            yield f"param_groups[{number}]: expected params to be a list of numbers; got {checks.describe(keys)}"
            return
    yield from _name_differences(groups)
    owned = {key for group in groups for key in group.get("params", ())}
    for key, entry in state.items():
        if key not in owned:
            yield f"state[{key!r}]: expected a parameter of a group; no group has it"
        for name in sorted(map(str, entry.keys() - {BUFFER})):
            yield f"state[{key!r}]: expected {BUFFER} alone; got {name}"


def _name_differences(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    found: list[str] = []
    for number, group in enumerate(groups):
        names, count = group.get(NAMES), len(group.get(MEMBERS, ()))
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            names = []
        if NAMES in group and len(names) != count:
            yield f"param_groups[{number}]: expected {NAMES} to be a list of {count} names; got {group[NAMES]!r}"
        found += names
    if len({*found}) != len(found):
        yield f"{NAMES}: expected a name of its own for each parameter; got {', '.join(found)}"
    if found and not all(NAMES in group for group in groups):
        yield f"{NAMES}: expected in every group, or in none"


def write_torch(engine: Engine, velocities: Sequence[Any], tensor: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a state_dict for torch.optim.SGD with these velocities, and the entries that :func:`read_torch` kept.

    An array that has had no step, and whose velocity has not been written to, has no entry.

    Raises
    ------
    ValueError
        If torch.optim.SGD has no such rule, or an option is on that it does not have.
    """
    groups = []
    names, kept = engine.state.names, dict(enumerate(copies_of(engine.state.torch_groups)))
    for number, group in enumerate(engine.groups):
        members = [i for i, owner in enumerate(engine.group_of) if owner == number]
        rule = rule_name("to_torch", group, "pytorch")
        if options := [*_options_unknown_to_torch(group), *_options_of_run(engine)]:
            raise ValueError(
                f"to_torch: expected no option that torch.optim.SGD does not have; got {', '.join(options)}. In torch, "
                "apply it to the gradients or parameters before a step; opt.velocity returns the velocities alone"
            )
        values = {name: group.value(name, engine.schedule_step) for name in NUMBERS}
        settings = group.settings
        groups.append(
            IMPLEMENTATION
            | kept.get(number, {})
            | {name: float(engine.state.number(value or 0.0)) for name, value in values.items()}
            | {"nesterov": rule == "pytorch_nesterov", "maximize": bool(settings.get("maximize", False))}
            | ({NAMES: [names[i] for i in members]} if names is not None else {})
            | {MEMBERS: members}
        )
    state = {
        i: {BUFFER: tensor(velocity)}
        for i, velocity in enumerate(velocities)
        if engine.state.started[i] or engine.state.is_moving(i, engine.update)
    }
    return {"state": state, "param_groups": groups}


def _options_of_run(engine: Engine) -> list[str]:
    """Return the options of the optimiser, beside those of its groups, that torch does not have."""
    elements = [name for name in GIVEN if any(name in given.names for given in engine.state.elements)]
    return [*["skip_nonfinite"] * bool(engine.skip_nonfinite), *elements]


def rule_name(method: str, group: ParamGroup, name: str) -> str:
    """Return the name of a group's rule, if it is the package's rule `name` or its folded Nesterov form.

    Raises
    ------
    ValueError
        If it is another rule, or has a look-ahead; the message names the `method` that the user called.
    """
    rule = group.form.core
    names = (name, f"{name}_nesterov")
    adds_state = any(stage.kind not in ("param", "prox", LR_CORRECTION) for stage in group.form.stages_after)
    if adds_state or rule.name not in names or find(rule.name).functions != rule.functions:
        advice = ""
        if group.update.gradient_slot == "point":
            advice = ". In place of a look-ahead use the folded form, with opt.point as parameters"
        elif target := same_method(group.update, names):
            advice = f". opt.convert({target!r}) returns an optimiser with that rule"
        raise ValueError(f"{method}: expected the rule {' or '.join(names)}; got {group.update}{advice}")
    return rule.name


def _options_unknown_to_torch(group: ParamGroup) -> Iterator[str]:
    """Yield the options of a group that torch.optim.SGD does not have."""
    if find(group.settings["rule"]).composed_of:
        yield "a chain"
    allowed = (*NUMBERS, *SWITCHES, "rule", "correct")  # pytorch's velocity holds no lr, so `correct` does nothing
    for name, value in group.settings.items():
        if name not in allowed and value is not None and value is not False and (name not in OFF or value != OFF[name]):
            yield name


def without_lookahead(settings: dict[str, Any]) -> dict[str, Any]:
    """Return these settings, if they do not ask for an explicit look-ahead.

    Raises
    ------
    ValueError
        If they do.
    """
    if settings.get("lookahead"):
        raise ValueError(
            "lookahead: expected False, as other frameworks take gradients at the parameters themselves, those of "
            "their nesterov=True too"
        )
    return settings


def load_velocities(
    engine: Engine, name: str, velocities: Any, steps: int, *, sign: int, none_is_unstarted: bool = False
) -> None:
    """Let an optimiser continue from the velocities of another framework, after this number of updates.

    v ← sign·velocities

    Parameters
    ----------
    engine : Engine
        The optimiser's engine.
    name : str
        The name of the velocities in messages.
    velocities : array, or sequence of arrays
        The velocities, of any framework.
    steps : int
        The number of updates done.
    sign : {1, -1}
        The factor of the velocities: −1 for Keras, whose velocities have the other sign.
    none_is_unstarted : bool
        Whether a velocity may be None, for an array whose first step is still to come.

    Raises
    ------
    TypeError, ValueError
        If they do not fit the parameters.
    """
    saved = to_dict(engine)
    given = checks.sequence(
        name, velocities if isinstance(velocities, list | tuple) else [velocities], len(saved["state"])
    )
    for i, (velocity, state) in enumerate(zip(given, saved["state"])):
        if velocity is not None or not none_is_unstarted:
            array = _multiplied_copy(sign, velocity, f"{name}[{i}]")
            state[0] = checks.array(f"{name}[{i}]", array, like=state[0], write=False, dense=True)
    steps = checks.integer("steps", steps)
    updates = [0 if velocity is None else max(steps, 1) for velocity in given]
    saved |= {"steps": steps, "updates": updates}
    load_dict(saved, engine)


def velocity_copies(engine: Engine, method: str, rule: str, sign: int = 1) -> list[Any]:
    """Return sign·v, on the host, for each array, if the rule is `rule` or its folded Nesterov form.

    Raises
    ------
    ValueError
        If it is another rule.
    """
    for group in engine.groups:
        rule_name(method, group, rule)
    with one_caller(engine.lock):
        found = [velocity for (velocity,) in engine.state.fetch_slots()]
    for velocity in found:
        np.multiply(flat_view(velocity), sign, out=flat_view(velocity))
    return found


def refuse_settings(names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Check that the user gives no setting of these names, which come from the run of the other framework.

    Raises
    ------
    TypeError
        If the user gives one.
    """
    for name in names:
        if name in settings:
            raise TypeError(f"{name}: expected none, as the run has its own; got {checks.describe(settings[name])}")


def _multiplied_copy(sign: int, value: Any, name: str) -> Any:
    """Return sign·value as a new C-ordered array on the host, from an array of any framework."""
    try:
        if hasattr(value, "detach"):  # of torch, whose __array__ lacks an argument of NumPy 2's
            value = value.detach().cpu().numpy()
        found = (value if isinstance(value, np.ndarray) else np.asarray(value)).copy(order="C")
        np.multiply(flat_view(found), sign, out=flat_view(found))
    except (TypeError, ValueError, RuntimeError) as error:  # None, bfloat16, bool, a tensor without data
        raise TypeError(
            f"{name}: expected an array of float32 or float64; got {checks.describe(value)}: {error}"
        ) from error
    return found
