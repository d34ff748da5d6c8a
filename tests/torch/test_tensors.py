"""Tensors of every layout, dtype and length: the bits of the reference, and no other memory written."""

import numpy as np
import pytest
import torch

import fastmomentum as fm
import fastmomentum.torch as ft
from tests.helpers.reference import assert_same_bits, update
from tests.helpers.tensors import (
    assert_same_tensors,
    assert_within,
    copies_of,
    holes,
    make_params,
    set_gradients,
    steps,
)

LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 101)
"""Lengths around the vectors of 4, 8 and 16 numbers that processors have, and a prime."""


def reference_run(start, grads, lr=0.1, momentum=0.9):
    """Return (p, v) in NumPy after steps with these gradients."""
    p, v = start.copy(), np.zeros_like(start)
    for g in grads:
        p, v = update("pytorch", p, v, g, start.dtype.type, lr=lr, momentum=momentum)
    return p, v


def gradients_for(params, number):
    set_gradients(params, number)
    return [p.grad.detach().numpy().copy() for p in params]


def assert_run_is_the_reference(params, numbers=range(3)):
    starts = [p.detach().numpy().copy() for p in params]
    opt = ft.SGD(params, lr=0.1, momentum=0.9)
    seen = []
    for number in numbers:
        seen.append(gradients_for(params, number))
        opt.step()
    for i, (param, start) in enumerate(zip(params, starts, strict=True)):
        p, v = reference_run(start, [grads[i] for grads in seen])
        assert_same_bits(param.detach().numpy(), p)
        assert_same_bits(opt.state[param]["momentum_buffer"].numpy(), v)
    return opt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_length_has_the_bits_of_the_reference(dtype):
    assert_run_is_the_reference(make_params([(n,) for n in LENGTHS], dtype))


@pytest.mark.parametrize("length", LENGTHS)
def test_view_at_an_odd_offset_is_updated_and_nothing_around_it(length):
    whole = torch.full((length + 7,), 5.0)
    whole[3 : 3 + length] = torch.randn(length, generator=torch.Generator().manual_seed(length))
    weight = torch.nn.Parameter(whole[3 : 3 + length])
    assert length == 0 or weight.data_ptr() == whole.data_ptr() + 12
    assert_run_is_the_reference([weight])
    assert (whole[:3] == 5).all()
    assert (whole[3 + length :] == 5).all()


def test_step_has_the_bits_of_fm_step():
    params = make_params(((33,), (4, 5)))
    arrays = [p.detach().numpy().copy() for p in params]
    states = [np.zeros_like(p) for p in arrays]
    opt = ft.SGD(params, lr=0.1, momentum=0.9)
    for number in range(3):
        for p, v, g in zip(arrays, states, gradients_for(params, number), strict=True):
            fm.step(p, v, g, lr=0.1, momentum=0.9)
        opt.step()
    for param, p in zip(params, arrays, strict=True):
        assert_same_bits(param.detach().numpy(), p)


# For each layout, the function that lays a tensor of four axes out in it.
LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "holes": holes,
    "every other row": lambda t: t.repeat_interleave(2, 0)[::2],
}
SHAPES = ((2, 3, 4, 5), (1, 3, 1, 2), (2, 0, 3, 1))


@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_parameter_and_gradient_do_not_change_the_bits(layout, of_grad):
    plain = make_params(SHAPES)
    laid_out = [torch.nn.Parameter(LAYOUTS[layout](p.detach())) for p in plain]
    for p, q in zip(laid_out, plain, strict=True):
        q.data.copy_(p.data)
    strides = [p.stride() for p in laid_out]
    runs = []
    for params, lay_out in ((plain, torch.clone), (laid_out, LAYOUTS[of_grad])):
        opt = ft.SGD(params, lr=0.1, momentum=0.9)
        for number in range(3):
            set_gradients(params, number)
            for p in params:
                p.grad = lay_out(p.grad)
            opt.step()
        runs.append([*params, *(opt.state[p]["momentum_buffer"] for p in params)])
    assert_same_tensors(*runs)
    assert [p.stride() for p in laid_out] == strides


def test_memory_between_the_elements_of_a_parameter_is_not_written():
    whole = torch.full((6, 4), 5.0)
    weight = torch.nn.Parameter(whole[::2, 1:3])
    steps([weight], ft.SGD([weight], lr=0.1, momentum=0.9), range(3))
    assert (whole[1::2] == 5).all()
    assert (whole[:, ::3] == 5).all()
    assert (whole[::2, 1:3] != 5).all()


