"""Masks and scales of lr are settings of groups: they are given, read, assigned and refused as such."""

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.optim.elements import check_elements
from fastmomentum.rules.elementwise import GIVEN
from tests.helpers.reference import assert_all_same_bits

MASK = np.array([True, False, True])


def stepped(opt, count=1):
    """Do steps with gradients of ones, and return lists of all parameters."""
    params = [*opt.params.values()] if isinstance(opt.params, dict) else opt.params
    for _ in range(count):
        opt.step([np.ones_like(param) for param in params])
    return [param.tolist() for param in params]


def test_groups_take_a_mask_for_each_array():
    w, b, c = np.zeros(3), np.zeros(2), np.zeros(2)
    groups = [{"params": [w, b], "mask": [MASK, None]}, {"params": c, "lr_scale": np.array([0.0, 2.0])}]
    opt = fm.Momentum(groups, lr=0.5, momentum=0.0)
    assert stepped(opt) == [[-0.5, 0.0, -0.5], [-0.5, -0.5], [0.0, -1.0]]
    assert opt.groups[0]["mask"][0].tolist() == MASK.tolist()
    assert opt.groups[0]["mask"][1] is opt.groups[1]["mask"] is None
    assert opt.groups[1]["lr_scale"].tolist() == [0.0, 2.0]


def test_groups_take_masks_by_name():
    w, b = np.zeros(3), np.zeros(2)
    opt = fm.Momentum([{"params": {"w": w, "b": b}, "mask": {"w": MASK}}], lr=0.5, momentum=0.0)
    assert stepped(opt) == [[-0.5, 0.0, -0.5], [-0.5, -0.5]]


@pytest.mark.parametrize("params", [[np.zeros(3), np.zeros(2)], {"w": np.zeros(3), "b": np.zeros(2)}])
def test_constructor_takes_masks_like_the_parameters(params):
    masks = {"w": MASK, "b": None} if isinstance(params, dict) else [MASK, None]
    opt = fm.Momentum(params, lr=0.5, momentum=0.0, mask=masks)
    assert stepped(opt) == [[-0.5, 0.0, -0.5], [-0.5, -0.5]]


def test_arrays_without_a_mask_keep_their_kernel_and_rule():
    plain = fm.Momentum([np.zeros(3), np.zeros(2)], lr=0.5)
    masked = fm.Momentum([np.zeros(3), np.zeros(2)], lr=0.5, mask=[MASK, None])
    jobs, plain_jobs = masked._engine._executor._jobs, plain._engine._executor._jobs
    assert jobs[1].update is plain_jobs[1].update
    assert jobs[1].update.structure != jobs[0].update.structure
    assert masked.state_dict()["made_of"] == plain.state_dict()["made_of"]
    assert masked._engine.update.given == ()


def test_mask_can_be_assigned_from_and_to_none():
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=0.5, momentum=0.0)
    opt.step(np.ones(3))
    opt.groups[0]["mask"] = MASK
    opt.step(np.ones(3))
    assert p.tolist() == [-1.0, -0.5, -1.0]
    opt.mask = ~MASK
    opt.step(np.ones(3))
    assert p.tolist() == [-1.0, -1.0, -1.0]
    opt.lr_scale = np.array([0.0, 1.0, 4.0])
    opt.mask = None
    opt.step(np.ones(3))
    assert p.tolist() == [-1.0, -1.5, -3.0]
    opt.lr_scale = None
    opt.step(np.ones(3))
    assert p.tolist() == [-1.5, -2.0, -3.5]
    assert opt.mask is opt.lr_scale is None
    assert "mask" not in dict(opt.groups[0])


def test_masks_of_several_groups_are_assigned_as_a_list():
    opt = fm.Momentum([{"params": np.zeros(3)}, {"params": [np.zeros(2), np.zeros(1)]}], lr=0.5, momentum=0.0)
    opt.mask = [MASK, [None, np.array([False])]]
    assert stepped(opt) == [[-0.5, 0.0, -0.5], [-0.5, -0.5], [0.0]]
    with pytest.raises(ValueError, match=r"mask\[1\]: expected shape"):
        opt.mask = [None, [np.array([False, False]), np.array([False, True])]]
    assert stepped(opt) == [[-1.0, 0.0, -1.0], [-1.0, -1.0], [0.0]]


def test_settings_that_change_leave_the_mask():
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=lambda step: 0.5 / (step + 1), momentum=0.0, mask=MASK, lr_scale=np.ones(3))
    for _ in range(3):
        opt.step(np.ones(3))
    opt.weight_decay = 1.0
    opt.momentum = 0.5
    opt.lr = 0.5
    opt.step(np.full(3, np.nan))
    assert p[1] == opt.velocity[1] == 0.0
    assert np.isnan(p[[0, 2]]).all()


