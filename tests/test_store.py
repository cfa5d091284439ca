"""Bytes on disk: exact, all or nothing, and never trusted."""

import errno
import gc
import hashlib
import json
import os
import pickle
import random
import stat
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_soft_ar import Bomb, damaged

from softar_lab.core import store
from softar_lab.core.store import (
    CheckpointError,
    StoreError,
    load_folder,
    load_vectors,
    save_folder,
    save_vectors,
    vectors_from_bytes,
    vectors_to_bytes,
)

HERE = Path(__file__).parent
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.bool,
)
ODD = (
    0x7FC00000,
    0xFFC12345,
    0x7F800001,
    1 << 31,
    0x7F800000,
    0xFF800000,
    1,
    0x807FFFFF,
)  # NaNs, -0, ±inf, denormals


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).tolist()


def rows_of(words):
    """Bit patterns (N, m) as a list of N float32 vectors."""
    return list(torch.from_numpy(words.view(np.float32)))


def is_exact(loaded, words):
    return (loaded.shape, loaded.dtype) == (
        words.shape,
        torch.float32,
    ) and loaded.numpy().tobytes() == words.tobytes()


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (0, 5), (7,), (1, 1, 2)])
def test_save_vectors_is_bit_exact(tmp_path, dtype, shape):
    tensor = torch.randint(
        2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(0)
    )
    tensor = tensor.to(dtype)
    save_vectors(tmp_path / "x", {"a": tensor}, {"n": 1})
    arrays, metadata = load_vectors(tmp_path / "x")
    assert metadata == {"n": 1}
    assert (arrays["a"].dtype, arrays["a"].shape) == (dtype, tensor.shape)
    assert bits(arrays["a"]) == bits(tensor)


def test_load_vectors_aligns_arrays_of_all_widths(tmp_path):
    arrays = {f"{i}{dtype}": torch.ones(3, dtype=dtype) for i in range(2) for dtype in DTYPES}
    save_vectors(tmp_path / "x", arrays, {"pad": "."})
    for name, array in load_vectors(tmp_path / "x")[0].items():
        assert array.data_ptr() % array.element_size() == 0, name


def test_save_vectors_keeps_odd_floats_strides_and_text(tmp_path):
    odd = torch.tensor([float("nan"), -0.0, float("inf"), -float("inf"), 1e-45])
    turned = torch.arange(12.0).view(3, 4).T
    metadata = {
        "text": 'é 🎈 \u2028 "\\ \n \x00',
        "nested": {"list": [1, 2.5, None, True]},
        "checksum": "0" * 64,
    }
    save_vectors(tmp_path / "x", {"odd": odd, "turned": turned, 'a "name"': odd}, metadata)
    arrays, found = load_vectors(tmp_path / "x")
    assert found == metadata
    assert bits(arrays["odd"]) == bits(odd) == bits(arrays['a "name"'])
    assert torch.equal(arrays["turned"], turned)


