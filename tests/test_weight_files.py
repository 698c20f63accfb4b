"""Files of weights: what is read of them, what is refused, and that nothing in them runs."""

import errno
import json
import os
import pickle
import struct
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
from commands import run_python
from safetensors.torch import save_file

from resnest_d2.config import FileError, MissingFileError
from resnest_d2.weights import Checkpoint, UnreadableError, files, open_weights, read_checkpoint
from resnest_d2.weights.files import write_checkpoint


def equal(actual, expected):
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[k], expected[k]) for k in actual
    )


@pytest.mark.parametrize(
    ("content", "container"),
    [
        (lambda w, o: w, ""),
        (lambda w, o: {"model": w, "optimizer": {"state": {}}, "iteration": 5}, "model"),
        (lambda w, o: {"state_dict": w, "epoch": 3}, "state_dict"),
        (lambda w, o: {"model": {"state_dict": w}}, "model.state_dict"),
        # What is trained comes before an average of it, whoever wrote the file.
        (lambda w, o: {"model_ema": o, "model": w}, "model"),
        (lambda w, o: {"ema_state": o, "model": w, "iteration": 5}, "model"),
        (lambda w, o: {"state_dict_ema": o, "state_dict": w}, "state_dict"),
        # Settings of averaging are no weights; an average alone is all there is.
        (lambda w, o: {"model": w, "ema": {"decay": 1}, "model_ema": {}}, "model"),
        (lambda w, o: {"ema_state_dict": w}, "ema_state_dict"),
    ],
)
def test_where_the_weights_are(content, container, tmp_path):
    weights, others = {"a.b": torch.ones(2)}, {"a.b": torch.zeros(2)}
    torch.save(content(weights, others), tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert equal(checkpoint.weights, weights)
    assert checkpoint.container == container
    if container == "model":
        assert checkpoint.rest.get("iteration", 5) == 5
        assert "model" not in checkpoint.rest


@pytest.mark.parametrize("key", ["model_ema", "ema_state", "state_dict_ema"])
def test_an_average_is_read_when_it_is_asked_for(key, tmp_path):
    weights, average = {"a.b": torch.ones(2)}, {"a.b": torch.zeros(2)}
    torch.save({"model": weights, key: average}, tmp_path / "x.pth")
    assert equal(open_weights(tmp_path / "x.pth").weights, weights)
    assert equal(open_weights(tmp_path / "x.pth", average=True).weights, average)
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(UnreadableError, match=r"x.pth has no average of its weights: model_ema, "):
        open_weights(tmp_path / "x.pth", average=True)


SAVED = ("truncated", "truncated legacy", "module", "script", "sparse", "meta")
CUT_OFF = "(cannot be read, it may be cut off: |is no checkpoint, or a damaged one)"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>403</html>", "is an HTML page: a server's answer saved"),
        (b"<?xml version='1.0'?><Error>", "is an XML page: a server's answer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"words\n", "is a text, not weights"),
        (bytes(range(256)) * 9, "is no checkpoint, or a damaged one"),
        ("truncated", CUT_OFF),
        ("truncated legacy", CUT_OFF),
        ("truncated safetensors", CUT_OFF),
        ("list", "is of type list, not a dict of tensors"),
        ("no tensors", "holds no tensors under epoch"),
        ("module", r"holds Python objects besides tensors \(torch.nn.modules.linear.Linear\)"),
        ("objects", r"holds Python objects besides tensors \(collections.deque\)"),
        ("script", "is a TorchScript program"),
        ("sparse", r": a is a tensor of an unsupported kind \(cpu, torch.sparse_coo, "),
        ("meta", r": a is a tensor of an unsupported kind \(meta, "),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_a_broken_file_is_named(tmp_path, content, reason, ending):
    tensors = {"a": torch.rand(100, 100)}
    file = tmp_path / f"broken{ending}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "truncated safetensors":
        save_file(tensors, file)
        file = file.rename(file.with_suffix(".safetensors"))
    elif content == "script":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), str(file))
    else:
        odd = {"list": [1], "no tensors": {"epoch": 3}, "objects": {"a": deque()}}
        odd |= {"module": torch.nn.Linear(1, 1), "sparse": {"a": torch.ones(3).to_sparse()}}
        odd |= {"meta": {"a": torch.ones(1, device="meta")}}
        if ending == ".pkl" and content in ("list", "no tensors", "objects"):
            file.write_bytes(pickle.dumps(odd[content]))
        else:
            zipped = "legacy" not in content
            torch.save(odd.get(content, tensors), file, _use_new_zipfile_serialization=zipped)
    if isinstance(content, str) and "truncated" in content:
        file.write_bytes(file.read_bytes()[:-1000])
    if file.suffix == ".pkl" and content in SAVED:  # torch.save's files are no such pickles
        reason = "(is no checkpoint, or a damaged one|is of type int|cannot be read)"
    with pytest.raises(UnreadableError, match=f"^{file} ?{reason}") as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("length", [1, 4, 60, 300, 1000, 10000, -2000, -20, -1])
