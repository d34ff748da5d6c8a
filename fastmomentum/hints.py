"""What someone may have meant who wrote an option, or passed a value, that there is no use for."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

OPTIONS = (
    *("lr", "momentum", "dampening", "nesterov", "weight_decay", "decoupled_weight_decay", "maximize", "clip_value"),
    *("max_norm", "skip_nonfinite", "lookahead", "correct", "restart", "threads", "backend", "rule"),
)
"""What may be set beside a rule's own hyper-parameters."""

ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "eta", "alpha", "step_size"), "lr"),
    **dict.fromkeys(("mu", "beta", "beta1"), "momentum"),
    **dict.fromkeys(("max_grad_norm", "clip_norm", "global_clipnorm"), "max_norm"),
    "use_nesterov": "nesterov",
    "clipvalue": "clip_value",
}
"""Names in the literature and in other packages, and what they are here."""


def meant(name: str, known: Iterable[str]) -> str:
    """The option that a wrong name may stand for, as the last words of a message.

    Examples
    --------
    >>> meant("learning_rate", ["lr"]), meant("weight_decy", []), meant("foreach", [])
    ('. Did you mean lr?', '. Did you mean weight_decay?', '. help(fastmomentum.Momentum) has all options')
    """
    near = [ELSEWHERE[name]] if name in ELSEWHERE else get_close_matches(name, (*known, *OPTIONS), 1, 0.75)
    return f". Did you mean {near[0]}?" if near else ". help(fastmomentum.Momentum) has all options"


def way_to_array(value: object) -> str:
    """How an array is had from what came."""
    if hasattr(value, "detach"):
        return "Of a torch tensor on the host .detach().numpy() is one, on the same memory"
    if isinstance(value, Mapping):
        return "list(....values()) has its arrays, in order"
    if isinstance(value, list | tuple) and len(value) == 1 and hasattr(value[0], "dtype"):
        return "Pass the array in it itself"
    return "numpy.array(..., dtype=numpy.float32) makes one"
