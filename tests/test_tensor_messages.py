"""Advice in messages about torch tensors and modules: each is followed here, and must do what the user wanted."""

import copy
import pickle
import re

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.ids import label
from tests.test_messages import follow

torch = pytest.importorskip("torch")

NUMPY = {"backend": "numpy"}


def trained(**settings):
    """Return a module, and an optimiser of its parameters after one step at the gradient 1."""
    torch.manual_seed(0)
    module = torch.nn.Conv2d(3, 4, 2)
    given = {"lr": 0.5, "momentum": 0.5} | settings
    opt = fm.Optimizer(dict(module.named_parameters()), **given, **NUMPY)
    opt.step(ones_like(module))
    return module, opt, given


def ones_like(module):
    return {name: torch.ones_like(p) for name, p in module.named_parameters()}


SCALE = {"weight": np.arange(48.0).reshape(4, 3, 2, 2) / 16, "bias": np.arange(4.0)}
CHANGES = {
    "double": (torch.nn.Module.double, "an array of float32, shape .*; got an array of float64, shape .*"),
    "channels_last": (
        lambda module: module.to(memory_format=torch.channels_last),
        r"strides \(48, 16, 8, 4\).*; got strides \(48, 4, 24, 12\)",
    ),
}


@pytest.mark.parametrize("settings", [{}, {"lr_scale": SCALE}, {"rule": "sgd", "momentum": 0.0, "lr_scale": SCALE}])
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_as_advised_after_its_module_has_changed(change, settings):
    """Compare with the run of a module that has not changed; small multiples of 1/64 are added without rounding."""
    module, opt, given = trained(**settings)
    for p in module.parameters():
        p.data.round_()
    expected = copy.deepcopy(module)
    other = fm.Optimizer(dict(expected.named_parameters()), **given, **NUMPY)
    other.load_state_dict(opt.state_dict())
    other.step(ones_like(expected))
    make, reason = CHANGES[change]
    make(module)
    before = copy.deepcopy(module.state_dict())
    for call in (
        lambda: opt.step(ones_like(module)),
        lambda: opt.load_state_dict(opt.state_dict(), cast=True),
        lambda: opt.reset("a test"),
    ):
        with pytest.raises(ValueError, match=rf"params\['weight'\]: expected {reason}.*Make an optimiser") as refused:
            call()
        assert str(refused.value).endswith("new.load_state_dict(opt.state_dict(), cast=True)")
        assert all(torch.equal(before[name], p) for name, p in module.state_dict().items())
    new = fm.Optimizer(dict(module.named_parameters()), **given, **NUMPY)
    new.load_state_dict(opt.state_dict(), cast=True)
    assert new.steps == 1
    new.step(ones_like(module))
    for mine, wanted in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, wanted.to(mine.dtype))


def test_a_parameter_of_another_shape_needs_an_optimiser_of_its_own():
    module, opt, given = trained()
    module.bias.data = torch.ones(5)
    for call in (lambda: opt.step(ones_like(module)), lambda: opt.replace("bias", torch.ones(5))):
        with pytest.raises(ValueError, match=r"params\['bias'\]: .*shape \(4,\).*shape \(5,\).* as they are now$"):
            call()
    fm.Optimizer(dict(module.named_parameters()), **given, **NUMPY).step(ones_like(module))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@pytest.mark.parametrize("rule", ["pytorch", "sgd"])
def test_copies_of_tensors_in_another_layout_keep_their_scales(rule, duplicate):
    """Check each element: a copy whose scale is in another order than the tensor would give other values."""
    weight = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
    settings = {"lr": 1.0, "lr_scale": SCALE["weight"], "mask": SCALE["weight"] != 2.0}
    opt = duplicate(fm.Momentum(weight, rule=rule, momentum=0.5, **settings, **NUMPY))
    for _ in range(2):
        opt.step(torch.ones_like(weight))
    assert opt.params.stride() == weight.stride()
    factor = 2.0 if rule == "sgd" else 2.5
    assert np.array_equal(opt.params, -factor * SCALE["weight"] * (SCALE["weight"] != 2.0))


def with_graph(tensor):
    """Return a tensor of these values that is the result of an operation on one that requires gradients."""
    return tensor.requires_grad_() * 1.0


