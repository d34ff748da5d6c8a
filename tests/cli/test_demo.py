"""The demo succeeds, and fails when momentum does not win or bits differ."""

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
    right = demo.fm.step

    def wrong(param, *rest, **settings):
        right(param, *rest, **settings)
        param[0] = np.nextafter(param[0], np.float32(9))

    with monkeypatch.context() as patch:
        patch.setattr(demo.fm, "step", wrong)
        assert cli.main(["demo", "--picture", str(tmp_path / "curves.png")]) == 1
    assert "FAILED: the bits of" in capsys.readouterr().out


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
