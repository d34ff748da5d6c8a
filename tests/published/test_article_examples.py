"""The worked examples of five articles on momentum, computed anew and compared with what the articles print.

Expected values come from exact fractions or from the articles' own few lines, written out here; a printed number is
taken for right only where the computation gives its digits, and what is misprinted is said beside the test.
"""

from fractions import Fraction
from functools import cache
from math import floor

import numpy as np
import pytest
import torch

import fastmomentum as fm
from tests.helpers.reference import RULES, assert_all_same_bits, assert_same_bits, rest, update

EPS = np.finfo(np.float64).eps


# The article on SGD with momentum: its trace of five steps, w = 0, lr = 0.1, β = 0.9, in the averaging form.
#
# Its digits of v and w are right, with both ties, v₃ = 0.1065 and w₂ = −0.0135, rounded up (towards +∞). Its text is
# not: what it calls the updates "Δw = 0.107" and "Δw = 0.050" of steps 3 and 1 are their velocities (Δw = −0.01065 and
# −0.005), and its question on step 5 writes −0.1·η·(−0.1) for +0.01, one factor of 0.1 too many (it would be +0.001).

LR, BETA = Fraction(1, 10), Fraction(9, 10)
GRADIENTS = [Fraction(tenths, 10) for tenths in (5, 4, 3, 1, -1)]
PRINTED_V = ["0.050", "0.085", "0.107", "0.106", "0.085"]
PRINTED_W = ["-0.005", "-0.013", "-0.024", "-0.035", "-0.043"]
# Five steps, each of which multiplies by numbers that are no binary fractions (1 − 0.9 is one unit off 0.1), rounds
# three times, and at the last subtracts a tenth: below three units a step.
TRACE_RTOL = 5 * 3 * EPS


def exact_trace():
    w = v = Fraction(0)
    path = []
    for g in GRADIENTS:
        v = BETA * v + (1 - BETA) * g
        w = w - LR * v
        path.append((w, v))
    return path


def five_steps(rule="ema", lr=float(LR), backend=None):
    w, v = np.zeros(1), np.zeros(1)
    path = []
    for g in GRADIENTS:
        fm.step(w, v, np.array([float(g)]), rule=rule, lr=lr, momentum=float(BETA), backend=backend)
        path.append((w[0], v[0]))
    return np.array(path)


def three_digits(x):
    """Rounded half up; x is first freed of its float error, which would decide the ties otherwise."""
    return f"{floor(Fraction(str(round(float(x), 12))) * 1000 + Fraction(1, 2)) / 1000:.3f}"


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_ema_gives_the_printed_trace_of_five_steps(backend):
    path = five_steps(backend=backend)
    np.testing.assert_allclose(path, np.array(exact_trace(), float), rtol=TRACE_RTOL, atol=0)
    assert [three_digits(v) for _, v in path] == PRINTED_V
    assert [three_digits(w) for w, _ in path] == PRINTED_W


def test_ema_updates_of_the_trace_are_a_tenth_of_what_the_text_calls_them():
    moves = np.diff(five_steps()[:, 0], prepend=0.0)
    np.testing.assert_allclose(moves[[0, 2]], [-0.005, -0.01065], rtol=2 * TRACE_RTOL)  # a difference of two w's
    assert abs(moves[2]) > abs(moves[0])  # what the text is after: the smaller gradient makes the larger update


def test_ema_goes_on_at_step_five_where_gradient_descent_turns_back():
    """The article's first question: +0.01 for gradient descent, −0.0085265 with momentum, the smaller of the two."""
    before, after = five_steps()[3:, 0]
    plain = np.array([before])
    fm.step(plain, None, np.array([float(GRADIENTS[4])]), rule="sgd", lr=float(LR))
    # w is no larger than 0.05, and the two moves are differences of w's that are TRACE_RTOL off each
    np.testing.assert_allclose(plain[0] - before, 0.01, rtol=0, atol=2 * 0.05 * TRACE_RTOL)
    np.testing.assert_allclose(after - before, -0.0085265, rtol=0, atol=2 * 0.05 * TRACE_RTOL)
    assert abs(after - before) < plain[0] - before


