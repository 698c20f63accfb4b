"""Files of weights: what is read of them, what is refused, and that nothing in them runs."""

import errno
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

ONE = torch.zeros(1)


def equal(actual, expected):
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[k], expected[k]) for k in actual
    )


def saved(content, file):
    torch.save(content, file)
    return read_checkpoint(file)


@pytest.mark.parametrize(
    "content",
    [
        lambda w, o: w,
        lambda w, o: {"state_dict": w, "epoch": 3},
        lambda w, o: {"model": {"state_dict": w}},
        # What is trained comes before an average of it, whoever wrote the file.
        lambda w, o: {"model_ema": o, "model": w},
        lambda w, o: {"ema_state": o, "model": w, "iteration": 5},
        lambda w, o: {"state_dict_ema": o, "state_dict": w},
        # Settings of averaging are no weights; an average alone is all there is.
        lambda w, o: {"model": w, "ema": {"decay": 1}, "model_ema": {}},
        lambda w, o: {"ema_state_dict": w},
    ],
)
def test_where_the_weights_are(content, tmp_path):
    weights, others = {"a.b": torch.ones(2)}, {"a.b": torch.zeros(2)}
    assert equal(saved(content(weights, others), tmp_path / "x.pth").weights, weights)


@pytest.mark.parametrize(
    "content",
    [
        lambda w, o: {"state_dict": w, "state_dict_ema": o},
        lambda w, o: {"model": {"model": w, "ema": o}},
        lambda w, o: {"state_dict": {**w, "ema_state": o}},
    ],
)
def test_an_average_is_read_when_it_is_asked_for(content, tmp_path):
    weights, average = {"a.b": torch.ones(2)}, {"a.b": torch.zeros(2)}
    torch.save(content(weights, average), tmp_path / "x.pth")
    assert equal(open_weights(tmp_path / "x.pth", average=True).weights, average)
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(UnreadableError, match=r"x.pth has no average of its weights: model_ema"):
        open_weights(tmp_path / "x.pth", average=True)


BYTES = {
    b"": "(is no checkpoint|cannot be read)",
    b"\n <!DOCTYPE html><html>403</html>": "is a web page: a server's answer saved",
    b"version https://git-lfs.github.com/spec/v1": "is a pointer of Git LFS",
    b"words\n": "(is no checkpoint|cannot be read)",
    bytes(range(256)) * 9: "is no checkpoint, or a damaged one",
}


@pytest.mark.parametrize("content", BYTES, ids=BYTES.values())
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_what_is_no_checkpoint(content, ending, tmp_path):
    file = tmp_path / f"x{ending}"
    file.write_bytes(content)
    with pytest.raises(UnreadableError, match=f"^{file} {BYTES[content]}"):
        read_checkpoint(file)


