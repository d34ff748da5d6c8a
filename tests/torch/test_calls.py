"""Calls of step: closures, hooks and signals that raise, threads, and the end of an optimiser's life."""

import contextlib
import gc
import threading
import weakref

import pytest
import torch

import fastmomentum.torch as ft
from tests.helpers.interrupts import is_interrupted, places
from tests.helpers.tensors import assert_same_tensors, assert_within, copies_of, make_params, set_gradients, steps


def test_closure_is_called_once_with_gradients_enabled():
    (weight,) = make_params(((3,),))
    opt = ft.SGD([weight], lr=0.25)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        opt.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    before = weight.detach().clone()
    with torch.no_grad():
        loss = opt.step(closure)
        assert not torch.is_grad_enabled()
    assert calls == [True]
    assert loss.item() == before.sum().item()
    assert_same_tensors([weight], [before - 0.25])
    opt.step(closure)
    assert opt.step() is None


def test_step_is_taken_back_by_a_line_search():
    runs = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        (weight,) = make_params(((3,),))
        opt = optimizer([weight], lr=4.0, momentum=0.5)
        for number in range(4):
            set_gradients([weight], number)
            kept = weight.detach().clone()
            opt.step()
            while weight.detach().square().sum() > 2 * kept.square().sum():
                opt.param_groups[0]["lr"] *= 0.5
                weight.data.copy_(kept)
                opt.step()
        assert opt.param_groups[0]["lr"] < 4.0
        runs.append([weight])
    assert_within(*runs, limit=1e-5)


@pytest.mark.parametrize("where", ["closure", "before", "after"])
def test_error_of_a_function_of_the_user_leaves_whole_steps(where):
    (weight,) = make_params(((3,),))
    opt = ft.SGD([weight], lr=0.25, momentum=0.5)
    weight.grad = torch.ones(3)
    before = weight.detach().clone()

    def fail(*_):
        raise ZeroDivisionError

    hook = {"before": opt.register_step_pre_hook, "after": opt.register_step_post_hook}.get(where)
    handle = hook(fail) if hook else contextlib.nullcontext()
    with pytest.raises(ZeroDivisionError):
        opt.step(fail if where == "closure" else None)
    assert_same_tensors([weight], [before - 0.25 if where == "after" else before])
    if hook:
        handle.remove()
    opt.step()
    assert_same_tensors([weight], [before - 0.25 * (2.5 if where == "after" else 1)])


# Settings and parameters with which a step is one call of compiled code, several writes, or makes state.
INTERRUPTED = {
    "one call": lambda: make_params(((3,), (2,))),
    "copies": lambda: make_params(((3,), (2,)), torch.bfloat16),
    "both": lambda: [*make_params(((3,),)), *make_params(((2,),), torch.bfloat16)],
}


@pytest.mark.parametrize("first", [True, False], ids=["first step", "later"])
@pytest.mark.parametrize("kind", INTERRUPTED)
def test_ctrl_c_leaves_whole_steps(kind, first):
    expected = []
    for count in range(5):
        params = INTERRUPTED[kind]()
        opt = ft.SGD(params, lr=0.25, momentum=0.5)
        steps(params, opt, [0] * count)
        expected.append([*params, *(value for entry in opt.state.values() for value in entry.values())])
    found = set()
    for at in places(f"{kind} {first}", 9 if first else 5):
        params = INTERRUPTED[kind]()
        opt = ft.SGD(params, lr=0.25, momentum=0.5)
        count = 0 if first else 2
        steps(params, opt, [0] * count)
        set_gradients(params, 0)
        if not is_interrupted(opt.step, at):
            break
        done = bool((params[0] != expected[count][0]).any())
        found.add(done)
        state = [value for entry in opt.state.values() for value in entry.values()]
        if done or state:
            assert_same_tensors([*params, *state], expected[count + done])
        if at % 2 == 0:
            steps(params, opt, [0])
            assert_same_tensors(params, expected[count + done + 1][:2])
    assert found == {False, True}


def test_optimisers_of_two_threads_do_not_disturb_each_other():
    params = make_params(((33,),) * 2)
    expected = copies_of(params)
    for p in expected:
        steps([p], ft.SGD([p], lr=0.1, momentum=0.9), range(20))

    def run(p):
        steps([p], ft.SGD([p], lr=0.1, momentum=0.9), range(20))

    threads = [threading.Thread(target=run, args=(p,)) for p in params]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_tensors(params, expected)


def test_optimiser_and_its_tensors_are_freed_without_the_collector():
    gc.disable()
    try:
        params = make_params(((3,), (2,)))
        opt = ft.SGD(params, lr=lambda step: 0.1, momentum=0.9)
        steps(params, opt, range(3))
        opt.load_state_dict({**opt.state_dict()})
        steps(params, opt, range(3))
        params[0].data = params[0].data.clone()
        steps(params, opt, range(3))
        things = [opt, opt._runs[0].engine, *params, *(entry["momentum_buffer"] for entry in opt.state.values())]
        references = [weakref.ref(thing) for thing in things]
        del opt, params, things
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


def test_parameters_on_a_device_without_kernels_are_refused():
    weight = torch.nn.Parameter(torch.ones(3, device="meta"))
    opt = ft.SGD([weight], lr=0.1)
    weight.grad = torch.ones(3, device="meta")
    with pytest.raises(TypeError, match=r"params\[0\].*: expected a dense tensor in host memory; got .* on meta"):
        opt.step()
