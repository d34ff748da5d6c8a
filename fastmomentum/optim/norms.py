"""Plan a change of settings, and check settings for a backend."""

from collections.abc import Sequence
from typing import NamedTuple

from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.restart import GRADIENT, check_restart


class SettingsPlan(NamedTuple):
    """Hold all that is decided before the settings of an optimiser are changed.

    Attributes
    ----------
    groups : list of ParamGroup
        The groups with the new settings.
    restart : str, int or None
        The restart scheme.
    skip_nonfinite : bool or int
        Whether an update is skipped if a gradient is not finite; a number limits the skips in a row.
    """

    groups: list[ParamGroup]
    restart: str | int | None
    skip_nonfinite: bool | int


def plan_settings(groups: list[ParamGroup], skip_nonfinite: bool | int) -> SettingsPlan:
    """Return the plan of the change to these settings, which have been checked one by one.

    Raises
    ------
    TypeError, ValueError
        If there is no such restart scheme, or a function that computes a hyper-parameter raises.
    """
    restart = None if groups[0].number("restart") is None else check_restart(groups)
    return SettingsPlan(groups, restart, skip_nonfinite)


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


def check_on_host(name: str, backend: str) -> None:
    """Check that updates can be observed, as the argument or method `name` needs.

    Raises
    ------
    TypeError
        If the arrays are on a device.
    """
    if backend == "cuda":
        raise TypeError(f"{name}: expected arrays on the host; got some on a device, which a step does not wait for")
