"""The two ways in which Python copies an object."""

import copy
import pickle

import pytest


def pickled(thing):
    """Return what comes back from a pickle."""
    return pickle.loads(pickle.dumps(thing))


every_copy = pytest.mark.parametrize("make_copy", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