def test_pytorch_has_ten_times_the_velocity_of_ema_and_its_trace_at_a_tenth_of_the_lr():
    """Two articles say so: leaving (1−β) out is the same with lr scaled by 1−β."""
    ema, scaled = five_steps(), five_steps("pytorch", lr=float(LR * (1 - BETA)))
    np.testing.assert_allclose(scaled[:, 0], ema[:, 0], rtol=2 * TRACE_RTOL)
    np.testing.assert_allclose(scaled[:, 1], 10 * ema[:, 1], rtol=2 * TRACE_RTOL)


# The article on why momentum's history resets to zero: θ = [1, 2], β = 0.9, lr = 0.1, two gradients. It prints no
# results; those below are its own function's, and exact decimals. Its opening, that momentum "seemed to vanish after
# parameter updates involving large gradients", has no ground in its formula: nothing in it puts v to zero.

G1, G2 = np.array([0.5, -0.2]), np.array([0.3, 0.1])


def sgd_with_momentum(theta, grad, v, beta, learning_rate, reset_flag=False):
    """The article's function; with the flag set, its flawed one."""
    if reset_flag:
        v = np.array([0.0, 0.0])
    v_new = beta * v + (1 - beta) * grad
    theta_new = theta - learning_rate * v_new
    return theta_new, v_new


def article_run(grads, flags):
    theta, v, path = np.array([1.0, 2.0]), np.array([0.0, 0.0]), []
    for grad, flag in zip(grads, flags, strict=True):
        theta, v = sgd_with_momentum(theta, grad, v, 0.9, 0.1, flag)
        path.append(np.array([theta, v]))
    return np.array(path)


def our_run(grads, flags):
    theta = np.array([1.0, 2.0])
    opt = fm.Momentum(theta, rule="ema", lr=0.1, momentum=0.9)
    path = []
    for grad, flag in zip(grads, flags, strict=True):
        if flag:
            opt.reset("the history was put to zero")
        opt.step(grad)
        path.append(np.array([theta, opt.velocity]))
    return np.array(path), opt


def test_ema_gives_the_reset_example_s_decimals():
    grads = [G1, G2, G2]
    kept, cut = (our_run(grads, [False, False, flag])[0] for flag in (False, True))
    expected = [
        [[0.995, 2.002], [0.05, -0.02]],
        [[0.9875, 2.0028], [0.075, -0.008]],
        [[0.97775, 2.00252], [0.0975, 0.0028]],
    ]
    # units of θ's size: three steps of at most three roundings each, of numbers below 2.01
    np.testing.assert_allclose(kept, expected, rtol=0, atol=3 * 3 * 2 * EPS)
    expected[2] = [[0.9845, 2.0018], [0.03, 0.01]]
    np.testing.assert_allclose(cut, expected, rtol=0, atol=3 * 3 * 2 * EPS)


def test_reset_changes_exactly_the_steps_after_it():
    grads = [G1, G2, G2, G1, G2, G1]
    for cut in range(1, 6):
        flags = [step == cut for step in range(6)]
        kept, _ = our_run(grads, [False] * 6)
        reset, opt = our_run(grads, flags)
        assert_same_bits(kept, article_run(grads, [False] * 6))
        assert_same_bits(reset, article_run(grads, flags))
        assert_same_bits(reset[:cut], kept[:cut])
        assert (reset[cut:] != kept[cut:]).all()
        assert opt.resets == [(cut, "the history was put to zero", "all")]


def test_reset_on_purpose_is_what_the_flawed_flag_did_by_accident():
    flags = [False, False, True, False, True, True, False]
    grads = [G1, G2, G2, G1, G2, G1, G1]
    path, opt = our_run(grads, flags)
    assert_same_bits(path, article_run(grads, flags))
    assert [reset.step for reset in opt.resets] == [2, 4, 5]


def test_reset_before_every_step_leaves_gradient_descent_at_a_tenth_of_the_lr():
    """What the flag does once it stays set: all memory is gone, and the factor 1−β stays."""
    grads = [G1, G2] * 10
    path, _ = our_run(grads, [True] * 20)
    theta = np.array([1.0, 2.0])
    plain = fm.Momentum(theta, rule="sgd", lr=0.1 * (1 - 0.9))
    for grad, (ours, _) in zip(grads, path, strict=True):
        plain.step(grad)
        np.testing.assert_allclose(ours, theta, rtol=20 * EPS)  # a rounding of θ a step in each run


