"""Streams, graphs, arrays of other libraries and large sizes, which need a GPU; without one the tests are skipped."""

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import random_arrays
from tests.helpers.reference import DTYPES, assert_same_bits

cuda = pytest.importorskip("numba.cuda")
if "NUMBA_ENABLE_CUDASIM" in os.environ or not cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

pytestmark = pytest.mark.gpu


def run_on_host(p, grads, **how):
    opt = fm.Momentum(p, lr=0.1, **how)
    for grad in grads:
        opt.step(grad)
    return p


@pytest.mark.parametrize("size", [1, 1000, 4096, 1_000_003, 20_000_001])
@pytest.mark.parametrize("offset", range(5))
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_arrays_have_the_bits_of_the_host(size, offset, dtype):
    host = random_arrays(size + 8, 3, dtype)
    there = [cuda.to_device(a) for a in host]
    fm.step(*(a[offset : offset + size] for a in there), lr=0.1, weight_decay=0.01)
    fm.step(*(a[offset : offset + size] for a in host), lr=0.1, weight_decay=0.01)
    for ours, theirs in zip(there, host):
        assert_same_bits(ours.copy_to_host(), theirs)


def test_many_arrays_and_their_norm_have_the_bits_of_the_host():
    sizes = [*range(1, 400), 65_536, 65_537, 1_000_000, 0, 31]
    host = [random_arrays(size, 1, np.float32, size)[0] for size in sizes]
    there = [cuda.to_device(a) for a in host]
    ours, theirs = (fm.Momentum(p, lr=0.1, max_norm=2.0, skip_nonfinite=True) for p in (there, host))
    for step in range(3):
        grads = [random_arrays(size, 1, np.float32, size + step)[0] for size in sizes]
        if step == 1:
            grads[7][3] = np.inf
        theirs.step(grads)
        ours.step([cuda.to_device(g) for g in grads])
    assert (ours.steps, ours.skipped) == (2, 1)
    for a, b in zip(there, host):
        assert_same_bits(a.copy_to_host(), b)


def test_arrays_with_more_than_2_to_the_31_elements_are_updated_to_their_ends():
    size = 2**31 + 12_345
    free, _ = cuda.current_context().get_memory_info()
    if free < 3.2 * 4 * size:
        pytest.skip(f"needs {3.2 * 4 * size / 2**30:.0f} GiB of free device memory")
    p, v, g = (cuda.device_array(size, np.float32) for _ in range(3))
    ends = slice(size - 1000, size)
    host = random_arrays(1000, 3, np.float32)
    for array, values in zip((p, v, g), host):
        array[:1000].copy_to_device(values)
        array[ends].copy_to_device(values)
    fm.step(p, v, g, lr=0.1)
    fm.step(*host, lr=0.1)
    for array, values in zip((p, v), host):
        assert_same_bits(array[:1000].copy_to_host(), values)
        assert_same_bits(array[ends].copy_to_host(), values)


def test_step_waits_for_earlier_work_in_its_stream():
    (host, grad), stream = random_arrays(10_000_000, 2, np.float32), cuda.stream()
    there = cuda.to_device(host)
    room = cuda.device_array_like(there)
    opt = fm.Momentum(there, lr=0.1)
    opt.step(cuda.to_device(np.zeros_like(grad)))
    cuda.synchronize()
    for _ in range(20):
        room.copy_to_device(np.zeros_like(grad), stream=stream)
    room.copy_to_device(grad, stream=stream)
    opt.step(room, stream=stream)  # the copies are still running
    stream.synchronize()
    assert_same_bits(there.copy_to_host(), run_on_host(host, [np.zeros_like(grad), grad]))


def test_torch_tensors_are_updated_in_the_current_stream():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch without CUDA")
    host, *grads = random_arrays(100_001, 4, np.float32)
    p = torch.nn.Parameter(torch.from_numpy(host.copy()).cuda())
    opt, before = fm.Momentum([p], lr=0.1), p._version
    with torch.cuda.stream(torch.cuda.Stream()):
        for grad in grads:
            opt.step([torch.from_numpy(grad).cuda(non_blocking=True)])
    torch.cuda.synchronize()
    assert p._version == before + 3
    assert_same_bits(p.detach().cpu().numpy(), run_on_host(host, grads))


def test_captured_graph_of_torch_is_replayed_with_a_new_lr():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch without CUDA")
    host, grad = random_arrays(5000, 2, np.float32)
    p, g = torch.from_numpy(host.copy()).cuda(), torch.from_numpy(grad).cuda()
    lr = torch.tensor(0.1, device="cuda")
    opt = fm.Momentum([p], lr=lr, decoupled_weight_decay=0.5)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        opt.step([g])
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        opt.step([g])
    for value in (0.05, 0.2):
        lr.fill_(value)
        graph.replay()
    torch.cuda.synchronize()
    theirs = fm.Momentum(host, lr=float(np.float32(0.1)), decoupled_weight_decay=0.5)
    for value in (0.1, 0.05, 0.2):
        theirs.lr = float(np.float32(value))
        theirs.step(grad)
    assert_same_bits(p.cpu().numpy(), host)
    opt.step([torch.from_numpy(grad).cuda()])  # a new array gets another table, and the graph keeps the old one
    kept = p.clone()
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(kept, p)


def test_cupy_arrays_have_the_bits_of_the_host():
    cupy = pytest.importorskip("cupy")
    host, *grads = random_arrays(100_001, 4, np.float32)
    p = cupy.asarray(host)
    opt = fm.Momentum(p, lr=0.1)
    with cupy.cuda.Stream(non_blocking=True):
        for grad in grads:
            opt.step(cupy.asarray(grad))
    cupy.cuda.Device().synchronize()
    assert_same_bits(cupy.asnumpy(p), run_on_host(host, grads))


def test_steps_in_several_threads_have_the_bits_of_the_host():
    def run(seed):
        host, *grads = random_arrays(300_001, 6, np.float32, seed)
        there, stream = cuda.to_device(host), cuda.stream()
        opt = fm.Momentum(there, lr=0.1, max_norm=1.0)
        for grad in grads:
            opt.step(cuda.to_device(grad), stream=stream)
        stream.synchronize()
        return there.copy_to_host(), run_on_host(host, grads, max_norm=1.0)

    with ThreadPoolExecutor(4) as pool:
        for found, expected in pool.map(run, range(8)):
            assert_same_bits(found, expected)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    code = """
        import numpy as np, fastmomentum as fm
        from numba import cuda
        arrays = [cuda.to_device(np.ones(n, np.float32)) for n in (1, 4097, 70_001, 0)]
        opt = fm.Momentum([a[1:] if a.size > 1 else a for a in arrays], lr=0.1, max_norm=1.0, skip_nonfinite=True)
        for _ in range(2):
            opt.step([cuda.to_device(np.ones(p.shape, np.float32)) for p in opt.params])
        cuda.synchronize()
        """
    command = [sanitizer, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
