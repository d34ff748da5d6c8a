"""Settings that load takes in place of the saved ones, and the warning about parameters in another order."""

import numpy as np
import pytest
import torch

import fastmomentum as fm
from tests.helpers.functions import annealed, falling
from tests.helpers.reference import assert_same_bits


def rate(step):
    """Return 0.3, as a function of the step that is not saved."""
    return 0.3


SCHEDULE = fm.schedules.Constant(0.5)
SAVED = {"number": 0.1, "schedule": fm.schedules.Exponential(0.2, 0.5), "function": falling}
PASSED = {"number": 0.25, "schedule": SCHEDULE, "function": rate, "array": np.array(0.75)}
NOW = {"number": 0.25, "schedule": 0.5, "function": 0.3, "array": 0.75}


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "clip_norm", "max_norm", "dampening"])
@pytest.mark.parametrize("passed", PASSED)
@pytest.mark.parametrize("saved", SAVED)
def test_load_replaces_a_saved_setting_by_a_passed_one(saved, passed, name, tmp_path):
    opt = fm.Momentum(np.ones(2), **({"lr": 0.1} | {name: SAVED[saved]}), backend="numpy")
    opt.step(np.ones(2))
    opt.save(tmp_path / "run.npz")
    found = fm.Momentum.load(tmp_path / "run.npz", np.ones(2), backend="numpy", **{name: PASSED[passed]})
    assert getattr(found, name) == NOW[passed]
    assert_same_bits(found.velocity, opt.velocity)
    assert found.steps == 1
    found.step(np.ones(2))
    assert getattr(found, name) == NOW[passed]


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
@pytest.mark.parametrize("passed", PASSED)
@pytest.mark.parametrize("saved", SAVED)
def test_rows_load_replaces_a_saved_setting_by_a_passed_one(saved, passed, name, tmp_path):
    opt = fm.SparseRows(np.ones((2, 1)), **({"lr": 0.1} | {name: SAVED[saved]}), backend="numpy")
    opt.step([0], np.ones((1, 1)))
    opt.save(tmp_path / "rows.npz")
    table = opt.param.copy()
    found = fm.SparseRows.load(tmp_path / "rows.npz", table, backend="numpy", **{name: PASSED[passed]})
    assert getattr(found, name) == NOW[passed]
    assert_same_bits(found.state[0], opt.state[0])


OPTIONS = {"max_norm": 1.0, "clip_norm": 1.0, "clip_value": 1.0, "restart": 5, "mask": np.array([True, False])}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", [*OPTIONS, "lr_scale", "function"])
def test_load_with_none_turns_an_option_off(name, groups, tmp_path):
    options = OPTIONS | {"lr_scale": np.array([0.5, 1.0]), "function": lambda t: 1.0}
    option = "clip_value" if name == "function" else name
    own = {option: options[name]} if option in ("mask", "lr_scale") else {}
    params = [np.ones(2) for _ in range(groups)]
    shared = {} if own else {option: options[name]}
    opt = fm.Momentum([{"params": p, **own} for p in params], lr=0.5, backend="numpy", **shared)
    opt.save(tmp_path / "run.npz")
    found = fm.Momentum.load(tmp_path / "run.npz", params, backend="numpy", **{option: None})
    off = getattr(found, option)
    assert off == [None] * groups if isinstance(off, list) else off is None
    found.step([np.full(2, 3.0)] * groups)
    assert params[0].tolist() == [-0.5, -0.5]


def test_load_with_one_value_for_several_groups_replaces_that_of_each(tmp_path):
    path, params = tmp_path / "run.npz", [np.ones(2), np.ones(3), np.ones(1)]
    own = ({"lr": 0.1}, {"lr": fm.schedules.Exponential(0.2, 0.5)}, {"lr": falling})
    fm.Momentum([{"params": p, **each} for p, each in zip(params, own, strict=True)], lr=1.0).save(path)

    def lr_after_load(lr):
        return fm.Momentum.load(path, params, lr=lr).lr

    assert lr_after_load(SCHEDULE) == [0.5, 0.5, 0.5]
    assert lr_after_load(0.25) == [0.25, 0.25, 0.25]
    assert lr_after_load(falling) == [0.1, 0.2, 0.1]  # the function that could not be saved
    for three in ([0.25, None, rate], (0.25, None, rate)):
        assert lr_after_load(three) == [0.25, 0.2, 0.3]
    assert lr_after_load([rate, rate, rate]) == [0.3, 0.3, 0.3]
    assert lr_after_load(np.array([0.25, 0.5, 0.75])) == [0.25, 0.5, 0.75]
    for wrong in (np.array([0.25, 0.5]), np.ones((3, 1)), [0.25, 0.5, None], None, [SCHEDULE] * 4):
        with pytest.raises((TypeError, ValueError), match="lr: expected"):
            lr_after_load(wrong)
    saved_numbers = fm.Momentum([{"params": p} for p in params], lr=0.5)
    saved_numbers.save(path)
    assert lr_after_load(rate) == [0.3, 0.3, 0.3]


