"""Optimisers with the interface of torch.optim, which update tensors by this package's rules, in compiled code.

They are subclasses of torch.optim.Optimizer, and work wherever one is expected: with the schedulers of torch, closures,
hooks, ``GradScaler``, ``torch.save``, distributed wrappers. The classes with names of torch.optim have its signatures
and store state under its names, so that a ``state_dict`` goes to torch's optimiser and back in mid-run;
:class:`Optimizer` takes any rule, with the rule's own names.

Examples
--------
>>> import torch, fastmomentum.torch
>>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
>>> opt = fastmomentum.torch.SGD([weight], lr=0.5, momentum=0.5)
>>> for _ in range(2):
...     opt.zero_grad()
...     (weight**2).sum().backward()
...     opt.step()
>>> weight.detach()
tensor([-0.5000,  1.0000])
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastmomentum.torch needs torch: pip install 'fastmomentum[torch]'") from error

from fastmomentum.torch.adam import Adam, Adamax, AdamW, AdEMAMix, NAdam, RAdam
from fastmomentum.torch.adaptive import Adadelta, Adagrad, RMSprop
from fastmomentum.torch.named import QHM, SGD, Lion, Signum
from fastmomentum.torch.optimizer import Optimizer
from fastmomentum.torch.schedule_free import AdamWScheduleFree, SGDScheduleFree

__all__ = [
    "QHM",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "SGDScheduleFree",
    "Signum",
]
