"""Files and paths that save and load must refuse: special files, hostile archives, malformed states.

Special files lie in a temporary folder, and no link leads out of it.
"""

import io
import json
import os
import socket
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import assert_same_bits


class Momentum:
    """Save and load a run of one array."""

    def make(self):
        opt = fm.Momentum(np.ones(3), lr=0.1)
        opt.step(np.ones(3))
        return opt

    def load(self, path):
        return fm.Momentum.load(path, np.ones(3))


class SparseRows:
    """Save and load the rows of a table."""

    def make(self):
        opt = fm.SparseRows(np.ones((3, 1)), lr=0.1)
        opt.step([1], np.ones((1, 1)))
        return opt

    def load(self, path):
        return fm.SparseRows.load(path, np.ones((3, 1)))


KINDS = {"Momentum": Momentum(), "SparseRows": SparseRows()}


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def listening(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the names of sockets are short


def looping_link(path):
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def link_to_fifo(path):
    os.mkfifo(path.with_name("target"))
    path.symlink_to(path.with_name("target"))


SPECIAL = {make.__name__: make for make in (fifo, folder, listening, looping_link, link_to_fifo)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", SPECIAL)
def test_save_and_load_refuse_special_files_and_leave_them(kind, special, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    SPECIAL[special](path)
    before = {name: os.lstat(tmp_path / name) for name in os.listdir(tmp_path)}
    with pytest.raises(OSError, match="path: expected a regular file to replace; .*run' is a"):
        KINDS[kind].make().save(path)
    with pytest.raises(OSError, match="is a|Too many levels"):
        KINDS[kind].load(path)
    assert {name: os.lstat(tmp_path / name).st_mode for name in os.listdir(tmp_path)} == {
        name: info.st_mode for name, info in before.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_load_of_special_files_says_what_they_are(kind, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, words in (("fifo", "a FIFO"), ("", "a folder")):
        with pytest.raises(OSError, match=f"path: expected a regular file to read; .* is {words}"):
            KINDS[kind].load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        KINDS[kind].load(tmp_path / "missing")


@pytest.mark.parametrize("kind", KINDS)
def test_save_names_what_is_wrong_with_a_path(kind, tmp_path):
    opt = KINDS[kind].make()
    (tmp_path / "file").write_text("text")
    for path, error, words in (
        (f"{tmp_path}/new/", IsADirectoryError, "expected the name of a file"),
        ("", IsADirectoryError, "expected the name of a file"),
        (f"{tmp_path}/new/.", IsADirectoryError, "expected the name of a file"),
        (f"{tmp_path}/file/..", IsADirectoryError, "expected the name of a file"),
        (f"{tmp_path}/none/../run.npz", FileNotFoundError, "there is no folder"),
        (tmp_path / "none" / "run.npz", FileNotFoundError, "there is no folder .*none'"),
        (tmp_path / "file" / "run.npz", FileNotFoundError, "there is no folder .*file'"),
    ):
        with pytest.raises(error, match=f"path: .*{words}"):
            opt.save(path)
    with pytest.raises(OSError, match="too long") as raised:
        opt.save(tmp_path / ("x" * 300))
    assert raised.value.filename is None or raised.value.filename.endswith("x" * 300)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", KINDS)
def test_save_that_cannot_write_names_the_users_file(kind, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device", ".hidden.part")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left") as raised:
        KINDS[kind].make().save(tmp_path / "run.npz")
    assert raised.value.filename == str(tmp_path / "run.npz")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kind", KINDS)
def test_save_writes_through_a_link_whose_target_is_absent(kind, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    KINDS[kind].make().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").is_file()
    KINDS[kind].load(tmp_path / "link")


def members_of(path):
    with zipfile.ZipFile(path) as whole:
        return {name: whole.read(name) for name in whole.namelist()}


def write(path, members, **settings):
    with zipfile.ZipFile(path, "w", **settings) as made:
        for name, content in members.items():
            made.writestr(name, content)


def as_member(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def header_of(shape, dtype="<f8"):
    """Return a member of 24 bytes of numbers whose header claims this shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(24)


def compressed(path, members):
    write(path, members, compression=zipfile.ZIP_DEFLATED)


def one_compressed(path, members):
    write(path, members)
    with zipfile.ZipFile(path, "w") as made:
        for i, (name, content) in enumerate(members.items()):
            made.writestr(name, content, zipfile.ZIP_BZIP2 if i == 1 else zipfile.ZIP_STORED)


def junk_after(path, members):
    write(path, members)
    path.write_bytes(path.read_bytes() + b"junk")


def junk_before(path, members):
    write(path, members)
    path.write_bytes(b"junk" + path.read_bytes())


def with_a_comment(path, members):
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
        made.comment = b"junk"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def member_twice(path, members):
    with zipfile.ZipFile(path, "w") as made:
        for name, content in [*members.items(), next(iter(members.items()))]:
            made.writestr(name, content)


def one_member_more(path, members):
    write(path, {**members, "state_9_9.npy": as_member(np.ones(3))})


def one_text(path, members):
    write(path, {**members, "text": b"text"})


def huge_claim(path, members):
    first = next(name for name in members if name.startswith("state"))
    write(path, {**members, first: header_of((2**40,))})


def huge_product(path, members):
    first = next(name for name in members if name.startswith("state"))
    write(path, {**members, first: header_of((2**40, 2**40, 0))})


def meta_of_floats(path, members):
    write(path, {**members, "meta.npy": as_member(np.ones(3))})


def meta_text(change, path, members):
    text = np.load(io.BytesIO(members["meta.npy"])).tobytes()
    write(path, {**members, "meta.npy": as_member(np.frombuffer(change(text), np.uint8))})


def no_meta(path, members):
    write(path, {name: content for name, content in members.items() if name != "meta.npy"})


ARCHIVES = {
    make.__name__: make
    for make in (
        compressed,
        one_compressed,
        junk_after,
        junk_before,
        with_a_comment,
        member_twice,
        one_member_more,
        one_text,
        huge_claim,
        huge_product,
        meta_of_floats,
        no_meta,
    )
} | {
    "duplicate keys": partial(meta_text, lambda text: text.replace(b"{", b'{"schema": 4, "schema": 1, ', 1)),
    "a list": partial(meta_text, lambda text: b"[1]"),
    "deep": partial(meta_text, lambda text: b"[" * 100_000),
    "no JSON": partial(meta_text, lambda text: text[:-1]),
    "a long number": partial(meta_text, lambda text: text.replace(b'"steps": 1', b'"steps": 1' + b"0" * 5000)),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("archive", ARCHIVES)
def test_load_refuses_a_hostile_archive(kind, archive, tmp_path):
    path = tmp_path / "run.npz"
    KINDS[kind].make().save(path)
    ARCHIVES[archive](path, members_of(path))
    with pytest.raises(ValueError, match=f"expected a whole file from {kind}.save"):
        KINDS[kind].load(path)


@pytest.mark.parametrize("n", [200_000, 3])
def test_load_reads_no_more_than_the_parameters_need(n, tmp_path):
    """A sparse file of 800 MB of zeros claims a state of 10⁸ numbers: its header alone is read."""
    path = tmp_path / "run.npz"
    fm.Momentum(np.ones(n), lr=0.1).save(path)
    members = members_of(path)
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float64, (100_000,))
    members["state_0_0.npy"] = (tmp_path / "big.npy").read_bytes()
    del big
    write(path, members)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"state\[0\]: expected .*shape \(.*got .*shape \(100000,\)"):
        fm.Momentum.load(path, np.ones(n))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 500_000 + 40 * n


def meta_with(change):
    return lambda meta: meta | change


COUNTS = [2**62 + 1, 2**63, 10**30, -1, 1.0, True, "1", None]
WRONG = (
    [{key: value} for key in ("steps", "skipped", "skipped_in_a_row", "last_reset") for value in COUNTS]
    + [{"updates": [value]} for value in COUNTS]
    + [{"resets": [(value, "a reason", "all")]} for value in COUNTS]
    + [{"schema": value} for value in (True, 4.0, "4", 5, 0, -1, None, [4])]
    + [{"resets": value} for value in (None, 3, {}, [3], [(1, "a")], [(1, 2, 3)], [(1, "a", "all", 4)], "abc")]
    + [{"resets": [(1, "a reason", scope)]} for scope in ("nonsense", "", "All", "group", "group 1", "group -1")]
    + [{"resets": [(1, "a reason", scope)]} for scope in ("array 1", "array 0, rows 1", "group 0, rows 0:1 ", 3)]
    + [{"skipped_in_a_row": 1}, {"skipped": 2, "skipped_in_a_row": 3}]
    + [{"torch_groups": value} for value in (3, {}, [3], [{}, {}])]
    + [{"functions": value} for value in (None, [], {"lr": []}, {"lr": [None, None]}, {"lr": [True]}, {3: [None]})]
    + [{"functions": value} for value in ({"lr": [0]}, {"rate": [None]}, {"rate": [0]}, {"weight_decay": [0]})]
    + [{"values": value} for value in (None, {}, [], [{"lr": np.nan}], [{"lr": 1}], [{"lr": "x"}], [3], [{}, {}])]
    + [{"values": value} for value in ([{"lr": 0.1}], [{"rate": 0.1}])]
    + [{"groups": value} for value in (None, {}, [], [3], [{}], [{"rule": "ema"}], [{3: 4}])]
    + [{"value": value} for value in (np.nan, np.inf, 1, "x", True)]
    + [{"names": value} for value in ("w", [3], ["a", "b"], [], {"a": 1})]
    + [{"skip_nonfinite": value} for value in (0, -1, 1.5, "x", None, 2**63)]
    + [{"updates": value} for value in (None, 3, [], [0, 0])]
    + [{"state": value} for value in (None, 3, [], [3], [[3]], [[np.zeros(3), np.zeros(3)]], [[[0.0, 0.0, 0.0]]])]
    + [{"elements": value} for value in (3, [3], [{}, {}], [{"masks": np.ones(3, bool)}])]
    + [{"fingerprint": value} for value in (3, ["x"], [0, 0], [-1])]
    + [{"rule": value} for value in (3, None, "no rule")]
    + [{"made_of": value} for value in (3, None, "another")]
    + [{"another": 1}, {3: 4}]
)


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_load_state_dict_refuses_each_malformed_entry_and_goes_on(number):
    change, key = WRONG[number], str(next(iter(WRONG[number])))
    opt, twin = Momentum().make(), Momentum().make()
    with pytest.raises(ValueError, match=f"(?s)state_dict does not fit.*{key}"):
        opt.load_state_dict(opt.state_dict() | change)
    for one in (opt, twin):
        one.step(np.full(3, 0.5))
        one.load_state_dict(one.state_dict())
        one.reset("a test")
    assert_same_bits(opt.params, twin.params)
    assert opt.steps == twin.steps


@pytest.mark.parametrize("key", Momentum().make().state_dict())
def test_load_state_dict_names_a_missing_entry(key):
    opt = Momentum().make()
    saved = opt.state_dict()
    del saved[key]
    if key == "schema":
        saved["schema"] = None
    with pytest.raises(ValueError, match=f"{key}: "):
        opt.load_state_dict(saved)
    opt.step(np.ones(3))


@pytest.mark.parametrize("key", ["resets", "groups", "functions", "values", "updates", "names", "steps"])
def test_load_names_a_missing_entry_of_a_file(key, tmp_path):
    path = tmp_path / "run.npz"
    Momentum().make().save(path)

    def without(text):
        meta = json.loads(text)
        del meta[key]
        return json.dumps(meta).encode()

    meta_text(without, path, members_of(path))
    with pytest.raises(ValueError, match=f"{key}: missing"):
        Momentum().load(path)


def test_a_message_lists_no_more_than_twenty_differences():
    opt = fm.Momentum([np.ones(2) for _ in range(100)], lr=0.1)
    with pytest.raises(ValueError, match="and 80 more$") as raised:
        opt.load_state_dict(opt.state_dict() | {"updates": [-1] * 100})
    assert str(raised.value).count("\n") == 21


def test_counts_can_be_the_greatest_that_is_allowed(tmp_path):
    opt = Momentum().make()
    opt.steps = 2**61 - 1
    opt.step(np.ones(3))
    assert opt.steps == 2**61
    opt.save(tmp_path / "run.npz")
    assert Momentum().load(tmp_path / "run.npz").steps == 2**61
    for steps in (2**61, 2**62, 2**62 + 1):
        with pytest.raises(ValueError, match="steps: expected "):
            opt.steps = steps
    opt.steps = 5
    opt.step(np.ones(3))


@pytest.mark.parametrize("count", [2**61, 2**62])
@pytest.mark.parametrize("name", ["steps", "skipped", "skipped_in_a_row", "updates"])
def test_step_refuses_to_pass_the_bound_of_counts_and_writes_nothing(name, count, tmp_path):
    opt = fm.Momentum(np.ones(3), lr=lambda t: 0.5, backend="numpy", skip_nonfinite=True)
    opt.step(np.ones(3))
    value = {name: [count] if name == "updates" else count}
    opt.load_state_dict(opt.state_dict() | {"skipped": count if name == "skipped_in_a_row" else 0} | value)
    before = opt.params.copy(), opt.velocity.copy()
    for grads in (np.ones(3), np.full(3, np.nan)):
        with pytest.raises(ValueError, match="steps: expected fewer than .* before a step; got"):
            opt.step(grads)
    assert_same_bits(opt.params, before[0])
    assert_same_bits(opt.velocity, before[1])
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", np.ones(3), lr=0.5)
    assert again.state_dict()[name] == value[name]
    opt.load_state_dict(opt.state_dict() | {"steps": 1, "skipped": 0, "skipped_in_a_row": 0, "updates": [1]})
    opt.step(np.ones(3))
    assert opt.steps == 2


def test_rows_refuse_to_step_past_the_bound_of_counts():
    opt = fm.SparseRows(np.ones((2, 1)), lr=0.5, backend="numpy")
    opt.load_state_dict(opt.state_dict() | {"steps": 2**62, "seen": np.full(2, 2**62)})
    with pytest.raises(ValueError, match="steps: expected fewer than "):
        opt.step([0], np.ones((1, 1)))
    opt.load_state_dict(opt.state_dict())
    assert opt.param.tolist() == [[1.0], [1.0]]


def test_load_takes_other_numbers_for_settings(tmp_path):
    path, p = tmp_path / "run.npz", np.ones(2)
    groups = [{"params": [p]}, {"params": [np.ones(3)], "lr": lambda t: 0.2 / (1 + t)}]
    opt = fm.Momentum(groups, lr=0.1, max_norm=1.0)
    opt.step([np.ones(2), np.ones(3)])
    opt.save(path)
    arrays = [p, np.ones(3)]
    assert fm.Momentum.load(path, arrays, lr=0.01).lr == [0.01, 0.01]
    assert fm.Momentum.load(path, arrays, lr=[None, 0.01]).lr == [0.1, 0.01]
    assert fm.Momentum.load(path, arrays, lr=[0.5, lambda t: 0.2]).lr == [0.5, 0.2]
    found = fm.Momentum.load(path, arrays, lr=0.01, max_norm=2.0, weight_decay=[0.5, None], momentum=0.5)
    assert (found.max_norm, found.weight_decay, found.momentum) == (2.0, [0.5, 0.0], [0.5, 0.5])
    assert_same_bits(found.velocity[0], opt.velocity[0])
    for given, reason in (
        ({"lr": -1.0}, "lr: expected"),
        ({"lr": [0.1]}, "lr: expected a sequence of 2"),
        ({"lr": 0.1, "learning_rate": 0.1}, "learning_rate: expected .*Did you mean lr"),
        ({"lr": 0.1, "rate": lambda t: 1.0}, "rate: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=reason):
            fm.Momentum.load(path, arrays, **given)


def test_load_with_another_lr_is_load_and_an_assignment(tmp_path):
    path, p = tmp_path / "run.npz", np.ones(2)
    opt = fm.Momentum(p, rule="classical", lr=0.1, correct=True)
    opt.step(np.ones(2))
    opt.save(path)
    q = p.copy()
    found, assigned = fm.Momentum.load(path, p, lr=0.05), fm.Momentum.load(path, q)
    assigned.lr = 0.05
    assert_same_bits(found.velocity, assigned.velocity)
    assert found.velocity[0] == 0.05


@pytest.mark.parametrize(("old", "new"), [(np.float64, np.float32), (np.float32, np.float64), (complex, np.complex64)])
def test_load_converts_the_state_to_another_precision(old, new, tmp_path):
    path, p = tmp_path / "run.npz", np.ones(3, old)
    opt = fm.Momentum(p, lr=0.1)
    opt.step(np.full(3, 1 / 3, old))
    opt.save(path)
    with pytest.raises(ValueError, match=r"state\[0\]: expected .*; got .*; cast=True converts them"):
        fm.Momentum.load(path, p.astype(new))
    found = fm.Momentum.load(path, q := p.astype(new), cast=True)
    assert_same_bits(found.velocity, opt.velocity.astype(new))
    found.step(np.ones(3, new))
    again = fm.Momentum(q.copy(), lr=0.5)
    again.load_state_dict(opt.state_dict(), cast=True)
    assert_same_bits(again.velocity, opt.velocity.astype(new))
    with pytest.raises(ValueError, match="state"):
        fm.Momentum.load(path, np.ones(4, new), cast=True)


def test_load_refuses_numbers_that_another_precision_cannot_hold(tmp_path):
    path = tmp_path / "run.npz"
    opt = fm.Momentum(np.ones(3), lr=0.1)
    opt.step(np.full(3, 1e300))
    opt.save(path)
    with pytest.raises(ValueError, match=r"state\[0\]: expected numbers that float32 can hold"):
        fm.Momentum.load(path, np.ones(3, np.float32), cast=True)


def test_rows_load_with_another_number_and_another_precision(tmp_path):
    path, table = tmp_path / "rows.npz", np.ones((3, 1))
    opt = fm.SparseRows(table, lr=lambda t: 0.1, momentum=0.5)
    opt.step([1], np.ones((1, 1)))
    opt.save(path)
    found = fm.SparseRows.load(path, table.astype(np.float32), lr=0.25, cast=True)
    assert (found.lr, found.momentum, found.steps) == (0.25, 0.5, 1)
    assert_same_bits(found.state[0], opt.state[0].astype(np.float32))
    with pytest.raises(ValueError, match="state: expected .*float32.*cast=True converts"):
        fm.SparseRows.load(path, table.astype(np.float32), lr=0.25)


def test_load_warns_if_arrays_without_names_are_in_another_order(tmp_path, recwarn):
    path, q, k = tmp_path / "run.npz", np.ones(3), np.full(3, 2.0)
    opt = fm.Momentum([q, k], lr=0.1)
    opt.step([np.ones(3), np.zeros(3)])
    opt.save(path)
    fm.Momentum.load(path, [q, k])
    fm.Momentum.load(path, [np.zeros(3), np.zeros(3)])  # to be filled after loading
    assert not recwarn.list
    with pytest.warns(UserWarning, match="params: the arrays 0, 1 hold the values that other arrays had") as warned:
        fm.Momentum.load(path, [k, q])
    assert warned[0].filename == __file__
    opt.save(path, fingerprint=False)
    fm.Momentum.load(path, [k, q])
    same = fm.Momentum([a := np.zeros(3), b := np.zeros(3), np.zeros((3, 1))], lr=0.1)
    same.step([np.ones(3), None, None])
    same.save(path)
    fm.Momentum.load(path, [np.zeros(3), b, np.zeros((3, 1))])  # the first one has the values of the second by chance
    fm.Momentum.load(path, [np.ones(3), b, a.reshape(3, 1)])  # the last one has another shape
    named = fm.Momentum({"q": q, "k": k}, lr=0.1)
    named.step({"q": np.ones(3)})
    named.save(path)
    found = fm.Momentum.load(path, {"k": k, "q": q})
    assert_same_bits(found.velocity["q"], np.ones(3))
    assert not recwarn.list


def test_load_takes_masks_and_skips_and_paths_of_bytes(tmp_path):
    path, p = tmp_path / "run.npz", np.ones(2)
    opt = fm.Momentum([p, np.ones(3)], lr=0.1)
    opt.save(os.fsencode(path))
    mask = [np.array([True, False]), None]
    found = fm.Momentum.load(os.fsencode(path), [p, np.ones(3)], mask=mask, skip_nonfinite=3)
    assert found.mask[0].tolist() == [True, False]
    assert found.skip_nonfinite == 3
    single = fm.Momentum(p, lr=0.1)
    single.save(path)
    assert fm.Momentum.load(path, p, lr_scale=np.array([0.5, 1.0])).lr_scale.tolist() == [0.5, 1.0]
    assert fm.Momentum.load(path, p, skip_nonfinite=True).skip_nonfinite is True
    with pytest.raises(TypeError, match="PathLike"):
        fm.Momentum.load(None, p)


class Table:
    """A function of the step that is compared element by element, as a dataclass with an array is."""

    def __init__(self):
        self.values = np.arange(3)

    def __call__(self, step):
        return 0.1

    def __eq__(self, other):
        return self.values == other.values

    __hash__ = None


def test_functions_whose_comparison_has_no_truth_value_are_saved_as_different_ones():
    opt = fm.Momentum([{"params": np.ones(2), "lr": Table()}, {"params": np.ones(2), "lr": Table()}], lr=0.1)
    assert opt.state_dict()["functions"]["lr"] == [0, 1]


def test_file_of_rows_without_values_of_its_functions_is_refused(tmp_path):
    path = tmp_path / "rows.npz"
    fm.SparseRows(np.ones((3, 1)), lr=lambda t: 0.1).save(path)

    def without(text):
        return json.dumps(json.loads(text) | {"values": {}}).encode()

    meta_text(without, path, members_of(path))
    with pytest.raises((TypeError, ValueError), match="lr: expected the function of the step"):
        fm.SparseRows.load(path, np.ones((3, 1)), lr=0.1)


def with_settings(names, text):
    """Return the text of a file's meta with one more setting of each name."""
    meta = json.loads(text)
    (meta["groups"][0] if "groups" in meta else meta["settings"]).update(dict.fromkeys(names, 0.5))
    return json.dumps(meta).encode()


RESERVED = {
    "Momentum": ("self", "params", "rule", "backend", "threads", "skip_nonfinite", "keep_resets", "mask", "lr_scale"),
    "SparseRows": ("self", "param", "rule", "backend"),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in RESERVED.items() for name in names])
def test_load_refuses_settings_named_like_other_arguments_of_the_constructor(kind, name, tmp_path):
    path = tmp_path / "run.npz"
    KINDS[kind].make().save(path)
    meta_text(partial(with_settings, [name]), path, members_of(path))
    with pytest.raises(ValueError, match=f"expected names of settings; got '{name}', which is none"):
        KINDS[kind].load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_load_refuses_unknown_settings_of_a_file(kind, tmp_path):
    path = tmp_path / "run.npz"
    KINDS[kind].make().save(path)
    for name in ("cls", "positional", "learning_rate"):
        KINDS[kind].make().save(path)
        meta_text(partial(with_settings, [name]), path, members_of(path))
        with pytest.raises((TypeError, ValueError), match=f"{name}: rule 'pytorch' takes no such hyper-parameter"):
            KINDS[kind].load(path)


def test_load_takes_records_and_counts_from_before_steps_was_assigned(tmp_path):
    opt = fm.Momentum([np.ones((3, 1)), np.ones(2)], lr=0.1, backend="numpy")
    for _ in range(3):
        opt.step([np.ones((3, 1)), np.ones(2)])
    for scope in ({}, {"group": 0}, {"array": 1}, {"array": 0, "rows": 1}):
        opt.reset("a test", **scope)
    opt.step([np.ones((3, 1)), np.ones(2)])
    opt.step([np.ones((3, 1)), None])
    opt.steps = 0
    opt.save(tmp_path / "run.npz")
    found = fm.Momentum.load(tmp_path / "run.npz", opt.params, backend="numpy")
    assert found.resets == opt.resets
    assert (found.steps, found.state_dict()["updates"]) == (0, [2, 1])
