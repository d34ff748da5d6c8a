"""Run the command line in the process of the tests."""

import pytest

from fastmomentum import cli


@pytest.fixture
def command(capsys, monkeypatch):
    """Return a function that runs the command in this process and returns its status, stdout and stderr."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments):
        capsys.readouterr()
        status = cli.main(list(map(str, arguments)))
        return (status, *capsys.readouterr())

    return run
