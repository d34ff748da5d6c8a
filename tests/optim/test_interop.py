"""Agreement with torch, optax and Keras: runs side by side, runs moved there and back, and README's table."""

import copy
import os
import pickle
import re
import threading
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import fastmomentum as fm
from tests.helpers.arrays import arrays_of, gradients, gradients_of
from tests.helpers.ids import label, text_or_none
from tests.helpers.paths import README
from tests.helpers.reference import DTYPES, assert_same_bits

SHAPES = ((5,), (2, 3), (), (1,))
LEAVE, BACK, STEPS = 4, 8, 12
# Products of these with small integers are exact, so that no contraction to FMA rounds otherwise.
EXACT = {"lr": 0.25, "momentum": 0.5}
TORCH = [
    {**EXACT, "dampening": dampening, "weight_decay": decay, "nesterov": nesterov, "maximize": maximize}
    for dampening, decay, nesterov, maximize in product((0.0, 0.5), (0.0, 0.5), (False, True), (False, True))
    if not (nesterov and dampening)
]


def starting(dtype=np.float64):
    """Return small whole numbers for each shape."""
    return gradients_of(SHAPES, 1, dtype, seed=1, kind="whole")[0]


def whole_gradients(dtype=np.float64, late=False):
    """Return small whole numbers as gradients.

    If `late`, the second array gets its first gradient before the run is moved, and the third one after that.
    """

    def absent(step, i):
        return late and ((i == 1 and step < 2) or (i == 2 and step < BACK + 1))

    return gradients_of(SHAPES, STEPS, dtype, kind="whole", absent=absent)


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
    """Return (parameters, optimiser) of a run that stays in torch, and of one that is here from LEAVE to BACK."""
    stays = in_torch(arrays, groups, shared)
    torch_steps(*stays, all_grads)
    params, sgd = in_torch(arrays, groups, shared)
    torch_steps(params, sgd, all_grads[:LEAVE])
    opt = fm.Momentum.from_torch(sgd.state_dict(), [p.detach().numpy().copy() for p in params], steps=LEAVE)
    for grads in all_grads[LEAVE:BACK]:
        opt.step(grads)
    assert opt.steps == BACK
    params, sgd = in_torch(opt.params, groups, {"lr": 1.0})  # the settings have to come with the state
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
def test_torch_run_has_the_same_bits_when_moved_here_and_back(options, late):
    stays, moved = moved_and_back(whole_gradients(late=late), starting(), options)
    assert_same_run(stays, moved)
    assert moved[1].state_dict()["param_groups"] == stays[1].state_dict()["param_groups"]


def test_torch_groups_are_moved_here_and_back():
    groups = [{"lr": 0.125, "weight_decay": 0.5}, {"momentum": 0.25, "nesterov": True}]
    stays, moved = moved_and_back(whole_gradients(late=True), starting(), EXACT, groups)
    assert_same_run(stays, moved)
    assert moved[1].state_dict()["param_groups"] == stays[1].state_dict()["param_groups"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_moved_torch_run_differs_by_rounding_alone(nesterov, dtype):
    """Check that a moved run differs by rounding alone where torch contracts a product and a sum to FMA.

    One rounding less moves v by at most eps·V in a step, an error that lives for 1/(1 − μ) steps. It moves p by
    lr·eps·V/(1 − μ) in each of them, and p itself rounds by eps·P. Nesterov's form has one product more, and the
    decay of g another.
    """
    all_grads = gradients_of(SHAPES, STEPS, dtype)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": nesterov}
    stays, moved = moved_and_back(all_grads, arrays_of(SHAPES, dtype, seed=1), options)
    largest = max(float(stays[1].state[p]["momentum_buffer"].abs().max()) for p in stays[0])
    position = max(float(p.detach().abs().max()) for p in stays[0]) + largest
    limit = STEPS * np.finfo(dtype).eps * (3 * 0.1 * largest / (1 - 0.9) + 2 * position)
    for p, q in zip(stays[0], moved[0], strict=True):
        np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=0, atol=limit)
    assert limit < 1e-3 * position  # so that a lost velocity would show


