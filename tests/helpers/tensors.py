"""Tensors, gradients and runs for tests of optimisers with torch's interface."""

import numpy as np
import torch

SHAPES = ((10, 5), (10,), (), (1, 3))


def make_params(shapes=SHAPES, dtype=torch.float32, seed=0):
    """Return one parameter of normally distributed numbers for each shape."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def copies_of(params):
    """Return parameters with the same values in memory of their own."""
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def set_gradients(params, seed):
    """Give every parameter a new gradient of normally distributed numbers, the same for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def steps(params, opt, numbers, after=lambda: None):
    """Do a step with new gradients for each of these numbers, each followed by a call of `after`."""
    for number in numbers:
        set_gradients(params, number)
        opt.step()
        after()


def holes(tensor):
    """Return a tensor of the same values, with another number after each of them in memory."""
    return torch.stack([tensor, torch.full_like(tensor, 5.0)], -1)[..., 0]


def bits_of(tensor):
    """Return the bytes of a tensor's elements in C order, to compare tensors of any dtype."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same_tensors(found, expected):
    """Check that two sequences have the same number of tensors, of the same dtypes, shapes and bits in each pair."""
    for one, two in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert bits_of(one) == bits_of(two)


def rounding_limit(params, buffers, steps, lr, momentum, eps=None):
    """Return how far two runs can differ that round the same formula at other places.

    Each step rounds v by at most 3·eps·V (decay, momentum, sum), an error that lives for 1/(1 − μ) steps and moves p by
    lr times that in each of them; p itself rounds by 2·eps·P.
    """
    eps = eps or torch.finfo(params[0].dtype).eps
    largest = max(float(p.detach().abs().max()) for p in params if p.numel())
    velocity = max([float(v.abs().max()) for v in buffers if v.numel()], default=largest)
    return steps * eps * (3 * lr * velocity / (1 - momentum) + 2 * (largest + velocity))


def assert_within(found, expected, limit):
    """Check that tensors differ by at most `limit`, which is an absolute number."""
    for one, two in zip(found, expected, strict=True):
        wide = torch.promote_types(one.dtype, torch.float64)
        np.testing.assert_allclose(
            one.detach().to(wide).resolve_conj().numpy(), two.detach().to(wide).resolve_conj().numpy(), 0, limit
        )