def test_ema_keeps_its_velocity_through_a_large_gradient():
    grads = [G1, 1e12 * G1, G2]
    path, _ = our_run(grads, [False] * 3)
    assert_same_bits(path, article_run(grads, [False] * 3))
    # a tenth of the large one, nine tenths of that at the next step; the other gradients are 1e-12 of it
    np.testing.assert_allclose(path[1:, 1], [0.1e12 * G1, 0.09e12 * G1], rtol=1e-11)


# The article on SGD with momentum: its table of losses for four β, salary regression, lr = 0.1, 20 epochs.
#
# Its code (the pytorch form) does not give its table. Printed against computed, Loss@1, @5 and @20:
#
#     β = 0     1.0000 0.1297 0.0076     0.9997 0.1678 0.0002
#     β = 0.5   1.0000 0.0382 0.0000     0.9997 0.0151 0.0000
#     β = 0.9   1.0000 0.0011 0.0000     0.9997 0.0950 0.0977
#     β = 0.99  1.0000 0.0648 0.0000     0.9997 0.1925 0.5731
#
# Only 0.0000 at β = 0.5 is right. Loss@1 is the mean square of the data, 1.414 in place of √2. No lr mends the first
# row: gradient descent on one coordinate is geometric, and from 0.1297 = r⁸ follows r³⁸ = 0.0001. The averaging form
# gives other numbers again. With them falls the conclusion: at epoch 5 it is β = 0.5 that has the lowest loss, and at
# epoch 20 β = 0.9 and 0.99 are still swinging, above gradient descent.

X_N = np.array([-1.414, -0.707, 0.000, 0.707, 1.414])
Y_N = np.array([-1.414, -0.707, 0.000, 0.707, 1.414])
BETAS = (0.0, 0.5, 0.9, 0.99)
EPOCHS_SHOWN = (1, 5, 20)
PRINTED_LOSSES = {
    0.0: ["1.0000", "0.1297", "0.0076"],
    0.5: ["1.0000", "0.0382", "0.0000"],
    0.9: ["1.0000", "0.0011", "0.0000"],
    0.99: ["1.0000", "0.0648", "0.0000"],
}
COMPUTED_LOSSES = {
    0.0: ["0.9997", "0.1678", "0.0002"],
    0.5: ["0.9997", "0.0151", "0.0000"],
    0.9: ["0.9997", "0.0950", "0.0977"],
    0.99: ["0.9997", "0.1925", "0.5731"],
}


def train_momentum(beta, lr=0.1, epochs=20):
    """The article's loop."""
    w, b, v_w, v_b = 0.0, 0.0, 0.0, 0.0
    losses = []
    for _ in range(epochs):
        y_hat = w * X_N + b
        losses.append(np.mean((y_hat - Y_N) ** 2))
        dw = 2 * np.mean((y_hat - Y_N) * X_N)
        db = 2 * np.mean(y_hat - Y_N)
        v_w = beta * v_w + dw
        v_b = beta * v_b + db
        w -= lr * v_w
        b -= lr * v_b
    return np.array(losses)


def our_losses(beta, rule="pytorch", lr=0.1, epochs=20):
    wb = np.zeros(2)
    opt = fm.Momentum(wb, rule=rule, lr=lr, momentum=beta)
    losses = []
    for _ in range(epochs):
        error = wb[0] * X_N + wb[1] - Y_N
        losses.append(np.mean(error**2))
        opt.step(np.array([2 * np.mean(error * X_N), 2 * np.mean(error)]))
    return np.array(losses)


def exact_losses(beta, epochs=20):
    """In fractions; b stays 0, as X_n sums to 0, and y_n = X_n leaves e = w − 1 with loss s·e²."""
    s = Fraction(2 * (1414**2 + 707**2), 5 * 1000**2)
    e, v, losses = Fraction(-1), Fraction(0), []
    for _ in range(epochs):
        losses.append(s * e * e)
        v = Fraction(str(beta)) * v + 2 * s * e
        e -= v / 10
    return losses


def shown(losses):
    return [f"{losses[epoch - 1]:.4f}" for epoch in EPOCHS_SHOWN]


