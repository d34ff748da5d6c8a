"""Settings of fm.SparseRows that change: rows catch up with the settings that their missed steps had."""

import copy
import pickle
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.optim.step_products import SWEEP, StepProducts
from tests.helpers.ids import label
from tests.helpers.interrupts import is_interrupted, places
from tests.helpers.reference import assert_all_same_bits, assert_same_bits, slots_of

WIDTH = 2
STEPS = 150


def random_table(rng, low, high, zeros=0.0, runs=1):
    """Return a value for each step: random numbers, or runs of equal ones, of which a share is exactly 0."""
    values = np.where(rng.random(STEPS) < zeros, 0.0, rng.uniform(low, high, STEPS))
    return [float(values[step // runs * runs]) for step in range(STEPS)]


def some_settings(seed, runs=1):
    rng = np.random.default_rng(seed)
    return {
        "lr": random_table(rng, 0.0, 0.1, 0.1, runs),
        "momentum": random_table(rng, 0.3, 1.0, 0.2, runs),
        "weight_decay": random_table(rng, 0.0, 0.5, 0.5, runs),
    }


FORMS = [
    ({"rule": "sgd"}, ()),
    ({"rule": "pytorch"}, ("dampening",)),
    ({"rule": "pytorch", "nesterov": True}, ()),
    ({"rule": "classical"}, ("decoupled_weight_decay",)),
    ({"rule": "ema", "maximize": True}, ()),
    ({"rule": "heavy_ball"}, ()),
    ({"rule": "nesterov_positions"}, ()),
    ({"rule": "classical", "nesterov": True}, ("momentum_next",)),
    ({"rule": "quasi_hyperbolic"}, ("nu",)),
    ({"rule": "aggmo"}, ()),
    ({"rule": fm.averaged("pytorch", 0.9)}, ()),
]


def some_touches(rows, dtype, steps=STEPS, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        touched = rng.integers(0, rows - 1, rng.integers(0, 4))  # the last row is never touched
        yield touched, rng.standard_normal((touched.size, WIDTH)).astype(dtype)


def start(rows, dtype=np.float64):
    return np.random.default_rng(9).standard_normal((rows, WIDTH)).astype(dtype)


def dense(param, touches, tables, **form):
    """Return (param, *state) of a run of fm.step on the whole table, with these tables of settings."""
    param = param.copy()
    state = fm.Momentum(param.copy(), lr=0.1, **form).state
    for step, (rows, grads) in enumerate(touches):
        whole = np.zeros_like(param)
        for row, grad in zip(rows, grads, strict=True):
            whole[row] += grad
        fm.step(param, state, whole, **form, **{name: table[step] for name, table in tables.items()})
    return param, *slots_of(state)


def halving(step):
    return 0.5 / 2**step


def functions(tables):
    return {name: table.__getitem__ for name, table in tables.items()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("form", "more"), FORMS, ids=label)
@pytest.mark.parametrize(
    ("rows", "runs", "dtype", "backend"),
    [
        (11, 1, np.float64, "numpy"),
        (300, 1, np.float32, "cpu"),
        (300, 7, np.float64, "cpu"),
        (5000, 1, np.float32, "numpy"),
    ],
    ids=label,
)
def test_sparse_rows_under_schedules_agree_with_the_dense_run(form, more, rows, runs, dtype, backend):
    rng = np.random.default_rng(1)
    tables = some_settings(0, runs) | {name: random_table(rng, 0.0, 0.9, 0.3, runs) for name in more}
    touches = list(some_touches(rows, dtype))
    wanted = dense(start(rows, dtype), touches, tables, backend=backend, **form)
    p = start(rows, dtype)
    opt = fm.SparseRows(p, backend=backend, **form, **functions(tables))
    for step, (touched, grads) in enumerate(touches):
        opt.step(touched, grads)
        if step % 40 == 39:
            opt.read([step % rows, 0])
    opt.flush()
    scale = max(1.0, *(abs(array).max() for array in wanted))
    for found, expected in zip((p, *opt.state), wanted, strict=True):
        # each of the dense steps rounds a few times; a product errs like as many multiplications in double precision,
        # and a position rule adds differences of positions, up to 1/(1 − μ) steps of them
        np.testing.assert_allclose(found, expected, rtol=0, atol=32 * STEPS * scale * np.finfo(dtype).eps)


@pytest.mark.parametrize("lateness", [1, 2, 3, 64, 65, 1000, 4000])
def test_a_row_that_is_late_under_a_schedule_catches_up_exactly(lateness):
    """Check the exact product: p is multiplied by 1 − lr·λ, which is 1/2, 1 or −2, so nothing is rounded."""
    decays = [(0.5, 0.0, 3.0)[step % 3] for step in range(lateness)]
    rows = SWEEP * (lateness + 1)
    p = np.ones((rows, 1))
    opt = fm.SparseRows(p, rule="sgd", lr=1.0, decoupled_weight_decay=decays.__getitem__)
    for _ in range(lateness):
        opt.step([], np.zeros((0, 1)))
    assert opt._seen[-1] == 0
    expected = float(np.prod([1 - decay for decay in decays]))
    assert opt.read([rows - 1])[0, 0] == expected
    assert (opt.read(np.arange(rows)) == expected).all()


def test_products_of_thousands_of_steps_keep_their_digits():
    rng = np.random.default_rng(3)
    steps = 3000
    matrices = rng.standard_normal((steps, 2, 2))
    matrices[rng.random(steps) < 0.2] = matrices[0]
    matrices[1000:1500] = matrices[0]
    products = StepProducts(matrices[0], rows=SWEEP * steps)
    for step, matrix in enumerate(matrices):
        products.add(matrix, step)
    seen = np.array([0, 1, 2, 999, 1000, 1001, 1250, 1499, 1500, 2100, 2998, 2999, 3000])
    mantissas, exponents = products.products(seen, steps)
    for first, mantissa, exponent in zip(seen, mantissas, exponents, strict=True):
        wanted, shift = np.eye(2), 0
        for matrix in matrices[first:]:
            wanted = matrix @ wanted
            scale = int(np.frexp(abs(wanted).max())[1])
            wanted, shift = np.ldexp(wanted, -scale), shift + scale
        error = abs(np.ldexp(mantissa, int(exponent) - shift) - wanted).max()
        assert error <= 1e-11  # 3000 products, each of which errs by some ε times the condition of the matrices


def test_a_row_with_a_gradient_in_every_step_has_the_bits_of_the_dense_run():
    tables, rng, rows = some_settings(5), np.random.default_rng(2), 40
    touches = [(np.arange(10), rng.standard_normal((10, WIDTH)).astype(np.float32)) for _ in range(STEPS)]
    touches = [(each, np.where(grads < -1, np.float32(-0.0), grads)) for each, grads in touches]
    wanted = dense(start(rows, np.float32), touches, tables)
    p = start(rows, np.float32)
    opt = fm.SparseRows(p, **functions(tables))
    for touched, grads in touches:
        opt.step(touched, grads)
    assert_all_same_bits((p[:10], opt.state[0][:10]), [array[:10] for array in wanted])


@pytest.mark.parametrize("rows", [0, 1, SWEEP - 1, SWEEP, SWEEP + 1, 1000])
def test_products_do_not_grow_with_the_number_of_steps(rows):
    opt = fm.SparseRows(np.ones((rows, 1)), lr=lambda step: 0.1 / (1 + step), backend="numpy")
    nothing, sweeps = np.zeros((0, 1)), -(-rows // SWEEP)
    longest = 0
    for _ in range(3 * (sweeps + 40)):
        opt.step([], nothing)
        longest = max(longest, len(opt._products))
        late = opt.steps - opt._seen
        assert (late <= sweeps + 1).all() or opt.steps <= sweeps + 1
    assert longest <= max(16, 2 * (sweeps + opt._products._block + 2))
    assert len(opt._products._runs.starts) <= max(16, 2 * (sweeps + opt._products._block + 2))
    opt.lr = 0.1
    for _ in range(sweeps + 2):
        opt.step([], nothing)
    assert len(opt._products) == 1  # settings are constant again, and so is the cost of a step
    before = opt._seen.tolist()
    opt.step([], nothing)
    assert opt._seen.tolist() == before


def test_constant_settings_keep_one_run_and_sweep_no_rows():
    opt = fm.SparseRows(np.ones((100, 1)), lr=lambda step: 0.1, momentum=0.9)
    for step in range(100):
        opt.dampening = step / 100  # acts on gradients only
        opt.step([3], np.ones((1, 1)))
    assert len(opt._products) == 1
    assert np.flatnonzero(opt._seen).tolist() == [3]


def test_settings_are_read_and_assigned():
    opt = fm.SparseRows(np.ones((3, 1)), lr=0.5, rule="quasi_hyperbolic")
    assert (opt.lr, opt.momentum, opt.weight_decay, opt.nu) == (0.5, 0.9, 0.0, fm.rules.quasi_hyperbolic.defaults["nu"])
    opt.lr = np.float32(0.25)
    opt.weight_decay = lambda step: np.array(0.125) * (1 + step)
    opt.nu = 1
    assert [(type(value), value) for value in (opt.lr, opt.weight_decay, opt.nu)] == [
        (float, 0.25),
        (float, 0.125),
        (float, 1.0),
    ]
    opt.step([0], np.ones((1, 1)))
    assert opt.weight_decay == 0.25
    assert repr(opt) == "SparseRows(rule='quasi_hyperbolic', lr=0.25, momentum=0.9, rows=3, steps=1)"


class Scalar:
    """A scalar of another library: a 0-d array that has __float__."""

    dtype, shape = "float32", ()

    def __float__(self):
        return 0.25


@pytest.mark.parametrize(
    "value", [0, np.float16(0.25), np.array(0.25), np.int64(1), Fraction(1, 4), Scalar()], ids=label
)
@pytest.mark.parametrize("as_function", [False, True])
def test_values_may_be_scalars_of_any_library(value, as_function):
    p, q = np.ones((2, 1)), np.ones((2, 1))
    opt = fm.SparseRows(p, lr=(lambda step: value) if as_function else value)
    opt.step([0], np.ones((1, 1)))
    fm.SparseRows(q, lr=float(value)).step([0], np.ones((1, 1)))
    assert_same_bits(p, q)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (True, TypeError),
        (np.bool_(True), TypeError),
        (np.array(True), TypeError),
        ("0.1", TypeError),
        (np.array([0.1]), TypeError),
        (None, TypeError),
        (1j, TypeError),
        (np.complex128(1), TypeError),
        (np.timedelta64(1, "s"), TypeError),
        (-0.1, ValueError),
        (float("nan"), ValueError),
        pytest.param(10**400, ValueError, id="10**400"),
    ],
    ids=label,
)
@pytest.mark.parametrize("as_function", [False, True])
def test_a_value_that_is_no_number_is_refused_with_nothing_changed(value, error, as_function):
    opt = fm.SparseRows(np.ones((2, 1)), lr=0.5)
    opt.step([0], np.ones((1, 1)))
    before = pickle.dumps(opt)
    given = (lambda step: value) if as_function else value
    for attempt in (
        lambda: setattr(opt, "lr", given),
        lambda: opt.change(momentum=0.5, lr=given),
        lambda: fm.SparseRows(np.ones((2, 1)), lr=given),
    ):
        with pytest.raises(error, match="lr: expected a finite number"):
            attempt()
    assert pickle.dumps(opt) == before
    opt.lr = lambda step: 0.5 if step < 2 else value
    opt.step([1], np.ones((1, 1)))
    now, seen = (opt.param.copy(), opt.state[0].copy()), opt._seen.tolist()
    for _ in range(2):
        with pytest.raises(error, match="lr: expected a finite number"):
            opt.step([0], np.ones((1, 1)))
    assert opt.steps == 2
    assert_all_same_bits((opt.param, opt.state[0]), now)
    assert opt._seen.tolist() == seen
    assert opt.lr == 0.5
    opt.lr = 0.25
    opt.step([0], np.ones((1, 1)))


@pytest.mark.parametrize("name", ["learning_rate", "momentun", "rule", "max_norm", "steps_done"])
def test_an_unknown_setting_cannot_be_assigned(name):
    opt = fm.SparseRows(np.ones((2, 1)), lr=0.5)
    hint = {"learning_rate": "Did you mean lr", "momentun": "Did you mean momentum"}.get(name, "")
    with pytest.raises(AttributeError, match=f"{name}: expected one of the settings .*{hint}"):
        setattr(opt, name, 0.1)
    with pytest.raises(AttributeError, match=f"{name}: expected one of the settings .*{hint}"):
        getattr(opt, name)
    with pytest.raises(TypeError, match=f"{name}: "):
        opt.change(**{name: 0.1})
    for fixed in ("param", "state", "steps"):
        with pytest.raises(AttributeError):
            setattr(opt, fixed, 3)


def test_functions_are_called_once_for_each_step_and_for_no_other():
    calls = []

    def rate(step):
        calls.append(step)
        return 0.1 / (1 + step)

    opt = fm.SparseRows(np.ones((2, 1)), lr=rate)
    for _ in range(5):
        assert opt.lr == 0.1 / (1 + opt.steps)
        opt.step([0], np.ones((1, 1)))
        opt.flush()
    opt.momentum = 0.5
    repr(opt)
    opt.state_dict()
    assert calls == [0, 1, 2, 3, 4, 5]


def test_a_table_of_n_values_serves_n_steps(tmp_path):
    rate = [0.5, 0.25, 0.125]
    p = np.ones((3, 1))
    opt = fm.SparseRows(p, lr=rate.__getitem__, momentum=0.5)
    for _ in rate:
        opt.step([0], np.ones((1, 1)))
    for _ in range(2):
        with pytest.raises(IndexError):
            opt.step([1], np.ones((1, 1)))
    assert opt.steps == 3
    assert opt.lr == 0.125
    assert "lr=0.125" in repr(opt)
    opt.save(tmp_path / "rows.npz")
    opt.read([1])
    opt.flush()
    opt.weight_decay = 0.1  # the other settings can still be assigned
    again = fm.SparseRows.load(tmp_path / "rows.npz", p.copy(), lr=rate.__getitem__)
    assert (again.lr, again.steps) == (0.125, 3)
    with pytest.raises(IndexError):
        again.step([1], np.ones((1, 1)))
    again.load_state_dict(opt.state_dict())
    for each in (opt, again):
        each.lr = 0.25
        each.step([1], np.ones((1, 1)))
    assert_same_bits(again.param, opt.param)
    assert p[1, 0] == 1 - 0.25 * (1 + 0.1)


def test_a_function_that_raises_changes_nothing():
    rows, steps = 100, 40
    fails = False

    def rate(step):
        if fails:
            raise RuntimeError("no value")
        return 0.1 / (1 + step)

    touches = list(some_touches(rows, np.float64, steps))
    p, q = start(rows), start(rows)
    opt, other = fm.SparseRows(p, lr=rate), fm.SparseRows(q, lr=lambda step: 0.1 / (1 + step))
    for number, (touched, grads) in enumerate(touches):
        fails = number % 3 == 1
        if fails:
            with pytest.raises(RuntimeError, match="no value"):
                opt.step(touched, grads)
        fails = False
        opt.step(touched, grads)
        other.step(touched, grads)
    assert_all_same_bits((p, *opt.state), (q, *other.state))


def test_settings_that_need_another_state_are_refused():
    opt = fm.SparseRows(np.ones((2, 1)), lr=0.5, rule="classical", correct=True)
    for attempt in (lambda: setattr(opt, "lr", 0.25), lambda: setattr(opt, "lr", lambda step: 0.5)):
        with pytest.raises(ValueError, match="lr: expected a number that stays as it is with correct=True"):
            attempt()
    with pytest.raises(ValueError, match="correct=True"):
        fm.SparseRows(np.ones((2, 1)), lr=lambda step: 0.5, rule="classical", correct=True)
    opt.momentum = 0.5
    opt.lr = 0.5
    fm.SparseRows(np.ones((2, 1)), lr=lambda step: 0.5, rule="pytorch", correct=True)  # its state holds no lr


@pytest.mark.parametrize("event", ["line", "opcode"])
def test_an_interrupted_step_under_a_schedule_is_done_whole_or_not_at_all(event):
    """Interrupt steps that begin a new run, in the middle of a block and at its end."""
    touches = list(some_touches(40, np.float64, 12, seed=4))

    def after(number):
        opt = fm.SparseRows(start(40), lr=halving)
        for touched, grads in touches[:number]:
            opt.step(touched, grads)
        return opt

    def outcome(opt):
        steps = opt.steps
        opt.step([5], np.ones((1, WIDTH)))
        opt.flush()
        return steps, opt.param.tobytes(), opt.state[0].tobytes()

    for number in (1, 3, 4, 7):
        ends = {outcome(after(number)), outcome(after(number + 1))}
        found = set()
        for at in places(f"{event} {number}", 3 if event == "line" else 61):
            opt = after(number)
            if not is_interrupted(partial(opt.step, *touches[number]), at, event):
                break
            if not opt._lock.locked():
                found.add(outcome(opt))
                assert found <= ends, at
        assert found == ends or event == "opcode"
        assert at > 50


# Saved runs


def half_way(**settings):
    """Return rows in the middle of a run with late rows and many runs of settings, and the touches that follow."""
    touches = list(some_touches(300, np.float32, 60))
    opt = fm.SparseRows(start(300, np.float32), rule="pytorch", nesterov=True, **settings)
    for touched, grads in touches[:31]:
        opt.step(touched, grads)
    return opt, touches[31:]


def loaded(opt, tmp_path):
    opt.save(tmp_path / "rows.npz")
    given = {"lr": opt._settings.given["lr"]} if opt.state_dict()["settings"]["lr"] is None else {}
    return fm.SparseRows.load(tmp_path / "rows.npz", opt.param.copy(), **given)


def restored(opt, _):
    again = fm.SparseRows(opt.param.copy(), rule="pytorch", lr=halving)
    again.load_state_dict(opt.state_dict())
    return again


WAYS = {
    "save": loaded,
    "state_dict": restored,
    "pickle": lambda opt, _: pickle.loads(pickle.dumps(opt)),
    "deepcopy": lambda opt, _: copy.deepcopy(opt),
}
SETTINGS = {
    "function": {"lr": halving, "weight_decay": 0.1},
    "schedule": {"lr": fm.schedules.Linear(0.1, 0.01, 50), "momentum": fm.schedules.Nesterov()},
    "constant": {"lr": 0.1},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_resumed_run_under_schedules_has_the_same_bits(way, settings, tmp_path):
    opt, rest = half_way(**SETTINGS[settings])
    again = WAYS[way](opt, tmp_path)
    assert_all_same_bits((again.param, *again.state), (opt.param, *opt.state))
    for each in (opt, again):
        for number, (touched, grads) in enumerate(rest):
            if number == 20:
                each.momentum = 0.5
            each.step(touched, grads)
        each.flush()
    assert again.steps == opt.steps == 60
    assert (again.lr, again.momentum) == (opt.lr, opt.momentum)
    assert_all_same_bits((again.param, *again.state), (opt.param, *opt.state))


def test_saving_writes_to_neither_table_nor_state(tmp_path):
    opt, _ = half_way(lr=halving)
    before = opt.param.tobytes(), opt.state[0].tobytes(), opt._seen.tobytes()
    opt.save(tmp_path / "rows.npz")
    opt.state_dict()
    assert (opt.param.tobytes(), opt.state[0].tobytes(), opt._seen.tobytes()) == before


def test_load_asks_for_the_functions_that_were_not_saved(tmp_path):
    path, (opt, _) = tmp_path / "rows.npz", half_way(lr=halving, momentum=fm.schedules.Nesterov(), weight_decay=0.1)
    opt.save(path)
    for given, reason in (
        ({}, "lr: expected the function of the step that the saved run had, or another value; got None"),
        ({"lr": halving, "learning_rate": halving}, "learning_rate"),
        ({"lr": halving, "learning_rate": 0.5}, "learning_rate"),
    ):
        with pytest.raises(TypeError, match=reason):
            fm.SparseRows.load(path, opt.param, **given)
    assert fm.SparseRows.load(path, opt.param, lr=0.1).lr == 0.1
    again = fm.SparseRows.load(path, opt.param, lr=halving, momentum=fm.schedules.Nesterov())
    assert again.momentum == opt.momentum
    constant = fm.SparseRows(start(300, np.float32), rule="pytorch", lr=0.1)
    with pytest.raises(ValueError, match="settings: lr was a function of the step, to be passed again; got 0.1"):
        constant.load_state_dict(opt.state_dict())
    assert constant.steps == 0


def test_load_refuses_files_of_another_kind(tmp_path):
    path = tmp_path / "run.npz"
    fm.Momentum(np.ones((3, 1)), lr=0.1).save(path)
    with pytest.raises(ValueError, match="expected a whole file from SparseRows.save"):
        fm.SparseRows.load(path, np.ones((3, 1)))
    fm.SparseRows(np.ones((3, 1)), lr=0.1).save(path)
    with pytest.raises(ValueError, match="expected a whole file from Momentum.save"):
        fm.Momentum.load(path, np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"seen: expected .*shape \(4,\); got .*shape \(3,\)"):
        fm.SparseRows.load(path, np.ones((4, 1)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a whole file from SparseRows.save"):
        fm.SparseRows.load(path, np.ones((3, 1)))


def test_load_takes_a_rule_without_a_name(tmp_path):
    rule = fm.averaged("pytorch", 0.9)
    opt = fm.SparseRows(np.ones((3, 1)), lr=0.1, rule=rule)
    opt.save(tmp_path / "rows.npz")
    with pytest.raises(TypeError, match="rule: expected the rule that was saved as"):
        fm.SparseRows.load(tmp_path / "rows.npz", opt.param)
    assert fm.SparseRows.load(tmp_path / "rows.npz", opt.param, rule=rule).lr == 0.1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"products": 3}, "products: expected a dict"),
        ({"values": {}}, "values: expected a dict with a float for each of"),
        ({"values": {"lr": 1}}, "values\\['lr'\\]: expected a finite float"),
        ({"steps": 30}, "(?s)seen: expected numbers from 0 to steps|products: expected runs"),
        ({"steps": 400}, "products: expected runs that begin in order"),
        ({"settings": {"lr": {"schedule": "None"}}}, "settings: lr: schedule: expected"),
        ({"settings": {"lr": True}}, "settings: lr: expected a number, None or a schedule"),
    ],
    ids=str,
)
def test_a_saved_state_with_schedules_that_does_not_fit_is_refused(change, reason):
    opt, _ = half_way(lr=halving)
    saved, before = opt.state_dict(), pickle.dumps(opt)
    for name in saved["products"]:
        bad = saved["products"] | {name: saved["products"][name][:-1]}
        with pytest.raises(ValueError, match="products: "):
            opt.load_state_dict(saved | {"products": bad})
    with pytest.raises(ValueError, match=reason):
        opt.load_state_dict(saved | change)
    assert pickle.dumps(opt) == before


def test_state_dicts_of_schema_1_load():
    opt = fm.SparseRows(np.ones((3, 1)), lr=0.5)
    opt.step([0], np.ones((1, 1)))
    saved = {key: value for key, value in opt.state_dict().items() if key not in ("values", "products")}
    again = fm.SparseRows(opt.param.copy(), lr=halving)
    again.load_state_dict(saved | {"schema": 1, "settings": {"lr": 0.5, "momentum": 0.9, "clip_value": None}})
    for each in (opt, again):
        each.step([1], np.ones((1, 1)))
        each.flush()
    assert_all_same_bits((again.param, *again.state), (opt.param, *opt.state))
