"""fastmomentum.torch in a distributed run of torch: two processes, which exchange gradients by gloo."""

from datetime import timedelta
from functools import partial

import pytest

torch = pytest.importorskip("torch")
import fastmomentum.torch  # noqa: E402
from fastmomentum import backends  # noqa: E402

RANKS, STEPS = 2, 5
SETTINGS = {"lr": 0.1, "momentum": 0.9}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no torch.distributed")


def make_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batch(step, rank):
    """Return the inputs and targets that a rank uses in a step."""
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(RANKS * step + rank))
    return inputs, inputs.sum(1, keepdim=True)


def train(network, opt, batches):
    """Do a step for each batch."""
    for inputs, targets in batches:
        opt.zero_grad()
        torch.nn.functional.mse_loss(network(inputs), targets).backward()
        opt.step()


def own_batches(rank):
    return [batch(step, rank) for step in range(STEPS)]


def numbers(network):
    return [param.detach().clone() for param in network.parameters()]


def with_ddp(rank):
    """Return the parameters after a run under DistributedDataParallel."""
    network = make_network()
    parallel = torch.nn.parallel.DistributedDataParallel(network)
    train(parallel, fastmomentum.torch.SGD(parallel.parameters(), **SETTINGS), own_batches(rank))
    return numbers(network)


def with_zero(rank):
    """Return the parameters after a run with ZeroRedundancyOptimizer, and the consolidated state on rank 0."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    network = make_network()
    parallel = torch.nn.parallel.DistributedDataParallel(network)
    opt = ZeroRedundancyOptimizer(parallel.parameters(), optimizer_class=fastmomentum.torch.SGD, **SETTINGS)
    train(parallel, opt, own_batches(rank))
    opt.consolidate_state_dict(to=0)
    return numbers(network), opt.state_dict() if rank == 0 else None


def work(rank, folder):
    """Do all runs as one rank, and save what they return."""
    torch.set_num_threads(1)
    backends.choose = lambda backend, arrays: "numpy"  # two processes would compile the same kernels
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    try:
        torch.save({"ddp": with_ddp(rank), "zero": with_zero(rank)}, folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what each rank saved."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(work, (folder,), nprocs=RANKS, join=False)
    try:
        assert any(context.join(timeout=60) for _ in range(RANKS)), "the ranks have not ended"  # it waits for one rank
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def reference():
    """Return the network and the optimiser of the same run in torch, in one process."""
    network = make_network()
    opt = torch.optim.SGD(network.parameters(), **SETTINGS)
    train(network, opt, [map(torch.cat, zip(*(batch(step, rank) for rank in range(RANKS)))) for step in range(STEPS)])
    return network, opt


close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)  # the ranks add their parts of a mean in another order


def test_ddp_gives_the_same_parameters_on_all_ranks(ranks, reference):
    assert all(map(torch.equal, ranks[0]["ddp"], ranks[1]["ddp"]))
    close(ranks[0]["ddp"], numbers(reference[0]))


def test_zero_redundancy_optimizer_gives_the_same_parameters_on_all_ranks(ranks, reference):
    assert all(map(torch.equal, ranks[0]["zero"][0], ranks[1]["zero"][0]))
    close(ranks[0]["zero"][0], numbers(reference[0]))


def test_consolidated_state_continues_in_torch(ranks, reference):
    opt = torch.optim.SGD(make_network().parameters(), lr=9.0)
    opt.load_state_dict(ranks[0]["zero"][1])
    assert opt.param_groups[0]["momentum"] == SETTINGS["momentum"]
    found, expected = [
        [state["momentum_buffer"] for state in each.state_dict()["state"].values()] for each in (opt, reference[1])
    ]
    assert len(found) == 4
    close(found, expected)