@pytest.mark.parametrize("beta", BETAS)
def test_pytorch_agrees_with_the_salary_regression_s_own_loop_and_with_fractions(beta):
    losses = our_losses(beta)
    assert_same_bits(losses, train_momentum(beta))
    # w is of the order of 1; a rounding of it or of lr·v at one epoch is carried on, by velocity, for at most 20 more
    np.testing.assert_allclose(losses, np.array(exact_losses(beta), float), rtol=0, atol=20**2 * EPS)
    assert shown(losses) == COMPUTED_LOSSES[beta]


@pytest.mark.parametrize("rule", ["pytorch", "ema"])
def test_salary_regression_s_printed_table_is_right_in_one_entry_of_twelve(rule):
    right = {
        (beta, epoch)
        for beta in BETAS
        for epoch, printed, found in zip(EPOCHS_SHOWN, PRINTED_LOSSES[beta], shown(our_losses(beta, rule)), strict=True)
        if printed == found
    }
    assert right == {(0.5, 20)}


def test_salary_regression_is_not_learned_fastest_with_momentum_of_nine_tenths():
    losses = {beta: our_losses(beta) for beta in BETAS}
    assert min(BETAS, key=lambda beta: losses[beta][4]) == 0.5
    assert losses[0.0][19] < losses[0.9][19] < losses[0.99][19]
    # "β = 0.99 builds velocity slowly" is the averaging form's, which its code is not: here it is there by epoch 4
    assert min(BETAS, key=lambda beta: losses[beta][3]) == 0.99
    assert our_losses(0.99, "ema")[3] > 0.9


# The article on the momentum method: f = x² + 10 y² from (10, 1) and (−10, −1), 15 iterations.
#
# It prints neither lr nor momentum. Taken here: lr = 0.01 with 0.8, as in its code for the network below; and
# lr = 1/16 with 1/2, where gradient descent goes to and fro along y as in its picture (it does so above lr = 1/20, and
# converges below 1/10), and where no operation rounds. That momentum gets nearer is not so for every pair:
# at lr = 1/16 the article's usual 0.9 is farther off after 15 iterations than gradient descent (3.11 against 1.35).

CURVATURE = (2, 20)
STARTS = ((10, 1), (-10, -1))
ITERATIONS = 15


def descend(rule, start, lr, momentum, dtype=np.float64):
    p = np.array(start, dtype)
    h = np.array(CURVATURE, dtype)
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=momentum)
    path = []
    for _ in range(ITERATIONS):
        opt.step(h * p)
        path.append(p.copy())
    return np.array(path)


def exact_descent(start, lr, momentum):
    """x⁺ = x − lr·∇f(x) + momentum·(x − x⁻), the article's formula, in fractions."""
    path = []
    last = now = [Fraction(x) for x in start]
    for _ in range(ITERATIONS):
        last, now = now, [x - lr * h * x + momentum * (x - q) for x, q, h in zip(now, last, CURVATURE, strict=True)]
        path.append(now)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", RULES)
def test_the_quadratic_s_path_has_the_bits_of_a_hand_written_loop(rule, start, dtype):
    p = np.array(start, dtype)
    h = np.array(CURVATURE, dtype)
    s = rest(rule, p)
    path = []
    for _ in range(ITERATIONS):
        p, s = update(rule, p, s, h * p, dtype, lr=0.01, momentum=0.8)
        path.append(p)
    assert_same_bits(descend(rule, start, 0.01, 0.8, dtype), np.array(path))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_the_quadratic_s_two_starts_are_mirror_images_to_the_bit(rule, dtype):
    one, other = (descend(rule, start, 0.01, 0.8, dtype) for start in STARTS)
    assert_same_bits(one, -other)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", ["classical", "pytorch", "heavy_ball"])
def test_the_quadratic_s_path_is_exact_where_nothing_rounds(rule, start):
    """So the velocity forms are Polyak's heavy ball, as two articles derive: not nearly, the same numbers."""
    path = descend(rule, start, 1 / 16, 1 / 2)
    exact = exact_descent(start, Fraction(1, 16), Fraction(1, 2))
    assert [[Fraction(x) for x in point] for point in path.tolist()] == exact


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
@pytest.mark.parametrize(
    ("lr", "momentum", "plain", "with_momentum"),
    [("1/100", "4/5", 7.3858, 2.0446), ("1/16", "1/2", 1.3493, 0.0754), ("1/16", "9/10", 1.3493, 3.1137)],
)
def test_momentum_ends_nearer_on_the_quadratic_unless_it_is_too_large(rule, start, lr, momentum, plain, with_momentum):
    lr, momentum = Fraction(lr), Fraction(momentum)
    found = [descend(name, start, float(lr), float(momentum))[-1] for name in ("sgd", rule)]
    expected = np.array([exact_descent(start, lr, mu)[-1] for mu in (0, momentum)], float)
    # 15 steps from 10: a rounding of one step is carried on, by velocity, for at most 15 more
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * ITERATIONS**2 * EPS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [plain, with_momentum], rtol=0, atol=0.00005)


