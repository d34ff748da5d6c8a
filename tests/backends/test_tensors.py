"""torch tensors in host memory as parameters: updated in place, with every write counted for torch's backward."""

import copy
import itertools
import pickle
from functools import partial

import numpy as np
import pytest
import torch

import fastmomentum as fm
from fastmomentum.backends.host_arrays import flat_view as memory
from tests.helpers.arrays import gradients
from tests.helpers.interrupts import is_interrupted
from tests.helpers.reference import assert_same_bits

BACKENDS = ["cpu", "numpy"]
START = np.array([1.0, -2.0, 3.0], np.float32)


def parameter():
    return torch.nn.Parameter(torch.from_numpy(START.copy()))


def loss_of(weight):
    """Return a loss whose backward pass needs the values of the weight."""
    return (weight**3).sum()


# For each way in which an array of ours comes from a tensor, a function that returns the function of one step.
WAYS = {
    "a tensor": lambda w, backend: fm.Momentum(w, lr=0.1, backend=backend).step,
    "a list": lambda w, backend: lambda g: fm.Momentum([w], lr=0.1, backend=backend).step([g]),
    "a dict": lambda w, backend: lambda g: fm.Momentum({"w": w}, lr=0.1, backend=backend).step({"w": g}),
    "a group": lambda w, backend: lambda g: fm.Momentum([{"params": [w]}], lr=0.1, backend=backend).step([g]),
    "detached": lambda w, backend: fm.Momentum(w.detach(), lr=0.1, backend=backend).step,
    "a view": lambda w, backend: lambda g: fm.Momentum(w.detach()[1:], lr=0.1, backend=backend).step(g[1:]),
    "its array": lambda w, backend: fm.Momentum(w.detach().numpy(), lr=0.1, backend=backend).step,
    "a view of its array": lambda w, backend: fm.Momentum(w.detach().numpy()[:], lr=0.1, backend=backend).step,
    "a view of its buffer": lambda w, backend: (
        fm.Momentum(np.asarray(memoryview(w.detach().numpy())), lr=0.1, backend=backend).step
    ),
    "a schedule": lambda w, backend: fm.Momentum(w, lr=lambda n: 0.1, backend=backend).step,
    "max_norm": lambda w, backend: fm.Momentum(w, lr=0.1, max_norm=1.0, backend="numpy").step,
    "step": lambda w, backend: lambda g: fm.step(w, torch.zeros(3), g, lr=0.1, backend=backend),
    "step of its array": lambda w, backend: (
        lambda g: fm.step(w.detach().numpy(), np.zeros(3, np.float32), g, lr=0.1, backend=backend)
    ),
    "step of positions": lambda w, backend: (
        lambda g: fm.step(w, (w.detach().clone(),), g, rule="heavy_ball", lr=0.1, backend=backend)
    ),
    "rows": lambda w, backend: (
        lambda g: fm.SparseRows(w.detach().numpy().reshape(3, 1), lr=0.1, backend=backend).step(
            [0, 1, 2], g.numpy().reshape(3, 1)
        )
    ),
    "from torch": lambda w, backend: (
        fm.Momentum.from_torch(torch.optim.SGD([w], lr=0.1, momentum=0.9).state_dict(), w, backend=backend).step
    ),
    "torch itself": lambda w, backend: torch_step(torch.optim.SGD([w], lr=0.1, momentum=0.9)),
}