TENSORS = {
    "float64": (lambda: torch.ones(2, 3, dtype=torch.float64), [".to(torch.float32)"]),
    "float64 with graph": (lambda: with_graph(torch.ones(2, 3, dtype=torch.float64)), [".to(torch.float32)"]),
    "int64": (lambda: torch.ones(2, 3, dtype=torch.int64), [".to(torch.float32)"]),
    "bool": (lambda: torch.ones(2, 3, dtype=torch.bool), [".to(torch.float32)"]),
    "bfloat16 with graph": (lambda: with_graph(torch.ones(2, 3, dtype=torch.bfloat16)), [".to(torch.float32)"]),
    "transposed": (lambda: torch.ones(3, 2).T, [".detach().contiguous()"]),
    "transposed with graph": (lambda: with_graph(torch.ones(3, 2)).T, [".detach().contiguous()"]),
    "expanded": (lambda: torch.ones(3).expand(2, 3), [".detach().contiguous()"]),
    "transposed float64": (
        lambda: torch.ones(3, 2, dtype=torch.float64).T,
        [".to(torch.float32)", ".detach().contiguous()"],
    ),
    "array of a tensor": (
        lambda: torch.ones(2, 3, dtype=torch.float64).numpy(),
        ["numpy.asarray(..., dtype=numpy.float32)"],
    ),
    "transposed array of a tensor": (lambda: torch.ones(3, 2).numpy().T, ["numpy.ascontiguousarray(...)"]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_as_gradient_is_taken_in_the_advised_form(name):
    make, codes = TENSORS[name]
    p, q, v = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2, 3)), torch.zeros(2, 3)
    opt = fm.Momentum(p, lr=0.5, **NUMPY)
    follow(opt.step, make(), codes)
    follow(lambda g: fm.step(q, v, g, lr=0.5, **NUMPY), make(), codes)
    for each in (p, q):
        assert (each == -0.5).all()


def test_a_complex_gradient_of_a_real_parameter_gets_no_advice():
    """Check that no message names a cast, as it would drop the imaginary parts without an error."""
    p = torch.nn.Parameter(torch.zeros(3))
    for g in (torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.complex64).numpy()):
        with pytest.raises(TypeError, match="expected float32, as the parameter has; got .*complex64$"):
            fm.Momentum(p, lr=0.5, **NUMPY).step(g)


LIKE = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
PARAMS = {
    "tensor": lambda: torch.nn.Parameter(LIKE.clone()),
    "array": lambda: LIKE.numpy().copy("K"),
    "reversed array": lambda: LIKE.numpy().copy("K")[::-1],
}


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("grad", [lambda g: g, with_graph, lambda g: g.numpy()], ids=["tensor", "graph", "array"])
def test_a_gradient_is_copied_to_the_layout_of_its_parameter_as_advised(name, grad):
    p = PARAMS[name]()
    now = p.detach().numpy() if name == "tensor" else p
    before = now.copy()
    values = torch.arange(24.0).reshape(4, 2, 3)
    names = {"numpy": np, "torch": torch, "param": p, "old": grad(values.clone())}
    opt = fm.Momentum(p, lr=0.5, **NUMPY)
    with pytest.raises(ValueError, match="A copy in the parameter's layout is new") as refused:
        opt.step(names["old"])
    code = re.search(r"is new, after (.*)\. Pass new$", str(refused.value))[1]
    exec(code, names)
    opt.step(names["new"])
    assert np.array_equal(now, before - 0.5 * values.numpy())


def test_a_state_tensor_is_replaced_as_advised():
    p, g = torch.nn.Parameter(torch.zeros(2, 3)), torch.ones(2, 3)
    for value, code in (
        (torch.zeros(2, 3, dtype=torch.float64), ".detach().to(torch.float32)"),
        (torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64)), ".detach().to(torch.float32)"),
        (torch.nn.Parameter(torch.zeros(3, 2).T), ".detach().contiguous()"),
    ):
        v = follow(lambda state: fm.step(p, state, g, lr=0.5, **NUMPY), value, [code])
        assert (v == 1).all()


@pytest.mark.parametrize("rule", ["pytorch", "heavy_ball"])
def test_a_state_for_a_tensor_is_made_as_advised(rule):
    p = PARAMS["tensor"]()
    before, g = p.detach().clone(), torch.ones_like(p)
    with pytest.raises(TypeError, match="state: rule .* expects an array") as refused:
        fm.step(p, None, g, rule=rule, lr=0.5, **NUMPY)
    code = re.search(r"\(initially (.*)\); got", str(refused.value))[1]
    fm.step(p, eval(code, {"numpy": np, "param": p}), g, rule=rule, lr=0.5, **NUMPY)
    assert torch.equal(p, before - 0.5)