def test_gradient_descent_goes_to_and_fro_along_the_short_axis_only():
    path = np.vstack([STARTS[0], descend("sgd", STARTS[0], 1 / 16, 0.0)])
    assert (path[1:, 1] * path[:-1, 1] < 0).all()
    assert (path[:, 0] > 0).all()
    assert (descend("sgd", STARTS[0], 0.01, 0.0) > 0).all()  # not at the lr of the article's code


# The article on the momentum method: a network with 20 hidden units learns x² + 0.1·ε.
#
# Its code does not run as printed (Dataa for Data, dataset for torch_dataset, net for net_Momentum, a train_data
# nowhere defined, loops without indentation), and its momentum of 0.8 is 0.9 in one comment. Its function is the
# classical form.

NET_LR, GAMMA, EPOCHS, BATCH = 0.01, 0.8, 12, 32
STEPS = EPOCHS * 32  # of 1000 points: 31 batches of 32, and one of 8


def network():
    """Data, weights and order of batches, the same at every call, and torch's own generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = torch.unsqueeze(torch.linspace(-1, 1, 1000), dim=1)
        y = x.pow(2) + 0.1 * torch.randn(*x.size())
        net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1))
        batches = [batch for _ in range(EPOCHS) for batch in torch.randperm(1000).split(BATCH)]
    return net, [(x[batch], y[batch]) for batch in batches]


def backward(net, x, y):
    loss = torch.nn.functional.mse_loss(net(x), y)
    net.zero_grad()
    loss.backward()
    return loss.item()


def arrays(tensors):
    """Views of the tensors' own memory."""
    return [tensor.detach().numpy() for tensor in tensors]


@cache
def trained_by_us(rule, momentum, lr=NET_LR):
    net, batches = network()
    params = list(net.parameters())
    opt = fm.Momentum(arrays(params), rule=rule, lr=lr, momentum=momentum)
    losses = []
    for x, y in batches:
        losses.append(backward(net, x, y))
        opt.step(arrays(p.grad for p in params))
    return np.array(losses), np.concatenate([p.ravel() for p in arrays(params)])


@cache
def trained_by_torch(momentum):
    net, batches = network()
    params = list(net.parameters())
    opt = torch.optim.SGD(params, lr=NET_LR, momentum=momentum, foreach=False, fused=False)
    losses = []
    for x, y in batches:
        losses.append(backward(net, x, y))
        opt.step()
    return np.array(losses), np.concatenate([p.ravel() for p in arrays(params)])


