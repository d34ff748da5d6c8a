"""Rules against recorded runs of other libraries' optimizers (optimizer_runs.json), step by step, to 1e-10.

A run is compared where its library computes the same formula; OTHERS says how the others differ.
"""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import BACKENDS
from tests.published.test_optimizer_runs import FILE, RUNS

LIMITS = {"float64": 1e-10, "mixed": 2e-8, "float32": 2e-6}
BY_KEY = {run["key"]: run for run in RUNS}


def adam(s, **more):
    beta1, beta2 = s["betas"][:2] if "betas" in s else (s["b1"], s["b2"])
    return {"lr": s.get("lr", s.get("learning_rate")), "momentum": beta1, "beta2": beta2, "eps": s["eps"], **more}


def decay(s, decoupled="decoupled_weight_decay"):
    names = ("decoupled_weight_decay", "weight_decay")
    chosen, other = names if s.get(decoupled) else reversed(names)
    return {chosen: s["weight_decay"], other: 0.0}


def cautious_settings(s, rule):
    own = {"lr": s["lr"], "momentum": s["betas"][0], "decoupled_weight_decay": s["weight_decay"]}
    return own | ({"beta2": s["betas"][1]} if rule == "lion" else {"beta2": s["betas"][1], "eps": s["eps"]})


def lion(s):
    beta1, beta2 = s["betas"] if "betas" in s else (s["b1"], s["b2"])
    rate = s.get("lr", s.get("learning_rate"))
    return {"lr": rate, "momentum": beta1, "beta2": beta2, "decoupled_weight_decay": s["weight_decay"]}


def ademamix(s):
    own = adam(s, beta3=s["betas"][2], alpha=s["alpha"], warmup=float(s.get("t_alpha_beta3") or 0))
    return own | {"decoupled_weight_decay": s["weight_decay"]}


def lars(s):
    always = {"trust": s["trust_coeff"], "eps": s["eps"], "weight_decay": s["weight_decay"]}
    return {"lr": s["lr"], "momentum": s["momentum"], **always}


def free(s, adamw=False):
    own = {"lr": s["lr"], "weight_decay": s["weight_decay"], "warmup": s["warmup_steps"], "r": s["r"]}
    own |= {"power": s["weight_lr_power"], "momentum": s["betas"][0] if adamw else s["momentum"]}
    return own | ({"beta2": s["betas"][1], "eps": s["eps"]} if adamw else {})


def mars(s):
    beta1, beta2 = s["betas"]
    own = {"lr": s["lr"], "momentum": beta1, "mars_gamma": s["gamma"], "decoupled_weight_decay": s["weight_decay"]}
    return own | ({} if s["mars_type"] == "mars-lion" else {"beta2": beta2, "eps": s["eps"]})


# For each key of a library the rule, the function of its settings, and the variants that compute the same formula.
SAME = {
    "nadam/torch": (
        "nadam",
        lambda s: adam(s, momentum_decay=s["momentum_decay"]) | decay(s),
        ["-", "coupled_decay", "decoupled_decay", "momentum_decay_0", "momentum_decay_large", "betas", "late"],
    ),
    "lamb/optax": (
        "lamb",
        lambda s: adam(s, weight_decay=s["weight_decay"]),
        ["-", "decay", "betas", "large_start", "zero_start", "zero_first"],
    ),
    "lamb/timm": (
        "lamb",
        lambda s: adam(s, weight_decay=s["weight_decay"]),
        ["always_adapt", "decay", "betas", "large_start", "zero_start"],
    ),
    "lars/timm": ("lars", lars, ["always_adapt", "decay", "no_momentum", "zero_start", "zero_first", "eps"]),
    "schedule_free_sgd/schedulefree": (
        "schedule_free_sgd",
        free,
        ["-", "warmup", "r", "decay", "power_0", "momentum"],
    ),
    "schedule_free_adamw/schedulefree": (
        "schedule_free_adamw",
        lambda s: free(s, adamw=True),
        ["-", "warmup", "r", "decay", "power_0", "betas"],
    ),
    "cautious_adamw/pytorch_optimizer": (
        fm.cautious("adam"),
        lambda s: cautious_settings(s, "adam"),
        ["-", "decoupled_decay", "zero_first"],
    ),
    "cautious_lion/pytorch_optimizer": (
        fm.cautious("lion"),
        lambda s: cautious_settings(s, "lion"),
        ["-", "decoupled_decay", "zero_first", "late"],
    ),
    "lion/pytorch_optimizer": (
        "lion",
        lambda s: lion(s) | decay(s, "weight_decouple"),
        ["-", "decoupled_decay", "coupled_decay", "betas", "zero_first", "late"],
    ),
    "lion/optax": ("lion", lion, ["-", "decoupled_decay"]),
    "lion/lion_pytorch": ("lion", lion, ["-", "decoupled_decay"]),
    "lion/bitsandbytes": ("lion", lion, ["-"]),
    "ademamix/pytorch_optimizer": (
        "ademamix",
        lambda s: ademamix(s) | decay(s, "weight_decouple"),
        ["-", "warmup", "decoupled_decay", "coupled_decay", "betas"],
    ),
    "ademamix/bitsandbytes": ("ademamix", ademamix, ["-"]),
    "clipup/evotorch": (
        "clipup",
        lambda s: {"lr": s["stepsize"], "momentum": s["momentum"], "speed_ratio": s["max_speed"] / s["stepsize"]},
        ["joint"],
    ),
}


