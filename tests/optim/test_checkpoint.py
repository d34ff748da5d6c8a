"""Saved states and files: complete or refused, and continued with the same bits."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.optim import checkpoint
from fastmomentum.schedules.curves import Constant, Exponential
from tests.helpers.arrays import arrays_of, gradients_of
from tests.helpers.functions import annealed, falling
from tests.helpers.reference import RULES, VARIANTS, assert_all_same_bits, assert_same_bits
from tests.helpers.runs import SHAPES, scheduled_run

CASES = {
    **{rule: {"rule": rule} for rule in (*RULES, *VARIANTS)},
    "look-ahead": {"rule": "pytorch", "lookahead": True, "dampening": 0.25},
    "norm": {"rule": "ema", "max_norm": 0.5, "skip_nonfinite": True, "weight_decay": 0.1, "clip_value": 2.0},
    "chain": {"rule": fm.chain(fm.stages.box(-1.0, np.inf), "nesterov_positions")},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_and_resumed_at_every_step_has_the_same_bits(case, tmp_path):
    settings, steps = CASES[case], 30
    groups = [{"count": 2}, {"count": 1, "weight_decay": 0.05, "lr": 0.03}]
    again = {"lr": falling, "momentum": annealed}
    if case == "chain":
        again["rule"] = settings["rule"]

    def make(arrays):
        split = [{"params": arrays[:2]}, {"params": arrays[2:], **{k: v for k, v in groups[1].items() if k != "count"}}]
        return fm.Momentum(split, lr=falling, momentum=annealed, **settings)

    all_grads = gradients_of(SHAPES, steps, np.float32, absent=lambda step, i: i == 1 and step < 7)
    if "skip_nonfinite" in settings:
        all_grads[4][0][0, 0] = np.nan
    straight = make(arrays_of(SHAPES, np.float32, seed=1))
    resumed = make(arrays_of(SHAPES, np.float32, seed=1))
    for t, grads in enumerate(all_grads):
        if t == 11:
            for opt in (straight, resumed):
                opt.reset("halfway")
        path = tmp_path / f"run{t}.npz"
        resumed.save(path)
        arrays = [p.copy() for p in resumed.params]
        before = [p.copy() for p in arrays]
        resumed = fm.Momentum.load(path, arrays, **again)
        assert_all_same_bits(arrays, before)
        straight.step(grads)
        resumed.step(grads)
        assert_all_same_bits(resumed.params, straight.params)
        assert_all_same_bits(resumed.point, straight.point)
    for name in ("steps", "skipped", "resets", "lr", "momentum"):
        assert getattr(resumed, name) == getattr(straight, name)
    assert straight.resets[0].reason == "halfway"


def small(tmp_path):
    p = np.array([1.0, -2.0, 3.0])
    opt = fm.Momentum(p, lr=Exponential(0.1, 0.5).then(Constant(0.01), after=9), clip_value=2.0)
    opt.step(np.array([0.5, 5.0, -0.5]))
    opt.reset("so that there is one")
    opt.step(np.array([0.25, 5.0, -0.5]))
    path = tmp_path / "run.npz"
    opt.save(path)
    return opt, p, path


def loads_alike_or_is_refused(path, p, opt):
    try:
        found = fm.Momentum.load(path, p)
    except (ValueError, TypeError):
        return False
    assert_same_bits(found.velocity, opt.velocity)
    assert (found.steps, found.resets, found.lr, found.momentum) == (opt.steps, opt.resets, opt.lr, opt.momentum)
    assert found.state_dict()["groups"] == opt.state_dict()["groups"]
    return True


def test_every_truncation_is_refused(tmp_path):
    opt, p, path = small(tmp_path)
    whole = path.read_bytes()
    assert loads_alike_or_is_refused(path, p, opt)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert not loads_alike_or_is_refused(path, p, opt)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused_or_without_effect(flip, tmp_path):
    opt, p, path = small(tmp_path)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        refused += not loads_alike_or_is_refused(path, p, opt)
    assert refused > len(whole) / 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", os.urandom(1000)], ids=len)
def test_load_refuses_other_files_by_name(content, tmp_path):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.npz: expected a whole file from Momentum\.save"):
        fm.Momentum.load(path, np.ones(3))
    np.savez(path, something=np.ones(3))
    with pytest.raises(ValueError, match="meta"):
        fm.Momentum.load(path, np.ones(3))
    with pytest.raises(FileNotFoundError):
        fm.Momentum.load(tmp_path / "missing.npz", np.ones(3))


def test_a_pickle_in_the_file_is_not_read(tmp_path):
    _, p, path = small(tmp_path)
    with np.load(path) as whole:
        arrays = dict(whole)
    arrays["state_0_0"] = np.array([{"a": 1}, None], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="expected an array of numbers; got object"):
        fm.Momentum.load(path, p)


def test_the_file_is_an_uncompressed_npz_of_its_own_name(tmp_path):
    import zipfile

    opt, _, path = small(tmp_path)
    with zipfile.ZipFile(path) as members:
        assert {info.compress_type for info in members.infolist()} == {zipfile.ZIP_STORED}
    opt.save(str(tmp_path / "no_suffix"))
    assert sorted(os.listdir(tmp_path)) == ["no_suffix", "run.npz"]  # and no other file
    with pytest.raises(FileNotFoundError):
        opt.save(tmp_path / "no folder" / "run.npz")


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    opt, _, path = small(tmp_path)
    whole = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    opt.step(np.ones(3))
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="disk full"):
                opt.save(path)
        assert path.read_bytes() == whole
        assert os.listdir(tmp_path) == ["run.npz"]


def test_a_run_killed_in_mid_save_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "run.npz"
    code = f"""
        import numpy as np, fastmomentum as fm
        p = np.zeros(400_000)
        opt = fm.Momentum(p, lr=0.1, backend="numpy")
        while True:
            opt.step(np.full(400_000, opt.steps + 1.0))
            opt.save({str(path)!r})
            print(opt.steps, flush=True)
        """
    for delay in (0.0, 0.003, 0.007, 0.012, 0.02):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        seen = [child.stdout.readline() for _ in range(2)]
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        seen += child.communicate(timeout=60)[0].splitlines()
        found = fm.Momentum.load(path, np.zeros(400_000))
        assert found.steps >= int([line for line in seen if line.strip()][-1])
        velocity = 0.0
        for step in range(1, found.steps + 1):
            velocity = 0.9 * velocity + step
        assert (found.velocity == velocity).all()


def test_load_refuses_parameters_that_do_not_fit_with_all_differences(tmp_path):
    opt = fm.Momentum([{"params": [np.ones(3), np.ones(4)]}, {"params": np.ones(5, np.float32), "lr": 0.2}], lr=0.1)
    path = tmp_path / "run.npz"
    opt.save(path)
    with pytest.raises(ValueError, match=r"(?s)state\[0\].*\(2,\).*\(3,\).*state\[2\].*float64.*float32"):
        fm.Momentum.load(path, [np.ones(2), np.ones(4), np.ones(5)])
    for wrong in ([np.ones(3)], np.ones(3)):
        with pytest.raises(ValueError, match="params: expected a sequence of 3"):
            fm.Momentum.load(path, wrong)
    found = fm.Momentum.load(path, [np.ones(3), np.ones(4), np.ones(5, np.float32)])
    assert found.lr == [0.1, 0.2]
    single = fm.Momentum(np.ones(3), lr=0.1)
    single.save(path)
    for wrong in ([np.ones(3), np.ones(3)], []):
        with pytest.raises(ValueError, match="params|entries"):
            fm.Momentum.load(path, wrong)


def test_load_needs_functions_and_unnamed_rules_again(tmp_path):
    path, p = tmp_path / "run.npz", np.ones(3)
    fm.Momentum(p, lr=falling).save(path)
    with pytest.raises(TypeError, match="lr: expected the function of the step"):
        fm.Momentum.load(path, p)
    assert fm.Momentum.load(path, p, lr=falling).lr == 0.1
    rule = fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, v + mu))
    fm.Momentum(p, rule=rule, lr=0.1).save(path)
    with pytest.raises(TypeError, match="rule: expected the rule that was saved"):
        fm.Momentum.load(path, p)
    fm.Momentum.load(path, p, rule=rule).step(p.copy())
    with pytest.raises(ValueError, match="rule: expected 'ema'"):
        fm.Momentum.load(path, p, rule="ema")


def test_settings_of_every_number_type_come_back(tmp_path):
    path, p = tmp_path / "run.npz", np.ones(3, np.float32)
    opt = fm.Momentum(
        p, lr=np.float32(0.1), momentum=np.array(0.5), weight_decay=1, clip_value=np.float64(2), maximize=np.True_
    )
    opt.save(path)
    found = fm.Momentum.load(path, q := p.copy())
    opt.step(np.ones(3, np.float32))
    found.step(np.ones(3, np.float32))
    assert_same_bits(p, q)


def test_load_state_dict_switches_options_off():
    opt = fm.Momentum(np.ones(3), lr=0.1, clip_value=0.5, max_norm=1.0)
    opt.load_state_dict(fm.Momentum(np.ones(3), lr=0.1).state_dict())
    opt.step(np.full(3, 10.0))
    np.testing.assert_array_equal(opt.velocity, 10.0)


def test_load_takes_a_list_of_functions_for_groups(tmp_path):
    path, params = tmp_path / "run.npz", [np.ones(2), np.ones(2), np.ones(2)]
    groups = [{"params": params[0], "lr": falling}, {"params": params[1], "lr": annealed}, {"params": params[2]}]
    fm.Momentum(groups, lr=0.25).save(path)
    assert fm.Momentum.load(path, params, lr=[falling, annealed, None]).lr == [0.1, 0.5, 0.25]
    for wrong in (falling, [falling, annealed], [falling, None, annealed]):
        with pytest.raises((TypeError, ValueError), match="lr: expected"):
            fm.Momentum.load(path, params, lr=wrong)
    fm.Momentum([groups[0], {"params": params[1], "lr": falling}, groups[2]], lr=0.25).save(path)
    assert fm.Momentum.load(path, params, lr=falling).lr == [0.1, 0.1, 0.25]


def test_hyper_parameters_of_any_name_and_number_come_back(tmp_path):
    rule = fm.Rule(
        lambda p, v, g, lr, mu, arrays, more: (p - lr * arrays * g, mu * v + more),
        hyper=("lr", "momentum", "arrays", "more"),
    )
    opt = fm.Momentum(p := np.ones(3), rule=rule, lr=np.longdouble("0.5"), arrays=3, more=np.float16(0.5))
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", q := np.ones(3), rule=rule)
    for each in (opt, again):
        each.step(np.ones(3))
    assert_same_bits(p, q)
    np.testing.assert_array_equal(p, -0.5)


def test_save_keeps_symbolic_links_and_file_modes(tmp_path):
    target, link = tmp_path / "target.npz", tmp_path / "link.npz"
    opt = fm.Momentum(np.ones(3), lr=0.1)
    opt.save(target)
    target.chmod(0o640)
    link.symlink_to(target)
    opt.step(np.ones(3))
    opt.save(link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert fm.Momentum.load(target, np.ones(3)).steps == 1
    opt.save(tmp_path / ("n" * 250))


def test_load_refuses_another_schema(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    monkeypatch.setattr(checkpoint, "SCHEMA", 5)
    fm.Momentum(np.ones(3), lr=0.1).save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="schema: expected 1 or 2 or 3 or 4; got 5"):
        fm.Momentum.load(path, np.ones(3))


@pytest.mark.parametrize("change", [{"lookahead": False}, {"lookahead": True}, {"max_norm": None}, {"max_norm": 3.0}])
def test_load_state_dict_refuses_groups_that_differ_in_settings_of_the_optimiser(change):
    ((name, value),) = change.items()
    settings = {"lookahead": {"lookahead": value is False}, "max_norm": {"max_norm": 1.0}}[name]
    groups = [{"params": np.ones(2)}, {"params": np.ones(2)}]
    opt = fm.Momentum(groups, lr=0.1, **settings)
    saved = opt.state_dict()
    saved["groups"][1][name] = value
    with pytest.raises(ValueError, match=f"expected one {name}"):
        opt.load_state_dict(saved)
    if name == "lookahead":
        saved["groups"][0][name] = value
        with pytest.raises(ValueError, match="lookahead"):
            opt.load_state_dict(saved)
    opt.step([np.ones(2), np.ones(2)])


def test_state_dict_is_refused_during_a_step():
    def during(step):
        if opt is not None:
            with pytest.raises(RuntimeError, match="one caller at a time"):
                opt.state_dict()
        return 0.1

    opt = None
    opt = fm.Momentum(np.ones(2), lr=during)
    opt.step(np.ones(2))
    assert opt.steps == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_run_resumed_from_its_state_dict_has_the_same_bits(rule):
    grads = gradients_of(SHAPES, 8, np.float32)
    for g in grads:
        g[1] = None if g is not grads[5] else g[1]  # gets its first gradient late, in some cases after the interruption
    straight = arrays_of(SHAPES, np.float32)
    opt = scheduled_run(rule, straight)
    for g in grads:
        opt.step(g)
    for stop in range(9):
        params = arrays_of(SHAPES, np.float32)
        one = scheduled_run(rule, params)
        for g in grads[:stop]:
            one.step(g)
        if stop == 3:
            one.reset("and go on")
        saved = one.state_dict()
        params = [p.copy() for p in params]
        two = scheduled_run(rule, params)
        two.load_state_dict(saved)
        assert (two.steps, two.resets) == (stop, one.resets)
        for g in grads[stop:]:
            one.step(g)
            two.step(g)
        assert_all_same_bits(params, one.params)
        if stop != 3:
            assert_all_same_bits(params, straight)


def test_state_dict_restores_settings():
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=0.25, momentum=0.5, weight_decay=0.125, clip_value=2.0)
    opt.lr = 0.75
    other = fm.Momentum(np.zeros(3), lr=1.0)
    other.load_state_dict(opt.state_dict())
    assert (other.lr, other.momentum) == (0.75, 0.5)
    opt.step(np.array([1.0, 2.0, 3.0]))
    other.step(np.array([1.0, 2.0, 3.0]))
    assert_same_bits(p, other.params)


def test_load_state_dict_refuses_what_does_not_fit_with_all_differences():
    opt = fm.Momentum([np.zeros(3), np.zeros((2, 2))], lr=0.1)
    opt.step([np.ones(3), np.ones((2, 2))])
    saved = opt.state_dict()
    before = [v.copy() for v in opt.velocity]

    def refused(saved, *reasons):
        with pytest.raises((TypeError, ValueError)) as raised:
            opt.load_state_dict(saved)
        for reason in reasons:
            assert reason in str(raised.value)
        assert_all_same_bits(opt.velocity, before)
        assert (opt.steps, opt.lr) == (1, 0.1)

    refused(3, "dict")
    refused({}, "schema: missing", "state: missing")
    refused(saved | {"more": 1}, "more: unknown")
    refused(saved | {"schema": 99}, "schema: expected 1 or 2 or 3 or 4; got 99")
    refused(saved | {"rule": "ema", "updates": [1]}, "rule: expected 'pytorch'; got 'ema'", "updates: expected 2")
    refused(saved | {"state": saved["state"][:1]}, "state: expected 2 entries; got 1")
    wrong = [[np.zeros(4)], [np.zeros((2, 2), np.float32)]]
    refused(saved | {"state": wrong, "steps": 7}, "state[0]", "(4,)", "state[1]", "float32")
    refused(saved | {"groups": [saved["groups"][0] | {"lr": -1.0}]}, "lr")
    refused(saved | {"groups": [saved["groups"][0] | {"lr": None}]}, "lr was a function")
    other = fm.Momentum([np.zeros(3), np.zeros((2, 2))], lr=falling)
    refused(other.state_dict(), "lr was a function")
    opt.load_state_dict(saved)


def test_state_dict_shares_no_memory():
    opt = fm.Momentum(np.zeros(3), lr=0.1)
    opt.step(np.ones(3))
    saved = opt.state_dict()
    opt.step(np.ones(3))
    np.testing.assert_array_equal(saved["state"][0][0], 1.0)
    saved["groups"][0]["lr"] = 5.0
    assert opt.lr == 0.1


def test_load_state_dict_replaces_all_settings():
    opt = fm.Momentum(np.zeros(3), lr=0.1, nesterov=True)
    other = fm.Momentum(np.zeros(3), lr=0.1, nesterov=True, momentum_next=0.125, clip_value=1.0)
    other.load_state_dict(opt.state_dict())
    for each in (opt, other):
        each.step(np.full(3, 5.0))
    assert_all_same_bits([opt.params, opt.velocity], [other.params, other.velocity])


def test_load_state_dict_refuses_another_rule_of_the_same_name():
    def chained(limit, rule):
        return fm.Momentum(np.zeros(3), rule=fm.chain(fm.stages.clip_value(limit), rule), lr=0.1)

    saved = chained(1.0, "ema").state_dict()
    chained(1.0, "ema").load_state_dict(saved)
    for other in (chained(5.0, "ema"), chained(1.0, "classical")):
        with pytest.raises(ValueError, match="made_of"):
            other.load_state_dict(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "x"}, {"steps": -3}, {"steps": 2.7}, {"steps": True}, {"skipped": None}, {"resets": [1]},
        {"resets": None}, {"resets": [(1, 2)]}, {"updates": ["1"]}, {"updates": [-1]},
        {"updates": [True]}, {"groups": [3]}, {"groups": None},
        {"state": None}, {"state": [5]}, {"state": [[np.ma.ones(3)]]}, {"skip_nonfinite": 0}, {"skip_nonfinite": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_load_state_dict_refuses_a_malformed_state_and_changes_nothing(change):
    opt = fm.Momentum(np.zeros(3), lr=0.1)
    opt.step(np.ones(3))
    before = pickle.dumps(opt.state_dict())
    saved = fm.Momentum(np.zeros(3), lr=0.5).state_dict()
    with pytest.raises((TypeError, ValueError), match=next(iter(change))):
        opt.load_state_dict(saved | change)
    assert pickle.dumps(opt.state_dict()) == before