def test_lr_correction_keeps_the_state_of_frozen_elements():
    opt = fm.Momentum(np.zeros(3), lr=0.5, momentum=0.5, rule="classical", correct=True)
    opt.step(np.ones(3))
    opt.mask = MASK
    opt.lr = 1.0
    assert opt.velocity.tolist() == [1.0, 0.5, 1.0]


def test_convert_keeps_the_mask():
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=0.5, momentum=0.5, mask=MASK).convert("classical")
    opt.step(np.ones(3))
    assert p.tolist() == [-0.5, 0.0, -0.5]


def test_conversions_refuse_what_they_cannot_keep():
    opt = fm.Momentum(np.zeros(3), lr=0.5, mask=MASK)
    with pytest.raises(ValueError, match="to_torch: expected no option that torch.optim.SGD does not have; got mask"):
        opt.to_torch(np.asarray)
    opt.lr_scale = np.ones(3)
    with pytest.raises(ValueError, match="lr_scale: expected None"):
        opt.convert("classical")


BAD = {
    "shape": ({"mask": np.ones(2, bool)}, ValueError, r"mask: expected shape \(3,\).*got \(2,\)"),
    "axis": ({"mask": np.ones((3, 1), bool)}, ValueError, r"mask: expected shape \(3,\)"),
    "floats": ({"mask": np.ones(3)}, TypeError, "mask: expected an array of booleans.*float64"),
    "integers": ({"mask": np.ones(3, np.int64)}, TypeError, "mask: expected an array of booleans"),
    "masked": ({"mask": np.ma.masked_array(MASK, ~MASK)}, TypeError, "mask: expected an array of booleans"),
    "list": ({"mask": [MASK, MASK]}, ValueError, "mask: expected a sequence of 1"),
    "bool": ({"mask": True}, TypeError, "mask: expected a sequence of 1"),
    "dict": ({"mask": {"w": MASK}}, TypeError, "mask: expected a sequence of 1.*no names"),
    "function": ({"mask": lambda step: MASK}, TypeError, "mask: expected a sequence"),
    "scale shape": ({"lr_scale": np.ones(4)}, ValueError, r"lr_scale: expected shape \(3,\)"),
    "scale number": ({"lr_scale": np.float64(2.0)}, ValueError, r"lr_scale: expected shape \(3,\)"),
    "negative": ({"lr_scale": np.array([1.0, -1.0, 1.0])}, ValueError, "lr_scale: expected a finite number >= 0"),
    "nan": ({"lr_scale": np.array([1.0, np.nan, 1.0])}, ValueError, "lr_scale: expected a finite number >= 0"),
    "infinite": ({"lr_scale": np.array([1.0, np.inf, 1.0])}, ValueError, "lr_scale: expected a finite number >= 0"),
    "too large": ({"lr_scale": np.full(3, 1e300)}, ValueError, "lr_scale: expected numbers that float32 can hold"),
    "too small": ({"lr_scale": np.full(3, 1e-300)}, ValueError, "lr_scale: expected numbers that float32 can hold"),
    "scale of bools": ({"lr_scale": MASK}, TypeError, "lr_scale: expected an array of numbers"),
    "complex": ({"lr_scale": np.ones(3, complex)}, TypeError, "lr_scale: expected an array of numbers"),
}


