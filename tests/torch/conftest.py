"""Fixtures of the tests of fastmomentum.torch."""

import pytest

from fastmomentum import backends


@pytest.fixture
def numpy_backend(monkeypatch):
    """Let optimisers of tensors use the NumPy backend, so that a test of many rules or dtypes compiles no kernel."""
    monkeypatch.setattr(backends, "choose", lambda backend, arrays: "numpy")
