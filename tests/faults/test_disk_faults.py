"""Disks that are full or refuse, files that are damaged, swapped or gone: a clear error or the checkpoint before, and
nothing lost."""

import builtins
import errno
import json
import os
import shutil
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from minirl.checkpoint import checkpoints, newest_step, restore, write_checkpoint
from minirl.disk import DiskError, check_sums, replacing, write_sums
from minirl.run import Run

TOTAL = 7
FILES = ("tensors.safetensors", "state.json")


def train(out, *, resume: bool = True, **changes) -> list[torch.Tensor]:
    """A run of seven steps with every kind of state, a checkpoint after every other one; its last weights."""
    torch.manual_seed(0)
    model, generator = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    run = Run(out, config={"lr": 0.1} | changes, resume=resume, checkpoint_every=2, progress=False)
    done = run.track(model=model, optimizer=optimizer, generator=generator)
    for step in run.steps(done, TOTAL):
        loss = model(torch.randn(4, 3, generator=generator) + torch.rand(1)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.record(step, {"loss": loss.detach()})
    return [p.detach().clone() for p in model.parameters()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to: its folder and its weights."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, train(out)


def same(weights, whole, out, *, metrics: bool = True) -> bool:
    told = (out / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    return all(torch.equal(a, b) for a, b in zip(weights, whole[1], strict=True)) and (told or not metrics)


@pytest.fixture
def copy(tmp_path, whole):
    """The run after step 6 of 7, with the checkpoints of steps 2, 4 and 6."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "checkpoints" / "step_000007")
    shutil.copytree(EARLIER[whole[0]], out / "checkpoints" / "step_000002", dirs_exist_ok=True)
    return out


EARLIER = {}


@pytest.fixture(scope="module", autouse=True)
def earlier(whole, tmp_path_factory):
    """The checkpoint of step 2, which the whole run no longer keeps."""
    out = tmp_path_factory.mktemp("earlier") / "out"

    class Enough(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record", stop_after(2, Run.record, Enough))
        with pytest.raises(Enough):
            train(out)
    EARLIER[whole[0]] = out / "checkpoints" / "step_000002"


def stop_after(last, record, error):
    def stopping(self, step, stats):
        record(self, step, stats)
        if step == last:
            raise error

    return stopping


# The disk is full, from one operation on, for each operation there is


class FailingDisk:
    """From the nth operation on that writes, the disk refuses. A write gets half of its bytes onto it first."""

    def __init__(self, patch, n: int, number: int):
        self.left, self.number, self.hit = n, number, ""
        self.open = builtins.open
        for name in ("fsync", "replace", "rename", "mkdir"):
            patch.setattr(os, name, self.counted(name, getattr(os, name)))
        patch.setattr(builtins, "open", self.opened)

    def now(self, name: str) -> bool:
        self.left -= 1
        if self.left < 0:
            self.hit = self.hit or name
        return self.left < 0

    def error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))

    def counted(self, name, function):
        def operation(*arguments, **keywords):
            if self.now(name):
                raise self.error()
            return function(*arguments, **keywords)

        return operation

    def opened(self, path, mode="r", *arguments, **keywords):
        file = self.open(path, mode, *arguments, **keywords)
        if not set(mode) & set("wax"):
            return file
        write = file.write

        def half(data):
            if self.now("write"):
                write(data[: len(data) // 2])
                file.flush()
                raise self.error()
            return write(data)

        return Overwritten(file, half)


class Overwritten:
    """A file whose write is another."""

    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.mark.parametrize(("number", "stride"), [(errno.ENOSPC, 1), (errno.EIO, 5)])
def test_a_disk_that_fails_at_any_operation_loses_nothing(tmp_path, whole, number, stride, record_property):
    n, hits = 0, []
    while True:
        out = tmp_path / str(n)
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, n, number)
            try:
                train(out)
                break  # there are no more than n operations
            except DiskError as error:
                said = str(error)
        assert str(out) in said and "What was saved before is whole" in said and "--resume" in said, said
        assert ("no room left" in said) == (number == errno.ENOSPC)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no half checkpoint, and metrics that fit it
            assert not list(out.glob("checkpoints/aside_*/state.json")), "half a checkpoint takes room"
            assert same(train(out), whole, out), f"operation {n}, {disk.hit}"
        hits.append(disk.hit)
        n += stride
    assert len(hits) > 60 // stride
    assert stride > 1 or {"write", "fsync", "rename", "replace", "mkdir"} == set(hits)
    record_property("faults survived", len(hits))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, number, monkeypatch):
    def refuse(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(DiskError, match=r"out: no right to read or write .*choose another --out"):
        train(tmp_path / "out")


@pytest.mark.parametrize("name", ["out", "out/checkpoints", "out/metrics.jsonl"])
def test_a_file_where_a_folder_is_wanted_and_the_other_way_round(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix:
        path.mkdir()
    else:
        path.write_text("mine")
    with pytest.raises(DiskError, match=r"is in the way|out"):
        train(tmp_path / "out")
    assert path.is_dir() or path.read_text() == "mine"


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(copy, monkeypatch):
    """It may be whole: going back silently, or setting it aside, would be wrong."""
    read = type(copy).read_bytes

    def refuse(path):
        if path.parent.name == "step_000006":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(type(copy), "read_bytes", refuse)
    with pytest.raises(DiskError, match=r"no right to read or write .*step_000006"):
        train(copy)
    assert newest_names(copy) == ["step_000002", "step_000004", "step_000006"]


def newest_names(out) -> list[str]:
    return [path.name for path in checkpoints(out / "checkpoints")]


# Damaged, swapped and strange checkpoints


def goes_back(out, whole, to: int) -> None:
    """The newest checkpoint is named, set aside and not used; the run ends with the same bytes."""
    assert newest_step(out / "checkpoints") == to
    with pytest.warns(UserWarning, match="step_000006: damaged checkpoint, going back"):
        weights = train(out)
    assert same(weights, whole, out)
    assert (out / "checkpoints" / "damaged_000006").exists()


@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example("tensors.safetensors", 0.0, 0)
@example("state.json", 0.999999, 7)
@example("state.json", 0.5, 0)  # a digit of Python's random stream becomes its neighbour
def test_a_flipped_bit_anywhere_is_found_or_means_nothing(tmp_path_factory, whole, file, place, bit):
    folder = tmp_path_factory.mktemp("flip") / "checkpoints"
    shutil.copytree(whole[0] / "checkpoints", folder)
    path = folder / "step_000007" / file
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    model = nn.Linear(3, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = restore(folder, {"model": model})
    if step == 7:  # a blank between two names of the JSON became another blank
        assert file == "state.json" and json.loads(data) == json.loads(
            (whole[0] / "checkpoints/step_000007" / file).read_bytes()
        )
    else:
        assert step == 6 and "step_000007: damaged" in str(caught[0].message)
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["empty", "half", "one byte less", "one byte more", "gone", "a folder", "swapped"])
def test_a_damaged_file_sends_the_run_back_one_checkpoint(copy, whole, file, damage, record_property):
    path = copy / "checkpoints" / "step_000006" / file
    data = path.read_bytes()
    cut = {"empty": b"", "half": data[: len(data) // 2], "one byte less": data[:-1], "one byte more": data + b"x"}
    if damage in cut:
        path.write_bytes(cut[damage])
        if damage == "one byte more" and file == "state.json":
            path.write_bytes(data + b"}")
    elif damage == "swapped":
        path.write_bytes((copy / "checkpoints" / "step_000004" / file).read_bytes())
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    goes_back(copy, whole, 4)
    record_property("faults survived", 1)


@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"', "{}", '{"state": 3, "sha256": 4}', "[" * 100_000, "\ud800"])
def test_json_that_is_no_checkpoint(copy, whole, text):
    (copy / "checkpoints/step_000006/state.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    goes_back(copy, whole, 4)


def test_two_steps_swapped_as_a_whole_are_both_found(copy, whole):
    a, b, c = (copy / "checkpoints" / name for name in ("step_000004", "step_000006", "x"))
    a.rename(c), b.rename(a), c.rename(b)
    assert newest_step(copy / "checkpoints") == 2
    with pytest.warns(UserWarning, match=r"step_00000[46]: damaged"):
        assert same(train(copy), whole, copy)


def test_a_file_with_a_checkpoints_name(copy, whole):
    """Between the others, after them, and where the next one is to be written."""
    for name in ("step_000003", "step_000007", "step_000009"):
        (copy / "checkpoints" / name).write_text("mine")
    with pytest.warns(UserWarning, match=r"step_00000[79]: damaged"):
        assert same(train(copy), whole, copy)
    assert (copy / "checkpoints" / "damaged_000009").read_text() == "mine"
    assert (copy / "checkpoints" / "step_000007").is_dir()


def test_a_file_that_appears_where_a_checkpoint_goes_is_moved(tmp_path):
    (tmp_path / "step_000001").write_text("mine")
    write_checkpoint(tmp_path, 1, {"model": nn.Linear(3, 2)})
    assert newest_step(tmp_path) == 1 and (tmp_path / "damaged_000001").read_text() == "mine"


def test_a_damaged_checkpoint_is_kept_more_than_once(copy, whole):
    (copy / "checkpoints" / "damaged_000006").mkdir()
    (copy / "checkpoints/step_000006/state.json").write_text("")
    goes_back(copy, whole, 4)
    assert (copy / "checkpoints" / "damaged_000006_2" / FILES[0]).exists()


def test_all_damaged_says_so_and_touches_nothing(copy):
    for path in checkpoints(copy / "checkpoints"):
        (path / "state.json").write_text("{")
    before = (copy / "metrics.jsonl").read_bytes()
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=r"every checkpoint .*another --out"),
    ):
        train(copy)
    assert len(newest_names(copy)) == 3 and (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": nn.Linear(4, 2)}, "another model than `model`"),
        ({"model": nn.Linear(3, 2).double()}, ""),
        ({"optimizer": "sgd"}, r"another optimiser than `optimizer`: made by AdamW, wanted SGD"),
        ({"optimizer": "other shapes"}, r"another optimiser than `optimizer`: exp_avg\w* \(2, 3\) of parameter 0"),
        ({"optimizer": "fewer"}, r"another optimiser than `optimizer`: \w+ \(.*\) of parameter 1 does not fit"),
        ({"critic": nn.Linear(3, 1)}, "another model than `critic`"),
        ({"second": torch.Generator()}, "of another loop, it holds no 'second'"),
        ({"adaptive": type("A", (), {})()}, "of another loop, it holds no 'adaptive'"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(copy, changes, says):
    model = changes.get("model", nn.Linear(3, 2))
    optimizer = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "other shapes": lambda: torch.optim.AdamW(nn.Linear(5, 2).parameters()),
        "fewer": lambda: torch.optim.AdamW([model.weight]),
        None: lambda: torch.optim.AdamW(model.parameters()),
    }[changes.get("optimizer")]()
    objects = {"generator": torch.Generator()} | changes | {"model": model, "optimizer": optimizer}
    if not says:
        assert restore(copy / "checkpoints", objects) == 6  # the same numbers in more digits
        return
    with pytest.raises(ValueError, match=f"step_000006: the checkpoint is .*{says}"):
        restore(copy / "checkpoints", objects)
    assert len(newest_names(copy)) == 3, "it is whole, and stays"


def test_a_checkpoint_of_other_settings_is_refused_without_the_config_too(copy, whole, tmp_path):
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match=r"step_000006: the checkpoint is of another run"):
        train(copy, beta=3)
    (copy / "config.json").unlink()
    assert same(train(copy), whole, copy), "with the same settings it goes on"


def test_without_resume_a_run_is_not_written_over_though_its_config_is_gone(copy):
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="already holds a run"):
        train(copy, resume=False)
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 7


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"3", b"[" * 100_000])
def test_a_damaged_config_is_named_and_the_rest_left_alone(copy, whole, text):
    (copy / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json: damaged .*remove this file"):
        train(copy)
    assert (copy / "config.json").read_bytes() == text and len(newest_names(copy)) == 3
    (copy / "config.json").unlink()  # what it says to do helps
    assert same(train(copy), whole, copy)


# Metrics


def test_a_line_of_metrics_that_cannot_be_read_costs_that_line_only(copy, whole, record_property):
    path = copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    found = b"".join([*lines[:2], b'{"step": 3, "lo\x00\n', *lines[3:]])
    path.write_bytes(found)
    with pytest.warns(UserWarning, match=r"line 3 cannot be read; of steps 1 to 6 it lacks 1, the first is step 3"):
        weights = train(copy)
    assert same(weights, whole, copy, metrics=False)
    assert path.read_bytes() == b"".join([*lines[:2], *lines[3:]])
    assert (copy / "metrics_damaged.jsonl").read_bytes() == found
    record_property("faults survived", 1)


@pytest.mark.parametrize("how", ["deleted", "cut short", "a digit", "twice", "empty"])
def test_metrics_that_are_not_what_was_written_are_noticed(copy, whole, how):
    path = copy / "metrics.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    first = data.index(b'"loss": ') + 10
    digit = b"1" if data[first : first + 1] != b"1" else b"2"
    new = {
        "deleted": None,
        "empty": b"",
        "cut short": b"".join(lines[:3]) + lines[3][:9],
        "a digit": data[:first] + digit + data[first + 1 :],
        "twice": b"".join([*lines[:2], lines[1], *lines[2:]]),
    }[how]
    path.unlink() if new is None else path.write_bytes(new)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: .*goes on after step 6"):
        weights = train(copy)
    assert same(weights, whole, copy, metrics=False)
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 7
    assert not new or (copy / "metrics_damaged.jsonl").read_bytes() == new


def test_metrics_are_on_the_disk_before_the_checkpoint_that_promises_them(tmp_path, monkeypatch):
    """A power cut between the two may lose a checkpoint, and never the metrics of one that is there."""
    synced, fsync = [], os.fsync

    def watch(handle):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}")) if os.path.exists("/proc/self/fd") else ""
        synced.append(name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    train(tmp_path / "out")
    if any(synced):
        order = [name for name in synced if name in ("metrics.jsonl", *FILES)]
        assert order == ["metrics.jsonl", *FILES] * 4


# The trained model


def test_a_model_with_a_flipped_bit_is_refused_where_it_has_a_list(tmp_path):
    folder = tmp_path / "final"
    (folder / "critic").mkdir(parents=True)
    for name in ("model.safetensors", "critic/model.safetensors"):
        (folder / name).write_bytes(bytes(1000))
    check_sums(folder)  # no list, nothing to say
    write_sums(folder)
    check_sums(folder)
    assert len((tmp_path / "final.sha256").read_text().splitlines()) == 2
    data = bytearray(1000)
    data[500] = 1
    (folder / "critic/model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"critic/model.safetensors: does not have the checksum in final.sha256"):
        check_sums(folder)
    (folder / "critic/model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"critic/model.safetensors: is missing"):
        check_sums(folder)
    (tmp_path / "final.sha256").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"final.sha256, line 1"):
        check_sums(folder)


def test_the_list_is_what_sha256sum_reads(tmp_path):
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "a").write_bytes(b"abc")
    write_sums(folder)
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert (tmp_path / "final.sha256").read_text() == f"{known}  final/a\n"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "adapter"
    for text in ("one", "two"):
        with replacing(folder) as aside:
            (aside / "weights").write_text(text)
    with pytest.raises(ZeroDivisionError), replacing(folder) as aside:
        (aside / "weights").write_text("half")
        raise ZeroDivisionError
    assert (folder / "weights").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