def difference(one, other):
    """Of losses and of parameters, in units in the last place of the largest of each, in float32."""
    unit = np.finfo(np.float32).eps
    return [abs(a - b).max() / (unit * abs(b).max()) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize(
    ("rule", "momentum"),
    [("pytorch", GAMMA), ("classical", GAMMA), ("pytorch", 0.0), ("classical", 0.0), ("sgd", 0.0)],
)
def test_a_network_trained_by_us_agrees_with_torch_at_every_step(rule, momentum):
    """torch contracts products and sums to FMA, and so may round a parameter otherwise at each step, by a unit at most.

    Such roundings fall to either side, and their sum grows as a random walk, with the root of the number of steps;
    descent only makes it smaller. Measured: below 2 units. A run with an lr a thousandth off is well outside.
    """
    ours, theirs = trained_by_us(rule, momentum), trained_by_torch(momentum)
    assert len(ours[0]) == STEPS
    assert max(difference(ours, theirs)) < STEPS**0.5
    assert min(difference(trained_by_us(rule, momentum, 1.001 * NET_LR), theirs)) > STEPS**0.5


def test_classical_has_the_bits_of_the_network_article_s_own_function_at_every_step():
    net, batches = network()
    params = list(net.parameters())
    theirs = [p.detach().clone() for p in params]
    vs = [torch.zeros_like(p) for p in theirs]
    opt = fm.Momentum(arrays(params), rule="classical", lr=NET_LR, momentum=GAMMA)
    for x, y in batches:
        backward(net, x, y)
        opt.step(arrays(p.grad for p in params))
        for i, (v, p) in enumerate(zip(vs, params, strict=True)):
            v[:] = GAMMA * v + NET_LR * p.grad
            theirs[i] = theirs[i] - v
        assert_all_same_bits([*arrays(params), *opt.velocity], arrays([*theirs, *vs]))


def test_a_network_s_loss_falls_every_epoch_and_lower_with_momentum():
    plain, with_momentum = (
        trained_by_us(rule, momentum)[0].reshape(EPOCHS, -1).mean(1)
        for rule, momentum in (("sgd", 0.0), ("pytorch", GAMMA))
    )
    assert (np.diff(plain) < 0).all()
    assert (np.diff(with_momentum) < 0).all()
    assert (with_momentum < plain).all()
    assert with_momentum[-1] < plain[-1] / 4  # 0.017 and 0.075; the noise alone is 0.01


# Small numbers, in several articles.


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_classical_nears_its_terminal_velocity_under_a_constant_gradient(gamma):
    """v₁ = αg, v₂ = (1+γ)αg, v₃ = (1+γ+γ²)αg, …, αg/(1−γ): ten times αg for γ = 0.9."""
    g, lr = np.array([3.0, -0.25]), 0.01
    opt = fm.Momentum(np.zeros(2), rule="classical", lr=lr, momentum=gamma)
    for total in (1, 1 + gamma, 1 + gamma + gamma**2):
        opt.step(g)
        np.testing.assert_allclose(opt.velocity, total * (lr * g), rtol=4 * EPS)  # two roundings a step here, and there
    for _ in range(4000):  # 0.99⁴⁰⁰⁰ < 1e-17
        opt.step(g)
    # each step adds at most a unit of roundings, which it forgets as it forgets gradients; 1 − γ has its own
    limit = lr * g / float(1 - Fraction(str(gamma)))
    np.testing.assert_allclose(opt.velocity, limit, rtol=3 * EPS / (1 - gamma))
    if gamma == 0.9:
        np.testing.assert_allclose(opt.velocity, 10 * (lr * g), rtol=3 * EPS / (1 - gamma))


def test_classical_halves_steps_that_alternate():
    """Gradients +δ/lr, −δ/lr, …: v₂ = γδ − δ, and in the end ±δ/(1+γ), 0.526 δ for γ = 0.9.

    The article on momentum writes γηδ − ηδ for the former, where its δ holds the η already.
    """
    lr, gamma, delta = 0.5, 0.9, 0.25
    opt = fm.Momentum(np.zeros(1), rule="classical", lr=lr, momentum=gamma)
    sizes = []
    for step in range(400):  # 0.9⁴⁰⁰ < 1e-18
        opt.step(np.array([(-1.0) ** step * delta / lr]))
        sizes.append((-1.0) ** step * opt.velocity[0])
    np.testing.assert_allclose(sizes[:2], [delta, delta * 0.1], rtol=10 * EPS)  # 1 − 0.9 cancels a digit
    np.testing.assert_allclose(sizes[-2:], delta / 1.9, rtol=2 * EPS / (1 - gamma))


def weights(rule, momentum, steps):
    """What a gradient of 1 has left in the velocity, 0, 1, … steps later."""
    opt = fm.Momentum(np.zeros(1), rule=rule, lr=1.0, momentum=momentum)
    left = []
    for step in range(steps):
        opt.step(np.array([1.0 if step == 0 else 0.0]))
        left.append(opt.velocity[0])
    return np.array(left)


@pytest.mark.parametrize(("rule", "first"), [("ema", Fraction(1, 10)), ("pytorch", 1), ("classical", 1)])
def test_the_weight_of_a_gradient_k_steps_back_is_a_power_of_beta(rule, first):
    """(1−β)βᵏ in the averaging form: of the gradient of step 1, 0.0387 at step 10 and 0.000573 at step 50."""
    left = weights(rule, 0.9, 50)
    exact = [float(first * BETA**k) for k in range(50)]
    np.testing.assert_allclose(
        left, exact, rtol=(50 + 1) * EPS
    )  # 0.9 and each product are half a unit off, 1 − 0.9 one
    if rule == "ema":
        assert [f"{left[t - 1]:.3g}" for t in (10, 50)] == ["0.0387", "0.000573"]


@pytest.mark.parametrize(("beta", "window", "share"), [(0.9, 10, 0.6513), (0.99, 100, 0.6340)])
def test_ema_has_about_two_thirds_of_its_weight_in_its_effective_window(beta, window, share):
    """The last 1/(1−β) gradients, "about 10 steps" and "about 100 steps", have 1 − β^window, near 1 − 1/e = 0.632."""
    v = np.zeros(1)
    for _ in range(window):
        fm.step(np.zeros(1), v, np.ones(1), rule="ema", lr=0.1, momentum=beta)
    # each step adds a unit at most, and the rounding of β less than one
    np.testing.assert_allclose(v, float(1 - Fraction(str(beta)) ** window), rtol=window * EPS)
    assert f"{v[0]:.4f}" == f"{share:.4f}"


def test_classical_velocity_is_no_average_but_steadier_for_its_size():
    """The article on momentum calls v an average of the scaled gradients, of smaller variance than one of them.

    Its weights sum to 1/(1−γ) = 10, their squares to 1/(1−γ²) = 5.26: of independent gradients it has 5.26 times the
    variance. What is smaller is its deviation against its mean, by √((1−γ)/(1+γ)) = 0.229.
    """
    left = weights("classical", 0.9, 400)  # 0.9⁴⁰⁰ < 1e-18
    np.testing.assert_allclose(left.sum(), 10, rtol=400 * EPS)  # the late, worst rounded ones weigh least
    np.testing.assert_allclose((left**2).sum(), 1 / 0.19, rtol=400 * EPS)
    np.testing.assert_allclose((left**2).sum() ** 0.5 / left.sum(), (0.1 / 1.9) ** 0.5, rtol=400 * EPS)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", ["pytorch", "classical", "ema", "heavy_ball"])
def test_momentum_of_zero_is_gradient_descent_to_the_bit(rule, start):
    assert_same_bits(descend(rule, start, 0.01, 0.0), descend("sgd", start, 0.01, 0.0))


@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
def test_momentum_of_one_swings_for_ever(rule):
    """The bowl without friction: x⁺ + x⁻ = (2 − αh)·x keeps x⁺² + x² − (2 − αh)·x⁺·x, here 0.1, as it was."""
    steps, lr, h = 1000, 0.05, 2.0
    p, path = np.ones(1), [1.0]
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=1.0)
    for _ in range(steps):
        opt.step(h * p)
        path.append(p[0])
    x = np.array(path)
    kept = x[1:] ** 2 + x[:-1] ** 2 - (2 - lr * h) * x[1:] * x[:-1]
    np.testing.assert_allclose(kept, 0.1, rtol=0, atol=steps * EPS)  # of numbers of size 1, a rounding a step
    assert x[-20:].max() > 0.99  # a period is 2π / arccos(0.95) = 19.8 steps
    assert x[-20:].min() < -0.99


