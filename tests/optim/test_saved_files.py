"""Files that earlier versions saved: each is loaded, and its run continues with the bits that the old version computed.

The folder ``saved`` holds the files and ``expected.json``. The package of the time wrote them, through Momentum.save,
after 2 to 4 steps on arrays of at most 6 numbers, float32 and float64:

    schema_1_*       by commit 6e0bca1 (0.1.0.dev0), the last commit that wrote schema 1
    schema_2_*       by commit 5358261 (0.1.0.dev0), the last commit that wrote schema 2
    schema_3_*       by commit 329a83b (0.1.0, with later changes)
    release_0_1_0_*  by commit 6411b1f, the release 0.1.0, which wrote schema 3

The second part of a file's name says which run it holds:

    pytorch_groups               two groups that differ in lr and weight_decay, dampening in the first; one array has
                                 its first gradient after the file was saved
    classical_schedule           nesterov=True; lr and momentum are schedules (schema 1: lr is a function of the step;
                                 both are passed again)
    heavy_ball                   one array, reset once
    look_ahead                   pytorch with lookahead=True, momentum schedule, weight_decay and dampening
    registered_chain             clip_value, weight_decay and box around nesterov_positions, found by its name
    passed_chain, passed_rule    a chain and a rule of the user's own, both passed to load
    options                      nesterov_positions with weight_decay, clip_value, max_norm, maximize and
                                 skip_nonfinite; one update skipped before the file was saved, one after
    aggmo, mean_of_pytorch, average_of_positions, unnamed_chain
                                 variants, averages of the parameters, and a chain without a name
    correct                      classical with correct=True and an lr schedule
    row_resets                   ema; resets of rows, of a group and of an array
    *_every_2_steps, *_gradient, *_function, *_schedule
                                 the four restart schemes, with restarts before and after the file was saved; *_function
                                 and heavy_ball_schedule have correct=True
    mixed_functions              two groups: functions of the step beside a saved schedule and saved numbers
    every other name             one array under the rule of that name
    rows_*                       SparseRows.state_dict: its arrays, and the rest as JSON in the array "meta"

``expected.json`` has for each file the parameters and state when it was saved ("loaded"), the gradients of the next
three steps ("next"), and the parameters and state after them ("after"), as the version that wrote the file computed
them. Its floats are written by float.hex, so that the comparison is one of bits, signs of zero among them.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import assert_same_bits

SAVED = Path(__file__).parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())
ROWS = [name for name in EXPECTED if "_rows_" in name]
# 0.1.0 named a chain without a name after its first function alone; later versions name it after all of them.
REFUSED = "release_0_1_0_unnamed_chain.npz"
# Until schema 3 the rule ema_corrected had an array of weights c, summed in the arrays' dtype. Later versions
# compute c = 1 − β^t from the number of updates, so the last digits differ.
WEIGHED = "schema_3_ema_corrected.npz"
LOADED = [name for name in EXPECTED if name not in (*ROWS, REFUSED, WEIGHED)]


def halving(step):
    return 0.3 / 2**step


def rising(step):
    return min(0.5 + 0.1 * step, 0.9)


def leaky(p, v, g, lr, mu, leak, kept):
    v = mu * v + kept * g
    return p - lr * v - leak * p, v


def kept_share(leak):
    return 1.0 - leak


FUNCTIONS = {"halving": halving, "rising": rising, "linear": fm.schedules.Linear(0.5, 0.9, steps=4), None: None}
CLIPPED_POSITIONS = fm.chain(
    fm.stages.clip_value(0.75),
    fm.stages.weight_decay(0.125),
    "nesterov_positions",
    fm.stages.box(-2.0, 2.0),
    name="clipped_positions",
)
RULES = {
    "average_of_heavy_ball": fm.averaged("heavy_ball", 0.75, name="average_of_heavy_ball"),
    "average_of_positions": fm.averaged(CLIPPED_POSITIONS, 0.75, name="average_of_positions"),
    "leaky": fm.Rule(
        leaky,
        name="leaky",
        hyper=("lr", "momentum", "leak", "kept"),
        derived={"kept": kept_share},
        defaults={"leak": 0.25},
        ranges={"leak": (0, 1)},
    ),
    "mean_of_pytorch": fm.averaged("pytorch", name="mean_of_pytorch"),
    "shrunk_classical": fm.chain(
        fm.stages.scale(0.5), "classical", fm.stages.decoupled_weight_decay, name="shrunk_classical"
    ),
    "unnamed_chain": fm.chain(fm.stages.clip_value(0.75), fm.stages.weight_decay(0.125), "pytorch"),
}


@pytest.fixture(scope="module", autouse=True)
def _register_the_chain():
    fm.rules.register(CLIPPED_POSITIONS)


def read_array(written):
    values = [float.fromhex(value) for value in written["values"].split()]
    return np.array(values, written["dtype"]).reshape(written["shape"])


def write_array(array):
    values = " ".join(float(value).hex() for value in np.asarray(array).ravel())
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def write_number(value):
    """Return the number of one group, or of several that have the same one; a list if they differ."""
    if isinstance(value, list):
        return write_number(value[0]) if value.count(value[0]) == len(value) else [write_number(each) for each in value]
    return float(value).hex()


def snapshot(opt, record):
    """Return all that the public attributes of an optimiser say, in the form of expected.json."""
    single = record["single"]
    params, states, points = ([value] if single else value for value in (opt.params, opt.state, opt.point))
    slots = [() if state is None else state if isinstance(state, tuple) else (state,) for state in states]
    point = {"point": [write_array(point) for point in points]} if "point" in record["loaded"] else {}
    return point | {
        "params": [write_array(param) for param in params],
        "state": [[write_array(slot) for slot in state] for state in slots],
        "lr": write_number(opt.lr),
        "momentum": write_number(opt.momentum),
        "steps": opt.steps,
        "skipped": opt.skipped,
        "resets": [list(reset) for reset in opt.resets],
    }


def load(path, record, backend=None):
    params = [read_array(param) for param in record["loaded"]["params"]]
    again = {
        name: [FUNCTIONS[each] for each in given] if isinstance(given, list) else FUNCTIONS[given]
        for name, given in record["again"].items()
    }
    if record["rule"] is not None:
        again["rule"] = RULES[record["rule"]]
    return fm.Momentum.load(path, params[0] if record["single"] else params, backend=backend, **again)


def take_momentum_of_the_next_step(opt):
    """Let Nesterov's folded form use the schedule's next value, as 0.1.0 did; now it takes this step's."""
    group = opt._engine.groups[0]
    momentum = group.settings["momentum"]
    if "momentum_next" in group.parameters and isinstance(momentum, fm.schedules.Schedule):
        opt.momentum_next = lambda step: momentum(step + 1)