def test_from_torch_leaves_the_first_step_undamped_when_there_is_no_buffer():
    group = {"lr": 0.25, "momentum": 0.5, "dampening": 0.5, "params": [3, 1, 4]}
    state = {3: {"momentum_buffer": torch.tensor([4.0])}, 1: {"momentum_buffer": None}}
    opt = fm.Momentum.from_torch({"state": state, "param_groups": [group]}, [np.zeros(1, np.float32) for _ in range(3)])
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0}
    opt.step([np.ones(1, np.float32), np.ones(1, np.float32), None])
    assert [v.item() for v in opt.velocity] == [2.5, 1.0, 0.0]  # ½·4 + ½·1 and 1
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0, 1}
    opt.velocity[2][...] = 8.0  # a velocity that the user wrote has to be moved, too
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0, 1, 2}
    opt.reset("the data changed")
    assert opt.to_torch(torch.from_numpy)["state"] == {}


def test_from_torch_damps_a_zero_buffer():
    saved = {
        "state": {0: {"momentum_buffer": np.zeros(1)}},
        "param_groups": [EXACT | {"dampening": 0.5, "params": [0]}],
    }
    opt = fm.Momentum.from_torch(saved, np.zeros(1))
    assert set(opt.to_torch(torch.from_numpy)["state"]) == {0}
    opt.step(np.ones(1))
    assert opt.velocity == 0.5


def test_from_torch_has_momentum_0_when_the_group_has_none():
    assert fm.Momentum.from_torch({"state": {}, "param_groups": [GROUP]}, np.ones(1)).momentum == 0.0


def test_from_and_to_other_frameworks_copy_arrays():
    buffer, p = np.ones(2), np.zeros(2)
    saved = {"state": {0: {"momentum_buffer": buffer}}, "param_groups": [EXACT | {"params": [0]}]}
    opt = fm.Momentum.from_torch(saved, p)
    assert opt.params is p
    back = opt.to_torch(np.asarray)["state"][0]["momentum_buffer"]
    for array in (buffer, back):
        assert not np.may_share_memory(array, opt.velocity)
    assert not np.may_share_memory(fm.Momentum.from_optax(buffer, p, **EXACT).to_optax(), buffer)


def test_from_torch_has_the_settings_that_a_scheduler_wrote():
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
        ({"state": {}, "param_groups": []}, np.ones(1), ValueError, "param_groups: expected at least one"),
        ({"state": {}, "param_groups": [GROUP | {"betas": (0.9, 0.9)}]}, np.ones(1), ValueError, "betas is not a"),
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
                r"momentum_buffer\[0\]: expected (an array of float32 or float64|float64, as the parameter has); got ",
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
    ids=text_or_none,
)
def test_from_torch_refuses_what_is_no_fitting_state_of_sgd(saved, params, error, reason):
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
        ({"rule": "classical"}, "expected the rule pytorch or pytorch_nesterov; got 'classical'.*opt.convert"),
        ({"lookahead": True}, "got 'pytorch_lookahead'.*opt.point"),
        ({"rule": "heavy_ball"}, "got 'heavy_ball'"),
    ],
    ids=label,
)
def test_to_torch_refuses_what_torch_does_not_have(settings, reason):
    with pytest.raises(ValueError, match=f"to_torch: .*{reason}"):
        fm.Momentum(np.ones(2), lr=0.1, **settings).to_torch(torch.from_numpy)


# What torch's schedulers and users keep in groups, and the names of parameters.

L = torch.optim.lr_scheduler
HALF = (L.ConstantLR, {"factor": 0.5, "total_iters": 3})
SCHEDULERS = {
    L.LambdaLR: {"lr_lambda": lambda step: 0.5**step},
    L.MultiplicativeLR: {"lr_lambda": lambda step: 0.5},
    L.StepLR: {"step_size": 3, "gamma": 0.5},
    L.MultiStepLR: {"milestones": [3, 5], "gamma": 0.5},
    L.ConstantLR: HALF[1],
    L.LinearLR: {"start_factor": 0.5, "total_iters": 6},
    L.ExponentialLR: {"gamma": 0.5},
    L.SequentialLR: {"schedulers": [HALF, (L.ExponentialLR, {"gamma": 0.5})], "milestones": [4]},
    L.PolynomialLR: {"total_iters": 7},
    L.CosineAnnealingLR: {"T_max": 6},
    L.ChainedScheduler: {"schedulers": [HALF, (L.ExponentialLR, {"gamma": 0.5})]},
    L.ReduceLROnPlateau: {"patience": 1, "factor": 0.5},
    L.CyclicLR: {"base_lr": 0.125, "max_lr": 0.5, "step_size_up": 3},
    L.CosineAnnealingWarmRestarts: {"T_0": 3},
    L.OneCycleLR: {"max_lr": 0.5, "total_steps": 20},
    torch.optim.swa_utils.SWALR: {"swa_lr": 0.0625, "anneal_epochs": 4},
}