def test_an_array_of_numbers_is_assigned_like_a_list():
    opt = fm.Momentum([{"params": np.ones(2)}, {"params": np.ones(3)}], lr=0.1, backend="numpy")
    opt.lr = np.array([0.25, 0.5])
    assert opt.lr == [0.25, 0.5]
    for wrong in (np.ones(3), np.ones((2, 1))):
        with pytest.raises((TypeError, ValueError), match="lr: expected"):
            opt.lr = wrong
    assert opt.lr == [0.25, 0.5]


@pytest.mark.parametrize("lr", [SCHEDULE, rate, 0.5])
def test_load_with_another_lr_rescales_state_as_an_assignment_does(lr, tmp_path):
    path, p = tmp_path / "run.npz", np.ones(2)
    opt = fm.Momentum(p, rule="classical", lr=fm.schedules.Constant(0.25), correct=True, backend="numpy")
    opt.step(np.ones(2))
    opt.save(path)
    found = fm.Momentum.load(path, p, lr=lr, backend="numpy")
    np.testing.assert_allclose(found.velocity, 0.25 * found.lr / 0.25, rtol=1e-15)  # the gradient times the new lr


def test_load_with_the_function_that_was_not_saved_does_not_call_it_for_the_past(tmp_path):
    rates = [0.5, 0.25]
    opt = fm.Momentum(np.ones(2), lr=rates.__getitem__, momentum=annealed, backend="numpy")
    for _ in rates:
        opt.step(np.ones(2))
    opt.save(tmp_path / "run.npz")
    found = fm.Momentum.load(tmp_path / "run.npz", np.ones(2), lr=rates.__getitem__, momentum=annealed)
    assert (found.lr, found.momentum) == (0.25, annealed(2))  # the table has no further entry


MOVED = "params: the arrays 0, 1 hold the values that other arrays had"


@pytest.mark.parametrize(("old", "new"), [(np.float64, np.float32), (np.float32, np.float64), (complex, np.complex64)])
def test_load_warns_of_another_order_in_another_precision(old, new, tmp_path, recwarn):
    path, arrays = tmp_path / "run.npz", [np.full(3, 1 / 3, old), np.full(3, 2 / 3, old)]
    fm.Momentum(arrays, lr=0.1, backend="numpy").save(path)
    first, second = [p.astype(new) for p in arrays]
    fm.Momentum.load(path, [first, second], cast=True)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=MOVED):
        fm.Momentum.load(path, [second, first], cast=True)


def test_save_reads_the_parameters_where_they_are_now(tmp_path, recwarn):
    path = tmp_path / "run.npz"
    w, b = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    opt = fm.Momentum([w, b], lr=0.1, backend="numpy")
    opt.step([torch.zeros(3), torch.zeros(3)])
    w.data, b.data = torch.ones(3), torch.full((3,), 2.0)
    opt.save(path)
    fm.Momentum.load(path, [w, b])
    assert not recwarn.list
    with pytest.warns(UserWarning, match=MOVED):
        fm.Momentum.load(path, [b, w])
    w.data = torch.ones(3, dtype=torch.float16)  # the state is saved even if a parameter cannot be read
    opt.save(path)
    assert_same_bits(fm.Momentum.load(path, [b, b.detach().clone()]).velocity[0], opt.velocity[0])


def test_warning_of_another_order_gives_advice_that_helps(tmp_path, recwarn):
    path, w, b = tmp_path / "run.npz", np.ones(3), np.full(3, 2.0)
    opt = fm.Momentum({"w": w, "b": b}, lr=0.1, backend="numpy")
    opt.step({"w": np.ones(3)})
    opt.save(path)
    with pytest.warns(UserWarning, match=r"params=\{'w': ..., 'b': ...\}, as they had when the run was saved"):
        fm.Momentum.load(path, [b, w])
    assert_same_bits(fm.Momentum.load(path, {"b": b, "w": w}).velocity["w"], opt.velocity["w"])
    assert not recwarn.list
    fm.Momentum([w, b], lr=0.1, backend="numpy").save(path)
    with pytest.warns(UserWarning, match=r"params=\{'weight': ..., 'bias': ...\}, before you save"):
        fm.Momentum.load(path, {"b": b, "w": w})
