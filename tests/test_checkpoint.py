"""Saved files: whole or refused, and continued with the same bits."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from oracles import RULES, assert_same_bits

import fastmomentum as fm
from fastmomentum.optim import checkpoint
from fastmomentum.schedules.curves import Constant, Exponential

SHAPES = ((3, 4), (17,), ())


def falling(step):
    return 0.1 / (step + 1)


def annealed(step):
    return min(0.5 + 0.02 * step, 0.9)


def gradients(steps):
    rng = np.random.default_rng(20)
    for t in range(steps):
        yield [None if i == 1 and t < 7 else rng.standard_normal(s).astype(np.float32) for i, s in enumerate(SHAPES)]


def params():
    rng = np.random.default_rng(21)
    return [rng.standard_normal(s).astype(np.float32) for s in SHAPES]


CASES = {
    **{rule: {"rule": rule} for rule in RULES},
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

    all_grads = list(gradients(steps))
    if "skip_nonfinite" in settings:
        all_grads[4][0][0, 0] = np.nan
    straight = make(params())
    resumed = make(params())
    for t, grads in enumerate(all_grads):
        if t == 11:
            for opt in (straight, resumed):
                opt.reset("halfway")
        path = tmp_path / f"run{t}.npz"
        resumed.save(path)
        arrays = [p.copy() for p in resumed.params]
        before = [p.copy() for p in arrays]
        resumed = fm.Momentum.load(path, arrays, **again)
        for p, copy in zip(arrays, before, strict=True):
            assert_same_bits(p, copy)
        straight.step(grads)
        resumed.step(grads)
        for one, two in zip(straight.params, resumed.params, strict=True):
            assert_same_bits(two, one)
        for one, two in zip(straight.point, resumed.point, strict=True):
            assert_same_bits(two, one)
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
def test_other_files_are_refused_by_name(content, tmp_path):
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
    with pytest.raises(ValueError, match="allow_pickle"):
        fm.Momentum.load(path, p)


def test_the_file_is_an_uncompressed_npz_of_its_own_name(tmp_path):
    import zipfile

    opt, _, path = small(tmp_path)
    with zipfile.ZipFile(path) as members:
        assert {info.compress_type for info in members.infolist()} == {zipfile.ZIP_STORED}
    opt.save(str(tmp_path / "no_suffix"))
    assert sorted(os.listdir(tmp_path)) == ["no_suffix", "run.npz"]  # and nothing beside
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
        opt = fm.Momentum(p, lr=0.1)
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


def test_what_does_not_fit_is_refused_with_all_differences(tmp_path):
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


def test_functions_and_nameless_rules_are_to_be_passed_again(tmp_path):
    path, p = tmp_path / "run.npz", np.ones(3)
    fm.Momentum(p, lr=falling).save(path)
    with pytest.raises(TypeError, match="lr: expected the function of the step"):
        fm.Momentum.load(path, p)
    with pytest.raises(TypeError, match="momentum: expected nothing, as it was saved"):
        fm.Momentum.load(path, p, lr=falling, momentum=annealed)
    assert fm.Momentum.load(path, p, lr=falling).lr == 0.1
    rule = fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, v + mu))
    fm.Momentum(p, rule=rule, lr=0.1).save(path)
    with pytest.raises(TypeError, match="rule: expected the one that was saved"):
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


def test_a_file_brings_back_options_that_were_off():
    opt = fm.Momentum(np.ones(3), lr=0.1, clip_value=0.5, max_norm=1.0)
    opt.load_state_dict(fm.Momentum(np.ones(3), lr=0.1).state_dict())
    opt.step(np.full(3, 10.0))
    np.testing.assert_array_equal(opt.velocity, 10.0)


def test_groups_with_functions_of_their_own_are_resumed_by_a_list(tmp_path):
    path, params = tmp_path / "run.npz", [np.ones(2), np.ones(2), np.ones(2)]
    groups = [{"params": params[0], "lr": falling}, {"params": params[1], "lr": annealed}, {"params": params[2]}]
    fm.Momentum(groups, lr=0.25).save(path)
    assert fm.Momentum.load(path, params, lr=[falling, annealed, None]).lr == [0.1, 0.5, 0.25]
    for wrong in (falling, [falling, annealed], [falling, None, annealed], [falling, annealed, falling]):
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


def test_a_link_and_the_mode_of_a_file_stay_as_they_are(tmp_path):
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


def test_a_file_of_another_schema_is_refused_as_such(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    monkeypatch.setattr(checkpoint, "SCHEMA", 4)
    fm.Momentum(np.ones(3), lr=0.1).save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="schema: expected 1 or 2 or 3; got 4"):
        fm.Momentum.load(path, np.ones(3))


@pytest.mark.parametrize("change", [{"lookahead": False}, {"lookahead": True}, {"max_norm": None}, {"max_norm": 3.0}])
def test_settings_of_the_whole_must_be_those_of_all_groups(change):
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


def test_a_state_is_not_taken_while_a_step_is_under_way():
    def during(step):
        if opt is not None:
            with pytest.raises(RuntimeError, match="one caller at a time"):
                opt.state_dict()
        return 0.1

    opt = None
    opt = fm.Momentum(np.ones(2), lr=during)
    opt.step(np.ones(2))
    assert opt.steps == 1
