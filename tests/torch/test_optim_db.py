"""Steps over torch's own optimizer database: each case is run with torch's for-loop SGD, and with ours."""

import pytest
import torch

import fastmomentum.torch as ft
from tests.helpers.optim_db import (
    DTYPES,
    ERRORS,
    INFO,
    assert_goes_right,
    every_class,
    every_input,
    limit_of,
    network,
    state_of,
    two_runs,
)
from tests.helpers.tensors import (
    assert_same_tensors,
    assert_within,
    copies_of,
    make_params,
    set_gradients,
    steps,
)


@every_class
@every_input
@pytest.mark.parametrize("schedulers", [(), *INFO.scheduler_inputs], ids=lambda made: str(len(made)))
def test_loss_goes_in_the_right_direction(schedulers, settings, make):
    params, closure = network()
    opt = make(params, **settings)
    made = [scheduler(opt) for scheduler in schedulers]
    assert_goes_right(opt, closure, made, settings.get("maximize", False))


@every_class
@every_input
@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=lambda made: str(len(made)))
def test_loss_of_groups_goes_in_the_right_direction(schedulers, settings, make):
    params, closure = network()
    opt = make([{"params": [params[0]]}, {"params": [params[1]], "lr": 0.01}], **{"lr": 1e-3} | settings)
    made = [scheduler(opt) for scheduler in schedulers]
    assert_goes_right(opt, closure, made, settings.get("maximize", False))


@every_input
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_differ_from_the_for_loop_by_rounding_alone(dtype, settings, request):
    """Check the distance that :func:`rounding_limit` allows; torch rounds narrow numbers after each operation."""
    if dtype.itemsize > 4 and dtype != torch.complex64:
        request.getfixturevalue("numpy_backend")
    params = make_params(dtype=dtype)
    theirs, ours = two_runs({"lr": 0.1} | settings, params)
    limit = limit_of(*theirs)
    assert_within(ours[0], theirs[0], limit)
    assert_within(state_of(ours[1]), state_of(theirs[1]), limit / min(1.0, float(theirs[1].param_groups[0]["lr"])))
    assert limit < 1e-3 or dtype.itemsize == 2  # so that a lost velocity would show
    assert [*ours[1].state[ours[0][0]]] == [*theirs[1].state[theirs[0][0]]]


@every_input
def test_parameters_of_several_dtypes_share_an_optimiser(settings, numpy_backend):
    params = [make_params(((4, 3),), dtype, seed=i)[0] for i, dtype in enumerate(DTYPES)]
    theirs, ours = two_runs({"lr": 0.1} | settings, params)
    for one, two in zip(ours[0], theirs[0], strict=True):
        eps = torch.finfo(one.dtype).eps
        assert_within([one], [two], limit_of(*theirs, eps=eps))
        assert one.dtype == two.dtype


@every_class
@every_input
@pytest.mark.parametrize("dimensions", [0, 1])
def test_lr_in_a_tensor_does_the_steps_of_a_number(dimensions, settings, make):
    runs = []
    for kind in (float, lambda value: torch.full((1,) * dimensions, float(value))):
        params = make_params()
        opt = make(params, **settings | {"lr": kind(2.0**-7)})
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
        steps(params, opt, range(5), scheduler.step)
        runs.append(params)
    assert_same_tensors(*runs)


@every_class
@every_input
def test_complex_parameters_are_updated_like_pairs_of_real_ones(settings, make):
    params = make_params(dtype=torch.complex64)
    pairs = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    one, two = make(params, **settings), make(pairs, **settings)
    for number in range(5):
        set_gradients(params, number)
        for p, pair in zip(params, pairs, strict=True):
            pair.grad = torch.view_as_real(p.grad).clone()
        one.step()
        two.step()
    limit = limit_of(pairs, two)  # torch multiplies by complex numbers
    assert_within([torch.view_as_real(p.detach()) for p in params], pairs, limit)


@every_class
@every_input
def test_step_changes_nothing_without_gradients(settings, make):
    params = make_params()
    before = copies_of(params)
    opt = make(params, **settings)
    for _ in range(3):
        opt.step()
    assert_same_tensors(params, before)
    assert state_of(opt) == []
    assert all(p._version == 0 for p in params)


