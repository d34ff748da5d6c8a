"""The package as a whole: imports, forks and signals, public names, lengths of files, and examples."""

import inspect
import os
from pathlib import Path

import pytest

import fastmomentum as fm
from tests.helpers.processes import run_python


def test_importing_loads_neither_numba_nor_scipy():
    code = """
        import sys, fastmomentum as fm
        heavy = {"numba", "llvmlite", "scipy", "torch", "matplotlib", "sklearn", "rich"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        fm.rules.pytorch, fm.stages.box, fm.chain, fm.Rule, fm.step, fm.Momentum, fm.schedules.one_cycle
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """
    run_python(code, "-W", "error")


def test_the_numpy_backend_needs_no_numba():
    code = """
        import sys, numpy as np, fastmomentum as fm
        p = np.ones(3)
        fm.step(p, np.zeros(3), np.ones(3), lr=0.1, backend="numpy")
        fm.Momentum(p, lr=0.1, backend="numpy").step(np.ones(3))
        assert "numba" not in sys.modules
        """
    run_python(code, "-W", "error")


def test_a_step_starts_no_thread_sets_no_variable_and_writes_no_file(tmp_path):
    code = """
        import os, threading, numba, scipy.linalg  # Numba loads SciPy, whose BLAS has a thread pool of its own
        before = dict(os.environ), threading.active_count(), len(os.listdir("/proc/self/task"))
        layer = numba.config.THREADING_LAYER, numba.config.NUMBA_NUM_THREADS
        import numpy as np, fastmomentum as fm
        fm.step(np.ones(100_000), np.zeros(100_000), np.ones(100_000), lr=0.1)
        fm.Momentum([np.ones(100_000)], lr=0.1, max_norm=1.0).step([np.ones(100_000)])
        assert before == (dict(os.environ), threading.active_count(), len(os.listdir("/proc/self/task")))
        assert layer == (numba.config.THREADING_LAYER, numba.config.NUMBA_NUM_THREADS)
        """
    run_python(
        code, "-W", "error", HOME=str(tmp_path), NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONDONTWRITEBYTECODE="1"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_steps_as_its_parent_does():
    code = """
        import os, numpy as np, fastmomentum as fm
        p, g = np.ones(50_000), np.ones(50_000)
        opt = fm.Momentum(p, lr=0.1)
        opt.step(g)
        child = os.fork()
        opt.step(g)
        if child == 0:
            fm.step(p.copy(), np.zeros(50_000), g, lr=0.1)  # compiled in the child
            os._exit(0 if (p == 1 - 0.1 * 1 - 0.1 * 1.9).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert (p == 1 - 0.1 * 1 - 0.1 * 1.9).all()
        """
    run_python(code, "-W", "error")


def test_interrupting_a_run_leaves_arrays_whole():
    code = """
        import os, signal, threading, time, numpy as np, fastmomentum as fm
        p, g = np.zeros(3_000_000), np.ones(3_000_000)
        opt = fm.Momentum(p, lr=1.0, momentum=0.0)
        opt.step(g)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                opt.step(g)
        except KeyboardInterrupt:
            pass
        assert (p == p[0]).all() and p[0] in (-opt.steps, -opt.steps - 1), (p[0], opt.steps)
        """
    run_python(code, "-W", "error")


def test_public_names_are_listed_and_load():
    for name in fm.__all__:
        assert getattr(fm, name) is not None
    assert set(fm.__all__) <= set(dir(fm))
    with pytest.raises(AttributeError, match="no_such"):
        fm.no_such  # noqa: B018


def test_no_module_bears_the_name_of_a_public_function():
    modules = {path.stem for path in Path(fm.__file__).parent.glob("*.py")}
    functions = {name for name in fm.__all__ if callable(getattr(fm, name))}
    assert {"step", "chain"} <= functions
    assert not modules & functions


def test_files_are_short():
    package = Path(fm.__file__).parent
    limits = {package / "optim" / "optimizer.py": 700}  # mostly the docstrings of the public methods
    for path in package.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= limits.get(path, 400), path


def public_callables():
    """Yield the public functions, classes and methods of classes with their names."""
    from fastmomentum import jit, plots, schedules, theory

    homes = {"fm": fm, "jit": jit, "plots": plots, "schedules": schedules, "theory": theory}
    for home, module in homes.items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and not issubclass(value, tuple):
                yield f"{home}.{name}", value
                for method in vars(value) if home == "schedules" else dir(value):
                    found = inspect.getattr_static(value, method)
                    if not method.startswith("_") and (inspect.isfunction(found) or isinstance(found, classmethod)):
                        yield f"{home}.{name}.{method}", getattr(value, method)
            elif inspect.isfunction(value):
                yield f"{home}.{name}", value


def test_every_public_function_has_an_example():
    found = dict(public_callables())
    assert len(found) > 100
    lacking = [name for name, value in found.items() if ">>> " not in (inspect.getdoc(value) or "")]
    assert lacking == []
