"""README's table of where people come from: each row before and after, the numbers beside each other."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from oracles import assert_same_bits

import fastmomentum as fm

README = (Path(__file__).parents[1] / "README.md").read_text()
ROWS = re.findall(
    r"^\| `([^`]*)`.* \| (.*) \| (.*) \|$", README.split("## Coming")[1].split("## Choosing")[0], re.MULTILINE
)
STEPS, LR, MU = 30, 0.1, 0.9
# Of p with |p| ≤ 4 after 30 steps: each operation rounds by half an ulp, a contraction saves some of that, and what was
# rounded once is carried on by at most 1/(1 − μ) steps.
BOUND = 4 * 30 * 10 * 2.0**-24


def gradients(steps=STEPS):
    return np.random.default_rng(7).standard_normal((steps, 20)).astype(np.float32)


def ours(**settings):
    p = np.linspace(-1, 1, 20, dtype=np.float32)
    opt = fm.Momentum(p, lr=LR, momentum=MU, **settings)
    for grad in gradients():
        opt.step(grad)
    return p, opt


@pytest.mark.parametrize(
    ("code", "rule"),
    [(code, after) for code, after, change in ROWS if change.startswith("nothing")],
    ids=lambda text: text,
)
def test_lines_of_numpy_have_the_same_bits(code, rule):
    named = {"p": np.linspace(-1, 1, 20, dtype=np.float32), "v": np.zeros(20, np.float32), "lr": LR, "mu": MU}
    for grad in gradients():
        named["g"] = grad
        exec(code, named)
    found = re.search(r'rule="(\w+)"', rule)
    p, opt = ours(rule=found.group(1) if found else "pytorch")
    assert_same_bits(p, named["p"])
    assert_same_bits(opt.velocity, -named["v"] if "p + v" in code else named["v"])


def test_the_table_has_all_of_them():
    changes = [change.startswith("nothing") for _, _, change in ROWS]
    assert changes == [True, True, True, False, False, False]
    assert [code.split("(")[0] for code, _, _ in ROWS[3:]] == ["torch.optim.SGD", "optax.sgd", "keras.optimizers.SGD"]


@pytest.mark.parametrize(
    "settings",
    [{}, {"dampening": 0.5}, {"nesterov": True}, {"weight_decay": 0.1}, {"maximize": True}],
    ids=lambda settings: "".join(settings),
)
def test_torch(settings):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 20))
    p, _ = ours(**settings)
    sgd = torch.optim.SGD([weight], LR, MU, **settings)
    for grad in gradients():
        weight.grad = torch.from_numpy(grad)
        sgd.step()
    np.testing.assert_allclose(p, weight.detach().numpy(), rtol=0, atol=BOUND)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("before", [{}, {"clip_value": 0.5}, {"weight_decay": 0.1}], ids=lambda before: "".join(before))
def test_optax(nesterov, before):
    optax = pytest.importorskip("optax")
    stages = {"clip_value": optax.clip, "weight_decay": optax.add_decayed_weights}
    there = optax.chain(*(stages[name](value) for name, value in before.items()), optax.sgd(LR, MU, nesterov))
    theirs = np.linspace(-1, 1, 20, dtype=np.float32)
    state = there.init(theirs)
    for grad in gradients():
        updates, state = there.update(grad, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    p, _ = ours(nesterov=nesterov, **before)
    np.testing.assert_allclose(p, theirs, rtol=0, atol=BOUND)


@pytest.mark.filterwarnings("ignore")  # Keras's own, while it is imported
@pytest.mark.parametrize(
    ("theirs", "settings"),
    [
        ({}, {}),
        ({"nesterov": True}, {"nesterov": True}),
        ({"clipvalue": 0.5}, {"clip_value": 0.5}),
        ({"weight_decay": 0.1}, {"decoupled_weight_decay": 0.1}),
        ({"global_clipnorm": 2.0}, {"max_norm": 2.0}),
    ],
    ids=lambda settings: "".join(settings),
)
def test_keras(theirs, settings, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    weight = keras.Variable(np.linspace(-1, 1, 20, dtype=np.float32))
    sgd = keras.optimizers.SGD(LR, MU, **theirs)
    for grad in gradients():
        sgd.apply([keras.ops.convert_to_tensor(grad)], [weight])
    p, opt = ours(rule="classical", **settings)
    bound = (
        BOUND * 30 if "max_norm" in settings else BOUND
    )  # there the factor has 1e-6 beside the norm, as torch has it
    np.testing.assert_allclose(p, weight.numpy(), rtol=0, atol=bound)
    np.testing.assert_allclose(opt.velocity, -sgd.momentums[0].numpy(), rtol=0, atol=bound)
