"""The demo succeeds, and fails when momentum does not win or bits differ."""

import json

import numpy as np

from fastmomentum import cli
from fastmomentum.cli import demo


def test_the_demo_succeeds_and_draws_its_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 5)
    assert cli.main(["demo", "--picture", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    shown = capsys.readouterr().out
    for words in ("training loss", "test accuracy", "updates (s)", "the same", "100 %"):
        assert words in shown


def test_the_demo_fails_where_momentum_does_not_win(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setitem(demo.RUNS, "ema", {"rule": "ema", "lr": 1e-4})
    assert cli.main(["demo", "--picture", str(tmp_path / "curves.png")]) == 1
    assert "FAILED: ema does not beat gradient descent" in capsys.readouterr().out


def test_the_demo_fails_where_bits_differ(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 1)
    right = demo.Network.loss

    def wrong(network, flat, *data):  # after a tenth of the run, outside of the updates
        flat[0] = np.nextafter(flat[0], np.float32(9))
        return right(network, flat, *data)

    with monkeypatch.context() as patch:
        patch.setattr(demo.Network, "loss", wrong)
        assert cli.main(["demo", "--picture", str(tmp_path / "curves.png")]) == 1
    assert "FAILED: the bits of" in capsys.readouterr().out


def test_the_demo_trains_by_the_rules_that_are_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 1)
    rules = [*(f"--rule={name}" for name in ("adam", "lamb=0.01", "schedule_free_sgd=0.5", "pytorch"))]
    assert cli.main(["demo", "--json", *rules, "--picture", str(tmp_path / "curves.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["runs"]) == ["gradient descent", "adam", "lamb=0.01", "schedule_free_sgd=0.5", "pytorch"]
    assert all(run["same_bits"] for run in told["runs"].values())
    for wrong, words in (("addam", "must be one of"), ("adam=fast", "could not convert"), ("adam=-1", "lr")):
        assert cli.main(["demo", "--rule", wrong]) == 2
        assert f"--rule {wrong}" in (text := capsys.readouterr().err)
        assert words in text


def test_the_network_s_gradient_is_that_of_its_loss():
    network, data = demo.Network(), demo.load()
    x, y = data.train[0][:7].astype(np.float64), data.train[1][:7]
    flat = network.start().astype(np.float64)
    grad = np.empty_like(flat)
    network.gradient(flat, x, y, grad)
    rng = np.random.default_rng(24)
    direction = rng.standard_normal(flat.size)
    ends = [network.loss(flat + t * direction, x, y) for t in (1e-5, -1e-5)]
    # central differences in double: the error is of the order of 1e-10
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, grad @ direction, rtol=1e-6)