def runs_of(table):
    for key, (_, _, variants) in table.items():
        for variant in variants:
            name = key if variant == "-" else f"{key}:{variant}"
            yield pytest.param(key, BY_KEY[name], id=name)


def arrays(values):
    return [np.array(value) for value in values]


def gradients(run):
    for row in FILE["gradients"][run["gradients"]]["steps"]:
        yield [None if g is None else np.array(g) for g in row]


def assert_follows(opt, run):
    limit = LIMITS[run["dtype"]]
    for t, grads in enumerate(gradients(run)):
        opt.step(grads)
        for p, expected in zip(opt.params, run["parameters"][t], strict=True):
            np.testing.assert_allclose(p, expected, rtol=limit, atol=limit, err_msg=f"step {t + 1}")
        for p, expected in zip(opt.evaluate(), run.get("averages", [run["parameters"]] * 12)[t], strict=False):
            if "averages" in run:
                np.testing.assert_allclose(p, expected, rtol=limit, atol=limit, err_msg=f"step {t + 1}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("key", "run"), [*runs_of(SAME)])
def test_rule_has_the_points_of_the_library(key, run, backend):
    rule, settings_of, _ = SAME[key]
    opt = fm.Optimizer(arrays(FILE["starts"][run["start"]]), rule, backend=backend, **settings_of(run["settings"]))
    assert_follows(opt, run)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["", ":settings"])
def test_grokfast_filters_gradients_as_the_authors_do(variant, backend):
    run = BY_KEY[f"grokfast_ema/grokfast{variant}"]
    s = run["settings"]
    params = [np.zeros(np.shape(start)) for start in FILE["starts"]["usual"]]
    chain = fm.chain(fm.stages.grokfast(s["alpha"], filter_gain=s["lamb"]), "sgd")
    opt = fm.Optimizer(params, chain, lr=1.0, backend=backend)
    for t, grads in enumerate(gradients(run)):
        before = [p.copy() for p in params]
        opt.step(grads)
        for p, old, expected in zip(params, before, run["filtered_gradients"][t], strict=True):
            np.testing.assert_allclose(old - p, expected, rtol=1e-10, atol=1e-10)


# The authors' amsgrad takes the maximum of uncorrected averages, after the correction of the gradient.
MARS = [
    key
    for key, run in BY_KEY.items()
    if key.startswith(("mars_adamw/mars", "mars_lion/mars")) and not run["settings"].get("amsgrad")
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("key", MARS)
def test_mars_before_adam_or_signum_has_the_points_of_the_authors(key, backend):
    """The second array has two dimensions, for which the authors use MARS; the first one only with optimize_1d."""
    run = BY_KEY[key]
    s = run["settings"]
    rule = fm.chain(fm.stages.mars, "signum" if s["mars_type"] == "mars-lion" else "adam")  # their Lion has one beta
    opt = fm.Optimizer(arrays(FILE["starts"][run["start"]]), rule, backend=backend, **mars(s))
    for t, grads in enumerate(gradients(run)):
        opt.step(grads)
        for i, (p, expected) in enumerate(zip(opt.params, run["parameters"][t], strict=True)):
            if i == 1 or s["optimize_1d"]:
                np.testing.assert_allclose(p, expected, rtol=1e-10, atol=1e-10, err_msg=f"step {t + 1}")


def force(x):
    problem = FILE["fire_problem"]
    k, q, c = np.array(problem["k"]), np.array(problem["q"]), problem["c"]
    coupled = np.zeros(6)
    coupled[:-1] += x[1:]
    coupled[1:] += x[:-1]
    return -(k * x + q * x**3 + c * coupled)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("key", ["fire/ase", "fire/ase:settings", "fire/ase:large"])
def test_fire_has_the_points_of_ase(key, split, backend):
    run = BY_KEY[key]
    s = run["settings"]
    names = {"lr": "dt", "max_step": "maxstep", "max_dt": "dtmax", "patience": "Nmin", "dt_growth": "finc"}
    names |= {"dt_shrink": "fdec", "alpha_start": "astart", "alpha_shrink": "fa"}
    start = np.array(FILE["fire_problem"]["start"]) if "start" not in run else np.array(run["start"])
    x = start.copy()
    parts = [part.copy() for part in np.split(x, split)]
    opt = fm.Optimizer(parts, "fire", backend=backend, **{ours: s[theirs] for ours, theirs in names.items()})
    for t in range(60):
        opt.step([-f for f in np.split(force(np.concatenate(parts)), split)])
        np.testing.assert_allclose(np.concatenate(parts), run["x"][t], rtol=1e-10, atol=1e-10, err_msg=f"step {t + 1}")
        np.testing.assert_allclose(np.concatenate([v for (v,) in opt._engine.state.slots]), run["v"][t], atol=1e-10)
        dt, alpha, count = opt._engine.state.memory[0]
        assert (round(dt, 12), round(alpha, 12), count) == (
            round(run["dt"][t], 12),
            round(run["a"][t], 12),
            run["n"][t],
        )
