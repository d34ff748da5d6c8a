"""Training of small networks by fastmomentum.torch and by torch.optim."""

from functools import partial

import pytest

torch = pytest.importorskip("torch")
import fastmomentum.torch  # noqa: E402

STEPS, CLASSES = 60, 4


class Transformer(torch.nn.Module):
    """A transformer with two layers, which predicts a class for each token."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(CLASSES, 16)
        self.positions = torch.nn.Parameter(0.1 * torch.randn(8, 16))
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(16, CLASSES)

    def forward(self, tokens):
        return self.head(self.layers(self.embedding(tokens) + self.positions)).transpose(1, 2)


def make_cnn():
    nn = torch.nn
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(64, CLASSES))


def images():
    """Return images, of which one quarter is brighter, and the number of that quarter."""
    quarters = torch.randint(0, CLASSES, (32,))
    bright = torch.nn.functional.one_hot(quarters, CLASSES).reshape(32, 1, 2, 2)
    return torch.randn(32, 1, 12, 12) + torch.nn.functional.interpolate(bright.float(), size=12), quarters


def sequences():
    """Return sequences of tokens, and for each token the sum of those up to it, modulo the number of classes."""
    tokens = torch.randint(0, CLASSES, (16, 8))
    return tokens, tokens.cumsum(1) % CLASSES


def losses(make_network, make_data, make_optimizer):
    """Return the losses of a training with OneCycleLR, which changes lr and momentum in every step."""
    torch.manual_seed(0)
    network, (inputs, targets) = make_network(), make_data()
    opt = make_optimizer(network.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=STEPS)
    found = []
    for _ in range(STEPS):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(inputs), targets)
        loss.backward()
        opt.step()
        scheduler.step()
        found.append(loss.item())
    return found


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread of torch: two take longer for networks of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("make_network", "make_data"), [(make_cnn, images), (Transformer, sequences)])
def test_losses_are_those_of_torch_in_a_training(make_network, make_data):
    makers = partial(fastmomentum.torch.SGD, momentum=0.9), partial(torch.optim.SGD, momentum=0.9, foreach=True)
    ours, theirs = [losses(make_network, make_data, make_optimizer) for make_optimizer in makers]
    assert theirs[-1] < 0.9 * theirs[0]
    # Torch contracts products and sums, and 60 steps carry its other roundings on: a few last digits of a loss near 1.
    assert ours == pytest.approx(theirs, rel=0, abs=1e-6)
