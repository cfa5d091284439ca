"""Bytes on disk: exact, all or nothing, and never trusted."""

import errno
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softar_lab import store
from softar_lab.store import CheckpointError, StoreError, load_folder, load_vectors, save_folder, save_vectors

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).tolist()


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (0, 5), (7,), (1, 1, 2)])
def test_save_vectors_is_bit_exact(tmp_path, dtype, shape):
    tensor = torch.randint(2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(0))
    tensor = tensor.to(dtype)
    save_vectors(tmp_path / "x", {"a": tensor}, {"n": 1})
    arrays, metadata = load_vectors(tmp_path / "x")
    assert metadata == {"n": 1}
    assert (arrays["a"].dtype, arrays["a"].shape) == (dtype, tensor.shape)
    assert bits(arrays["a"]) == bits(tensor)


def test_save_vectors_keeps_odd_floats_strides_and_text(tmp_path):
    odd = torch.tensor([float("nan"), -0.0, float("inf"), -float("inf"), 1e-45])
    turned = torch.arange(12.0).view(3, 4).T
    metadata = {"text": 'é 🎈 \u2028 "\\ \n \x00', "nested": {"list": [1, 2.5, None, True]}, "checksum": "0" * 64}
    save_vectors(tmp_path / "x", {"odd": odd, "turned": turned, 'a "name"': odd}, metadata)
    arrays, found = load_vectors(tmp_path / "x")
    assert found == metadata
    assert bits(arrays["odd"]) == bits(odd) == bits(arrays['a "name"'])
    assert torch.equal(arrays["turned"], turned)


def test_save_vectors_makes_the_folders_and_replaces_what_was_there(tmp_path):
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


def test_load_vectors_notices_every_single_flipped_bit_of_a_small_file(tmp_path):
    path = tmp_path / "x"
    save_vectors(path, {"a": torch.arange(3.0)}, {"n": 1})
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="x: "):
            load_vectors(path)


def test_load_vectors_notices_every_cut(tmp_path):
    path = tmp_path / "x"
    save_vectors(path, {"a": torch.arange(3.0)}, {"n": 1})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(StoreError, match="x: "):
            load_vectors(path)


def sealed_header(**changes) -> bytes:
    """A file of this lab, with a true checksum, whose header says something else."""
    header = {"format": store.VECTORS_FORMAT, "version": "1", "metadata": "{}", "checksum": "0" * 64, **changes}
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
    ],
    ids=range(15),
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


# -- the disk is full, or elsewhere -----------------------------------------------------------------------------------


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_write_to_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, operation):
    path = tmp_path / "x"
    save_vectors(path, {"n": torch.tensor(0)})
    with monkeypatch.context() as patch:
        patch.setattr(store.os, operation, full)
        with pytest.raises(StoreError, match=r"cannot write .*x: No space left on device"):
            save_vectors(path, {"n": torch.tensor(1)})
    assert load_vectors(path)[0]["n"] == 0
    assert os.listdir(tmp_path) == ["x"]


def test_write_cut_by_a_real_size_limit_leaves_the_old_file(tmp_path):
    """The kernel itself refuses the write half-way (RLIMIT_FSIZE), in a process of its own."""
    program = """if True:
        import resource, signal, sys
        from softar_lab.store import StoreError, write_atomic
        write_atomic(sys.argv[1], b"old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_atomic(sys.argv[1], bytes(1_000_000))
        except StoreError as error:
            print(error)
    """
    path = tmp_path / "x"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
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
    save_folder(folder, {"format": "test", "version": 1, "n": n}, files or {"one": b"%d" % n}, "manifest.json")


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
def test_save_folder_on_a_full_disk_leaves_the_old_or_the_new(tmp_path, monkeypatch, operation, failing):
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


def test_save_folder_killed_between_any_two_file_operations_leaves_the_old_or_the_new(tmp_path):
    """Every moment before, inside and after each write, flush, sync, rename and removal; then pairs of kills."""
    command = [sys.executable, str(HERE / "kills.py"), "saving", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert len(report["seen"]) > 60  # moments
    assert report["seen"] == sorted(report["seen"])  # the old one, then from one moment on the new one
    assert {0, 1} == set(report["seen"])
    assert report["leftovers"] == []  # what killed writers left is swept up by the next save
