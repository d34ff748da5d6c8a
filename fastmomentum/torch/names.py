"""List the names under which torch, and other packages of optimisers, store the state of each rule."""

RMSPROP = ("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum")

SLOT_NAMES: dict[str | None, dict[str, str]] = {
    "pytorch": {"velocity": "momentum_buffer"},
    "quasi_hyperbolic": {"velocity": "momentum_buffer"},
    "signum": {"velocity": "momentum_buffer"},
    "lion": {"velocity": "exp_avg"},
    "adam": {"velocity": "exp_avg", "square": "exp_avg_sq"},
    "adamw": {"velocity": "exp_avg", "square": "exp_avg_sq"},
    "amsgrad": {"velocity": "exp_avg", "square": "exp_avg_sq", "largest": "max_exp_avg_sq"},
    "radam": {"velocity": "exp_avg", "square": "exp_avg_sq"},
    "nadam": {"velocity": "exp_avg", "square": "exp_avg_sq"},
    "schedule_free_sgd": {"base": "z"},
    "schedule_free_adamw": {"base": "z", "square": "exp_avg_sq"},
    "adamax": {"velocity": "exp_avg", "largest": "exp_inf"},
    "ademamix": {"velocity": "exp_avg_fast", "slow": "exp_avg_slow", "square": "exp_avg_sq"},
    "adagrad": {"total": "sum"},
    "adadelta": {"square": "square_avg", "steps": "acc_delta"},
    **{name: {"square": "square_avg", "mean": "grad_avg", "velocity": "momentum_buffer"} for name in RMSPROP},
}
"""For each rule the names under which other packages store its slots in the state of a torch optimiser.

Slots of other rules have their own names there.
"""


MEMORY = "memory"
"""The name under which the state of a parameter holds what the rule keeps from step to step: a dict of floats.

torch rounds tensors of a state to the parameter's dtype when it loads them, and leaves floats as they are.
"""

TORCH_MEMORY: dict[str | None, dict[str, str]] = {"nadam": {"product": "mu_product"}}
"""For each rule the names under which torch stores such numbers, as tensors of one number."""

COUNTED = (*RMSPROP, "adadelta")
"""The rules that do not use the number of the update, though torch has it in their state."""
