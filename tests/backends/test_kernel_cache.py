"""Kernels that are kept on disk: never the wrong one, whatever happens to the folder or to the code."""

import functools
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
import warnings
from collections import namedtuple
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
from numba import njit, types
from numba.core import config
from numba.extending import overload, overload_method, register_jitable

import fastmomentum as fm
from fastmomentum.backends.cpu import kernel_cache, kernels
from fastmomentum.backends.cpu.fingerprint import fingerprint, prepare

ROOT = Path(fm.__file__).parents[1]

PRELUDE = """
import numba.core.event as event
import numpy as np
import fastmomentum as fm

compiled = event.RecordingListener()
event.register("numba:compile", compiled)

def says(*values):
    print(len(compiled.buffer) // 2, *values)
"""

STEP = """
p, v = np.ones(5, np.float32), np.zeros(5, np.float32)
fm.step(p, v, np.arange(5, dtype=np.float32), lr=0.1)
says(p.tobytes().hex())
"""


def run(code, folder, root=ROOT, **variables):
    """Run code in a process of its own that keeps kernels in `folder`; return what it printed, in words."""
    environ = {**os.environ, "FASTMOMENTUM_CACHE": str(folder), "PYTHONPATH": str(root), **variables}
    command = [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def expected_step():
    p, v = np.ones(5, np.float32), np.zeros(5, np.float32)
    fm.step(p, v, np.arange(5, dtype=np.float32), lr=0.1, backend="numpy")
    return p.tobytes().hex()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder, in which this process keeps kernels, too."""
    monkeypatch.setattr(kernel_cache, "_folder", None)
    fm.set_cache(tmp_path / "kernels")
    fm.clear_cache()
    yield tmp_path / "kernels"
    fm.clear_cache()


def files(folder):
    return sorted(folder.glob("*.kernel"))


def step_here():
    """Step a rule that no other test has a kernel of in memory, and return the parameter."""
    fm.clear_cache()
    p, v = np.ones(5, np.float32), np.zeros(5, np.float32)
    fm.step(p, v, np.arange(5, dtype=np.float32), lr=0.1)
    return p.tobytes().hex()


EVERYTHING = """
for name, dtype in (("adam", np.float32), ("nesterov_positions", np.float64)):
    arrays = [np.linspace(1, 2, n, dtype=dtype) for n in (3, 70_000)]
    grads = [np.cos(x) for x in arrays]
    settings = dict(rule=name, lr=0.01, momentum=0.5)
    opt = fm.Optimizer([x.copy() for x in arrays], max_norm=1.0, threads=2, skip_nonfinite=True, **settings)
    trace = opt.trace()
    one = fm.Optimizer(arrays[0].copy(), **settings)
    for _ in range(2):
        opt.step(grads)
        one.step(grads[0])
    print(name, hash((one.params.tobytes(), *(x.tobytes() for x in opt.params))), opt.steps)
says()
"""


def test_second_process_loads_all_kernels_and_has_the_same_bits(tmp_path):
    # The number of threads is no part of machine code.
    first, second = (run(EVERYTHING, tmp_path, PYTHONHASHSEED="0", NUMBA_NUM_THREADS=n) for n in ("2", "1"))
    assert int(first[-1]) > 20
    assert int(second[-1]) == 0
    assert first[:-1] == second[:-1]


def test_second_process_minimizes_without_compiling(tmp_path):
    code = """
        import sys
        from scipy.optimize import rosen, rosen_der
        result = fm.minimize(rosen, np.array([1.2, 0.9]), jac=rosen_der)
        says(result.nit, result.x.tobytes().hex())
    """
    first, second = (run(code, tmp_path) for _ in range(2))
    assert int(first[0]) > 0
    assert second == ["0", *first[1:]]


def test_processes_of_users_functions_of_one_name_do_not_take_each_others_code(tmp_path):
    function = """
        import numba
        @numba.njit
        def fun(x):
            if x[0] > 1000:
                raise ValueError(np.zeros(1, np.floatTARGET))  # Numba keeps the dtype beside the machine code
            total = 0.0
            for i in range(x.size):
                total += (x[i] - TARGET) ** 2
            return total
        @numba.njit
        def jac(x):
            return 2 * (x - TARGET)
        result = fm.minimize(fun, np.zeros(2), jac=jac, lr=0.1)
        print(round(result.x[0]))
        try:
            fm.minimize(fun, np.full(2, 2000.0), jac=jac, lr=0.1)
        except ValueError as error:
            print(error.args[0].dtype)
    """
    codes = [textwrap.dedent(function).replace("TARGET", str(number)) for number in (32, 64)]
    counts = []
    for code, found in zip(codes, (["32", "float32"], ["64", "float64"])):
        assert run(code, tmp_path)[-2:] == found
        counts.append(len(files(tmp_path)))
    assert counts[1] == counts[0] + 1  # they share all but the loop
    before = files(tmp_path)
    assert run("\n".join(reversed(codes)), tmp_path)[-4:] == ["64", "float64", "32", "float32"]
    assert files(tmp_path) == before


USER_RULE = """
from numba.extending import register_jitable
FACTOR = {factor}
@register_jitable
def scaled(v, mu):
    return {scaled}
def update(p, v, g, lr, mu):
    v = scaled(v, mu) + g
    return p - lr * v, v
rule = fm.Rule(update, state=(("v", "zero"),), hyper=("lr", "momentum"))
p = np.ones(3)
for v in (np.ones(3),):
    fm.step(p, v, np.ones(3), lr=0.5, momentum=0.5, rule=rule)
says(p[0])
"""


def test_changed_rule_is_compiled_again(tmp_path):
    variants = {"mu * v": "0.25", "mu * mu * v": "0.375", "mu * (v + v)": "0.0"}
    for _ in range(2):
        found = [run(USER_RULE.format(factor=1, scaled=text), tmp_path) for text in variants]
        assert [value for _, value in found] == list(variants.values())
    assert [count for count, _ in found] == ["0"] * len(variants)


def factory(number):
    def inner(x):
        return x * number

    return inner


def test_fingerprint_tells_functions_apart_by_all_that_they_hold():
    def with_default(x, y=2.0):
        return x * y

    def with_other_default(x, y=3.0):
        return x * y

    def calls(function):
        def outer(x):
            return function(x)

        return outer

    functions = [
        *(factory(number) for number in (2, 3, 2.0, True, np.float32(2), np.float64(2), "2", None, (2,), (2, 2))),
        factory(np.arange(3)),
        factory(np.arange(4)),
        factory(np.arange(3.0)),
        with_default,
        with_other_default,
        *(calls(factory(number)) for number in (2, 3)),
        *(calls(njit(factory(number))) for number in (2, 3)),
        *(calls(njit(fastmath=fast)(factory(2))) for fast in (True,)),
        calls(np.sin),
        calls(np.cos),
        calls(abs),
        calls(np.where),
    ]
    found = [fingerprint(function) for function in functions]
    assert None not in found
    assert len({*found}) == len(functions)
    assert found[0] == fingerprint(factory(2))
    assert found[16] == fingerprint(calls(factory(3)))


def make_all(*texts, **names):
    """Return one function for each text, a lambda in which these names are global."""
    return [eval(compile(text, "users.py", "eval"), {"__name__": "users", **names}) for text in texts]


def different(functions):
    """Return whether all functions have fingerprints, and no two have the same."""
    found = [fingerprint(function) for function in functions]
    return None not in found and len({*found}) == len(functions)


def test_fingerprint_sees_a_global_with_the_name_of_a_builtin():
    made = [make_all("lambda x: round(x)", round=factory(number))[0] for number in (1, 2)]
    assert different([*made, *make_all("lambda x: round(x)")])


@pytest.mark.parametrize("name", ["filter", "max", "pow"])
def test_changed_part_of_a_rule_with_the_name_of_a_builtin_is_compiled_again(name, folder):
    found = []
    for text in ("g + g", "g + g + g"):
        exec(f"def {name}(g, p): return {text}", part := {"__name__": "users"})
        p = np.ones(3)
        fm.step(p, None, np.ones(3), lr=0.125, rule=fm.chain(fm.Stage(part[name]), "sgd"))
        found.append(p[0])
    assert found == [0.75, 0.625]
    assert len(files(folder)) == 2


def test_fingerprint_sees_the_order_of_the_fields_of_named_tuples():
    pairs = [namedtuple("Pair", fields)(1.0, 2.0) for fields in ("a b", "b a")]
    assert different([*map(factory, pairs), factory((1.0, 2.0))])


def test_fingerprint_sees_the_bits_of_numbers_and_the_layout_of_arrays():
    nan = np.float64("nan")
    numbers = [float(nan), float(-nan), 0.0, -0.0, complex(0, nan), complex(0, -nan), 1j, -1j, True, 1, ..., slice(2)]
    square = np.arange(4.0).reshape(2, 2)
    assert different([factory(held) for held in (*numbers, square, square.T, np.asfortranarray(square))])


def test_fingerprint_sees_the_options_of_compiled_functions():
    prepare()
    plain = factory(5)
    forms = [
        njit(plain),
        njit(plain, fastmath=True),
        njit(plain, locals={"x": types.float32}),
        njit("float64(float64)")(plain),
        njit("float32(float32)")(plain),
        njit("float64(float32)")(plain),
        njit(plain, inline="always"),
    ]
    functions = []
    for options in ({}, {"fastmath": True}, {"inline": "always"}, {"error_model": "numpy"}):
        functions.append(factory(6))
        register_jitable(**options)(functions[-1]) if options else register_jitable(functions[-1])
    assert different([*map(factory, forms), *functions])


def test_fingerprint_sees_what_a_wrapper_of_a_package_function_does():
    def wrapper(number):
        return functools.wraps(np.linalg.norm)(factory(number))

    texts = ("lambda x: x + 1", "lambda x: x + 2")
    assert different([wrapper(1), wrapper(2), *(functools.wraps(fm.step)(made) for made in make_all(*texts))])


def test_fingerprint_sees_compiled_forms_that_users_give_to_numpy_functions_and_to_methods():
    (calls, method) = make_all("lambda x: np.heaviside(x, x)", "lambda x: x.tripled()", np=np)
    for function, add in (
        (calls, lambda number: overload(np.heaviside)(lambda x, y: lambda x, y: x + number)),
        (method, lambda number: overload_method(types.Float, "tripled")(lambda x: lambda x: x + number)),
    ):
        found = [fingerprint(function)]
        for number in (1, 2):
            add(number)
            found.append(fingerprint(function))
        assert None not in found
        assert len({*found}) == 3


def test_fingerprint_sees_a_registered_rule_behind_its_name(monkeypatch):
    found = []
    for text in ("g", "g + g"):
        (update,) = make_all(f"lambda p, g, lr: (p - lr * ({text}),)")
        with monkeypatch.context() as patch:
            patch.setitem(fm.rules.registry._named, "mine", fm.Rule(update, state=(), hyper=("lr",), name="mine"))
            found += make_all("lambda p, g: fm.jit.mine(p, g, 0.1)", fm=fm)
            found.append(fingerprint(found.pop()))
    assert None not in found
    assert found[0] != found[1]


def with_empty_cell():
    def inner(x):
        return later(x)

    if inner is None:
        later = inner
    return inner


def with_import(x):
    import textwrap

    return textwrap.dedent(x)


class Whole(int):
    def __repr__(self):
        return "whole"


class Color(IntEnum):
    RED = 1


endless = []
endless.append(endless)


@pytest.mark.parametrize(
    "held",
    [
        *(object(), textwrap, [object()], {"key": textwrap}, Path(), memoryview(b"")),
        *(with_empty_cell(), with_import, Whole(3), Color, endless, np.ma.ones(3)),
        *(
            types.NamedTuple((types.int64,), namedtuple("One", "a")),
            types.Dispatcher(njit(with_import)),
        ),
    ],
    ids=lambda held: type(held).__name__,
)
def test_function_that_holds_something_unknown_has_no_fingerprint(held):
    assert fingerprint(factory(held)) is None
    assert fingerprint(factory(1), held) is None


def test_fingerprint_sees_the_compiled_form_that_an_overload_gives():
    def make(result):
        def stub(x):
            raise NotImplementedError

        overload(stub)(lambda x: lambda x: x + result)

        def calls(x):
            return stub(x)

        return calls

    assert fingerprint(make(1)) == fingerprint(make(1)) != fingerprint(make(2))


def test_fingerprint_does_not_depend_on_how_often_a_function_was_registered():
    function = factory(5)
    register_jitable(function)
    before = fingerprint(function)
    register_jitable(function)
    assert fingerprint(function) == before is not None


def stepped(rule, dtype=np.float64, count=1):
    """Return the parameter after a step by a kernel for one array, or for several, that is not taken from memory."""
    fm.clear_cache()
    params, grads = ([np.ones(3, dtype) for _ in range(count)] for _ in range(2))
    if count == 1:
        fm.step(params[0], np.zeros(3, dtype), grads[0], rule=rule, lr=0.5, momentum=0.5)
    else:
        fm.Optimizer(params, rule=rule, lr=0.5, momentum=0.5).step(grads)
    return float(params[0][0])


def test_kernel_of_functions_that_have_other_globals_since_is_not_kept(folder):
    one, other = make_all("lambda g: g", "lambda g: g + g")
    text = "def update(p, v, g, lr, mu):\n    v = mu * v + helper(g)\n    return p - lr * v, v"
    exec(text, made := {"__name__": "users", "helper": register_jitable(one)})
    rule = fm.Rule(made["update"], state=(("v", "zero"),), hyper=("lr", "momentum"))
    assert [stepped(rule), stepped(rule), stepped(rule, count=2)] == [0.5] * 3
    before = files(folder)
    assert len(before) == 2  # one array, and several
    made["helper"] = register_jitable(other)
    assert stepped(rule) == 0.5  # Numba keeps the function that it has compiled with the helper of before
    stepped(rule, np.float32)
    assert files(folder) == before
    exec(text, again := {"__name__": "users", "helper": other})
    rule = fm.Rule(again["update"], state=(("v", "zero"),), hyper=("lr", "momentum"))
    assert stepped(rule) == 0.0
    assert len(files(folder)) == 3


def test_fingerprint_of_a_compiled_function_is_known_while_its_globals_are_those_it_was_compiled_with():
    prepare()
    text = "lambda x: K * x"
    (function,) = make_all(text, K=1.0)
    compiled = njit(function)
    fresh = fingerprint(compiled)
    compiled(2.0)
    assert fingerprint(compiled) == fresh is not None
    function.__globals__["K"] = 3.0
    assert fingerprint(compiled) is None
    assert fingerprint(njit(function)) not in (fresh, None)
    compiled(2)  # compiled with K = 3 now, and another form with K = 1
    assert fingerprint(compiled) is None
    function.__globals__["K"] = 1.0
    assert fingerprint(compiled) is None


def test_other_settings_of_numba_compile_again(tmp_path):
    run(STEP, tmp_path)
    assert int(run(STEP, tmp_path, NUMBA_OPT="0")[0]) > 0
    assert run(STEP, tmp_path, NUMBA_OPT="0") == run(STEP, tmp_path) == ["0", expected_step()]


def test_fingerprint_sees_settings_of_numba_that_change_while_the_process_runs(monkeypatch):
    before = fingerprint()
    values = {"OPT": 0, "BOUNDSCHECK": 1, "LOOP_VECTORIZE": 0, "CPU_NAME": "generic", "ENABLE_AVX": 0, "USING_SVML": 3}
    for name, value in values.items():
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value)
            assert fingerprint() != before
    for name in ("NUMBA_NUM_THREADS", "THREADING_LAYER"):
        with monkeypatch.context() as patch:
            patch.setattr(config, name, "other")
            assert fingerprint() == before


def damage(path, kind, other):
    content = path.read_bytes()
    if kind == "another kernel":
        path.write_bytes(other.read_bytes())
    elif kind == "one bit":
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif kind == "pickle of something else":
        digest, found = path.name.removesuffix(".kernel"), b"cos\ngetcwd\n(tR."
        path.write_bytes(kernel_cache._head(digest, found) + found)
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "a link to nothing":
        path.unlink()
        path.symlink_to("nothing")
    else:
        path.write_bytes(content[: int(kind * len(content))])


KINDS = [0.0, 0.0003, 0.001, 0.5, 0.999, "another kernel", "one bit", "pickle of something else", "a folder"]


@pytest.mark.parametrize("kind", [*KINDS, "a link to nothing"])
def test_damaged_or_foreign_file_is_compiled_anew_and_mended(kind, folder):
    assert step_here() == expected_step()
    (path,) = files(folder)
    good = path.read_bytes()
    fm.step(np.ones(3), np.zeros(3), np.ones(3), lr=0.1)
    (other,) = {*files(folder)} - {path}
    damage(path, kind, other)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert step_here() == expected_step()
    if kind == "a folder":
        assert ["compiled kernels are not kept" in str(w.message) for w in caught] == [True]
    else:
        assert caught == []
        assert abs(len(path.read_bytes()) - len(good)) < 2000
        assert kernel_cache.read(path, path.name.removesuffix(".kernel")) is not None


def test_folder_that_cannot_be_written_to_serves_what_it_has(folder, monkeypatch):
    step_here()
    before = files(folder)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kernel_cache, "open", refuse, raising=False)
    monkeypatch.setattr(kernel_cache.os, "utime", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_here() == expected_step()
    p = np.ones(3)
    with pytest.warns(UserWarning, match="are not kept, and the next process compiles them anew: .*denied"):
        fm.step(p, np.zeros(3), np.ones(3), lr=0.5)
    assert p.tolist() == [0.5] * 3
    assert files(folder) == before


def test_folder_that_is_removed_costs_one_warning(folder):
    shutil.rmtree(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert step_here() == expected_step()
        fm.step(np.ones(3), np.zeros(3), np.ones(3), lr=0.5)  # Numba makes Python forget which warnings it has shown
    assert ["are not kept" in str(warning.message) for warning in caught] == [True]


def test_users_of_the_folder_can_read_the_kernels_of_each_other(folder):
    before = os.umask(0o027)
    try:
        step_here()
    finally:
        os.umask(before)
    (path,) = files(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_odd_things_in_the_folder_cost_no_warning(folder, monkeypatch):
    (folder / "a.kernel").symlink_to("nothing")
    (folder / "b.kernel").mkdir()
    (folder / "c.kernel-part").symlink_to("nothing")
    outside = folder.parent / "outside"
    outside.write_text("x" * 10**6)
    (folder / "d.kernel").symlink_to(outside)
    os.utime(folder / "d.kernel", (1, 1), follow_symlinks=False)
    monkeypatch.setattr(kernel_cache, "SIZE", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_here() == expected_step()
    assert outside.exists()
    assert {path.name for path in folder.iterdir()} == {"b.kernel", "c.kernel-part"}


def test_kernel_that_cannot_be_pickled_is_not_kept(folder, monkeypatch):
    def refuse(*_):
        raise TypeError("cannot pickle")

    monkeypatch.setattr(kernel_cache, "_serialize", refuse)
    assert step_here() == expected_step()
    assert list(folder.iterdir()) == []


def test_folder_may_be_changed_by_another_thread_at_any_time(folder, monkeypatch):
    def change(*parts):
        fm.set_cache(None)
        return fingerprint(*parts)

    monkeypatch.setattr(kernel_cache, "fingerprint", change)
    assert step_here() == expected_step()
    fm.set_cache(folder)
    monkeypatch.undo()
    assert step_here() == expected_step()


def test_package_that_is_upgraded_while_the_process_runs_keeps_nothing_for_the_new_one(tmp_path):
    copy, folder = tmp_path / "copy", tmp_path / "kernels"
    folder.mkdir()
    shutil.copytree(ROOT / "fastmomentum", copy / "fastmomentum", ignore=shutil.ignore_patterns("__pycache__"))
    upgrade = f"""
        from fastmomentum.backends.cpu import kernels
        rule = {str(copy / "fastmomentum/rules/momentum.py")!r}
        text = open(rule).read()
        open(rule, "w").write(text.replace("v = mu * v + keep * g", "v = mu * v - keep * g"))
    """
    run(textwrap.dedent(upgrade) + STEP, folder, copy)
    count, bits = run(STEP, folder, copy)
    assert int(count) > 0
    assert bits != expected_step()
    assert run(STEP, folder) == ["0", expected_step()]


def test_disk_that_is_full_leaves_no_file(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_cache.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert step_here() == expected_step()
    assert list(folder.iterdir()) == []


def test_processes_at_once_all_have_the_right_kernel(tmp_path):
    environ = {**os.environ, "FASTMOMENTUM_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", PRELUDE + STEP]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) for _ in range(4)]
    for process in running:
        assert process.communicate(timeout=300)[0].split()[1] == expected_step()
        assert process.returncode == 0
    assert run(STEP, tmp_path) == ["0", expected_step()]
    assert [path.suffix for path in tmp_path.iterdir()] == [".kernel"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_processes_keep_kernels_of_one_name_apart(tmp_path):
    code = """
        import os
        def step(scale):
            exec(f"def update(p, v, g, lr, mu):\\n    v = {scale}\\n    return p - lr * v, v", found := {})
            rule = fm.Rule(found["update"], state=(("v", "zero"),), hyper=("lr", "momentum"))
            p = np.ones(3)
            fm.step(p, np.ones(3), np.ones(3), lr=0.5, momentum=0.5, rule=rule)
            return float(p[0])
        step("mu * v")
        for scale in ("mu * v + g", "mu * v - g"):
            child = os.fork()
            if not child:
                step(scale)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        print(step("mu * v + g"), step("mu * v - g"), step("mu * v"))
        says()
    """
    for _ in range(2):
        *found, count = run(code, tmp_path)
        assert found == ["0.25", "1.25", "0.75"]
    assert count == "0"


def test_process_killed_while_it_writes_leaves_nothing_that_is_loaded(tmp_path):
    code = """
        import os, signal
        from fastmomentum.backends.cpu import kernel_cache
        kernel_cache.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(AssertionError):
        run(textwrap.dedent(code) + STEP, tmp_path)
    (part,) = tmp_path.iterdir()
    assert part.suffix == ".kernel-part"
    assert int(run(STEP, tmp_path)[0]) > 0
    assert part.exists()  # another process may still be writing it
    os.utime(part, (time.time() - 7200,) * 2)
    run(STEP.replace("float32", "float64"), tmp_path)
    assert not part.exists()
    assert run(STEP, tmp_path)[0] == "0"


def test_folder_is_bounded_and_holds_those_that_were_used_last(folder, monkeypatch):
    (folder / "notes.txt").write_text("of the user")
    rules = ["pytorch", "classical", "lion", "signum"]
    for age, rule in enumerate(rules):
        before = files(folder)
        kernels.kernel(fm.rules.find(rule), np.dtype(np.float32))
        (path,) = {*files(folder)} - {*before}
        os.utime(path, (time.time() - 1000 + age,) * 2)
    first, *_ = sorted(files(folder), key=lambda path: path.stat().st_mtime)
    fm.clear_cache()
    kernels.kernel(fm.rules.find("pytorch"), np.dtype(np.float32))  # the oldest is used now
    sizes = [path.stat().st_size for path in files(folder)]
    monkeypatch.setattr(kernel_cache, "SIZE", sum(sizes[:2]) + max(sizes))
    kernels.kernel(fm.rules.find("adam"), np.dtype(np.float32))
    assert 2 <= len(files(folder)) < 5
    assert first in files(folder)
    assert sum(path.stat().st_size for path in files(folder)) <= kernel_cache.SIZE
    assert (folder / "notes.txt").read_text() == "of the user"


def test_kernels_are_kept_only_when_asked(tmp_path, monkeypatch):
    code = "import os; os.environ.pop('FASTMOMENTUM_CACHE')\n"
    start = PRELUDE.index("import fastmomentum")
    done = subprocess.run(
        [sys.executable, "-c", code + PRELUDE[:start] + PRELUDE[start:] + STEP],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "FASTMOMENTUM_CACHE": str(tmp_path)},
        cwd=tmp_path,
        check=True,
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_set_cache_makes_the_folder_and_none_ends_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fm.set_cache("~/a/b")
    step_here()
    assert len(files(tmp_path / "a/b")) == 1
    monkeypatch.chdir(tmp_path)
    fm.set_cache("relative")
    monkeypatch.chdir(folder)
    step_here()
    assert len(files(tmp_path / "relative")) == 1
    fm.set_cache(None)
    fm.clear_cache()
    step_here()
    assert files(folder) == []


def test_refused_folder_leaves_the_one_before(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        fm.set_cache(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        fm.set_cache(tmp_path / "file" / "below")
    with pytest.raises(TypeError):
        fm.set_cache(3)
    with pytest.raises(ValueError, match="got an empty text"):
        fm.set_cache("")
    with pytest.raises(RuntimeError):
        fm.set_cache("~no-such-user/kernels")
    step_here()
    assert len(files(folder)) == 1


def test_variable_that_names_no_folder_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    for name in (str(tmp_path / "file"), "~no-such-user/kernels"):
        environ = {**os.environ, "FASTMOMENTUM_CACHE": name, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", "import fastmomentum.backends.cpu.kernels"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environ, check=True, timeout=300, cwd=tmp_path
        )
        assert "FASTMOMENTUM_CACHE names no folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_interrupt_while_a_kernel_is_written_leaves_no_file(folder, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(kernel_cache.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step_here()
    assert list(folder.iterdir()) == []
    assert step_here() == expected_step()