def test_scales_and_masks_may_be_tensors_of_any_kind():
    p = torch.nn.Parameter(torch.zeros(2))
    scale = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    opt = fm.Momentum([p], lr=0.5, momentum=0.0, lr_scale=[scale], mask=[torch.tensor([True, False])], **NUMPY)
    opt.step([torch.ones(2)])
    assert p.tolist() == [-0.5, 0.0]
    opt.mask = None
    follow(lambda value: setattr(opt, "lr_scale", [value]), scale.detach().bfloat16(), [".to(torch.float32)"])
    follow(lambda value: setattr(opt, "lr_scale", [value]), scale.detach().to_sparse(), [".to_dense()"])
    opt.step([torch.ones(2)])
    assert p.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("name", ["mask", "lr_scale"])
@pytest.mark.parametrize("value", [[[1.0, 2.0], [1.0]], "abc", object(), {1, 2}], ids=label)
def test_a_mask_that_is_no_array_is_refused_by_its_name(name, value):
    with pytest.raises(TypeError, match=rf"{name}\[0\]: expected an array of "):
        fm.Momentum([np.ones(2)], lr=0.5, **{name: [value]}, **NUMPY)


def test_a_module_is_passed_to_from_torch_and_as_gradients_as_advised():
    module = torch.nn.Linear(2, 3)
    sgd = torch.optim.SGD(module.parameters(), lr=0.5)
    opt = fm.Momentum.from_torch(
        sgd.state_dict(),
        follow(lambda params: fm.Momentum.from_torch(sgd.state_dict(), params), module, ["list(module.parameters())"]),
    )
    before = module.weight.detach().clone()
    module(torch.ones(1, 2)).sum().backward()
    follow(opt.step, module, ["[p.grad for p in module.parameters()]"])
    assert torch.equal(module.weight, before - 0.5)
    for call in (
        lambda: fm.Momentum(module.bias, lr=0.5).step(module),
        lambda: fm.step(module, None, np.ones(3), lr=0.5, rule="sgd"),
        lambda: fm.Momentum.from_torch(sgd.state_dict(), torch.nn.ReLU()),
    ):
        with pytest.raises(TypeError, match="got (Linear|ReLU)$"):
            call()


def test_masks_of_two_groups_from_torch_are_assigned_as_advised():
    weight, bias = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([{"params": [weight]}, {"params": [bias]}], lr=0.5)
    for name, value in (("mask", np.array([True, False])), ("lr_scale", np.array([1.0, 0.0]))):
        with pytest.raises(TypeError, match=rf"{name}: expected in .* opt.groups\[i\]\['{name}'\] = value"):
            fm.Momentum.from_torch(sgd.state_dict(), [weight, bias], **{name: [value, None]})
        opt = fm.Momentum.from_torch(sgd.state_dict(), [weight, bias], **NUMPY)
        opt.groups[0][name] = value
        opt.step([torch.ones(2), torch.ones(1)])
    assert weight.tolist() == [-1.0, 0.0]
    assert bias.tolist() == [-1.0]


@pytest.mark.parametrize("kind", ["half", "bfloat16"])
def test_a_run_goes_on_with_copies_as_advised_after_its_module_has_lost_precision(kind):
    module, opt, given = trained()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    grads = ones_like(module)
    getattr(module, kind)()
    with pytest.raises(TypeError, match=r"params\['weight'\]: expected a tensor of float32") as refused:
        opt.step(grads)
    make, write_back = re.search(r"Update p = (.*), a copy, .* each step: (.*)$", str(refused.value)).groups()
    tensors = dict(module.named_parameters())
    copies = {name: eval(make, {"tensor": tensor}) for name, tensor in tensors.items()}
    new = fm.Optimizer(copies, **given, **NUMPY)
    new.load_state_dict(opt.state_dict())
    new.step({name: np.ones_like(p) for name, p in copies.items()})
    for name, tensor in tensors.items():
        eval(write_back, {"torch": torch, "tensor": tensor, "p": copies[name]})
        expected = before[name].to(tensor.dtype).float() - 0.5 * 1.5  # the velocity is 1, then 0.5·1 + 1
        assert torch.equal(tensor, expected.to(tensor.dtype))
