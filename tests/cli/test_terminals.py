"""Every command in terminals of several widths and kinds, and with files that are full, closed, special or damaged."""

import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import textwrap
import zipfile
from threading import Timer

import numpy as np
import pytest

from fastmomentum.cli import demo
from tests.cli.test_cli import refused
from tests.helpers.paths import ROOT

SMALL = """
    import fcntl, itertools, json, os, struct, sys, termios, time, types
    from fastmomentum import cli
    from fastmomentum.cli import demo, info, probes
    from fastmomentum.cli.validation import formulas, report

    demo.EPOCHS, demo.RUNS = 1, {name: demo.RUNS[name] for name in ("gradient descent", "classical")}
    row = formulas.Row("a prediction", 1.0, 1.0, 0.0, 0.5, "group", "topic")
    report.parts = lambda sizes, planes: iter([("part", lambda: time.sleep(0.1) or iter([row]))] * 2)
    report.draw, report.Sizes = lambda planes, folder: [], lambda small: None
    demo.picture = lambda runs, path: None
    bench = types.ModuleType("benchmarks.__main__")
    sys.modules["benchmarks.__main__"] = bench

    def compare(out, smoke, terminal):
        with terminal.progress() as progress:
            progress.advance(progress.add_task("a process", total=2))
        terminal.say("Record and picture")
        return 0

    bench.run = compare
    ask = probes.ask

    def ask_quickly(names):
        time.sleep(0.1)
        return {name: {"error": "no answer in time"} for name in names}

    folder = sys.argv[1]
    commands = {
        "tune": ["tune", "--kappa", "100", "--rule", "sgd"],
        "demo": ["demo", "--picture", f"{folder}/picture.png"],
        "validate": ["validate", "--small", "--out", folder],
        "bench": ["bench", "--out", folder],
        "info": ["info"],
    }
"""
"""Code that makes every command small, with its arguments in `commands`."""