@every_class
@every_input
@pytest.mark.parametrize("kind", ["zeros", "empty", "sparse"])
def test_step_changes_nothing_at_gradients_of_zeros(kind, settings, make, numpy_backend):
    settings = settings | {"weight_decay": 0.0}
    params = make_params(((0,), (3, 0)) if kind == "empty" else ((3, 2), (2,)))
    before = copies_of(params)
    if kind == "sparse":
        settings["nesterov"] = False  # torch cannot add a sparse buffer to a sparse gradient with alpha
    opt = make(params, **settings)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p.detach())
            p.grad = p.grad.to_sparse() if kind == "sparse" else p.grad
        opt.step()
    assert_same_tensors(params, before)


@every_class
@every_input
def test_optimiser_can_be_printed(settings, make):
    text = repr(make(make_params(), **settings))
    assert text.startswith("SGD (")
    for name, value in settings.items():
        assert f"{name}: {value}" in text


@every_class
def test_groups_have_their_own_weight_decay(make):
    params, closure = network()
    opt = make([{"params": [params[0]], "weight_decay": 0.5}, {"params": [params[1]]}], lr=1e-2)
    assert_goes_right(opt, closure)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    torch.testing.assert_close(params[0].detach(), before[0] * (1 - 1e-2 * 0.5))
    assert_same_tensors(params[1:], before[1:])


@every_class
@every_input
def test_groups_have_their_own_lr(settings, make):
    params, closure = network()
    before = copies_of(params)
    own = {"lr": 1e-3} | settings | {"weight_decay": 0.0}
    opt = make([{"params": [params[0]], "lr": 0.0}, {"params": [params[1]]}], **own)
    for _ in range(5):
        opt.step(closure)
    assert_same_tensors(params[:1], before[:1])
    assert (params[1] != before[1]).all()


@every_input
@pytest.mark.parametrize("flag", ["foreach", "fused", "capturable"])
def test_flags_of_implementations_change_nothing(flag, settings):
    runs = []
    for given in ({}, {flag: True}, {flag: False}):
        params = make_params()
        steps(params, ft.SGD(params, **settings, **given), range(3))
        runs.append(params)
    assert_same_tensors(runs[1], runs[0])
    assert_same_tensors(runs[2], runs[0])


def test_differentiable_is_refused():
    with pytest.raises(ValueError, match="differentiable: expected False"):
        ft.SGD(make_params(), differentiable=True)


@every_class
@every_input
def test_steps_do_not_depend_on_the_default_dtype(settings, make):
    runs = []
    for dtype in (torch.float32, torch.float64):
        params = make_params()
        opt = make(params, **settings)
        torch.set_default_dtype(dtype)
        try:
            steps(params, opt, range(3))
        finally:
            torch.set_default_dtype(torch.float32)
        runs.append(params)
    assert_same_tensors(*runs)


@every_class
@every_input
def test_non_contiguous_parameters_are_updated_like_contiguous_ones(settings, make):
    plain, others = make_params(((6, 4), (5, 3))), []
    for p, layout in zip(plain, (lambda t: t.t().contiguous().t(), lambda t: torch.stack([t, t], -1)[..., 0])):
        others.append(torch.nn.Parameter(layout(p.detach())))
        assert not others[-1].is_contiguous()
    for params in (plain, others):
        steps(params, make(params, **settings), range(4))
    assert_same_tensors(others, plain)


@every_class
@every_input
def test_scaled_gradients_do_the_steps_of_plain_ones(settings, make):
    runs = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=128.0)):
        params, _ = network()
        opt = make(params, **settings)
        for _ in range(3):
            opt.zero_grad()
            loss = (params[0].mv(torch.ones(5)) + params[1]).pow(2).sum()
            if scaler is None:
                loss.backward()
                opt.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
        runs.append(params)
    assert_same_tensors(*runs)  # a power of two scales exactly


@every_class
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
def test_sparse_gradients_go_in_the_right_direction(maximize, momentum, make):
    settings, schedulers = INFO.metadata_for_sparse
    table = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 12).view(6, 2))
    opt = make([table], **settings | {"momentum": momentum, "maximize": maximize})
    made = [scheduler(opt) for scheduler in schedulers]

    def closure():
        opt.zero_grad()
        loss = torch.nn.functional.embedding(torch.tensor([0, 2, 2]), table, sparse=True).pow(2).sum()
        loss.backward()
        assert table.grad.is_sparse
        return loss

    before = table.detach().clone()
    assert_goes_right(opt, closure, made, maximize)
    assert torch.equal(table[[1, 3, 4, 5]], before[[1, 3, 4, 5]])


@every_class
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.optimizer_error_input.desc)
def test_wrong_arguments_are_refused_in_the_words_of_torch(error, make):
    given = error.optimizer_error_input
    params = make_params() if given.params is None else given.params
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            make(params, **given.kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            make(params, **given.kwargs)