LAYER = "holds Python objects besides tensors .torch.nn.modules.linear.Linear"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: [1], " is of type list, not a dict of tensors"),
        (lambda: {"epoch": 3}, " holds no tensors under epoch"),
        (lambda: torch.nn.Linear(1, 1), rf" {LAYER}"),
        (lambda: {"a": deque()}, r" holds Python objects besides tensors \(collections.deque\)"),
        (lambda: {"a": torch.ones(3).to_sparse()}, r": a is a .* kind \(cpu, torch.sparse_coo, "),
        (lambda: {"a": torch.ones(1, device="meta")}, r": a is a .* unsupported kind \(meta, "),
        (
            lambda: {"a": torch.nested.nested_tensor([ONE, ONE])},
            r": a is .* kind \(cpu, torch.strided, ",
        ),
    ],
)
def test_content_that_is_no_weights(content, reason, tmp_path):
    with pytest.raises(UnreadableError, match=f"^{tmp_path}/x.pth{reason}") as error:
        saved(content(), tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("dtype", ["int8", "complex64", "float8_e5m2"])
def test_what_a_layer_computes_with_is_floating(dtype, tmp_path):
    """Other tensors, such as masks and counters, may be of any type."""
    odd = torch.ones(2).to(getattr(torch, dtype))
    assert "a.mask" in saved({"a.mask": odd}, tmp_path / "x.pth").weights
    message = rf"x.pth: a.weight is a tensor of an unsupported kind \(cpu, .*{dtype}\)"
    with pytest.raises(UnreadableError, match=message):
        saved({"a.weight": odd}, tmp_path / "x.pth")


def test_a_program_is_no_checkpoint(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), str(tmp_path / "x.pth"))
    with pytest.raises(UnreadableError, match=r"x.pth cannot be read, .*TorchScript"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("length", [1, 60, 1000, -20])
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
    query = "absent.pth?matching_heuristics=True"
    for path in ("absent.pth", query, "s3://b/x.pth", "x" * 300, "a\0b"):
        with pytest.raises(MissingFileError, match="there is no file "):
            open_weights(path)
    with pytest.raises(MissingFileError, match=f"there is no file {tmp_path} .it is a folder"):
        open_weights(tmp_path)


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def array_of(shape, dtype="f4", raw=b"A" * 8, kind=np.ndarray):
    state = (1, shape, dtype if isinstance(dtype, tuple) else np.dtype(dtype), False, raw)
    return Call(np._core.multiarray._reconstruct, kind, (0,), b"b", state=state)


BAD_ARRAYS = {
    # 88 bytes that end a process in which NumPy unpickles them.
    "a buffer of objects": lambda: Call(np.ndarray, (1,), "O", b"AAAAAAAA"),
    "the class of arrays": lambda: Call(np.ndarray, (1,)),
    "objects": lambda: array_of((1,), "O"),
    "fields": lambda: np.zeros(2, [("x", "f4"), ("y", "O")]),
    "texts": lambda: np.array(["text"]),
    "a huge shape": lambda: array_of((1 << 40,)),
    "a shape beyond memory": lambda: array_of((0, 1 << 62, 1 << 62), raw=b""),
    "another class": lambda: array_of((1,), raw=b"A" * 4, kind=np.matrix),
    "a scalar of objects": lambda: Call(np._core.multiarray.scalar, np.dtype("O"), b"A" * 8),
    "a shape as dtype": lambda: array_of((1,), (1,)),
    "a function": lambda: Call(os.system, "touch ran"),
}
STATE = b"\nN}X\x08\x00\x00\x00__code__K\x01s\x86b."  # sets an attribute of what stands before it
BAD_PICKLES = {
    # An object that is turned into another one by the state that follows it.
    "getattr": b"c__builtin__\ngetattr\n(cnumpy\nndarray\nX\x05\x00\x00\x00dumpstR.",
    "changed": b"}X\x01\x00\x00\x00a(cnumpy\nndarray\n)\x81N}X\x05\x00\x00\x00dtypeK\x01s\x86bs.",
    # Functions that would be changed for all files that are read afterwards.
    "dtype": b"cnumpy\ndtype" + STATE,
    "reconstruct": b"cnumpy.core.multiarray\n_reconstruct" + STATE,
    "dict": b"ccollections\nOrderedDict" + STATE,
    # Lengths beyond all memory.
    "memo": b"}r\xff\xff\xff\x7f.",
    "bytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00abc.",
}
READ = """
import sys
from resnest_d2.weights import UnreadableError, read_checkpoint
*bad, good = sys.argv[1:]
for file in bad:
    try:
        read_checkpoint(file)
    except UnreadableError as error:
        print(error)
print(read_checkpoint(good).weights)
"""


def test_hostile_arrays_are_refused_and_end_no_process(tmp_path):
    """In a process of its own, because what NumPy would do with some of them is a crash."""
    contents = {name: pickle.dumps({"a": make()}, 2) for name, make in BAD_ARRAYS.items()}
    contents |= {name: b"\x80\x02" + content for name, content in BAD_PICKLES.items()}
    for name, content in contents.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    (tmp_path / "good.pkl").write_bytes(pickle.dumps({"a": np.ones(1, "f4")}))
    paths = [tmp_path / f"{name}.pkl" for name in contents]
    result = run_python(READ, *paths, tmp_path / "good.pkl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *lines, good = result.stdout.splitlines()
    assert [line.partition(".pkl ")[0] for line in lines] == [str(p)[:-4] for p in paths]
    assert good == "{'a': tensor([1.])}"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_executed(zipped, tmp_path):
    target, file = tmp_path / "executed", tmp_path / "file.pth"
    content = {"model": Call(os.mkdir, str(target))}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    target.rmdir()  # it works where it is let
    with pytest.raises(UnreadableError, match=r"Python objects besides tensors \(posix.mkdir\)"):
        read_checkpoint(file)
    assert not target.exists()


def test_attributes_that_hide_methods(tmp_path):
    """PyTorch restores those of dicts and tensors."""
    tensor, hidden = torch.ones(2), OrderedDict()
    tensor.clone = tensor.detach = "no function"
    hidden["a"] = tensor
    hidden.get = hidden.keys = "no function"
    for content in (hidden, {"model": hidden, "classes": hidden, "source": hidden, "meta": hidden}):
        checkpoint = saved(content, tmp_path / "x.pth")
        write_checkpoint(checkpoint, tmp_path / "y.pth")
        assert equal(read_checkpoint(tmp_path / "y.pth").weights, {"a": torch.ones(2)})


def test_containers_without_end(tmp_path):
    """One that holds itself, and one that holds another twice, which holds another twice, ..."""
    endless, doubled = {}, {"a": ONE}
    endless["model"] = endless
    for _ in range(60):
        doubled = {"model": doubled, "net": doubled}
    for content, reason in ((endless, "cannot be read"), (doubled, "holds no tensors under model")):
        with pytest.raises(UnreadableError, match=f"x.pth {reason}"):
            saved(content, tmp_path / "x.pth")
    others = dict.fromkeys(("source", "meta", "__author__", "classes", "config"), doubled)
    others["input"] = {"channels": doubled, "mean": [0], "std": [1]}
    found = saved({"model": {"a": ONE}, **others}, tmp_path / "x.pth")
    assert (found.source, found.author, found.input_format) == ({}, "", None)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_detectron2s_pickles(protocol, tmp_path):
    arrays = OrderedDict(
        plain=np.random.rand(3, 4).astype("f4"),
        columns=np.asfortranarray(np.random.rand(3, 4)),
        big_endian=np.arange(6, dtype=">f4").reshape(2, 3),
        strided=np.arange(10, dtype="f4")[::2],
        flags=np.array([True, False]),
        half=np.ones((2, 2), "f2"),
        one_value=np.array(3.0),
        empty=np.zeros((0, 3), "f4"),
    )
    arrays._metadata = OrderedDict(version=1)  # as a module's state_dict has it
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    content["iteration"] = np.int64(5)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = read_checkpoint(tmp_path / "x.pkl")
    assert (checkpoint.author, checkpoint.by_suffix) == ("somebody", True)
    for name, expected in arrays.items():
        assert np.array_equal(checkpoint.weights[name].numpy(), expected), name
    assert checkpoint.rest["iteration"] == 5


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
    with pytest.raises(UnreadableError, match="x.safetensors cannot be read, it may be cut off"):
        saved(tensors, tmp_path / "x.safetensors")
    for name in ("w.pth?dl=1", "w.safetensors?dl=1"):  # as wget calls what it has fetched
        (torch.save if "pth" in name else save_file)(tensors, tmp_path / name)
        assert equal(read_checkpoint(tmp_path / name).weights, tensors)


CLASSES = {
    "thing_classes": ["cat", "dog"],
    "thing_dataset_id_to_contiguous_id": {1: 0, 7: 1},
    "keypoint_names": ["ear"],
    "keypoint_connection_rules": [("ear", "ear", [1, 2, 3])],
}
CONFIG = "MODEL:\n  MASK_ON: true\n"


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_is_written_is_read_again(ending, tmp_path):
    """Small, readable for everybody, and without what only training needs."""
    large = torch.zeros(1_000_000)  # of which views would drag along the memory
    weights = {"a": torch.rand(2, 3), "b": torch.tensor(5), "c": large[:32], "d": large[::2][:4]}
    rest, target = {"optimizer": {"state": {}}}, tmp_path / f"x{ending}"
    facts = {"classes": CLASSES, "config": CONFIG, "source": {"sha256": "0", "verified": True}}
    write_checkpoint(Checkpoint("x", weights, True, "me", rest=rest, **facts), target)
    found = read_checkpoint(target)
    assert equal(found.weights, weights)
    assert (found.by_suffix, found.author) == (True, "me")
    assert {key: getattr(found, key) for key in facts} == facts
    assert "optimizer" not in found.rest
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
        write_checkpoint(Checkpoint("x", {"a": ONE}), tmp_path / f"x{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "classes",
    [
        *(5, ["a"], None, {"name": "x"}),
        *({"thing_classes": wrong} for wrong in ("person", [], [1])),
        *({"thing_dataset_id_to_contiguous_id": wrong} for wrong in ([1], {"x": 0})),
        *({"keypoint_connection_rules": wrong} for wrong in ([["ear"]], [[1, 2, 3]])),
    ],
)
def test_classes_that_are_none(classes, tmp_path):
    content = {"model": {"a": ONE}, "classes": classes}
    assert saved(content, tmp_path / "odd.pth").classes == {}
    if isinstance(classes, dict) and "thing_classes" not in classes:
        content["classes"] = {"thing_classes": ["a"], **classes}
        found = saved(content, tmp_path / "odd.pth").classes
        assert found == ({} if "name" not in classes else {"thing_classes": ["a"]})


def test_defects_surface(tmp_path, monkeypatch):
    """They are not taken for files that cannot be read."""
    torch.save({"model": {"a": ONE}}, tmp_path / "x.pth")
    monkeypatch.setattr(files, "find_tensors", lambda *given: {}["a defect"])
    with pytest.raises(KeyError, match="a defect"):
        read_checkpoint(tmp_path / "x.pth")
