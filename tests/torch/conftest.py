"""Fixtures of the tests of fastmomentum.torch."""

import copy

import pytest

from fastmomentum import backends
from tests.helpers.optim_db import INPUTS


@pytest.fixture
def numpy_backend(monkeypatch):
    """Let optimisers of tensors use the NumPy backend, so that a test of many rules or dtypes compiles no kernel."""
    monkeypatch.setattr(backends, "choose", lambda backend, arrays: "numpy")


@pytest.fixture
def settings(request):
    """Return a copy of the settings of an input, as schedulers write to tensors among them."""
    return copy.deepcopy(INPUTS[request.param])
