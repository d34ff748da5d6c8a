"""Plan a change of settings: check them for a backend, and work out what an update must know about norms."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from fastmomentum.backends.base import NormLimits
from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.restart import GRADIENT, check_restart


class SettingsPlan(NamedTuple):
    """Hold all that is decided before the settings of an optimiser are changed.

    Attributes
    ----------
    groups : list of ParamGroup
        The groups with the new settings.
    limits : NormLimits
        The limits on the norms of gradients.
    restart : str, int or None
        The restart scheme.
    skip_nonfinite : bool or int
        Whether an update is skipped if a gradient is not finite; a number limits the skips in a row.
    """

    groups: list[ParamGroup]
    limits: NormLimits
    restart: str | int | None
    skip_nonfinite: bool | int


def plan_settings(groups: list[ParamGroup], skip_nonfinite: bool | int) -> SettingsPlan:
    """Return the plan of the change to these settings, which have been checked one by one.

    Raises
    ------
    TypeError, ValueError
        If there is no such restart scheme, or a function that computes a hyper-parameter raises.
    """
    limits = norm_limits(groups, [group.values for group in groups], skip_nonfinite)
    restart = None if groups[0].number("restart") is None else check_restart(groups)
    return SettingsPlan(groups, limits, restart, skip_nonfinite)


def norm_limits(
    groups: Sequence[ParamGroup], values: Sequence[Sequence[float]], skip_nonfinite: bool | int
) -> NormLimits:
    """Return the limits on norms that these groups have at these values of their live settings."""
    max_norm = groups[0].number_in("max_norm", values[0])
    clip_norms = [
        inf if (norm := group.number_in("clip_norm", own)) is None else norm for group, own in zip(groups, values)
    ]
    clips_arrays = any([norm != inf for norm in clip_norms])
    clips = clips_arrays or max_norm not in (None, inf)
    scales = [group.scale_in(own) if clips else 1.0 for group, own in zip(groups, values)]
    return NormLimits(
        None if max_norm == inf else max_norm,
        clip_norms if clips_arrays else None,
        scales if any([scale != 1.0 for scale in scales]) else None,
        bool(skip_nonfinite),
        2**62 if skip_nonfinite is True else int(skip_nonfinite),
    )


def check_norms_on_device(group: ParamGroup) -> None:
    """Check that a group of arrays on a device asks for no norms but that of all gradients as they are.

    Raises
    ------
    TypeError
        If it does.
    """
    if group.number("clip_norm") is not None:
        raise TypeError("clip_norm: expected None, as the arrays are on a device; max_norm clips there")
    if group.number("max_norm") is not None and group.scale_in(group.values) != 1.0:
        raise TypeError(
            "max_norm: expected None with a chain that begins with a scale, as the arrays are on a device, where norms "
            "are those of the gradients themselves"
        )


def check_groups(backend: str, groups: Sequence[ParamGroup]) -> None:
    """Check that the kernels of all arrays can take these settings.

    Raises
    ------
    TypeError, ValueError
        If a setting has a wrong type or value.
    """
    if groups[0].number("restart") is not None and check_restart(groups) == GRADIENT:
        check_on_host("restart", backend)
    for group in groups:
        group.check()
        group.check_device_scalars(backend != "cuda")
        if backend == "cuda":
            check_norms_on_device(group)


def check_on_host(name: str, backend: str) -> None:
    """Check that updates can be observed, as the argument or method `name` needs.

    Raises
    ------
    TypeError
        If the arrays are on a device.
    """
    if backend == "cuda":
        raise TypeError(f"{name}: expected arrays on the host; got some on a device, which a step does not wait for")
