"""Runs moved from and to torch, optax and Keras in mid-course, beside runs that stay where they are."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from labels import label
from oracles import assert_same_bits

import fastmomentum as fm

SHAPES = ((5,), (2, 3), (), (1,))
LEAVE, BACK, STEPS = 4, 8, 12
# Products of these with small integers are exact, so that no contraction to FMA rounds otherwise.
EXACT = {"lr": 0.25, "momentum": 0.5}
TORCH = [
    {**EXACT, "dampening": dampening, "weight_decay": decay, "nesterov": nesterov, "maximize": maximize}
    for dampening, decay, nesterov, maximize in product((0.0, 0.5), (0.0, 0.5), (False, True), (False, True))
    if not (nesterov and dampening)
]


def start(dtype=np.float64):
    rng = np.random.default_rng(40)
    return [rng.integers(-8, 9, shape).astype(dtype) for shape in SHAPES]


def gradients(dtype=np.float64, late=False):
    """Small integers; if `late`, the second array's first gradient comes before, the third's after the moves."""
    rng = np.random.default_rng(41)
    for t in range(STEPS):
        grads = [rng.integers(-8, 9, shape).astype(dtype) for shape in SHAPES]
        yield [None if late and ((i == 1 and t < 2) or (i == 2 and t < BACK + 1)) else g for i, g in enumerate(grads)]


def in_torch(arrays, groups, shared):
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in arrays]
    split = params if groups is None else [{"params": params[:1], **groups[0]}, {"params": params[1:], **groups[1]}]
    return params, torch.optim.SGD(split, **shared)


def torch_steps(params, sgd, all_grads):
    for grads in all_grads:
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else torch.from_numpy(g.copy())
        sgd.step()


def moved_and_back(all_grads, arrays, shared, groups=None):
    """(parameters, state) of a run that stays in torch, and of one that is here from LEAVE to BACK."""
    stays = in_torch(arrays, groups, shared)
    torch_steps(*stays, all_grads)
    params, sgd = in_torch(arrays, groups, shared)
    torch_steps(params, sgd, all_grads[:LEAVE])
    opt = fm.Momentum.from_torch(sgd.state_dict(), [p.detach().numpy().copy() for p in params], steps=LEAVE)
    for grads in all_grads[LEAVE:BACK]:
        opt.step(grads)
    assert opt.steps == BACK
    params, sgd = in_torch(opt.params, groups, {"lr": 1.0})  # whose settings are to come with the state
    sgd.load_state_dict(opt.to_torch(torch.from_numpy))
    torch_steps(params, sgd, all_grads[BACK:])
    return stays, (params, sgd)


def assert_same_run(stays, moved):
    for p, q in zip(stays[0], moved[0], strict=True):
        assert_same_bits(q.detach().numpy(), p.detach().numpy())
        one, two = stays[1].state[p]["momentum_buffer"], moved[1].state[q]["momentum_buffer"]
        assert_same_bits(two.numpy(), one.numpy())


@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
@pytest.mark.parametrize("options", TORCH, ids=lambda o: "-".join(map(str, o.values())))
def test_a_torch_run_goes_on_here_and_back_there_with_the_same_bits(options, late):
    stays, moved = moved_and_back(list(gradients(late=late)), start(), options)
    assert_same_run(stays, moved)
    assert moved[1].state_dict()["param_groups"] == stays[1].state_dict()["param_groups"]


def test_groups_of_torch_come_along_and_go_back():
    groups = [{"lr": 0.125, "weight_decay": 0.5}, {"momentum": 0.25, "nesterov": True}]
    stays, moved = moved_and_back(list(gradients(late=True)), start(), EXACT, groups)
    assert_same_run(stays, moved)
    assert moved[1].state_dict()["param_groups"] == stays[1].state_dict()["param_groups"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("nesterov", [False, True])
def test_with_any_numbers_a_moved_run_departs_by_rounding_alone(nesterov, dtype):
    """The runs differ where torch contracts a product and a sum to FMA, one rounding for two.

    That moves v by at most eps·V a step, which μ lets live for 1/(1 − μ) steps, and with it p by lr·eps·V/(1 − μ) in
    each; and p itself by its own, eps·P. Nesterov's form has one product more, the decay's of g another.
    """
    rng = np.random.default_rng(42)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    all_grads = [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(STEPS)]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": nesterov}
    stays, moved = moved_and_back(all_grads, arrays, options)
    largest = max(float(stays[1].state[p]["momentum_buffer"].abs().max()) for p in stays[0])
    position = max(float(p.detach().abs().max()) for p in stays[0]) + largest
    limit = STEPS * np.finfo(dtype).eps * (3 * 0.1 * largest / (1 - 0.9) + 2 * position)
    for p, q in zip(stays[0], moved[0], strict=True):
        np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=0, atol=limit)
    assert limit < 1e-3 * position  # a lost velocity would be seen


def test_an_array_that_torch_has_no_buffer_for_has_its_first_step_here_undamped():
    group = {"lr": 0.25, "momentum": 0.5, "dampening": 0.5, "params": [3, 1, 4]}
    state = {3: {"momentum_buffer": torch.tensor([4.0])}, 1: {"momentum_buffer": None}}
    opt = fm.Momentum.from_torch({"state": state, "param_groups": [group]}, [np.zeros(1, np.float32) for _ in range(3)])
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0}
    opt.step([np.ones(1, np.float32), np.ones(1, np.float32), None])
    assert [v.item() for v in opt.velocity] == [2.5, 1.0, 0.0]  # ½·4 + ½·1 and 1
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0, 1}
    opt.velocity[2][...] = 8.0  # written by somebody, it is to go along
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0, 1, 2}
    opt.reset("the data changed")
    assert opt.to_torch(torch.from_numpy)["state"] == {}


def test_a_velocity_at_zero_that_has_had_its_first_step_is_damped():
    saved = {
        "state": {0: {"momentum_buffer": np.zeros(1)}},
        "param_groups": [EXACT | {"dampening": 0.5, "params": [0]}],
    }
    opt = fm.Momentum.from_torch(saved, np.zeros(1))
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0}
    opt.step(np.ones(1))
    assert opt.velocity == 0.5


def test_a_group_without_momentum_has_none():
    assert fm.Momentum.from_torch({"state": {}, "param_groups": [GROUP]}, np.ones(1)).momentum == 0.0


def test_moving_copies():
    buffer, p = np.ones(2), np.zeros(2)
    saved = {"state": {0: {"momentum_buffer": buffer}}, "param_groups": [EXACT | {"params": [0]}]}
    opt = fm.Momentum.from_torch(saved, p)
    assert opt.params is p
    back = opt.to_torch(np.asarray)["state"][0]["momentum_buffer"]
    for array in (buffer, back):
        assert not np.may_share_memory(array, opt.velocity)
    assert not np.may_share_memory(fm.Momentum.from_optax(buffer, p, **EXACT).to_optax(), buffer)


def test_what_torch_and_its_schedulers_note_in_groups_is_of_no_meaning():
    p = torch.nn.Parameter(torch.zeros(3))
    sgd = torch.optim.SGD([("weights", p)], lr=torch.tensor(0.5), momentum=0.5, foreach=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=1.0, total_steps=10)
    p.grad = torch.ones(3)
    sgd.step()
    scheduler.step()
    opt = fm.Momentum.from_torch(sgd.state_dict(), p.detach().numpy(), threads=1, max_norm=3.0)
    assert (opt.lr, opt.momentum) == (float(sgd.param_groups[0]["lr"]), sgd.param_groups[0]["momentum"])
    np.testing.assert_array_equal(opt.velocity, 1.0)
    schedule = fm.schedules.Constant(0.5).then(fm.schedules.Constant(0.25), after=7)
    late = fm.Momentum.from_torch(sgd.state_dict(), p.detach().numpy(), steps=7)
    late.lr = schedule
    assert (late.lr, late.to_torch(torch.from_numpy)["param_groups"][0]["lr"]) == (0.25, 0.25)


GROUP = {"lr": 0.5, "params": [0]}


@pytest.mark.parametrize(
    ("saved", "params", "error", "reason"),
    [
        (3, np.ones(1), TypeError, "expected that of a torch.optim.SGD.*got 3"),
        ({"state": {}}, np.ones(1), TypeError, "'param_groups'"),
        ({"state": [], "param_groups": [GROUP]}, np.ones(1), TypeError, "expected that of"),
        ({"state": {0: 1.0}, "param_groups": [GROUP]}, np.ones(1), TypeError, "expected that of"),
        ({"state": {}, "param_groups": [3]}, np.ones(1), TypeError, "expected that of"),
        ({"state": {}, "param_groups": []}, np.ones(1), ValueError, "param_groups: expected one"),
        ({"state": {}, "param_groups": [GROUP | {"betas": (0.9, 0.9)}]}, np.ones(1), ValueError, "betas is no setting"),
        ({"state": {}, "param_groups": [{"params": [0]}]}, np.ones(1), ValueError, "lr is missing"),
        ({"state": {}, "param_groups": [{"lr": 0.5}]}, np.ones(1), ValueError, "params is missing"),
        (
            {"state": {0: {"exp_avg": 1}}, "param_groups": [GROUP]},
            np.ones(1),
            ValueError,
            "momentum_buffer alone; got exp",
        ),
        ({"state": {7: {}}, "param_groups": [GROUP]}, np.ones(1), ValueError, r"state\[7\]: .*no group has it"),
        ({"state": {}, "param_groups": [GROUP]}, [np.ones(1)] * 2, ValueError, "params: expected a sequence of 1"),
        ({"state": {}, "param_groups": [GROUP | {"momentum": 1.5}]}, np.ones(1), ValueError, "momentum: expected"),
        (
            {"state": {0: {"momentum_buffer": np.ones(2)}}, "param_groups": [GROUP]},
            np.ones(1),
            ValueError,
            r"momentum_buffer\[0\]: expected shape \(1,\)",
        ),
        (
            {"state": {0: {"momentum_buffer": torch.ones(1)}}, "param_groups": [GROUP]},
            np.ones(1),
            TypeError,
            r"momentum_buffer\[0\]: expected .*float64",
        ),
        ({"state": {}, "param_groups": None}, np.ones(1), TypeError, "expected that of"),
        ({"state": {}, "param_groups": [GROUP | {"params": 3}]}, np.ones(1), ValueError, "params to be a list.*got 3"),
        (
            {"state": {}, "param_groups": [GROUP | {"params": [np.ones(1)]}]},
            np.ones(1),
            ValueError,
            "params to be a list of numbers",
        ),
        ({"state": {}, "param_groups": [GROUP | {"lr": torch.ones(2)}]}, np.ones(1), TypeError, "lr: .*got Tensor"),
        *(
            (
                {"state": {0: {"momentum_buffer": buffer}}, "param_groups": [GROUP]},
                np.ones(1),
                TypeError,
                r"momentum_buffer\[0\]: expected an array of float32 or float64; got ",
            )
            for buffer in (
                *(
                    torch.ones(1, dtype=torch.bfloat16),
                    torch.ones(1, dtype=torch.float16),
                    torch.ones(1, device="meta"),
                ),
                *(torch.ones(1, dtype=torch.float64).to_sparse(), np.array([True]), {}, "1", [[1.0], [1.0, 2.0]]),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_state_of_torchs_sgd_or_does_not_fit_is_refused(saved, params, error, reason):
    with pytest.raises(error, match=f"(?s){reason}"):
        fm.Momentum.from_torch(saved, params)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"clip_value": 1.0}, "got clip_value"),
        ({"max_norm": 1.0, "skip_nonfinite": True}, "got max_norm, skip_nonfinite"),
        ({"decoupled_weight_decay": 0.1}, "got decoupled_weight_decay"),
        ({"restart": 5}, "got restart"),
        ({"nesterov": True, "momentum_next": 0.5}, "got momentum_next"),
        ({"rule": fm.chain(fm.stages.scale(2.0), "pytorch")}, "got a chain"),
        ({"rule": "classical"}, "expected the rule pytorch or pytorch_nesterov; got 'classical'.*fm.convert"),
        ({"lookahead": True}, "got 'pytorch_lookahead'.*opt.point"),
        ({"rule": "heavy_ball"}, "got 'heavy_ball'"),
    ],
    ids=label,
)
def test_what_torch_does_not_have_is_refused(settings, reason):
    with pytest.raises(ValueError, match=f"to_torch: .*{reason}"):
        fm.Momentum(np.ones(2), lr=0.1, **settings).to_torch(torch.from_numpy)


@pytest.mark.parametrize("tree", [False, True], ids=["array", "tree"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_an_optax_run_goes_on_here_and_back_there_with_the_same_bits(nesterov, tree):
    arrays, all_grads = start(np.float32), list(gradients(np.float32))
    shape = (lambda leaves: {"b": leaves[0], "a": tuple(leaves[1:])}) if tree else (lambda leaves: leaves[0])
    sgd = optax.sgd(EXACT["lr"], momentum=EXACT["momentum"], nesterov=nesterov)

    def steps(params, state, some):
        for grads in some:
            updates, state = sgd.update(jax.tree.map(jnp.asarray, shape(grads)), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params = jax.tree.map(jnp.asarray, shape(arrays))
    stays = steps(params, sgd.init(params), all_grads)
    params, state = steps(params, sgd.init(params), all_grads[:LEAVE])

    mine, trace = [np.array(p) for p in jax.tree.leaves(params)], jax.tree.leaves(state[0].trace)
    if not tree:
        mine, trace = mine[0], trace[0]
    opt = fm.Momentum.from_optax(trace, mine, **EXACT, nesterov=nesterov, steps=LEAVE)
    for grads in all_grads[LEAVE:BACK]:
        opt.step(jax.tree.leaves(shape(grads)) if tree else grads[0])
    assert opt.steps == BACK

    structure = jax.tree.structure(params)
    params = jax.tree.map(jnp.asarray, jax.tree.unflatten(structure, opt.params if tree else [opt.params]))
    back = jax.tree.unflatten(structure, opt.to_optax() if tree else [opt.to_optax()])
    moved = steps(params, (state[0]._replace(trace=jax.tree.map(jnp.asarray, back)), *state[1:]), all_grads[BACK:])
    for one, two in zip(jax.tree.leaves(stays), jax.tree.leaves(moved), strict=True):
        assert_same_bits(np.asarray(two), np.asarray(one))


def keras(params, velocities, all_grads, momentum, lr, nesterov):
    """keras.io/api/optimizers/sgd: velocity = momentum·velocity − lr·g, then w = w + velocity.

    With nesterov=True w = w + momentum·velocity − lr·g.
    """
    for grads in all_grads:
        for p, m, g in zip(params, velocities, grads, strict=True):
            m[...] = momentum * m - lr * g
            p[...] += momentum * m - lr * g if nesterov else m


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_keras_run_goes_on_here_and_back_there_with_the_same_bits(nesterov):
    all_grads = list(gradients())
    settings = EXACT | {"nesterov": nesterov}
    stays, still = start(), [np.zeros(shape) for shape in SHAPES]
    keras(stays, still, all_grads, **settings)
    params, velocities = start(), [np.zeros(shape) for shape in SHAPES]
    keras(params, velocities, all_grads[:LEAVE], **settings)
    opt = fm.Momentum.from_keras(velocities, params, **settings, steps=LEAVE)
    for grads in all_grads[LEAVE:BACK]:
        opt.step(grads)
    assert opt.steps == BACK
    velocities = opt.to_keras()
    keras(params, velocities, all_grads[BACK:], **settings)
    for one, two in zip(stays + still, params + velocities, strict=True):
        np.testing.assert_array_equal(two, one)  # of zeros Keras has the other sign


def test_functions_of_the_step_go_on_where_the_steps_say():
    falling = fm.schedules.Linear(0.5, 0.0, steps=10)
    for make in (fm.Momentum.from_optax, fm.Momentum.from_keras):
        opt = make([np.ones(2)], [np.zeros(2)], lr=falling, momentum=0.5, steps=5)
        assert (opt.steps, opt.lr) == (5, 0.25)


@pytest.mark.parametrize(
    ("name", "change", "error", "reason"),
    [
        ("optax", {"lookahead": True}, ValueError, "lookahead: expected False.*nesterov=True"),
        ("keras", {"rule": "ema"}, TypeError, "rule: expected to come with what is moved; got 'ema'"),
        ("optax", {"rule": "ema"}, TypeError, "rule: expected to come with what is moved; got 'ema'"),
        ("optax", {"steps": -1}, ValueError, "steps: expected a whole number from 0"),
        ("optax", {"dampening": -1.0}, ValueError, "dampening"),
        (
            "keras",
            {"params": [np.zeros(2), np.zeros(2)]},
            ValueError,
            "velocities: expected a sequence of 2; got one of 1",
        ),
        ("optax", {"params": np.zeros(3)}, ValueError, r"trace\[0\]: expected shape \(3,\)"),
        ("keras", {"params": np.zeros(2, np.float32)}, TypeError, r"velocities\[0\]: expected .*float32"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, error, reason):
    given = {"params": np.zeros(2), "lr": 0.1, "momentum": 0.9} | change
    with pytest.raises(error, match=reason):
        getattr(fm.Momentum, f"from_{name}")(np.ones(2), **given)


def test_the_way_out_is_open_to_the_right_rules_alone():
    assert fm.Momentum(np.ones(2), lr=0.1, max_norm=1.0, weight_decay=0.5).to_optax().shape == (2,)
    for settings, name in (({"rule": "classical"}, "to_optax"), ({}, "to_keras"), ({"lookahead": True}, "to_optax")):
        with pytest.raises(ValueError, match=f"{name}: expected the rule"):
            getattr(fm.Momentum(np.ones(2), lr=0.1, **settings), name)()
    own = fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, v), name="pytorch")
    for rule in (own, fm.averaged("sgd", 0.9, name="pytorch")):  # another rule of the same name
        with pytest.raises(ValueError, match="to_optax: expected the rule pytorch or pytorch_nesterov; got 'pytorch'"):
            fm.Momentum(np.ones(2), lr=0.1, rule=rule).to_optax()
    with pytest.raises(ValueError, match="to_optax: expected dampening 0"):
        fm.Momentum(np.ones(2), lr=0.1, dampening=0.5).to_optax()


@pytest.mark.parametrize("velocities", [None, [None], {"a": np.ones(2)}])
@pytest.mark.parametrize(("name", "called"), [("optax", "trace"), ("keras", "velocities")])
def test_a_velocity_that_is_not_there_is_refused(name, called, velocities):
    with pytest.raises(TypeError, match=rf"{called}\[0\]: expected an array of float32 or float64; got (None|dict)"):
        getattr(fm.Momentum, f"from_{name}")(velocities, np.zeros(2), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "rule"])
def test_what_torchs_groups_say_is_not_said_twice(name, groups):
    saved = {"state": {}, "param_groups": [GROUP | {"params": [i]} for i in range(groups)]}
    with pytest.raises(TypeError, match=f"{name}: expected to come with what is moved; got 0.25 beside it"):
        fm.Momentum.from_torch(saved, [np.zeros(1) for _ in range(groups)], **{name: 0.25})


@pytest.mark.parametrize(("rule", "out"), [("pytorch", "to_optax"), ("classical", "to_keras")])
def test_a_step_that_signals_tore_apart_is_finished_before_its_velocities_leave(rule, out, monkeypatch):
    arrays = [np.zeros(3, np.float32), np.zeros(3)]
    grads = [np.ones_like(p) for p in arrays]
    opt = fm.Momentum(arrays, rule=rule, lr=1.0, momentum=0.5)
    opt.step(grads)
    calls = opt._engine._launch._updates
    second = calls.serial[1]

    def torn(grads):
        raise KeyboardInterrupt

    calls.serial[1] = torn
    monkeypatch.setattr(type(calls), "finish", lambda self: None)  # another signal, before it has done anything
    with pytest.raises(KeyboardInterrupt):
        opt.step(grads)
    monkeypatch.undo()
    calls.serial[1] = second
    sign = 1 if out == "to_optax" else -1
    assert [velocity[0] for velocity in getattr(opt, out)()] == [sign * 1.5] * 2