def test_heavy_ball_takes_the_companion_matrix_s_powers_which_outgrow_its_spectral_radius():
    """[x_{t+1}, x_t] = Aᵗ [x₁, x₀] with A = [[1 + β − αh, −β], [1, 0]], columns run from (1, 0) and (0, 1).

    The article on the momentum method concludes ‖Aᵗ‖ = O(ρ(A)ᵗ). Where the roots meet, at β = (1 − √(αh))², that is
    false: Aᵗ = ρᵗ·[[t + 1, −tρ], [t/ρ, 1 − t]], so ‖Aᵗ‖/ρᵗ grows as 2t. (ρ it calls the largest of the eigenvectors.)
    """
    rho = Fraction(15, 16)
    alpha, beta = (1 - rho) ** 2, rho**2
    power = np.array([[1, 0], [0, 1]]) * Fraction(1)
    a = np.array([[1 + beta - alpha, -beta], [Fraction(1), Fraction(0)]])
    x, last = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    growth = {}
    for t in range(1, 201):
        fm.step(x, last, x.copy(), rule="heavy_ball", lr=float(alpha), momentum=float(beta))
        power = a @ power
        assert (power == rho**t * np.array([[t + 1, -t * rho], [t / rho, 1 - t]])).all()
        found, expected = np.array([x, last]), power.astype(float)
        # a rounding at step s, of size s·ρˢ, is carried on by (t − s)·ρᵗ⁻ˢ; their sum is t³/6 against t·ρᵗ
        np.testing.assert_allclose(found, expected, rtol=0, atol=t**2 * EPS * abs(expected).max())
        growth[t] = np.linalg.norm(found, 2) / float(rho**t)
    assert [f"{growth[t]:.1f}" for t in (1, 10, 100, 200)] == ["2.4", "20.1", "200.4", "400.8"]


