"""What README says is what happens."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import fastmomentum as fm
from benchmarks.report import BEGIN, END, write

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_examples_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out.strip() == re.search(r"print\(.*# (\[.*)", README).group(1)
    np.testing.assert_allclose(names["target"], np.arange(5))


def test_the_table_is_that_of_the_record():
    record = json.loads((ROOT / "benchmarks/results/cpu-serial.json").read_text())
    assert write(record, README) == README
    stale = README.replace(BEGIN, BEGIN + "stale\n")
    assert write(record, stale) == README
    assert END in README


@pytest.mark.parametrize("name", [name for name in fm.rules.names() if hasattr(fm.rules, name)])
def test_the_conventions_table_has_every_rule_with_its_formula(name):
    (row,) = [line for line in README.splitlines() if line.startswith(f'| `"{name}"`')]
    formula = getattr(fm.rules, name).formula
    assert formula.replace("β", "μ") in row


@pytest.mark.parametrize("script", ["demo", "test", "bench"])
def test_scripts_are_executable(script):
    assert (ROOT / "scripts" / script).stat().st_mode & 0o111


def test_heavy_ball_loses_digits_far_from_the_origin_in_float32():
    reached = {}
    for rule in ("heavy_ball", "classical"):
        p = np.array([1010], np.float32)
        opt = fm.Momentum(p, rule=rule, lr=1e-3, momentum=0.9)
        farthest = 0.0
        for step in range(25_000):
            opt.step(p - np.float32(1000))
            farthest = max(farthest, abs(p - 1000)[0]) if step > 20_000 else 0.0
        reached[rule] = f"{farthest:.2g}"
    assert f"swings by {reached['heavy_ball']} for ever, classical rests at {reached['classical']}" in README