def test_save_vectors_makes_the_folders_and_replaces_an_older_file(tmp_path):
    path = tmp_path / "a" / "b" / "x"
    for n in range(2):
        save_vectors(path, {"n": torch.tensor(n)})
    assert load_vectors(path)[0]["n"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["x"]


def test_save_vectors_respects_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_vectors(tmp_path / "x", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


FORMS = pytest.mark.parametrize(
    "vectors", [{"a": torch.arange(3.0)}, list(torch.ones(3, 2))], ids=["named", "list"]
)


@FORMS
def test_load_vectors_notices_every_single_flipped_bit_of_a_small_file(tmp_path, vectors):
    path = tmp_path / "x"
    save_vectors(path, vectors, {"n": 1})
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="x: "):
            load_vectors(path)


@FORMS
@pytest.mark.parametrize("verify", [True, False])
def test_load_vectors_notices_every_cut(tmp_path, vectors, verify):
    path = tmp_path / "x"
    save_vectors(path, vectors, {"n": 1})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(StoreError, match="x: "):
            load_vectors(path, verify)


def test_a_thousand_damaged_lists_are_refused(tmp_path):
    path, chance, bomb = tmp_path / "x", random.Random(2), pickle.dumps(Bomb(tmp_path / "exploded"))
    contents = [
        vectors_to_bytes(rows_of(np.full((5, 4), word, np.uint32)), {"word": word}) for word in ODD
    ]
    good, refused = contents[0], 0
    for _ in range(1000):
        kind, bad = damaged(good, chance, contents, bomb)
        path.write_bytes(bad)
        try:
            load_vectors(path)
        except StoreError as error:
            assert str(path) in str(error), (kind, error)
            refused += 1
        else:
            assert bad in contents, f"{kind} was not noticed"
    assert refused > 900
    assert not (tmp_path / "exploded").exists()


def sealed_header(**changes) -> bytes:
    """A file of this lab, with a true checksum, whose header says something else."""
    header = {
        "format": store.VECTORS_FORMAT,
        "version": "1",
        "metadata": "{}",
        "checksum": "0" * 64,
        **changes,
    }
    text = json.dumps({"__metadata__": header}).encode()
    return store._sealed(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\x80\x04K\x01.", "cut short"),
        (b"PK\x03\x04" + bytes(100), "safetensors"),
        (b"\x02" + bytes(7) + b"{}", "does not say so"),
        (b"\xff" * 50, "safetensors"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "does not say so"),
        (sealed_header(format="other"), "format 'other'"),
        (sealed_header(version="2"), "version 2; this code reads version 1"),
        (sealed_header(version="two"), "does not say so"),
        (sealed_header(version=float("inf")), "x: "),
        (sealed_header(metadata="{"), "damaged"),
        (sealed_header(metadata=3), "damaged"),
        (sealed_header(metadata="[1]"), "damaged"),
        (sealed_header(metadata="[" * 100_000), "damaged"),
        (sealed_header(checksum="1" * 64).replace(b"1" * 64, b"2" * 64), "checksum"),
        (sealed_header(array="vectors"), "damaged"),
    ],
    ids=range(16),
)
def test_load_vectors_says_what_is_wrong(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(StoreError, match=rf"x: .*{message}|{message}"):
        load_vectors(tmp_path / "x")


def test_load_vectors_of_nothing_and_of_a_folder_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read .*nothing: No such file"):
        load_vectors(tmp_path / "nothing")
    with pytest.raises(StoreError, match="Is a directory"):
        load_vectors(tmp_path)


# -- a list of vectors, one array -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    words=st.tuples(st.integers(0, 20), st.integers(0, 16)).flatmap(
        lambda shape: hnp.arrays(
            np.uint32, shape, elements=st.integers(0, 2**32 - 1) | st.sampled_from(ODD)
        )
    )
)
def test_any_list_comes_back_bit_exact(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "any"
    save_vectors(path, rows_of(words), {"n": len(words)}, width=words.shape[1])
    loaded, metadata = load_vectors(path)
    assert is_exact(loaded, words)
    assert metadata == {"n": len(words)}


@pytest.mark.slow
def test_one_hundred_thousand_random_lists_come_back_bit_exact(tmp_path, monkeypatch):
    """All of them through the bytes of a file, every tenth through a file of its own too.

    What would take longer than all the rest is left out, as it has no say in what is written:
    flushing to the disk, and checking annotations, which every other test does.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    chance = np.random.default_rng(0)
    shapes = chance.integers(0, [21, 17], (100_000, 2))
    words = chance.integers(0, 2**32, shapes.prod(1).sum(), dtype=np.uint32)
    words[::5] = chance.choice(ODD, len(words[::5]))
    end = 0
    for i, (n, m) in enumerate(shapes.tolist()):
        begin, end = end, end + n * m
        expected = words[begin:end].reshape(n, m)
        rows = rows_of(expected)
        data = vectors_to_bytes(rows, {"i": i}, width=m)
        assert is_exact(vectors_from_bytes(data, "bytes")[0], expected)
        if i % 10 == 0:
            path = tmp_path / str(i)
            save_vectors(path, rows, {"i": i}, width=m)
            loaded, metadata = load_vectors(path)
            path.unlink()
            assert is_exact(loaded, expected)
            assert metadata == {"i": i}
    assert end == len(words)


def test_list_is_given_back_as_its_rows(tmp_path):
    rows = [torch.tensor([1.0, 2.0]), torch.arange(8.0)[::4], torch.ones(2, requires_grad=True)]
    save_vectors(tmp_path / "x", rows)
    loaded, metadata = load_vectors(tmp_path / "x")
    assert (len(loaded), metadata) == (3, {})
    assert all(torch.equal(a, b) for a, b in zip(rows, loaded, strict=True))
    save_vectors(tmp_path / "x", tuple(loaded))  # over the file it lies in
    assert torch.equal(load_vectors(tmp_path / "x")[0], loaded)


@pytest.mark.parametrize("width", [0, 64])
def test_empty_list_keeps_its_width(tmp_path, width):
    for vectors, given_width in (([], width), (torch.empty(0, width), None)):
        save_vectors(tmp_path / "x", vectors, width=given_width)
        assert load_vectors(tmp_path / "x")[0].shape == (0, width)


V = torch.ones(2)


@pytest.mark.parametrize(
    ("vectors", "width", "message"),
    [
        ([], None, r"an empty list .*save_vectors\(path, \[\], width=64\)"),
        ([], -1, "an empty list"),
        (
            [V, V, torch.ones(3)],
            None,
            r"vectors\[2\] is torch.float32 of shape \(3,\), not .* \(2,\)",
        ),
        ([V, V], 3, r"vectors\[0\] is torch.float32 of shape \(2,\), not .* \(3,\)"),
        (
            [V, V.double()],
            None,
            r"vectors\[1\] is torch.float64 of shape \(2,\), not float32 of shape \(2,",
        ),
        ([V.half()], None, r"vectors\[0\] is torch.float16"),
        ([V.view(1, 2)], None, r"vectors\[0\] is torch.float32 of shape \(1, 2\), not .* \(m,\)"),
        ([torch.tensor(1.0)], None, r"vectors\[0\] is torch.float32 of shape \(\), not .* \(m,\)"),
        ([V, [1.0, 2.0]], None, r"vectors\[1\] is a list, not float32 of shape \(2,\)"),
        ([V.to_sparse()], None, "array 'vectors' cannot be kept"),
        (V, 2, "width is for a list"),
        ({"a": V}, 2, "width is for a list"),
        ({"a": V, "b": V.to(torch.complex128)}, None, "'b' .*complex128"),
        ({"a": V, "b": np.array(["text"])}, None, "'b' .*ndarray"),
        ({"a": V, "b": 3}, None, "'b' .*int"),
        ({"a": V, "__metadata__": V}, None, "'__metadata__'"),
    ],
    ids=range(16),
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, vectors, width, message):
    with pytest.raises(StoreError, match=f"cannot write .*x: .*{message}"):
        save_vectors(tmp_path / "x", vectors, width=width)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "value", [{1, 2}, [object()], np.float32(1), {(1, 2): 3}, 10**5000], ids=range(5)
)
def test_metadata_that_are_no_json_are_named(tmp_path, value):
    with pytest.raises(StoreError, match=r"cannot write .*x: metadata\['b'\] is no JSON"):
        save_vectors(tmp_path / "x", [V], {"a": 1, "b": value})
    assert os.listdir(tmp_path) == []


def test_metadata_beyond_what_safetensors_reads_are_not_written(tmp_path):
    with pytest.raises(StoreError, match="takes 100 MB of metadata; these are 100,000"):
        save_vectors(tmp_path / "x", [V], {"a": "." * 100_000_000})
    assert os.listdir(tmp_path) == []


def test_same_content_is_the_same_file():
    arrays = {"a": torch.ones(2), "b": torch.zeros(3, dtype=torch.int8), "c": torch.ones(1)}
    metadata = {"x": 1, "y": {"z": 2, "w": 3}}
    turned = dict(reversed(arrays.items())), {"y": {"w": 3, "z": 2}, "x": 1}
    assert (
        len({vectors_to_bytes(arrays, metadata) for _ in range(5)} | {vectors_to_bytes(*turned)})
        == 1
    )


def test_array_of_any_shape_keeps_it_with_its_metadata(tmp_path):
    """Encoder output [batch, position, width] (K40)."""
    encoded = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    save_vectors(tmp_path / "x", encoded, {"texts": ["one", "two"]})
    loaded, metadata = load_vectors(tmp_path / "x")
    assert torch.equal(loaded, encoded)
    assert metadata == {"texts": ["one", "two"]}


def test_numpy_arrays_are_arrays_too(tmp_path):
    fixed = np.arange(6, dtype=np.int16).reshape(2, 3)
    fixed.flags.writeable = False
    save_vectors(tmp_path / "x", {"fixed": fixed, "turned": fixed.astype(np.float64).T})
    loaded, _ = load_vectors(tmp_path / "x")
    assert loaded["fixed"].dtype == torch.int16
    assert np.array_equal(loaded["fixed"].numpy(), fixed)
    assert np.array_equal(loaded["turned"].numpy(), fixed.T)
    save_vectors(tmp_path / "x", fixed)
    assert np.array_equal(load_vectors(tmp_path / "x")[0].numpy(), fixed)


def test_file_of_an_older_lab_loads():
    """A checkpoint's weights, written before there were lists."""
    path = HERE.parent / "data" / "checkpoints" / "tales-hard" / "model.safetensors"
    mapped, metadata = load_vectors(path)
    read, _ = vectors_from_bytes(path.read_bytes(), path)
    assert metadata == {}
    assert mapped.keys() == read.keys()
    assert all(torch.equal(mapped[name], read[name]) for name in read)


# -- mapped -----------------------------------------------------------------------------------------------------------


def test_writing_into_what_was_loaded_never_changes_the_file(tmp_path):
    path = tmp_path / "x"
    save_vectors(path, torch.ones(5000, 3))
    before = path.read_bytes()
    first, _ = load_vectors(path)
    first.mul_(7)
    first.numpy()[0] = 8
    assert first[1:].eq(7).all()
    assert path.read_bytes() == before
    assert load_vectors(path)[0].eq(1).all()


@pytest.mark.parametrize("verify", [True, False])
def test_what_was_loaded_outlives_its_file(tmp_path, verify):
    path = tmp_path / "x"
    save_vectors(path, torch.ones(50_000, 3))
    first, _ = load_vectors(path, verify)
    save_vectors(path, torch.full((10, 3), 2.0))
    second, _ = load_vectors(path, verify)
    path.unlink()
    gc.collect()
    assert first.shape == (50_000, 3)
    assert first.eq(1).all()
    assert second.eq(2).all()


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no name for an open file here")
def test_file_replaced_while_it_is_loaded_is_still_the_one_that_was_verified(tmp_path, monkeypatch):
    path, original = tmp_path / "x", store.safe.load_file
    save_vectors(path, torch.zeros(100))

    def late(*args):
        save_vectors(path, torch.ones(3))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store.safe, "load_file", late)
        assert torch.equal(load_vectors(path)[0], torch.zeros(100))
    assert torch.equal(load_vectors(path)[0], torch.ones(3))