@pytest.mark.parametrize("kind", ["zip", "legacy", "arrays", "safetensors"])
def test_files_cut_off_anywhere(tmp_path, length, kind):
    tensors = {"a": torch.rand(60, 60), "b": torch.rand(3)}
    endings = {"arrays": ".pkl", "safetensors": ".safetensors"}
    cut = tmp_path / f"cut{endings.get(kind, '.pth')}"
    if kind == "safetensors":
        save_file(tensors, cut)
    elif kind == "arrays":
        cut.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in tensors.items()}}))
    else:
        torch.save(tensors, cut, _use_new_zipfile_serialization=kind == "zip")
    cut.write_bytes(cut.read_bytes()[:length])
    with pytest.raises(UnreadableError, match=f"^{cut} "):
        read_checkpoint(cut)


def test_what_is_not_there(tmp_path):
    for path in (
        "absent.pth",
        "absent.pth?matching_heuristics=True",
        str(tmp_path),
        "s3://b/x.pth",
    ):
        with pytest.raises(MissingFileError, match="there is no file "):
            open_weights(path)


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def ndarray(*arguments):
    return Call(np.ndarray, *arguments)


def reconstructed(kind, state):
    return Call(np._core.multiarray._reconstruct, kind, (0,), b"b", state=state)


BAD_ARRAYS = {
    # 88 bytes that end a process in which NumPy unpickles them.
    "a buffer of objects": lambda: OrderedDict({"a": ndarray((1,), "O", b"AAAAAAAA")}),
    "a buffer": lambda: {"a": ndarray((1 << 40,), "f4", b"AAAA")},
    "the class of arrays": lambda: {"a": Call(np.ndarray, (1,))},
    "objects": lambda: {"a": reconstructed(np.ndarray, (1, (1,), np.dtype("O"), False, b"A" * 8))},
    "a list of objects": lambda: {"a": np.array([1, None], dtype=object)},
    "fields": lambda: {"a": np.zeros(2, [("x", "f4"), ("y", "O")])},
    "texts": lambda: {"a": np.array(["text"])},
    "dates": lambda: {"a": np.array(["2020-01-01"], "datetime64[D]")},
    "a huge shape": lambda: {
        "a": reconstructed(np.ndarray, (1, (1 << 40,), np.dtype("f4"), False, b"A" * 8))
    },
    "a negative shape": lambda: {
        "a": reconstructed(np.ndarray, (1, (-5,), np.dtype("f4"), False, b"A" * 8))
    },
    "a shape beyond memory": lambda: {
        "a": reconstructed(np.ndarray, (1, (0, 1 << 62, 1 << 62), np.dtype("f4"), False, b""))
    },
    "another class": lambda: {
        "a": reconstructed(np.matrix, (1, (1,), np.dtype("f4"), False, b"A" * 4))
    },
    "a scalar of objects": lambda: {"a": Call(np._core.multiarray.scalar, np.dtype("O"), b"A" * 8)},
    "a kind made of text": lambda: {"a": Call(np.dtype, "O")},
    "a shape as dtype": lambda: {"a": reconstructed(np.ndarray, (1, (1,), (1,), False, b"A" * 8))},
    "a function": lambda: {"a": Call(os.system, "touch ran")},
    "an import": lambda: {"a": Call(__import__, "antigravity")},
}
READ = """
import sys
from resnest_d2.weights import UnreadableError, read_checkpoint
for file in sys.argv[1:]:
    try:
        read_checkpoint(file)
    except UnreadableError as error:
        print(error)
"""


