"""Kernels that are kept on disk: never the wrong one, whatever happens to the folder or to the code."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from numba.extending import overload, register_jitable

import fastmomentum as fm
from fastmomentum.backends.cpu import kernel_cache, kernels
from fastmomentum.backends.cpu.fingerprint import fingerprint

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
    first, second = (run(EVERYTHING, tmp_path, PYTHONHASHSEED="0") for _ in range(2))
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
            total = 0.0
            for i in range(x.size):
                total += (x[i] - TARGET) ** 2
            return total
        @numba.njit
        def jac(x):
            return 2 * (x - TARGET)
        fun(np.ones(2)), jac(np.ones(2))
        result = fm.minimize(fun, np.zeros(2), jac=jac, lr=0.1)
        print(round(result.x[0]))
    """
    codes = [textwrap.dedent(function).replace("TARGET", str(number)) for number in (3, 7)]
    for code, found in zip(codes, ("3", "7")):
        assert run(code, tmp_path)[-1] == found
    before = files(tmp_path)
    assert run("\n".join(codes), tmp_path)[-2:] == ["3", "7"]
    assert run("\n".join(reversed(codes)), tmp_path)[-2:] == ["7", "3"]
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
    variants = {"mu * v": "0.25", "mu * mu * v": "0.375", "mu * v - mu * mu * v": "0.375", "mu * (v + v)": "0.0"}
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


@pytest.mark.parametrize(
    "held",
    [object(), textwrap, [object()], {"key": textwrap}, Path(), memoryview(b"")],
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


@pytest.mark.parametrize("setting", ["NUMBA_BOUNDSCHECK", "NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_CPU_NAME"])
def test_other_settings_of_numba_compile_again(setting, tmp_path):
    value = "generic" if setting == "NUMBA_CPU_NAME" else "0" if setting != "NUMBA_BOUNDSCHECK" else "1"
    variables = {setting: value} | ({"NUMBA_CPU_FEATURES": ""} if setting == "NUMBA_CPU_NAME" else {})
    run(STEP, tmp_path)
    assert int(run(STEP, tmp_path, **variables)[0]) > 0
    assert run(STEP, tmp_path, **variables) == run(STEP, tmp_path) == ["0", expected_step()]


def test_changed_package_compiles_again(tmp_path):
    copy, folder = tmp_path / "copy", tmp_path / "kernels"
    folder.mkdir()
    shutil.copytree(ROOT / "fastmomentum", copy / "fastmomentum", ignore=shutil.ignore_patterns("__pycache__"))
    run(STEP, folder)
    assert run(STEP, folder, copy)[0] == "0"
    rule = copy / "fastmomentum/rules/momentum.py"
    before = rule.stat()
    text = rule.read_text()
    assert text.count("v = mu * v + keep * g") == 1
    rule.write_text(text.replace("v = mu * v + keep * g", "v = mu * v - keep * g"))
    os.utime(rule, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.rmtree(copy / "fastmomentum/rules/__pycache__", ignore_errors=True)
    count, bits = run(STEP, folder, copy)
    assert int(count) > 0
    assert bits != expected_step()
    assert run(STEP, folder) == ["0", expected_step()]


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

    monkeypatch.setattr(kernel_cache.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(kernel_cache.os, "utime", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_here() == expected_step()
    p = np.ones(3)
    with pytest.warns(UserWarning, match="are not kept, and the next process compiles them anew: .*denied"):
        fm.step(p, np.zeros(3), np.ones(3), lr=0.5)
    assert p.tolist() == [0.5] * 3
    assert files(folder) == before


def test_folder_that_is_removed_costs_a_warning(folder):
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="are not kept"):
        assert step_here() == expected_step()


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
    step_here()
    assert len(files(folder)) == 1


def test_variable_that_names_no_folder_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    environ = {**os.environ, "FASTMOMENTUM_CACHE": str(tmp_path / "file"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PRELUDE + STEP]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True, timeout=300)
    assert "FASTMOMENTUM_CACHE names no folder" in done.stderr
    assert done.stdout.split()[1] == expected_step()


def test_interrupt_while_a_kernel_is_written_leaves_no_file(folder, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(kernel_cache.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step_here()
    assert list(folder.iterdir()) == []
    assert step_here() == expected_step()