@pytest.mark.parametrize("rule", ["ema", "pytorch"])
def test_momentum_annealed_from_a_half_to_nine_tenths_keeps_the_bits_of_a_loop(rule):
    """The article on the exponential average starts momentum at 0.5 and anneals it to 0.9; 1 − β must follow."""

    def beta(step):
        return min(0.5 + 0.05 * step, 0.9)

    h = np.array(CURVATURE, float)
    p, q = np.array([10.0, 1.0]), np.array([10.0, 1.0])
    v = np.zeros(2)
    opt = fm.Momentum(p, rule=rule, lr=0.01, momentum=beta)
    for step in range(20):
        opt.step(h * p)
        v = beta(step) * v + ((1 - beta(step)) * (h * q) if rule == "ema" else h * q)
        q = q - 0.01 * v
        assert_same_bits(p, q)
        assert_same_bits(opt.velocity, v)


# Nesterov's form, in the articles on momentum and on SGD with momentum: the gradient at the point where momentum will
# carry the parameter, w − η·β·v in the averaging form, θ − γ·v in the classical one.


def ahead(rule, lr, momentum):
    """How far along −v the look-ahead point lies."""
    return momentum if rule == "classical" else lr * momentum


def swing(rule, lr, momentum, steps, *, look):
    """(w, v) after each step on ½w² from w = 1, the gradient taken ahead, or not."""
    w, v, path = np.ones(1), np.zeros(1), []
    for _ in range(steps):
        fm.step(w, v, w - look * ahead(rule, lr, momentum) * v, rule=rule, lr=lr, momentum=momentum)
        path.append((w[0], v[0]))
    return np.array(path)


def test_look_ahead_and_standard_momentum_agree_where_there_is_no_velocity():
    """The article's third question: with v = 0 the point ahead is w itself; later the paths part."""
    look, standard = (swing("ema", 0.1, 0.9, 3, look=look) for look in (1, 0))
    assert_same_bits(look[0], standard[0])
    assert (look[1:, 1] != standard[1:, 1]).all()


def test_look_ahead_overshoots_less():
    """On ½w² from 1 with lr = 0.1, β = 0.9: to −0.119 against −0.153."""
    least = []
    for look in (1, 0):
        w, v, path = 1.0, 0.0, []
        for _ in range(100):
            v = 0.9 * v + (1 - 0.9) * (w - look * (0.1 * 0.9) * v)
            w = w - 0.1 * v
            path.append((w, v))
        found = swing("ema", 0.1, 0.9, 100, look=look)
        assert_same_bits(found, np.array(path))
        least.append(f"{found[:, 0].min():.3f}")
    assert least == ["-0.119", "-0.153"]


@pytest.mark.parametrize("rule", ["classical", "pytorch", "ema"])
def test_folded_nesterov_walks_the_look_ahead_points_exactly(rule):
    """Dyadic numbers and ten steps: nothing rounds, and the points are the same numbers, not near ones."""
    lr, momentum = 0.25, 0.5
    explicit = swing(rule, lr, momentum, 10, look=1)
    points = explicit[:, 0] - ahead(rule, lr, momentum) * explicit[:, 1]
    w = np.ones(1)
    opt = fm.Momentum(w, rule=rule, lr=lr, momentum=momentum, nesterov=True)
    for point, (_, v) in zip(points, explicit, strict=True):
        opt.step(w.copy())
        assert_same_bits(w, np.array([point]))
        assert_same_bits(opt.velocity, np.array([v]))
    assert abs(explicit[:, 0] - swing(rule, lr, momentum, 10, look=0)[:, 0]).max() > 0.01