def scheduler_of(kind, sgd, settings):
    settings = dict(settings)
    if "schedulers" in settings:
        settings["schedulers"] = [scheduler_of(each, sgd, own) for each, own in settings["schedulers"]]
    first = () if kind is L.ChainedScheduler else (sgd,)
    return kind(*first, **settings)


def test_all_schedulers_of_torch_are_tested():
    known = {kind for kind in vars(L).values() if isinstance(kind, type) and issubclass(kind, L.LRScheduler)}
    assert known - {L.LRScheduler, getattr(L, "_LRScheduler", None)} <= SCHEDULERS.keys()


@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_a_scheduler_of_torch_goes_on_after_a_run_was_moved_here_and_back(kind):
    """Move a run after each step; the settings and the parameters stay those of a run that is never moved."""
    found = []
    for moves in (False, True):
        params, sgd = in_torch(starting(), [{"lr": 0.125}, {"weight_decay": 0.5}], EXACT)
        scheduler = scheduler_of(kind, sgd, SCHEDULERS[kind])
        path = []
        for grads in whole_gradients()[:8]:
            torch_steps(params, sgd, [grads])
            scheduler.step(*[1.0] * (kind is L.ReduceLROnPlateau))
            if moves:
                opt = fm.Momentum.from_torch(sgd.state_dict(), params, backend="numpy")
                assert opt.lr == [group["lr"] for group in sgd.param_groups]
                sgd.load_state_dict(opt.to_torch(torch.from_numpy))
            path.append(sgd.state_dict()["param_groups"])
        found.append((path, [p.detach().numpy() for p in params]))
    (stays, there), (moved, back) = found
    assert moved == stays
    assert len({group["lr"] for groups in stays for group in groups}) > 2
    for one, two in zip(there, back, strict=True):
        assert_same_bits(two, one)


def test_a_scheduler_made_for_a_loaded_run_finds_what_it_wrote():
    params, sgd = in_torch(starting(), None, EXACT)
    scheduler = L.OneCycleLR(sgd, max_lr=0.5, total_steps=20)
    torch_steps(params, sgd, whole_gradients()[:2])
    scheduler.step()
    opt = fm.Momentum.from_torch(sgd.state_dict(), params)
    opt.step(whole_gradients()[2])
    params, sgd = in_torch(starting(), None, {"lr": 1.0})
    sgd.load_state_dict(opt.to_torch(torch.from_numpy))
    again = L.OneCycleLR(sgd, max_lr=0.5, total_steps=20, last_epoch=scheduler.last_epoch)
    torch_steps(params, sgd, whole_gradients()[3:4])
    again.step()
    assert sgd.param_groups[0]["initial_lr"] == 0.5 / 25