# Gradients that are no plain tensors of their own; each is made of a plain one.
GRADIENTS = {
    "expanded": lambda g: g[:1].expand(g.shape),
    "neg": lambda g: torch._neg_view(-g),
    "conj": lambda g: g.conj() if g.is_complex() else g,
    "a view": lambda g: torch.cat([g[:1], g])[1:],
    "every other": lambda g: torch.stack([g, g + 1], -1)[..., 0],
    "requires grad": lambda g: g.clone().requires_grad_(),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_gradients_are_read_by_their_values(dtype, kind):
    first, second = make_params(((6,),), dtype), make_params(((6,),), dtype)
    runs = []
    for params, is_plain in ((first, True), (second, False)):
        opt = ft.SGD(params, lr=0.1, momentum=0.9)
        for number in range(4):
            set_gradients(params, number)
            if kind == "conj" or number % 2:
                grad = GRADIENTS[kind](params[0].grad)
                params[0].grad = grad.detach().resolve_conj().resolve_neg().clone() if is_plain else grad
            opt.step()
        runs.append([params[0], opt.state[params[0]]["momentum_buffer"]])
    assert_same_tensors(*runs)


def test_gradient_that_parameters_share_is_used_by_both():
    first, second = copies_of(make_params(((6,),)) * 2)
    first.grad = second.grad = torch.ones(6)
    opt = ft.SGD([first, second], lr=0.1, momentum=0.9)
    for _ in range(2):
        opt.step()
    assert_same_tensors([first], [second])
    assert (first.grad == 1).all()


def test_result_of_an_operation_that_keeps_its_gradient_is_updated():
    found = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        base = torch.ones(5, requires_grad=True)
        weight = base * 2.0
        weight.retain_grad()
        weight.sum().backward()
        opt = optimizer([weight], lr=0.25, momentum=0.5)
        with torch.no_grad():
            opt.step()
            opt.step()
        found.append(weight)
    assert_same_tensors(*([each] for each in found))


@pytest.mark.parametrize("bit", ["conj", "neg"])
def test_parameter_with_a_lazy_bit_is_updated_by_its_values(bit):
    values = make_params(((5,),), torch.complex64 if bit == "conj" else torch.float32)[0].detach()
    lazy = values.conj() if bit == "conj" else torch._neg_view(values)
    runs = []
    for params in ([torch.nn.Parameter(lazy)], [torch.nn.Parameter(lazy.clone().resolve_conj().resolve_neg())]):
        steps(params, ft.SGD(params, lr=0.1, momentum=0.9), range(3))
        runs.append(params)
    assert_same_tensors(*runs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (31,), (32,), (33,), (4, 8), ()], ids=str)
def test_narrow_numbers_are_the_result_of_float32_rounded_once(shape, dtype):
    (weight,) = make_params((shape,), dtype)
    opt = ft.SGD([weight], lr=0.5, momentum=0.75)
    velocity = np.zeros(shape, np.float32)
    for number in range(3):
        set_gradients([weight], number)
        before = weight.detach().clone()
        p, v = update(
            "pytorch",
            before.float().numpy(),
            velocity,
            weight.grad.float().numpy(),
            np.float32,
            lr=0.5,
            momentum=0.75,
        )
        opt.step()
        buffer = opt.state[weight]["momentum_buffer"]
        assert_same_tensors([weight, buffer], [torch.from_numpy(np.asarray(x)).to(dtype) for x in (p, v)])
        assert (weight != before).all()
        velocity = buffer.float().numpy()


def test_data_that_is_assigned_is_updated():
    """Assign memory of the same layout before every step, then a layout with holes, then a transposed one."""
    runs = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        params = make_params(((4, 3), (5,)))
        opt = optimizer(params, lr=0.25, momentum=0.5)
        old = []
        for number, change in enumerate([torch.clone] * 4 + [holes] * 2 + [lambda t: t.t().contiguous().t()] * 2):
            old.append((params[0].data, params[0].detach().clone()))
            params[0].data = change(params[0].data)
            steps(params, opt, [number])
        runs.append(params)
        assert_same_tensors(*zip(*old[1:4], strict=True))  # memory of before is not written to
    assert_within(*runs, limit=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [((4,), (6,)), ((1,), (4,)), ((4,), (1,)), ((2, 1), (2, 3))], ids=str)