@pytest.mark.parametrize("given", BAD)
@pytest.mark.parametrize("assigned", [False, True])
def test_bad_masks_and_scales_are_refused_at_once(given, assigned):
    bad, error, message = BAD[given]
    p = np.ones(3, np.float32)
    if not assigned:
        with pytest.raises(error, match=message):
            fm.Momentum(p, lr=0.5, **bad)
        return
    opt = fm.Momentum(p, lr=0.5, momentum=0.0, mask=MASK, lr_scale=np.full(3, 2.0))
    ((name, value),) = bad.items()
    with pytest.raises(error, match=message):
        opt.groups[0][name] = value
    opt.step(np.ones(3, np.float32))
    assert p.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("params", "given", "message"),
    [
        ([np.ones(3), np.ones(2)], {"mask": MASK}, "mask: expected a sequence of 2"),
        ([np.ones(3), np.ones(2)], {"mask": [MASK]}, "mask: expected a sequence of 2; got one of 1"),
        ([np.ones(3), np.ones(2)], {"mask": [MASK, MASK]}, r"mask\[1\]: expected shape \(2,\)"),
        ({"w": np.ones(3)}, {"mask": {"v": MASK}}, "mask: expected names of the group's parameters, w; got 'v'"),
        ([{"params": np.ones(3)}], {"mask": MASK}, "mask: expected in the groups"),
        ([{"params": np.ones(2), "mask": MASK}], {}, r"params\[0\]\['mask'\]: expected shape \(2,\)"),
    ],
)
def test_masks_that_do_not_match_the_arrays_are_refused(params, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fm.Momentum(params, lr=0.5, **given)


def test_arrays_on_a_device_take_no_mask():
    for name in GIVEN:
        with pytest.raises(TypeError, match="expected None, as the arrays are on a device"):
            check_elements(name, name, MASK, np.ones(3), "cuda")


def _by_square(p, g, rate):
    return (p - rate * g,)


SQUARE = fm.Rule(_by_square, state=(), hyper=("rate",), derived={"rate": lambda lr: lr * lr}, name="by square")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (SQUARE, "lr_scale: expected a rule whose derived numbers are proportional to lr.*rate of rule 'by square'"),
        (
            fm.Rule(_by_square, state=(), hyper=("rate",), name="no lr"),
            "lr_scale: expected a rule with a learning rate",
        ),
    ],
)
def test_lr_scale_is_refused_for_rules_in_which_lr_acts_otherwise(rule, message):
    own = {"lr": 0.5} if rule is SQUARE else {"rate": 0.5, "lr": 0.5}
    with pytest.raises(ValueError, match=message):
        fm.Optimizer(np.ones(3), rule, lr_scale=np.ones(3), **own)
    opt = fm.Optimizer(np.ones(3), rule, **own)
    with pytest.raises(ValueError, match=message):
        opt.lr_scale = np.ones(3)
    opt.step(np.ones(3))
    assert opt.lr_scale is None
    assert_all_same_bits([opt.params], [np.full(3, 0.75 if rule is SQUARE else 0.5)])


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("lookahead", [False, True])
def test_add_group_takes_and_keeps_masks(lookahead, backend):
    old, new, plain = np.zeros(3), np.zeros((2, 2), order="F"), np.zeros(1)
    settings = {"lr": 0.5, "momentum": 0.0, "lookahead": lookahead, "backend": backend}
    opt = fm.Momentum([{"params": [old], "mask": MASK}], **settings)
    mask, scale = np.array([[True, False], [True, True]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    opt.add_group({"params": [new, plain], "mask": [mask, None], "lr_scale": [scale, None]})
    assert stepped(opt) == [[-0.5, 0.0, -0.5], [[-0.5, 0.0], [-1.5, -2.0]], [-0.5]]
    assert opt.groups[0]["mask"].tolist() == MASK.tolist()
    assert opt.groups[1]["mask"][0].tolist() == mask.tolist()
    assert opt.groups[1]["lr_scale"][0].tolist() == scale.tolist()


def test_add_group_uses_no_mask_of_the_constructor():
    opt = fm.Momentum(np.zeros(3), lr=0.5, momentum=0.0, mask=MASK, lr_scale=np.full(3, 2.0))
    opt.add_group({"params": np.zeros(2)})
    assert stepped(opt) == [[-1.0, 0.0, -1.0], [-0.5, -0.5]]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"mask": np.ones(3, bool)}, "shape"),
        ({"mask": np.ones(2)}, "booleans"),
        ({"lr_scale": np.array([1.0, -1.0])}, ">= 0"),
    ],
)
def test_add_group_with_a_refused_mask_changes_nothing(group, message):
    opt = fm.Momentum([np.zeros(3)], lr=0.5, momentum=0.0, mask=[MASK])
    with pytest.raises((TypeError, ValueError), match=message):
        opt.add_group({"params": np.zeros(2), **group})
    assert len(opt.groups) == 1
    assert stepped(opt) == [[-0.5, 0.0, -0.5]]


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_replace_keeps_the_mask_and_the_scale_in_the_layout_of_the_new_array(order, dtype, backend):
    mask, scale = np.array([[True, False, True], [True, True, True]]), np.arange(6.0).reshape(2, 3)
    param = np.zeros((2, 3), dtype)
    opt = fm.Momentum(param, lr=0.5, momentum=0.0, mask=mask, lr_scale=scale, backend=backend)
    opt.step(np.ones_like(param))
    new = param.copy(order=order)
    opt.replace(0, new)
    grad = np.full_like(new, 1.0)
    opt.step(grad)
    assert param.tolist() == (-0.5 * mask * scale).tolist()
    assert new.tolist() == (-1.0 * mask * scale).tolist()
    assert opt.mask.tolist() == mask.tolist()
    assert opt.lr_scale.tolist() == scale.tolist()
