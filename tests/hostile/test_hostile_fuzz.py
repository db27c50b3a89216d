"""Every reader on damaged files: bits flipped, ends cut off, bytes put in, JSON with other values in its places.

Whatever comes, the result is a read or an error that names the file. No reader hangs, none takes memory that the file does
not hold, and the files stay as they are (a damaged checkpoint is renamed, and its bytes are kept).
"""

import json
import math
import shutil
import signal
import struct
import time
from pathlib import Path

import pytest
from hostile.good import READERS, write_all
from hostile.tally import ERRORS, NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

try:
    import resource
except ImportError:  # Windows
    resource = None

FEW = settings().max_examples // 2  # of what the profile says: 25 in CI, 2,000 in the nightly one
SECONDS = 20  # for one read; they take milliseconds
MEGABYTES = 300  # of memory, for all reads of one kind of file
VALUES = [
    None,
    True,
    -1,
    0,
    2**31,
    2**60,
    10**30,
    1e308,
    math.nan,
    math.inf,
    0.5,
    "",
    "x",
    "../../etc/passwd",
    [],
    {},
    [[]],
]
VALUES += [["x"], {"x": 1}, {"content": 5}]
packed = struct.Struct("<Q").pack
LENGTHS = [2**60, 2**64 - 1, 2**63, 2**32 - 1, 0]
PLACE = st.floats(0, 1, exclude_max=True)
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("cut"), PLACE, st.just(None)),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=40)),
    st.tuples(
        st.just("overwrite"),
        PLACE,
        st.sampled_from(LENGTHS).map(packed),
    ),
    st.tuples(st.just("value"), PLACE, st.sampled_from(VALUES)),
    st.tuples(st.just("drop"), PLACE, st.just(None)),
    st.tuples(st.just("twice"), PLACE, st.just(None)),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good files")
    write_all(folder)
    return folder


def damaged(content: bytes, how: str, place: float, what) -> bytes:
    at = int(place * len(content))
    if how == "flip":
        return content[:at] + bytes([content[at] ^ (1 << what)]) + content[at + 1 :] if content else content
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + what + content[at:]
    if how == "overwrite":
        return content[:at] + what + content[at + 8 :]
    return with_other_json(content, how, place, what)


def with_other_json(content: bytes, how: str, place: float, what) -> bytes:
    """Another value in a place of the JSON: the whole file, one of its lines, or the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    if 8 + length <= len(content) and content[8:9] == b"{":
        text = swapped(content[8 : 8 + length], how, place, what)
        return packed(len(text)) + text + content[8 + length :]
    try:
        json.loads(content)
    except ValueError:
        lines = content.split(b"\n")
        line = int(place * len(lines))
        lines[line] = swapped(lines[line], how, (place * len(lines)) % 1, what)
        return b"\n".join(lines)
    return swapped(content, how, place, what)


def swapped(text: bytes, how: str, place: float, what) -> bytes:
    try:
        tree = {"": json.loads(text)}
    except ValueError:
        return text[::-1]
    places = list(places_in(tree))
    owner, key = places[int(place * len(places))]
    if how == "value":
        owner[key] = what
    elif how == "twice":
        owner[key] = [owner[key], owner[key]]
    elif owner is not tree:
        del owner[key]
    return json.dumps(tree[""]).encode()


def places_in(tree):
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places_in(tree[key])


def too_long(number, frame):
    raise AssertionError(f"a read of more than {SECONDS} seconds")


def bytes_in(target: Path) -> set[bytes]:
    return (
        {path.read_bytes() for path in target.rglob("*") if path.is_file()}
        if target.is_dir()
        else {target.read_bytes()}
    )


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(good, tmp_path, name, unhooked, request):
    reader = READERS[name]
    source = good / reader.folder
    if not source.exists():
        pytest.skip("the package that writes this file is not installed")
    counts = dict.fromkeys(NAMES, 0)
    target, whole = (
        tmp_path / source.name,
        {file: (source / file if file else source).read_bytes() for file in reader.files},
    )
    before = resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(suppress_health_check=list(HealthCheck), max_examples=FEW)
    @given(st.sampled_from(reader.files), DAMAGE)
    def fuzz(file, damage):
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        content = damaged(whole[file], *damage)
        (target / file if file else target).write_bytes(content)
        counts[NAMES[0]] += 1
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, too_long)
            signal.alarm(SECONDS)
        try:
            reader.read(target)
        except ERRORS as error:
            counts[NAMES[1]] += 1
            said = str(error)
            assert any(name in said for name in (target.name, Path(file).name, "chat_template")), said
            assert not isinstance(error, UnicodeDecodeError), said
        finally:
            if hasattr(signal, "SIGALRM"):
                signal.alarm(0)
        if name != "run":  # which cuts its metrics back and goes on
            assert content in bytes_in(target)

    start = time.process_time()
    fuzz()
    assert counts[NAMES[0]] > 0 and time.process_time() - start < SECONDS * counts[NAMES[0]]
    if resource:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < MEGABYTES, f"{grown:.0f} MB more"
    request.node.user_properties += counts.items()


def test_damage_is_damage():
    """What the test above does to files does change them, in each of its ways."""
    content = b'{"a": {"b": [1, 2]}, "c": "d"}'
    with_ = {"flip": 3, "cut": None, "insert": b"x", "overwrite": b"\xff" * 8, "value": -1, "drop": None, "twice": None}
    found = {how: damaged(content, how, 0.5, what) for how, what in with_.items()}
    assert len({content, *found.values()}) == 8
    lines = b'{"step": 1}\n{"step": 2}\n'
    assert json.loads(damaged(lines, "value", 0.4, -1).split(b"\n")[1]) in ({"step": -1}, -1)
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    tensors = packed(len(header)) + header + b"\0" * 4
    other = damaged(tensors, "value", 0.6, 2**60)
    assert other[8 : 8 + int.from_bytes(other[:8], "little")] != header and other.endswith(b"\0" * 4)