@pytest.mark.skipif(
    not os.path.exists("/proc/self/maps"), reason="tells its mappings on Linux only"
)
def test_mapping_lives_as_long_as_its_tensors_and_holds_no_descriptor(tmp_path):
    def seen():
        links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        open_files = [os.readlink(link) for link in links if link.is_symlink()]
        return str(path) in Path("/proc/self/maps").read_text(), str(path) in open_files

    path = tmp_path / "x"
    save_vectors(path, {"a": torch.ones(100_000), "b": torch.ones(3)})
    arrays, _ = load_vectors(path)
    del arrays["a"]
    gc.collect()
    assert seen() == (True, False)
    del arrays
    gc.collect()
    assert seen() == (False, False)
    path.write_bytes(b"damaged")
    with pytest.raises(StoreError):
        load_vectors(path)
    gc.collect()
    assert seen() == (False, False)


def test_verify_is_what_notices_a_damaged_vector(tmp_path):
    path = tmp_path / "x"
    save_vectors(path, torch.ones(3))
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    assert load_vectors(path, verify=False)[0].tolist() == [1, 1, 0]
    with pytest.raises(StoreError, match="damaged"):
        load_vectors(path)


def test_interrupting_the_verification_is_an_interruption(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    class Digest:
        def __init__(self, data):
            pass

        update = interrupted

    save_vectors(tmp_path / "x", torch.ones(3))
    with monkeypatch.context() as patch:
        patch.setattr(store.hashlib, "sha256", Digest)
        with pytest.raises(KeyboardInterrupt):
            load_vectors(tmp_path / "x")
    assert load_vectors(tmp_path / "x")[0].eq(1).all()


# -- the disk is full, or elsewhere -----------------------------------------------------------------------------------


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_write_to_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, operation
):
    path = tmp_path / "x"
    save_vectors(path, {"n": torch.tensor(0)})
    with monkeypatch.context() as patch:
        patch.setattr(store.os, operation, full)
        with pytest.raises(StoreError, match=r"cannot write .*x: No space left on device"):
            save_vectors(path, {"n": torch.tensor(1)})
    assert load_vectors(path)[0]["n"] == 0
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.slow
def test_write_cut_by_a_real_size_limit_leaves_the_old_file(tmp_path):
    """The kernel itself refuses the write half-way (RLIMIT_FSIZE), in a process of its own."""
    program = """if True:
        import resource, signal, sys
        from softar_lab.core.store import StoreError, write_atomic
        write_atomic(sys.argv[1], b"old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_atomic(sys.argv[1], bytes(1_000_000))
        except StoreError as error:
            print(error)
    """
    path = tmp_path / "x"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert f"cannot write {path}: File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_write_where_nothing_can_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        save_vectors(tmp_path / "file" / "x", {})


