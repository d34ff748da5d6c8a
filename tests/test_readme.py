"""README: its code, its tables, and its statements."""

import json
import re

import numpy as np
import pytest

import fastmomentum as fm
from benchmarks.report import RESULTS, TABLES, main, write
from fastmomentum.cli.validation.quadratics import least_squares
from tests.helpers.paths import README, ROOT


def test_readme_code_runs_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, blocks = {}, re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        assert language == "python"
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"^print\(.*\)  # (.*)$", README, re.MULTILINE)
    assert len(printed) == 3


def test_the_code_of_the_guide_to_rules_runs_and_does_what_its_text_says():
    text = (ROOT / "fastmomentum/rules/README.md").read_text(encoding="utf-8")
    names = {"np": np, "fm": fm}
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(blocks[0], names)
    p = np.ones(2)
    fm.Optimizer(p, names["rule"], lr=0.5, momentum=0.5).step(np.ones(2))
    assert (p < 1.0).all()
    exec(blocks[1], names)
    assert len(blocks) == 2
    opt, factors = names["opt"], []
    for gradient in (1.0, -1.0, -1.0, -1.0, 1.0):  # v·g is positive, negative twice, positive, negative
        opt.step(np.full(3, gradient))
        factors += [kept["factor"] for kept in opt.state_dict()["memory"][:1]]
    assert factors == [1.0, 0.5, 0.25, 0.5, 0.25]


def test_readme_is_short():
    assert README.count("\n") < 250


@pytest.mark.parametrize("mark", TABLES)
def test_the_tables_are_those_of_the_records(mark):
    page, record, table = TABLES[mark]
    text = (ROOT / page).read_text()
    assert write(page, text) == text
    begin = f"<!-- {mark}: begin -->\n"
    assert text.split(begin)[1].startswith(table(json.loads((RESULTS / record).read_text()))[0] + "\n")
    assert write(page, text.replace(begin, begin + "stale\n")) == text


def test_a_table_that_is_not_its_records_is_refused(monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    for page in ("README.md", "benchmarks/README.md"):
        (tmp_path / page).write_text((ROOT / page).read_text())
    monkeypatch.setattr("benchmarks.report.ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    main()
    changed = README.replace("| 1 |", "| 9 |", 1)
    assert changed != README
    (tmp_path / "README.md").write_text(changed)
    with pytest.raises(SystemExit, match="README.md: a table differs from its record"):
        main()


def test_the_record_is_a_whole_one():
    record = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    assert not record["smoke"]
    assert record["processes"] == 3
    assert all(len(times) == 3 for case in record["cases"] for times in case["runs"].values())


def test_what_readme_says_of_the_validation_is_in_its_record():
    record = json.loads((ROOT / "benchmarks/results/validation.json").read_text())
    assert not record["small"]
    rows = {row["what"]: row for row in record["rows"]}
    assert rows["breast cancer, optimal, heavy_ball: iterations to 1e-08"]["measured"] == 1321
    costs = [row["error"] for row in record["rows"] if "low (steps over those of" in row["topic"]]
    assert f"({min(costs):.2f} to {max(costs):.2f} times the steps, with L estimated 1 % low)" in README
    problem = least_squares("breast cancer")
    rate = fm.theory.optimal(*problem.ends, rule="heavy_ball").rate
    assert f"takes 1,321 steps to 1e-8 where ρ alone says {np.log(1e-8) / np.log(rate):.0f}" in README.replace(
        "\n  ", " "
    )


@pytest.mark.parametrize("name", [name for name in fm.rules.names() if hasattr(fm.rules, name)])
def test_the_table_of_rules_has_every_rule_with_its_formula(name):
    table = (ROOT / "fastmomentum/rules/README.md").read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if line.startswith(f'| `"{name}"`')]
    formula = getattr(fm.rules, name).formula
    assert formula in row or formula.replace("β", "μ") in row


@pytest.mark.parametrize("script", ["demo", "test", "bench", "validate"])
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
