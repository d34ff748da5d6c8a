"""Sparse gradients: added as torch does, beside dense ones, and refused with options that torch lacks."""

import pytest
import torch

import fastmomentum.torch as ft
from tests.helpers.tensors import assert_same_tensors, assert_within, holes, make_params, set_gradients, steps


@pytest.mark.parametrize("options", [{}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("order", [1, -1])
def test_sparse_gradients_are_added_as_in_torch(order, momentum, options):
    runs = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        table, dense = make_params(((6, 2), (3,)))
        opt = optimizer([table, dense][::order], lr=0.25, momentum=momentum, **options)
        for number in range(4):
            set_gradients([table, dense], number)
            if number == 1:
                dense.data = holes(dense.data)
            if number != 2:
                table.grad[number % 3 :: 2] = 0
                table.grad = table.grad.to_sparse()
            elif momentum:
                continue  # torch cannot add a dense gradient to a sparse buffer
            opt.step()
        buffers = [value for entry in opt.state.values() for value in entry.values()]
        runs.append([table, dense, *(b.to_dense() for b in buffers)])
    assert len(runs[0]) == (4 if momentum else 2)
    assert_within(*runs, limit=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sparse_and_dense_gradients_in_turn_do_the_steps_of_dense_ones(dtype):
    runs = []
    for is_sparse in (lambda number: number % 3 != 2, lambda number: False):
        (table,) = make_params(((6, 2),), dtype)
        opt = ft.SGD([table], lr=0.25, momentum=0.5)
        for number in range(6):
            set_gradients([table], number)
            if is_sparse(number):
                table.grad = table.grad.to_sparse()
            opt.step()
            opt.zero_grad()
            opt.step()
        runs.append([table])
    assert_within(*runs, limit=1e-6 if dtype == torch.float32 else 0.1)  # torch rounds narrow numbers at each operation


OPTIONS = {
    "clip_value": {"clip_value": 0.5},
    "max_norm": {"max_norm": 0.5},
    "skip_nonfinite": {"skip_nonfinite": True},
    "clip_norm": {"clip_norm": 0.5},
    "decoupled_weight_decay": {"decoupled_weight_decay": 0.5},
    "lr": {"lr": lambda step: 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_sparse_gradients_with_an_option_that_torch_lacks_are_refused(name):
    (table,) = make_params(((6, 2),))
    before = table.detach().clone()
    opt = ft.SGD([table], **{"lr": 0.1} | OPTIONS[name])
    table.grad = torch.ones(6, 2).to_sparse()
    with pytest.raises(TypeError, match=f"expected dense gradients with .*{name}.*; got a sparse one"):
        opt.step()
    assert_same_tensors([table], [before])


def test_first_sparse_gradient_after_dense_ones_is_refused_with_an_option():
    (table,) = make_params(((6, 2),))
    opt = ft.SGD([table], lr=0.1, clip_value=0.5)
    steps([table], opt, [0])
    before = table.detach().clone()
    table.grad = torch.ones(6, 2).to_sparse()
    with pytest.raises(TypeError, match=r"clip_value = 0\.5"):
        opt.step()
    assert_same_tensors([table], [before])


def test_updates_with_sparse_gradients_are_counted():
    (table,) = make_params(((6, 2),))
    opt = ft.SGD([table], lr=0.1)
    for number in range(6):
        set_gradients([table], number)
        if number in (1, 2, 4):
            table.grad = table.grad.to_sparse()
        opt.step()
    assert opt.steps == 6


def test_option_assigned_after_a_sparse_step_is_refused():
    (table,) = make_params(((6, 2),))
    opt = ft.SGD([table], lr=0.1)
    table.grad = torch.ones(6, 2).to_sparse()
    opt.step()
    opt.param_groups[0]["clip_value"] = 0.5
    with pytest.raises(TypeError, match=r"clip_value = 0\.5"):
        opt.step()