def test_write_interrupted_by_the_user_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


# -- a folder ---------------------------------------------------------------------------------------------------------


def save(folder, n, **files):
    save_folder(
        folder,
        {"format": "test", "version": 1, "n": n},
        files or {"one": b"%d" % n},
        "manifest.json",
    )


def test_save_folder_loads_back(tmp_path):
    save(tmp_path / "f", 1, one=b"\x00\xff", two=b"")
    manifest, files = load_folder(tmp_path / "f", "manifest.json", "test")
    assert manifest["n"] == 1
    assert files == {"one": b"\x00\xff", "two": b""}
    assert manifest["files"]["one"] == hashlib.sha256(b"\x00\xff").hexdigest()


def test_save_folder_keeps_a_manifest_that_speaks_of_checksums(tmp_path):
    manifest = {"format": "test", "version": 1, "card": {"checksum": "a" * 64}, "é": "🎈"}
    save_folder(tmp_path, manifest, {"one": b"1"}, "manifest.json")
    found, _ = load_folder(tmp_path, "manifest.json", "test")
    assert {key: found[key] for key in manifest} == manifest


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_save_folder_on_a_full_disk_leaves_the_old_or_the_new(
    tmp_path, monkeypatch, operation, failing
):
    save(tmp_path, 0, one=b"0", two=b"0")
    calls, original = [], getattr(os, operation)

    def sometimes(*args):
        calls.append(args)
        return full() if len(calls) == 2 * failing + 1 else original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store.os, operation, sometimes)
        try:
            save(tmp_path, 1, one=b"1", two=b"1")
        except StoreError as error:
            assert "No space left" in str(error)
        else:
            assert len(calls) < 2 * failing + 1
    manifest, files = load_folder(tmp_path, "manifest.json", "test")
    assert files == dict.fromkeys(("one", "two"), b"%d" % manifest["n"])
    save(tmp_path, 2, one=b"2", two=b"2")
    assert load_folder(tmp_path, "manifest.json", "test")[0]["n"] == 2
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "one", "two"]