def take_next_steps(opt, record):
    take_momentum_of_the_next_step(opt)
    for step in record["next"]:
        if "report" in step:
            opt.report(float.fromhex(step["report"]))
        grads = [None if grad is None else read_array(grad) for grad in step["grads"]]
        opt.step(grads[0] if record["single"] else grads)


def read_meta(name):
    with np.load(SAVED / name, allow_pickle=False) as arrays:
        return json.loads(arrays["meta"].tobytes())


def test_saved_folder_holds_the_expected_files_of_each_schema():
    assert {path.name for path in SAVED.glob("*.npz")} == EXPECTED.keys()
    assert {name: read_meta(name)["schema"] for name in EXPECTED} == {
        name: record["schema"] for name, record in EXPECTED.items()
    }
    assert {EXPECTED[name]["schema"] for name in LOADED} == {1, 2, 3}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("name", LOADED)
def test_load_continues_an_old_run_with_the_same_bits(name, backend):
    record = EXPECTED[name]
    opt = load(SAVED / name, record, backend)
    assert snapshot(opt, record) == record["loaded"]
    take_next_steps(opt, record)
    assert snapshot(opt, record) == record["after"]


@pytest.mark.parametrize("name", LOADED)
def test_save_writes_an_old_run_that_continues_with_the_same_bits(name, tmp_path):
    record = EXPECTED[name]
    load(SAVED / name, record, "numpy").save(tmp_path / name)
    opt = load(tmp_path / name, saved_anew(record), "numpy")
    take_next_steps(opt, record)
    assert snapshot(opt, record) == record["after"]


def saved_anew(record):
    """Return the record with no schedule to be passed again: unlike schema 1, later schemas save schedules."""
    again = {name: given for name, given in record["again"].items() if given != "linear"}
    return record | {"again": again}


@pytest.mark.parametrize("name", LOADED)
def test_state_dict_describes_a_rule_as_the_old_file_does(name):
    opt = load(SAVED / name, EXPECTED[name], "numpy")
    assert opt.state_dict()["made_of"] == read_meta(name)["made_of"]


def test_load_continues_a_chain_without_a_name_of_release_0_1_0():
    opt = load(SAVED / REFUSED, EXPECTED[REFUSED])
    take_next_steps(opt, EXPECTED[REFUSED])
    assert snapshot(opt, EXPECTED[REFUSED]) == EXPECTED[REFUSED]["after"]


def test_load_continues_a_corrected_average_whose_weights_were_an_array():
    record = EXPECTED[WEIGHED]
    opt = load(SAVED / WEIGHED, record)
    velocity, weight = map(read_array, record["loaded"]["state"][0])
    assert_same_bits(opt.velocity, velocity)
    assert opt.state_dict()["updates"] == [3]
    np.testing.assert_allclose(1 - opt.momentum**3, weight, rtol=3e-7)  # rounded three times in float32
    take_next_steps(opt, record)
    np.testing.assert_allclose(opt.params, read_array(record["after"]["params"][0]), rtol=2e-6)


def snapshot_rows(opt):
    return {
        "param": write_array(opt.param),
        "state": [write_array(slot) for slot in opt.state],
        "steps": opt.steps,
    }


def load_rows(name, backend):
    """Return a SparseRows that has taken up the state in a file, and that state."""
    record = EXPECTED[name]
    rule = RULES.get(record["rule"], record["rule"])
    opt = fm.SparseRows(read_array(record["loaded"]["param"]), lr=1.0, rule=rule, backend=backend)
    with np.load(SAVED / name, allow_pickle=False) as arrays:
        state = [arrays[f"state_{i}"] for i in range(len(record["loaded"]["state"]))]
        saved = {**read_meta(name), "seen": arrays["seen"], "state": state}
    opt.load_state_dict(saved)
    return opt, saved


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("name", ROWS)
def test_sparse_rows_continue_an_old_run_with_the_same_bits(name, backend):
    record = EXPECTED[name]
    opt, _ = load_rows(name, backend)
    assert snapshot_rows(opt) == record["loaded"]
    for step in record["next"]:
        opt.step(step["rows"], read_array(step["grads"]))
    assert write_array(opt.read([1, 0])) == record["read"]
    assert snapshot_rows(opt) == record["after"]
    opt.flush()
    assert snapshot_rows(opt) == record["flushed"]


@pytest.mark.parametrize("name", ROWS)
def test_sparse_rows_state_dict_describes_a_rule_as_the_old_file_does(name):
    opt, saved = load_rows(name, "numpy")
    assert opt.state_dict()["made_of"] == saved["made_of"]