def test_unknown_entries_of_groups_are_kept_with_one_warning():
    own = [{"name": "body", "lr_scale": [0.5, {"depth": 2}]}, {"name": "head", "tags": torch.ones(2)}]
    params, sgd = in_torch(starting(), own, EXACT | {"foreach": True})
    before = sgd.state_dict()
    with pytest.warns(UserWarning, match="does not know: lr_scale, name, tags. They have no effect here") as caught:
        opt = fm.Momentum.from_torch(before, params)
    assert (len(caught), caught[0].filename) == (1, __file__)
    sgd.param_groups[0]["lr_scale"][0] = 8.0  # the optimiser has copies
    for made in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), opt.convert("ema").convert("pytorch")):
        made.lr = [0.5, 0.125]
        groups = made.to_torch(torch.from_numpy)["param_groups"]
        assert [group["lr"] for group in groups] == [0.5, 0.125]
        assert (groups[0]["name"], groups[0]["lr_scale"], groups[0]["foreach"]) == ("body", [0.5, {"depth": 2}], True)
        assert groups[1]["name"] == "head"
        assert torch.equal(groups[1]["tags"], torch.ones(2))
        groups[0]["lr_scale"].clear()
    opt.add_group({"params": [np.ones(2)], "lr": 0.25})
    assert "name" not in opt.to_torch(torch.from_numpy)["param_groups"][2]
    assert fm.Momentum([np.ones(2)], lr=0.25).to_torch(torch.from_numpy)["param_groups"][0].keys() == before[
        "param_groups"
    ][0].keys() - {"name", "lr_scale"}


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(torch.optim).values()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    ],
    ids=lambda kind: kind.__name__,
)
def test_from_torch_refuses_the_states_of_all_other_optimisers_of_torch(kind):
    state = kind([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1).state_dict()
    if kind is torch.optim.SGD:
        fm.Momentum.from_torch(state, [np.ones((2, 2), np.float32)])
        return
    with pytest.raises(ValueError, match=r"param_groups\[0\]: \w+ is not a setting of SGD"):
        fm.Momentum.from_torch(state, [np.ones((2, 2), np.float32)])


def named_run(groups):
    """Return named parameters in torch, their SGD after some steps, and the gradient of each by name."""
    names = ["a", "b", "c", "d"]
    params = {name: torch.nn.Parameter(torch.full((2,), float(i))) for i, name in enumerate(names)}
    pairs = [*params.items()]
    split = pairs if groups == 1 else [{"params": pairs[:1]}, {"params": pairs[1:], "lr": 0.125}]
    sgd = torch.optim.SGD(split, **EXACT)
    grads = {name: torch.full((2,), 2.0**i) for i, name in enumerate(names)}
    for name, p in params.items():
        p.grad = grads[name]
    sgd.step()
    return params, sgd, grads


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac"])
@pytest.mark.parametrize("groups", [1, 2])
def test_from_torch_matches_buffers_by_name(groups, order):
    params, sgd, grads = named_run(groups)
    before = sgd.state_dict()
    ours = {name: params[name].detach().numpy().copy() for name in order}
    opt = fm.Momentum.from_torch(before, ours)
    for name in order:
        assert_same_bits(opt.velocity[name], grads[name].numpy())
        assert opt.params[name] is ours[name]
    opt.step({name: grads[name].numpy() for name in order})
    sgd.step()
    for name in order:
        assert_same_bits(ours[name], params[name].detach().numpy())
    back = opt.to_torch(torch.from_numpy)
    assert back["param_groups"] == before["param_groups"]
    velocity = {name: sgd.state[p]["momentum_buffer"].clone() for name, p in params.items()}
    sgd.load_state_dict(back)
    assert all(torch.equal(sgd.state[p]["momentum_buffer"], velocity[name]) for name, p in params.items())


def test_to_torch_has_the_names_of_an_optimiser_that_was_never_in_torch():
    opt = fm.Momentum([{"params": {"w": np.ones(2)}}, {"params": {"b": np.ones(1), "c": np.ones(1)}}], lr=0.25)
    groups = opt.to_torch(torch.from_numpy)["param_groups"]
    assert [(group["params"], group["param_names"]) for group in groups] == [([0], ["w"]), ([1, 2], ["b", "c"])]


def test_from_torch_takes_parameters_as_a_model_gives_them():
    model = torch.nn.Linear(2, 3)
    sgd = torch.optim.SGD(model.named_parameters(), **EXACT)
    model(torch.ones(2)).sum().backward()
    sgd.step()
    for params in (model.parameters(), dict(model.named_parameters()), [*model.parameters()]):
        opt = fm.Momentum.from_torch(sgd.state_dict(), params)
        velocity = opt.velocity["bias"] if isinstance(params, dict) else opt.velocity[1]
        assert_same_bits(velocity, model.bias.grad.numpy())
        assert opt.to_torch(torch.from_numpy)["param_groups"] == sgd.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("change", "params", "error", "reason"),
    [
        ({}, ["a", "b"], ValueError, "got none of c, d"),
        ({}, ["a", "b", "c", "d", "e"], ValueError, "got also e"),
        ({"param_names": None}, ["a", "b", "c", "d"], TypeError, "expected a sequence of 4 .*got a dict"),
        ({"param_names": ["a", "b"]}, ["a", "b", "c", "d"], ValueError, "param_names to be a list of 4 names"),
        ({"param_names": ["a", "b", "c", 4]}, ["a", "b", "c", "d"], ValueError, "param_names to be a list of 4 names"),
        ({"param_names": "abcd"}, ["a", "b", "c", "d"], ValueError, "param_names to be a list of 4 names; got 'abcd'"),
        ({"param_names": ["a", "b", "c", "c"]}, ["a", "b", "c"], ValueError, "a name of its own for each parameter"),
    ],
    ids=text_or_none,
)
def test_from_torch_refuses_names_that_do_not_fit(change, params, error, reason):
    saved = named_run(1)[1].state_dict()
    (group,) = saved["param_groups"]
    group.update(change)
    if group["param_names"] is None:
        del group["param_names"]
    with pytest.raises(error, match=reason):
        fm.Momentum.from_torch(saved, {name: np.zeros(2, np.float32) for name in params})
    torn = named_run(2)[1].state_dict()
    del torn["param_groups"][1]["param_names"]
    with pytest.raises(ValueError, match="param_names: expected in every group, or in none"):
        fm.Momentum.from_torch(torn, [np.zeros(2, np.float32) for _ in range(4)])