def test_hostile_arrays_are_refused_and_end_no_process(tmp_path):
    """In a process of its own, because what NumPy would do with some of them is a crash."""
    paths = []
    for name, make in BAD_ARRAYS.items():
        paths.append(tmp_path / f"{name}.pkl")
        paths[-1].write_bytes(pickle.dumps(make(), protocol=2))
    # An object that is turned into another one by the state that follows it.
    attribute = b"c__builtin__\ngetattr\n(cnumpy\nndarray\nX\x05\x00\x00\x00dumpstR."
    (tmp_path / "getattr.pkl").write_bytes(b"\x80\x02" + attribute)
    changed = (
        b"\x80\x02}X\x01\x00\x00\x00a(cnumpy\nndarray\n)\x81N}X\x05\x00\x00\x00dtypeK\x01s\x86bs."
    )
    (tmp_path / "changed.pkl").write_bytes(changed)
    paths += [tmp_path / "getattr.pkl", tmp_path / "changed.pkl"]
    result = run_python(READ, *paths, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(".pkl ")[0] for line in lines] == [str(p)[:-4] for p in paths]
    assert not (tmp_path / "ran").exists()


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_executed(zipped, tmp_path):
    target, file = tmp_path / "executed", tmp_path / "file.pth"
    torch.save({"model": Hostile(target)}, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    target.rmdir()  # it works where it is let
    with pytest.raises(UnreadableError, match=r"Python objects besides tensors \(posix.mkdir\)"):
        read_checkpoint(file)
    assert not target.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_detectron2s_pickles(protocol, tmp_path):
    arrays = {
        "plain": np.random.rand(3, 4).astype("f4"),
        "of columns": np.asfortranarray(np.random.rand(3, 4)),
        "big endian": np.arange(6, dtype=">f4").reshape(2, 3),
        "strided": np.arange(10, dtype="f4")[::2],
        "flags": np.array([True, False]),
        "half": np.ones((2, 2), "f2"),
        "one value": np.array(3.0),
        "empty": np.zeros((0, 3), "f4"),
    }
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = read_checkpoint(tmp_path / "x.pkl")
    assert (checkpoint.author, checkpoint.by_suffix) == ("somebody", True)
    for name, expected in arrays.items():
        assert np.array_equal(checkpoint.weights[name].numpy(), expected), name
    content["iteration"] = np.int64(5)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_checkpoint(tmp_path / "x.pkl").rest["iteration"] == 5


def test_pickles_of_python_2(tmp_path):
    """Detectron's: byte strings as names, and arrays' raw bytes as text."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = (
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ" + b"\xff" * 4 + b"J" + b"\xff" * 4
    )
    state = b"(K\x01K\x02\x85" + dtype + b"K\x00tb\x89U\x08" + struct.pack("<2f", 1.5, -2.5) + b"tb"
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}U\x01a" + array + state + b"s.")
    assert read_checkpoint(tmp_path / "x.pkl").weights["a"].tolist() == [1.5, -2.5]


def test_the_ending_decides_on_the_reader(tmp_path):
    """A file can be two things at once."""
    tensors = {"a": torch.zeros(3)}
    save_file(tensors, tmp_path / "tensors.pkl")
    with pytest.raises(UnreadableError, match="tensors.pkl is no checkpoint, or a damaged one"):
        read_checkpoint(tmp_path / "tensors.pkl")
    torch.save(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UnreadableError, match="x.safetensors cannot be read, it may be cut off"):
        read_checkpoint(tmp_path / "x.safetensors")
    for name in ("w.pth?dl=1", "w.safetensors?dl=1"):  # as wget calls what it has fetched
        (torch.save if "pth" in name else save_file)(tensors, tmp_path / name)
        assert equal(read_checkpoint(tmp_path / name).weights, tensors)


FACTS = {
    "classes": {
        "thing_classes": ["cat", "dog"],
        "thing_dataset_id_to_contiguous_id": {1: 0, 7: 1},
        "keypoint_names": ["ear"],
    },
    "config": "MODEL:\n  MASK_ON: true\n",
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_is_written_is_read_again(ending, tmp_path):
    weights = {"a": torch.rand(2, 3), "b": torch.tensor(5)}
    rest = {"optimizer": {"state": {}}}
    written = Checkpoint("x", weights, "model", True, "somebody", rest=rest, **FACTS)
    write_checkpoint(written, tmp_path / f"x{ending}")
    found = read_checkpoint(tmp_path / f"x{ending}")
    assert equal(found.weights, weights)
    assert (found.by_suffix, found.author) == (True, "somebody")
    assert {"classes": found.classes, "config": found.config} == FACTS
    assert "optimizer" not in found.rest


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_files_are_small_and_for_everybody(tmp_path, ending):
    """Nothing of the memory that tensors are views of."""
    large = torch.zeros(1_000_000)
    target = tmp_path / f"x{ending}"
    write_checkpoint(Checkpoint("x", {"a": large[:32], "b": large[::2][:4]}), target)
    assert 144 < target.stat().st_size < 5_000
    (tmp_path / "other").touch()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_full_disk_leaves_nothing(ending, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.torch, "save", full)
    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(FileError, match=f"cannot write .*x{ending}: No space left on device"):
        write_checkpoint(Checkpoint("x", {"a": torch.zeros(1)}), tmp_path / f"x{ending}")
    assert list(tmp_path.iterdir()) == []


CLASSES = (5, ["a"], "abc", None, {"thing_classes": 3}, {"thing_classes": "person"}, {"name": "x"})


@pytest.mark.parametrize("classes", CLASSES)
def test_classes_that_are_none(classes, tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "classes": classes}, tmp_path / "odd.pth")
    assert read_checkpoint(tmp_path / "odd.pth").classes == {}


def test_classes_in_safetensors_of_others(tmp_path):
    classes = {"thing_classes": ["a", "b"]}
    metadata = {"format": "pt", "classes": json.dumps(classes)}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    assert read_checkpoint(tmp_path / "x.safetensors").classes == classes


@pytest.mark.parametrize("kind", [TypeError, KeyError, AttributeError, RuntimeError])
def test_defects_surface(kind, tmp_path, monkeypatch):
    """They are not taken for files that cannot be read."""
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "x.pth")

    def broken(*args, **kwargs):
        raise kind("a defect")

    for step in ("find_tensors", "check_classes", "Checkpoint"):
        with monkeypatch.context() as patch:
            patch.setattr(files, step, broken)
            with pytest.raises(kind, match="a defect") as error:
                read_checkpoint(tmp_path / "x.pth")
        assert type(error.value) is kind