def start(code, *arguments, **how):
    """Start a Python process that runs `code`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    how["env"] = kept | {"TERM": "xterm", "PYTHONPATH": str(ROOT)} | how.get("env", {})
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], **how)


OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
"""Code that makes stdin the terminal from which its process gets Ctrl-C."""


def in_terminal(code, *arguments, keys=None, **environment):
    """Return what the code prints in a terminal, and its exit status; `keys` is (text to wait for, keys to press)."""
    ours, theirs = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    code = OWN_TERMINAL + textwrap.dedent(code)
    process = start(code, *arguments, env=environment, start_new_session=True, **streams)
    os.close(theirs)
    too_late, out = Timer(100, process.kill), b""
    too_late.start()
    with open(ours, "rb+", buffering=0) as terminal:
        while True:
            try:
                out += terminal.read(65536)
            except OSError:  # the process has closed the terminal
                break
            if keys and keys[0] in out:
                terminal.write(keys[1])
                keys = None
    status = process.wait()
    too_late.cancel()
    return out.decode(), status


def lines_left(text):
    """Return the lines that stay on the screen, without colours: a bar is erased from its line by ESC[2K."""
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-JL-Z]", "", text.replace("\r\n", "\n"))
    return [line.rsplit("\x1b[2K", 1)[-1].lstrip("\r") for line in text.split("\n")]


COMMANDS = ["tune", "demo", "validate", "bench", "info"]

RUN_ALL = """
    for columns, variables, names in json.loads(sys.argv[2]):
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.environ.update(variables)
        for name in names:
            probes.ask = ask if (columns, variables) == (80, {}) else ask_quickly
            print(f"<{columns} {variables} {name}>", flush=True)
            status = cli.main(commands[name])
            print(f"<{status}>", flush=True)
        for variable in variables:
            del os.environ[variable]
        os.environ["TERM"] = "xterm"
"""


def run_all(cases, folder, **environment):
    """Return the output and the exit status of each command in each case, by its columns, variables and name."""
    text, status = in_terminal(SMALL + RUN_ALL, folder, json.dumps(cases), **environment)
    assert status == 0, text
    parts = re.split(r"<(\d+) ({.*?}) (\w+)>\r\n", text)[1:]
    found = {}
    for columns, variables, name, out in zip(*[iter(parts)] * 4, strict=True):
        shown, status = re.fullmatch(r"(.*)<(\d+)>\r\n", out, re.DOTALL).groups()
        found[int(columns), variables, name] = shown, int(status)
    assert len(found) == sum(len(names) for *_, names in cases)
    return found


def test_every_command_runs_in_every_terminal(tmp_path):
    odd = [{"TERM": "dumb"}, {"TERM": ""}, {"TERM": "nonsense"}, {"COLUMNS": "0", "LINES": "0"}, {"NO_COLOR": "1"}]
    cases = [(80, {}, COMMANDS), (120, {}, COMMANDS), (0, {}, ["info"]), (12, {}, ["info"])]
    cases += [(80, variables, ["tune", "info"]) for variables in odd]
    for (columns, variables, name), (text, status) in run_all(cases, tmp_path).items():
        assert status == 0, text
        assert "Traceback" not in text
        lines = lines_left(text)
        words = {
            "tune": "optimal",
            "demo": "test accuracy",
            "validate": "0 missed",
            "bench": "Record",
            "info": "Python",
        }
        assert any(words[name] in line for line in lines), (columns, variables, text)
        if columns >= 80 and name in ("tune", "validate", "info"):
            long = [line for line in lines if len(line) > columns and str(tmp_path) not in line]
            assert not long, long
        # A bar hides the cursor while it is drawn; a dumb terminal cannot erase it.
        assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == ("dumb" not in variables)
        assert ("\x1b[9" in text) <= ("NO_COLOR" not in variables)


def test_without_a_compiler_commands_run_or_tell_what_to_unset(tmp_path):
    found = run_all([(80, {}, COMMANDS)], tmp_path, NUMBA_DISABLE_JIT="1", NUMBA_NUM_THREADS="1")
    for (_, _, name), (text, status) in found.items():
        assert "Traceback" not in text
        assert status == (name in ("validate", "bench"))
        if status:
            assert re.fullmatch(
                rf"fastmomentum {name}: expected Numba's compiler.*NUMBA_DISABLE_JIT.*: unset it\r\n", text
            )
    assert "NUMBA_DISABLE_JIT" in found[80, "{}", "info"][0]


def test_ctrl_c_in_a_terminal_ends_the_bar_and_the_command():
    code = """
        import sys, time
        from fastmomentum import cli
        from fastmomentum.cli import probes

        probes.ask = lambda names: print("here", flush=True) or time.sleep(60)
        sys.exit(cli.main(["info"]))
    """
    text, status = in_terminal(code, keys=(b"here", b"\x03"))
    assert status == 130
    assert "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_a_full_stdout_is_told_in_one_line_by_every_command(tmp_path):
    code = """
    probes.ask = ask_quickly
    many = [*commands.values(), ["tune", "--kappa", "9", "--rule", "sgd", "--json"], ["info", "--json"], ["--help"]]
    for unbuffered, arguments in itertools.product((False, True), [*many, ["info", "--help"], ["--version"]]):
        sys.stdout.reconfigure(write_through=unbuffered)
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        status = cli.main(arguments)
        sys.stderr.write(f"<{status}>")
    """
    with open("/dev/full", "w") as full:
        process = start(SMALL + code, tmp_path, stdout=full, stderr=subprocess.PIPE)
        err = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 0, err
    *messages, rest = err.split("<1>")
    assert (len(messages), rest) == (20, "")
    for message in messages:
        assert re.fullmatch(r"fastmomentum( \w+)?: stdout: No space left on device\n", message), err


def test_a_closed_stdout_is_told_in_one_line(tmp_path):
    closed = f'exec "{sys.executable}" -m fastmomentum --version >&-'
    for line, message in (
        (closed, "fastmomentum: stdout: expected a terminal, a file or a pipe; it is closed\n"),
        (f"{closed} 2>&-", ""),
    ):
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert (done.returncode, done.stderr) == (1, message)


def test_special_files_are_refused_at_once(command, tmp_path):
    for name in ("data.npz", "data.csv", "picture.png"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    (tmp_path / "to_pipe.csv").symlink_to(tmp_path / "data.csv")
    for name, words in {
        "data.npz": "expected a regular file; got a pipe or a device",
        "data.csv": "expected a regular file; got a pipe or a device",
        "to_pipe.csv": "expected a regular file; got a pipe or a device",
        "loop.csv": "Too many levels of symbolic links",
        ".csv": "expected a name that ends in .npz or .csv",
        "x" * 300 + ".csv": "File name too long",
        "data.csv/x.csv": "Not a directory",
    }.items():
        assert f"{name}: {words}" in refused(command, "tune", tmp_path / name)
    for option in (["tune", "--kappa", 9, "--plot"], ["demo", "--picture"]):
        assert "expected a file in a folder that exists" in refused(command, *option, tmp_path / "picture.png")
        assert "File name too long" in refused(command, *option, tmp_path / ("x" * 300 + ".png"))
        assert "a name that ends in .png" in refused(command, *option, tmp_path / "x.pgf")  # LaTeX would be needed
    for name in ("data.csv", "data.csv/x"):
        assert "--out" in refused(command, "validate", "--out", tmp_path / name)
        assert "--out" in refused(command, "bench", "--out", tmp_path / name)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(command, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    for name in ("validate", "bench"):
        assert "expected a folder that can be written to" in refused(command, name, "--out", tmp_path)


def test_a_full_disk_is_told_in_one_line(command, tmp_path, monkeypatch):
    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "train", lambda settings, data, advance: demo.Run([1.0] * 10, 1.0, 1.0, 1.0, True))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    status, _, err = command("demo", "--picture", tmp_path / "c.png")
    assert (status, err) == (2, f"fastmomentum demo: error: --picture {tmp_path / 'c.png'}: No space left on device\n")
    monkeypatch.setattr("fastmomentum.cli.validation.report.Sizes", lambda small: None)
    monkeypatch.setattr("fastmomentum.cli.validation.report.parts", lambda sizes, planes: iter([]))
    monkeypatch.setattr("fastmomentum.cli.validation.report.draw", lambda planes, folder: [])
    monkeypatch.setattr("pathlib.Path.write_text", full)
    status, _, err = command("validate", "--small", "--out", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "validation.json: No space left on device" in err


def test_what_the_system_or_the_memory_refuses_is_told_in_one_line(command, monkeypatch):
    for error, words in (
        (MemoryError("Unable to allocate 7 TiB"), "not enough memory: Unable to allocate 7 TiB"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
    ):

        def refuse(names, error=error):
            raise error

        monkeypatch.setattr("fastmomentum.cli.probes.ask", refuse)
        status, out, err = command("info")
        assert (status, out) == (1, "")
        assert err.startswith("fastmomentum info: ")
        assert words in err
        assert err.count("\n") == 1


def array_header(shape, dtype="<f8", version=1):
    """Return the header of an array in an .npz file; `shape` and `dtype` are any text."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


HEADERS = {
    "7 TiB": array_header("(1000000, 1000000)"),
    "beyond integers": array_header(f"({2**70},)"),
    "size that wraps": array_header(f"({2**62}, 4)"),
    "negative": array_header("(-4, 2)"),
    "huge items": array_header("(4, 2)", "<V2000000000"),
    "objects": array_header("(4, 2)", "|O"),
    "text": array_header("('a', 'b')"),
    "nested": array_header("(" * 4000 + ")" * 4000),
    "deep": array_header("-" * 9000 + "1"),
    "open quotes": array_header("'''", version=3),
    "unknown dtype": array_header("(4, 2)", "zz"),
    "no array": b"no header",
    "empty": b"",
    "version 9": b"\x93NUMPY\x09\x00",
    "dates": array_header("(4, 2)", "<M8[s]") + bytes(64),
    "words": array_header("(4, 2)", "<U4") + bytes(128),
    "long double": array_header("(1, 1)", "<f16") + np.longdouble("1e4000").tobytes(),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_archives_are_refused_in_one_line(command, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("A.npy", HEADERS[name])
        buffer = io.BytesIO()
        np.save(buffer, np.ones(1 if name == "long double" else 4))
        archive.writestr("b.npy", buffer.getvalue())
    line = refused(command, "tune", tmp_path / "data.npz")
    assert line.startswith(f"fastmomentum tune: error: {tmp_path / 'data.npz'}: expected ")
    assert len(line) < 400 + len(str(tmp_path))


def test_names_in_messages_cannot_control_the_terminal(command, tmp_path):
    path = tmp_path / "a\x1b[2Jb\nc.csv"
    path.write_text("1,2\x1b[31m\n")
    line = refused(command, "tune", path)
    assert "a\\x1b[2Jb\\nc.csv" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_never_raise(command, tmp_path, compressed):
    rng = np.random.default_rng(18)
    a, b = np.arange(8.0).reshape(4, 2) ** 2, np.ones(4)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "whole.npz", A=a, b=b)
    texts = {".npz": (tmp_path / "whole.npz").read_bytes(), ".csv": b"a,b,y\n1,2,3\n4,5.5e1,6\n7,-8,9\n"}
    statuses = set()
    for suffix, whole in texts.items():
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(rng.integers(1, 5)):
                damaged[rng.integers(len(damaged))] = rng.choice([rng.integers(256), *b'",\n\r.e#-+ \0'])
            (tmp_path / f"damaged{suffix}").write_bytes(
                damaged[: rng.integers(len(damaged)) if rng.random() < 0.2 else None]
            )
            status, _, err = command("tune", tmp_path / f"damaged{suffix}", "--rule", "sgd")
            assert err.count("\n") == (status == 2)
            statuses.add(status)
    assert statuses == {0, 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.npz", "--ridge", "1e308"], "--ridge: expected at most 1e+100; got 1e+308"),
        (["--kappa", "1e300"], "--kappa: expected m and L from 1e-100 to 1e+100, and L/m of at most 1e+30; got m = 1"),
        (["--kappa", "1.7e308", "--margin", "0.5"], "--kappa: expected m and L"),
        (["--m", "1e307", "--L", "1e308"], "--m, --L: expected m and L from 1e-100 to 1e+100"),
        (["--m", "5e-324", "--L", "5e-324"], "--m, --L: expected m and L from 1e-100"),
        (["--m", "1e-100", "--L", "1e100"], "and L/m of at most 1e+30"),
        (["--m", "1", "--L", "1e29", "--margin", "0.99"], "and L/m of at most 1e+30; got m = 0.01, L = 1.99e+29"),
        (["huge.npz"], "expected an A whose norm squared is from 1e-100 to 1e+100"),
        (["tiny.npz"], "expected an A whose norm squared is from 1e-100 to 1e+100"),
    ],
)
def test_numbers_beyond_double_precision_are_refused_in_one_line(command, tmp_path, monkeypatch, arguments, words):
    for name, scale in {"data": 1.0, "huge": 1e60, "tiny": 1e-60}.items():
        np.savez(tmp_path / f"{name}.npz", A=scale * np.diag([1.0, 2.0, 3.0]), b=np.ones(3))
    monkeypatch.chdir(tmp_path)
    assert words in refused(command, "tune", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["data.npz", "--ridge", "1e100"],
        ["data.npz", "--ridge", "1e-300"],
        ["--kappa", "1e30"],
        ["--m", "1e-100", "--L", "1e-70"],
        ["--m", "1e70", "--L", "1e100"],
        ["--kappa", "9", "--tol", "5e-324"],
        ["--kappa", "9", "--tol", "0.9999999999999999"],
        ["--kappa", "9", "--margin", "0.9999999999999999"],
    ],
)
def test_numbers_at_the_limits_have_a_tuning_for_every_method(command, tmp_path, monkeypatch, arguments):
    np.savez(tmp_path / "data.npz", A=np.diag([1.0, 2.0, 3.0]), b=np.ones(3))
    monkeypatch.chdir(tmp_path)
    names = ("sgd", "heavy_ball", "pytorch", "ema", "nesterov_positions", "ema_nesterov")
    status, out, err = command("tune", *arguments, *(word for name in names for word in ("--rule", name)))
    assert (status, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines() if " optimal " in line and "The" not in line} == set(names)