@pytest.mark.parametrize("tree", [False, True], ids=["array", "tree"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_optax_run_has_the_same_bits_when_moved_here_and_back(nesterov, tree):
    arrays, all_grads = starting(np.float32), whole_gradients(np.float32)
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
    """Update as keras.io/api/optimizers/sgd says: velocity = momentum·velocity − lr·g, then w = w + velocity.

    With nesterov=True w = w + momentum·velocity − lr·g.
    """
    for grads in all_grads:
        for p, m, g in zip(params, velocities, grads, strict=True):
            m[...] = momentum * m - lr * g
            p[...] += momentum * m - lr * g if nesterov else m


@pytest.mark.parametrize("nesterov", [False, True])
def test_keras_run_has_the_same_bits_when_moved_here_and_back(nesterov):
    all_grads = whole_gradients()
    settings = EXACT | {"nesterov": nesterov}
    stays, still = starting(), [np.zeros(shape) for shape in SHAPES]
    keras(stays, still, all_grads, **settings)
    params, velocities = starting(), [np.zeros(shape) for shape in SHAPES]
    keras(params, velocities, all_grads[:LEAVE], **settings)
    opt = fm.Momentum.from_keras(velocities, params, **settings, steps=LEAVE)
    for grads in all_grads[LEAVE:BACK]:
        opt.step(grads)
    assert opt.steps == BACK
    velocities = opt.to_keras()
    keras(params, velocities, all_grads[BACK:], **settings)
    for one, two in zip(stays + still, params + velocities, strict=True):
        np.testing.assert_array_equal(two, one)  # the sign of zeros differs in Keras


def test_from_optax_and_from_keras_continue_schedules_at_their_step():
    falling = fm.schedules.Linear(0.5, 0.0, steps=10)
    for make in (fm.Momentum.from_optax, fm.Momentum.from_keras):
        opt = make([np.ones(2)], [np.zeros(2)], lr=falling, momentum=0.5, steps=5)
        assert (opt.steps, opt.lr) == (5, 0.25)


@pytest.mark.parametrize(
    ("name", "change", "error", "reason"),
    [
        ("optax", {"lookahead": True}, ValueError, "lookahead: expected False.*nesterov=True"),
        ("keras", {"rule": "ema"}, TypeError, "rule: expected none, as the run has its own; got 'ema'"),
        ("optax", {"rule": "ema"}, TypeError, "rule: expected none, as the run has its own; got 'ema'"),
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
def test_from_optax_and_from_keras_refuse_what_does_not_fit(name, change, error, reason):
    given = {"params": np.zeros(2), "lr": 0.1, "momentum": 0.9} | change
    with pytest.raises(error, match=reason):
        getattr(fm.Momentum, f"from_{name}")(np.ones(2), **given)


def test_to_optax_and_to_keras_refuse_other_rules():
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
def test_from_optax_and_from_keras_refuse_a_missing_velocity(name, called, velocities):
    with pytest.raises(TypeError, match=rf"{called}\[0\]: expected an array of float32 or float64; got (None|dict)"):
        getattr(fm.Momentum, f"from_{name}")(velocities, np.zeros(2), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "rule"])
def test_from_torch_refuses_settings_that_the_groups_have(name, groups):
    saved = {"state": {}, "param_groups": [GROUP | {"params": [i]} for i in range(groups)]}
    with pytest.raises(TypeError, match=f"{name}: expected none, as the run has its own; got 0.25"):
        fm.Momentum.from_torch(saved, [np.zeros(1) for _ in range(groups)], **{name: 0.25})


# Agreement with torch.optim.SGD, in its for-loop implementation.

TORCH_SHAPES = ((1,), (7,), (3, 5), (2, 3, 4), (257,))
GRID = [
    dict(zip(("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"), values, strict=True))
    for values in product((0.1, 1e-3), (0.0, 0.5, 0.9), (0.0, 0.3, 1.0), (0.0, 0.05), (False, True), (False, True))
    if not (values[4] and (values[2] or not values[1]))  # torch refuses Nesterov with dampening or without momentum
]
# torch contracts products and sums to FMA, so that one operation in three is rounded once less; over 25 steps of a
# stable update the difference stays below this many units in the last place of the largest number met.
UNITS = 50


def run_beside_torch(options, dtype, absent=lambda step, i: False, groups=None):
    ours = arrays_of(TORCH_SHAPES, dtype, seed=1)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in ours]

    def grouped(params):
        cut = [params[:2], params[2:]]
        return params if groups is None else [{"params": p, **g} for p, g in zip(cut, groups, strict=True)]

    opt = fm.Momentum(grouped(ours), **options)
    sgd = torch.optim.SGD(grouped(theirs), foreach=False, fused=False, **options)
    for grads in gradients_of(TORCH_SHAPES, 25, dtype, absent=absent):
        for p, g in zip(theirs, grads, strict=True):
            p.grad = None if g is None else torch.from_numpy(g.copy())
        opt.step(grads)
        sgd.step()
    buffers = [sgd.state[p].get("momentum_buffer") for p in theirs]
    return ours, opt.velocity, [p.detach().numpy() for p in theirs], buffers


def assert_agree(found, expected):
    scale = max(abs(expected).max(), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=UNITS * np.finfo(found.dtype).eps * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", GRID, ids=lambda o: "-".join(map(str, o.values())))
def test_momentum_agrees_with_torch(options, dtype):
    ours, velocities, theirs, buffers = run_beside_torch(options, dtype)
    for p, v, q, buffer in zip(ours, velocities, theirs, buffers, strict=True):
        assert_agree(p, q)
        if options["momentum"]:  # without momentum torch keeps no buffer
            assert_agree(v, buffer.numpy())


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_arrays_without_gradient_are_left_alone_and_start_late_as_in_torch(dampening):
    options = {"lr": 0.1, "momentum": 0.9, "dampening": dampening, "weight_decay": 0.05}
    ours, _, theirs, _ = run_beside_torch(
        options, np.float64, absent=lambda step, i: step < 2 * i or (step + i) % 5 == 4
    )
    for p, q in zip(ours, theirs, strict=True):
        assert_agree(p, q)


def test_groups_agree_with_torch():
    groups = [{"lr": 0.01, "weight_decay": 0.1}, {"momentum": 0.5, "nesterov": True}]
    ours, _, theirs, _ = run_beside_torch({"lr": 0.1, "momentum": 0.9}, np.float64, groups=groups)
    for p, q in zip(ours, theirs, strict=True):
        assert_agree(p, q)


def test_first_velocity_is_the_gradient_when_a_parameter_is_unfrozen_late():
    p = [np.zeros(3), np.zeros(3)]
    opt = fm.Momentum(p, lr=1.0, momentum=0.5, dampening=0.5)
    g = np.ones(3)
    opt.step([g, None])
    opt.step([g, None])
    assert not p[1].any()
    assert not opt.velocity[1].any()
    opt.step([g, g])  # its first velocity is g, undamped, while the other's is 0.5·(0.5 + 0.5) + 0.5
    np.testing.assert_array_equal(opt.velocity[1], g)
    np.testing.assert_array_equal(opt.velocity[0], g)
    opt.step([2 * g, 2 * g])
    np.testing.assert_array_equal(opt.velocity[1], 0.5 * g + 0.5 * 2 * g)


# README's table of frameworks: each row before and after, with the numbers compared.

README_ROWS = re.findall(
    r"^\| `([^`]*)`.* \| (.*) \| (.*) \|$", README.split("## Coming")[1].split("## Choosing")[0], re.MULTILINE
)
MIGRATED, LR, MU = 30, 0.1, 0.9
# The bound for |p| ≤ 4 after 30 steps: each operation rounds by half an ulp, of which a contraction saves some, and
# momentum carries an error on for at most 1/(1 − μ) steps.
MIGRATED_BOUND = 4 * 30 * 10 * 2.0**-24


def migrated(**settings):
    p = np.linspace(-1, 1, 20, dtype=np.float32)
    opt = fm.Momentum(p, lr=LR, momentum=MU, **settings)
    for grad in gradients(20, MIGRATED, np.float32):
        opt.step(grad)
    return p, opt


@pytest.mark.parametrize(
    ("code", "rule"),
    [(code, after) for code, after, change in README_ROWS if change.startswith("nothing")],
    ids=lambda text: text,
)
def test_readme_lines_of_numpy_have_the_same_bits(code, rule):
    named = {"p": np.linspace(-1, 1, 20, dtype=np.float32), "v": np.zeros(20, np.float32), "lr": LR, "mu": MU}
    for grad in gradients(20, MIGRATED, np.float32):
        named["g"] = grad
        exec(code, named)
    found = re.search(r'rule="(\w+)"', rule)
    p, opt = migrated(rule=found.group(1) if found else "pytorch")
    assert_same_bits(p, named["p"])
    assert_same_bits(opt.velocity, -named["v"] if "p + v" in code else named["v"])


def test_readme_table_of_frameworks_has_all_rows():
    changes = [change.startswith("nothing") for _, _, change in README_ROWS]
    assert changes == [True, True, True, False, False, False]
    assert [code.split("(")[0] for code, _, _ in README_ROWS[3:]] == [
        "torch.optim.SGD",
        "optax.sgd",
        "keras.optimizers.SGD",
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"dampening": 0.5}, {"nesterov": True}, {"weight_decay": 0.1}, {"maximize": True}],
    ids=lambda settings: "".join(settings),
)
def test_readme_line_of_torch_agrees(settings):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 20))
    p, _ = migrated(**settings)
    sgd = torch.optim.SGD([weight], LR, MU, **settings)
    for grad in gradients(20, MIGRATED, np.float32):
        weight.grad = torch.from_numpy(grad)
        sgd.step()
    np.testing.assert_allclose(p, weight.detach().numpy(), rtol=0, atol=MIGRATED_BOUND)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("before", [{}, {"clip_value": 0.5}, {"weight_decay": 0.1}], ids=lambda before: "".join(before))