def torch_step(sgd):
    def step(grad):
        sgd.param_groups[0]["params"][0].grad = grad
        sgd.step()

    return step


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_backward_through_updated_weights_raises_as_in_torch(way, backend):
    weight = parameter()
    step = WAYS[way](weight, backend)
    loss = loss_of(weight)
    loss.backward(retain_graph=True)
    grad = weight.grad.clone()
    for _ in range(2):
        before = weight._version
        step(grad)
        assert weight._version == before + 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    assert (weight.detach().numpy()[1:] != START[1:]).all()
    loss_of(weight).backward()  # a new graph has the new values


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_tensors_are_updated_in_place_with_the_bits_of_arrays(dtype, backend):
    start = [gradients(size, 1, dtype, seed=size)[0].copy() for size in (0, 1, 7, 33)]
    start += [np.array(0.5, dtype), np.asfortranarray(np.ones((2, 3), dtype))]
    tensors = [torch.from_numpy(p.copy("K")).requires_grad_() for p in start]
    arrays = [p.copy("K") for p in start]
    theirs, ours = (fm.Momentum(each, lr=0.1, backend=backend) for each in (tensors, arrays))
    assert all(one is two for one, two in zip(theirs.params, tensors, strict=True))
    for step in range(4):
        grads = [np.full_like(p, 1.0 + step) for p in start]
        theirs.step([torch.from_numpy(g) for g in grads] if step % 2 else grads)
        ours.step(grads)
    for tensor, array, before in zip(tensors, arrays, start, strict=True):
        assert_same_bits(memory(tensor.detach().numpy()), memory(array))
        assert array.size == 0 or (array != before).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_versions_count_the_updates_of_each_tensor_and_nothing_else(backend, tmp_path):
    first, second = parameter(), parameter()
    opt = fm.Momentum([first, second], lr=0.1, skip_nonfinite=True, backend=backend)
    grad = torch.ones(3)
    trace = opt.trace() if backend == "numpy" else None
    opt.step([grad, None])
    assert (first._version, second._version) == (1, 0)
    opt.step([grad.numpy(), grad])
    if trace is not None:
        trace.stop()
    opt.step([None, None])
    opt.step([torch.full((3,), torch.nan), grad])  # skipped
    assert (first._version, second._version, opt.steps, opt.skipped) == (2, 1, 3, 1)
    for refused in ([grad], [grad, torch.ones(2)], [grad, torch.ones(3, dtype=torch.float64)]):
        with pytest.raises((TypeError, ValueError)):
            opt.step(refused)
    opt.lr = 0.5
    opt.reset("a test")
    opt.save(tmp_path / "run.npz")
    opt.load_state_dict(opt.state_dict())
    fm.Momentum.load(tmp_path / "run.npz", [first, second])
    opt.convert("classical")
    assert (first._version, second._version) == (2, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_updates_the_memory_that_a_tensor_has_now(backend):
    ours, theirs = parameter(), parameter()
    opt, sgd = fm.Momentum([ours], lr=0.25, momentum=0.5, backend=backend), torch.optim.SGD([theirs], 0.25, 0.5)
    for step in range(6):
        if step in (2, 4):
            for weight in (ours, theirs):
                weight.data = weight.data.clone() + 1.0
        theirs.grad = torch.full((3,), float(step))
        opt.step([torch.full((3,), float(step))])
        sgd.step()
        assert_same_bits(ours.detach().numpy(), theirs.detach().numpy())
    ours.data = torch.ones(4)
    with pytest.raises(ValueError, match=r"params\[0\]: expected an array of float32, shape \(3,\)"):
        opt.step([torch.ones(4)])
    ours.data = torch.ones(3)
    opt.step([torch.ones(3)])
    assert (ours != 1).all()


# For each change that reads the parameters, a function that makes it.
CHANGES = {
    "lr": lambda opt: setattr(opt, "lr", 0.5),
    "steps": lambda opt: setattr(opt, "steps", 3),
    "reset": lambda opt: opt.reset("a test"),
    "convert": lambda opt: opt.convert("classical"),
    "step without a gradient": lambda opt: opt.step([None]),
    "save": lambda opt: opt.state_dict(),
}
MOVES = {
    "data": lambda weight: setattr(weight, "data", weight.data.clone()),
    "share_memory_": lambda weight: weight.share_memory_(),  # it frees the memory of before
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reads_the_memory_that_a_tensor_has_now(change, move):
    found = []
    for moves in (True, False):
        weight = parameter()
        schedule = fm.schedules.Linear(0.5, 0.25, steps=4)
        lr = 0.25 if change == "lr" else schedule
        opt = fm.Momentum([weight], rule="heavy_ball", lr=lr, correct=True, backend="numpy")
        opt.step([torch.ones(3)])
        if moves:
            MOVES[move](weight)
        weight.data.add_(1.0)  # so that the memory of before has other values
        changed = CHANGES[change](opt)
        opt = changed if change == "convert" else opt
        if moves:
            MOVES["data"](weight)
        opt.step([torch.ones(3)])
        found.append((weight.detach().numpy(), opt.state[0]))
    for one, two in zip(*found, strict=True):
        assert_same_bits(one, two)


def test_memory_that_moves_before_the_first_step_is_not_written_to():
    weight = parameter()
    opt = fm.Momentum([weight], lr=0.5, momentum=0.0, backend="numpy")
    before = weight.detach().numpy()
    weight.data = weight.data.clone()
    opt.step([torch.ones(3)])
    assert_same_bits(before, START)
    assert_same_bits(weight.detach().numpy(), START - np.float32(0.5))


REFUSED = {
    "the result of an operation": (lambda: parameter() * 2, ValueError, "expected a leaf tensor.*Pass those", None),
    "bfloat16": (lambda: torch.ones(3, dtype=torch.bfloat16), TypeError, "torch.bfloat16.*write it back", None),
    "float16": (lambda: torch.ones(3, dtype=torch.float16), TypeError, "torch.float16.*write it back", None),
    "integers": (lambda: torch.ones(3, dtype=torch.int64), TypeError, r"torch.int64.*by \.float\(\)", "float"),
    "conj": (lambda: torch.ones(3, dtype=torch.complex64).conj(), ValueError, "the conj bit", "resolve_conj"),
    "neg": (lambda: torch._neg_view(torch.ones(3)), ValueError, "the neg bit", "resolve_neg"),
    "expanded": (lambda: torch.ones(1).expand(3), ValueError, r"by \.contiguous\(\)", "contiguous"),
    "meta": (
        lambda: torch.ones(3, device="meta"),
        TypeError,
        "expected a dense tensor in host memory; got .*on meta",
        None,
    ),
    "sparse": (
        lambda: torch.ones(3).to_sparse(),
        TypeError,
        r"expected a dense tensor .*by \.to_dense\(\)",
        "to_dense",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_cannot_be_updated_are_refused_and_the_advice_works(name):
    make, error, reason, follow = REFUSED[name]
    tensor = make()
    for call in (
        lambda: fm.Momentum([tensor], lr=0.1),
        lambda: fm.step(tensor, np.zeros(3, np.float32), np.ones(3, np.float32), lr=0.1),
    ):
        with pytest.raises(error, match=rf"param.*: .*{reason}"):
            call()
    if follow is not None:
        better = getattr(tensor, follow)()
        fm.Momentum([better], lr=0.5).step([torch.ones_like(better)])
        assert (better == getattr(tensor, follow)() - 0.5).all()


def test_a_strided_tensor_is_refused_and_the_advice_works():
    whole = torch.zeros(6, requires_grad=True)
    tensor = whole.detach()[::2]
    with pytest.raises(ValueError, match=r"Update p = tensor.detach\(\).contiguous\(\), a copy, and write it back"):
        fm.Momentum([tensor], lr=0.5)
    p = tensor.detach().contiguous()
    opt = fm.Momentum([p], lr=0.5)
    opt.step([torch.ones(3)])
    tensor.detach().copy_(p)
    assert whole.tolist() == [-0.5, 0.0] * 3
    assert whole._version == 1


def test_ctrl_c_in_a_step_leaves_no_write_uncounted():
    grad, written = [np.ones(3, np.float32)], []
    for at in itertools.count():
        weight = parameter()
        opt = fm.Momentum([weight], lr=0.1)
        opt.step(grad)
        opt.step(grad)
        before, version = weight.detach().clone(), weight._version
        if not is_interrupted(partial(opt.step, grad), at):
            break
        written.append(not torch.equal(before, weight.detach()))
        assert not written[-1] or weight._version > version
    assert {*written} == {True, False}


def test_optimisers_of_tensors_can_be_copied():
    weight = parameter()
    opt = fm.Momentum([weight], lr=0.1)
    opt.step([torch.ones(3)])
    for made in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        (own,) = made.params
        before = own._version
        made.step([torch.ones(3)])
        assert own._version == before + 1
        assert weight._version == 1
    opt.step([torch.ones(3)])
    assert_same_bits(weight.detach().numpy(), own.detach().numpy())


def test_replace_takes_a_tensor():
    p = START.copy()
    opt = fm.Momentum([p], lr=0.1)
    weight = parameter()
    opt.replace(0, weight)
    opt.step([torch.ones(3)])
    assert weight._version == 1
    assert_same_bits(p, START)


def test_reading_rows_that_are_not_late_counts_no_write():
    table = torch.nn.Parameter(torch.ones(4, 2))
    opt = fm.SparseRows(table.detach().numpy(), lr=0.1, backend="numpy")
    opt.step([1], np.ones((1, 2), np.float32))
    opt.flush()
    total = table.square().sum()
    opt.read([1, 2])
    total.backward()
    assert table.grad is not None


def test_a_mask_is_assigned_with_the_memory_that_a_tensor_has_now():
    weight = torch.nn.Parameter(torch.ones(2))
    opt = fm.Momentum([weight], rule="classical", lr=0.1, lookahead=True, backend="numpy")
    weight.data = torch.zeros(2)
    opt.mask = [np.array([True, True])]
    assert opt.point[0].tolist() == [0.0, 0.0]