def test_data_of_another_shape_is_refused_until_its_state_is_new(shapes, dtype):
    (weight,) = make_params(shapes[:1], dtype)
    opt = ft.SGD([weight], lr=0.25, momentum=0.5)
    steps([weight], opt, [0])
    weight.grad = None
    weight.data = torch.ones(shapes[1], dtype=dtype)
    weight.grad = torch.ones(shapes[1], dtype=dtype)
    with pytest.raises(
        ValueError, match=rf"momentum_buffer: expected shape .*{shapes[1][-1]}.*; got .*{shapes[0][-1]}"
    ):
        opt.step()
    assert (weight == 1).all()
    del opt.state[weight]
    opt.step()
    assert (weight == 0.75).all()


@pytest.mark.parametrize(
    ("dtype", "convert"),
    [(torch.float32, "double"), (torch.float32, "bfloat16"), (torch.float32, "half"), (torch.bfloat16, "double")],
    ids=str,
)
def test_module_of_another_dtype_goes_on_as_in_torch(dtype, convert, numpy_backend):
    runs = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2, dtype=dtype)
        opt = optimizer(model.parameters(), lr=0.25, momentum=0.5)
        params = [*model.parameters()]
        steps(params, opt, range(2))
        opt.zero_grad()
        getattr(model, convert)()
        steps(params, opt, range(2, 4))
        runs.append(params)
    is_exact = dtype == torch.float32 and convert == "double"
    assert_within(*runs, limit=1e-5 if is_exact else 0.05)  # torch rounds narrow numbers at each operation
    assert convert != "double" or any((p != p.float()).any() for p in runs[1])


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_accumulate_between_steps(to_none):
    runs = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        params = make_params(((4,), (3,)))
        opt = optimizer(params, lr=0.25, momentum=0.5)
        for number in range(6):
            if number % 2 == 0:
                opt.zero_grad(set_to_none=to_none)
            (sum((p * p).sum() for p in params[: 1 + number % 3])).backward()
            if number % 2:
                opt.step()
        runs.append(params)
    assert_within(*runs, limit=1e-6)


def test_backward_through_old_values_raises_as_in_torch():
    weight = torch.nn.Parameter(torch.ones(3))
    opt = ft.SGD([weight], lr=0.25, momentum=0.5)
    loss = (weight**3).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    buffer = opt.state[weight]["momentum_buffer"]
    factor = torch.ones(3, requires_grad=True)
    product = (factor * buffer).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_versions_move_with_each_write_and_with_nothing_else(dtype):
    weight, other = make_params(((3,), (2,)), dtype)
    opt = ft.SGD([weight, other], lr=0.25, momentum=0.5)
    set_gradients([weight], 0)
    for _ in range(3):
        before, grad = weight._version, weight.grad._version
        buffer = opt.state.get(weight, {}).get("momentum_buffer")
        of_buffer = None if buffer is None else buffer._version
        opt.step()
        assert weight._version > before
        assert buffer is None or buffer._version > of_buffer
        assert (other._version, weight.grad._version) == (0, grad)


def test_tied_weights_are_updated_once():
    runs = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model[1].weight = model[0].weight
        opt = optimizer(model.parameters(), lr=0.25, momentum=0.5)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            opt.step()
        runs.append([*model.parameters()])
    assert len(runs[0]) == 3
    assert_within(*runs, limit=1e-5)


# Pairs of parameters that share elements.
SHARED = {
    "all": lambda whole: (whole, whole.view(-1)),
    "a part": lambda whole: (whole[:4], whole[3:]),
    "with holes": lambda whole: (whole, whole[::2]),
    "two with holes": lambda whole: (whole[::2], whole[::3]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pair", SHARED)
def test_parameters_that_share_elements_are_refused(pair, dtype):
    params = [torch.nn.Parameter(view) for view in SHARED[pair](torch.ones(8, dtype=dtype))]
    set_gradients(params, 0)
    with pytest.raises(ValueError, match="expected memory of its own; got memory that it shares with param"):
        ft.SGD(params, lr=0.25, momentum=0.5).step()
    assert all((p == 1).all() for p in params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_columns_of_one_matrix_are_updated_beside_each_other(dtype):
    whole = torch.ones((4, 6), dtype=dtype)
    params = [torch.nn.Parameter(view) for view in whole.chunk(3, 1)]
    opt = ft.SGD(params, lr=0.25, momentum=0.5)
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, float(i))
    opt.step()
    assert whole[0].tolist() == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]


def test_not_a_number_propagates_as_in_torch():
    runs = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        weight = torch.nn.Parameter(torch.ones(4))
        opt = optimizer([weight], lr=0.25, momentum=0.5)
        for values in ([1.0, torch.nan, torch.inf, -torch.inf], [1.0] * 4):
            weight.grad = torch.tensor(values)
            opt.step()
        runs.append(weight.detach().numpy())
    np.testing.assert_array_equal(*runs)