def test_readme_line_of_optax_agrees(nesterov, before):
    optax = pytest.importorskip("optax")
    stages = {"clip_value": optax.clip, "weight_decay": optax.add_decayed_weights}
    there = optax.chain(*(stages[name](value) for name, value in before.items()), optax.sgd(LR, MU, nesterov))
    theirs = np.linspace(-1, 1, 20, dtype=np.float32)
    state = there.init(theirs)
    for grad in gradients(20, MIGRATED, np.float32):
        updates, state = there.update(grad, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    p, _ = migrated(nesterov=nesterov, **before)
    np.testing.assert_allclose(p, theirs, rtol=0, atol=MIGRATED_BOUND)


@pytest.mark.filterwarnings("ignore")  # warnings of Keras while it is imported
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
def test_readme_line_of_keras_agrees(theirs, settings, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    weight = keras.Variable(np.linspace(-1, 1, 20, dtype=np.float32))
    sgd = keras.optimizers.SGD(LR, MU, **theirs)
    for grad in gradients(20, MIGRATED, np.float32):
        sgd.apply([keras.ops.convert_to_tensor(grad)], [weight])
    p, opt = migrated(rule="classical", **settings)
    bound = (
        MIGRATED_BOUND * 30 if "max_norm" in settings else MIGRATED_BOUND
    )  # there the factor has 1e-6 beside the norm, as torch has it
    np.testing.assert_allclose(p, weight.numpy(), rtol=0, atol=bound)
    np.testing.assert_allclose(opt.velocity, -sgd.momentums[0].numpy(), rtol=0, atol=bound)


def test_saved_files_keep_what_torch_holds_in_groups(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    sgd = torch.optim.SGD([{"params": [weight], "name": "head", "scales": (1, 2.5), "object": object()}], lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=1.0, total_steps=10)
    with pytest.warns(UserWarning, match="name, object, scales"):
        opt = fm.Momentum.from_torch(sgd.state_dict(), [weight])
    with pytest.warns(
        UserWarning, match="path: the file lacks .* cannot hold: object. opt.state_dict.. has them"
    ) as caught:
        opt.save(tmp_path / "run.npz")
    assert (len(caught), caught[0].filename) == (1, __file__)
    (group,) = fm.Momentum.load(tmp_path / "run.npz", [weight]).to_torch(torch.from_numpy)["param_groups"]
    (before,) = opt.to_torch(torch.from_numpy)["param_groups"]
    assert before.pop("object")
    assert group == before | {"scales": [1, 2.5]}
    assert {"name": "head", "initial_lr": 0.04, "max_lr": 1.0}.items() <= group.items()


def test_entries_of_torch_s_groups_that_cannot_be_copied_are_kept_and_tensors_are_saved_as_numbers(tmp_path):
    weight, lock = torch.nn.Parameter(torch.ones(3)), threading.Lock()
    sgd = torch.optim.SGD([{"params": [weight], "lock": lock}], lr=torch.tensor(0.25))
    torch.optim.lr_scheduler.LambdaLR(sgd, lambda t: 0.5)
    with pytest.warns(UserWarning, match="lock"):
        opt = fm.Momentum.from_torch(sgd.state_dict(), [weight])
    assert opt.to_torch(torch.from_numpy)["param_groups"][0]["lock"] is lock
    with pytest.warns(UserWarning, match="the file lacks .* cannot hold: lock. "):
        opt.save(tmp_path / "run.npz")
    found = fm.Momentum.load(tmp_path / "run.npz", [weight])
    sgd.load_state_dict(found.to_torch(torch.from_numpy))
    torch.optim.lr_scheduler.LambdaLR(sgd, lambda t: 0.5, last_epoch=1)
    assert sgd.param_groups[0]["initial_lr"] == 0.25


class Tag:
    """An entry of a group that JSON cannot hold, and that is compared by its name."""

    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return self.name == other.name

    __hash__ = None


def test_state_dict_keeps_all_entries_of_torch_s_groups_in_memory(tmp_path):
    own = {
        "name": "head",
        "tag": Tag("a"),
        7: "a number",
        "depths": {"layer": [1, 2]},
        "widths": {3: 4},
        "scale": 1 + 2j,
    }
    saved = {"state": {}, "param_groups": [GROUP | own]}
    with pytest.warns(UserWarning, match="does not know"):
        opt = fm.Momentum.from_torch(saved, np.ones(1), backend="numpy")
    other = fm.Momentum(np.ones(1), lr=0.5, backend="numpy")
    found = opt.state_dict()
    for each in (opt, other):
        each.load_state_dict(found)
        (group,) = each.to_torch(np.asarray)["param_groups"]
        assert own.items() <= group.items()
    found["torch_groups"][0]["depths"].clear()  # neither optimiser has the dict itself
    saved["param_groups"][0]["depths"].clear()
    for each in (opt, other, opt.convert("ema").convert("pytorch")):
        assert each.to_torch(np.asarray)["param_groups"][0]["depths"] == {"layer": [1, 2]}
    with pytest.warns(UserWarning, match="the file lacks .* cannot hold: 7, scale, tag, widths. "):
        opt.save(tmp_path / "run.npz")
    assert opt.to_torch(np.asarray)["param_groups"][0]["tag"] == Tag("a")
    (group,) = fm.Momentum.load(tmp_path / "run.npz", np.ones(1)).to_torch(np.asarray)["param_groups"]
    assert (group["name"], group["depths"]) == ("head", {"layer": [1, 2]})
    assert not {"tag", 7, "widths", "scale"} & group.keys()