def test_load_folder_refuses_files_of_another_save(tmp_path):
    for n in range(2):
        save(tmp_path / str(n), n)
    (tmp_path / "0" / "one").write_bytes((tmp_path / "1" / "one").read_bytes())
    with pytest.raises(CheckpointError, match="one: damaged"):
        load_folder(tmp_path / "0", "manifest.json", "test")


@pytest.mark.slow
def test_save_folder_killed_between_any_two_file_operations_leaves_the_old_or_the_new(tmp_path):
    """Every moment before, inside and after each write, flush, sync, rename and removal; then pairs
    of kills.
    """
    command = [sys.executable, str(HERE / "kills.py"), "saving", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert len(report["seen"]) > 60  # moments
    assert report["seen"] == sorted(
        report["seen"]
    )  # the old one, then from one moment on the new one
    assert {0, 1} == set(report["seen"])
    assert report["leftovers"] == []  # what killed writers left is swept up by the next save


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_keeps_what_is_written(tmp_path, monkeypatch, number):
    """Shared folders of virtual machines, old CIFS: fsync fails, the file is there."""

    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    save_vectors(tmp_path / "a.safetensors", torch.ones(3))
    vectors, _ = load_vectors(tmp_path / "a.safetensors")
    assert torch.equal(vectors, torch.ones(3))


def test_a_held_folder_has_one_writer_and_names_it(tmp_path):
    folder = tmp_path / "run"
    code = "import sys, time; from softar_lab.core.store import held\n"
    code += "with held(sys.argv[1]):\n    print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(folder)]

    def refused(holder):
        message = f"is being written by process {holder} of "
        with pytest.raises(CheckpointError, match=message), store.held(folder):
            pass

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        refused(other.pid)
        other.kill()
    with store.held(folder):  # a killed process holds nothing
        refused(os.getpid())
    with store.held(folder):
        pass


def test_a_folder_that_cannot_be_held_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="cannot write .*file"), store.held(tmp_path / "file"):
        pass


def test_metadata_of_mixed_key_types_are_refused_by_name(tmp_path):
    with pytest.raises(StoreError, match=r"keys of metadata are of several types \(int, str\)"):
        save_vectors(tmp_path / "x", torch.ones(2), {"a": 1, 2: 3})


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL])
def test_a_file_that_cannot_be_mapped_is_read(tmp_path, monkeypatch, named, number):
    vectors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)} if named else torch.arange(6.0)
    save_vectors(tmp_path / "x", vectors, {"k": 1})

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store, "mmap", refuse)
    found, metadata = load_vectors(tmp_path / "x")
    assert metadata == {"k": 1}
    for name in vectors if named else [slice(None)]:
        assert torch.equal(found[name], vectors[name])
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(StoreError, match="damaged"):
        load_vectors(tmp_path / "x")


def test_a_mapping_that_fails_otherwise_is_an_error(tmp_path, monkeypatch):
    save_vectors(tmp_path / "x", torch.ones(2))

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(store, "mmap", refuse)
    with pytest.raises(StoreError, match="cannot read .*broken disk"):
        load_vectors(tmp_path / "x")
