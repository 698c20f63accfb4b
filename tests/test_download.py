"""Weights by name, from servers that work and servers that do not."""

import errno
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import BadStatusLine, HTTPException
from pathlib import Path

import huggingface_hub
import pytest
import torch
from commands import run_python
from detectron2.utils.file_io import PathManager
from helpers import image_shape, make_cfg, randomize
from huggingface_hub import constants
from safetensors.torch import save
from server import Server, content, cut_off, silent, slow, status

import resnest_d2
from resnest_d2 import model_zoo
from resnest_d2.config import InputError
from resnest_d2.model_zoo.published import PUBLICATIONS, Publication, Publisher
from resnest_d2.weights import (
    FetchError,
    UnreadableError,
    catalog,
    convert,
    fetch,
    files,
    load_weights,
    read_checkpoint,
)

NAME = "resnest://ImageNet/tiny"
SMALL = ["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.NORM", "BN"]


def backbone():
    return resnest_d2.build_resnest_backbone(
        make_cfg("MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.NORM", "BN"), image_shape()
    )


@pytest.fixture(scope="module")
def data(imagenet, tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("data") / "file"
    torch.save(imagenet, file)
    return file.read_bytes()


@pytest.fixture
def server():
    with Server().running() as running:
        yield running


@pytest.fixture
def tiny(server, data, tmp_path, monkeypatch):
    """``resnest://ImageNet/tiny`` at three places of the server, and an empty cache."""
    file = f"tiny-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setitem(catalog.IMAGENET, "tiny", file)
    for name, folder in (("RELEASE", "a/"), ("TIMM_RELEASE", "b/"), ("BUCKET", "c/")):
        monkeypatch.setattr(catalog, name, server.url + folder)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RESNEST_D2_MIRROR", raising=False)
    monkeypatch.setattr(fetch, "TIMEOUT", 1.0)
    return file


def cached(tmp_path) -> list[str]:
    """Files in the cache, but for locks."""
    root = tmp_path / "cache"
    files = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return sorted(file for file in files if not file.endswith(".lock"))


CONVERTED = ["resnest_d2/resnest/ImageNet/tiny.json", "resnest_d2/resnest/ImageNet/tiny.pth"]


def assert_complete(path, imagenet):
    expected = {k: v for k, v in convert(imagenet).items() if not k.startswith("linear.")}
    model = torch.load(path, weights_only=True)["model"]
    assert model.keys() == expected.keys()
    assert all(torch.equal(model[key], expected[key]) for key in expected)


def test_the_first_source(server, tiny, data, imagenet, tmp_path, capfd):
    server.answers[f"a/{tiny}"] = content(data)
    path = PathManager.get_local_path(NAME)
    assert_complete(path, imagenet)
    assert cached(tmp_path) == CONVERTED
    note = json.loads(Path(path).with_suffix(".json").read_text())
    assert note["sha256"] == hashlib.sha256(data).hexdigest()
    assert note["source"] == f"{server.url}a/{tiny}"
    assert note["verified"] is True
    assert "100%" in capfd.readouterr().err
    # The second time the cache does, also without any server; `force` fetches anew.
    server.answers.clear()
    assert PathManager.get_local_path(NAME) == path
    assert server.requests == [f"/a/{tiny}"]
    with pytest.raises(FetchError, match=f"cannot get {tiny}: .*HTTP 404 Not Found"):
        PathManager.get_local_path(NAME, force=True)
    assert_complete(path, imagenet)


BAD = {
    "cut off": (lambda data: cut_off(data), r"cut off after \d+ of \d+ bytes"),
    "silent": (lambda data: silent(data, 2), "silent for 1 seconds"),
    "forbidden": (lambda data: status(403), "HTTP 403 Forbidden"),
    "absent": (lambda data: status(404), "HTTP 404 Not Found"),
    "another file": (lambda data: content(data + b"x"), "wrong hash: SHA-256 starts with"),
    "a page": (lambda data: content(b"<html>sorry</html>"), "it is an HTML page: a server"),
    "empty": (lambda data: content(b""), r"\(it is empty\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_source_leads_to_the_next_one(kind, server, tiny, data, imagenet, tmp_path, caplog):
    make, _ = BAD[kind]
    server.answers = {f"a/{tiny}": make(data), f"b/{tiny}": content(data)}
    with caplog.at_level("INFO"):
        assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert server.requests == [f"/a/{tiny}", f"/b/{tiny}"]
    assert cached(tmp_path) == CONVERTED
    assert f"{server.url}b/{tiny} was taken, after {server.url}a/{tiny} (" in caplog.text


@pytest.mark.parametrize("kind", BAD)
def test_without_a_good_source(kind, server, tiny, data, tmp_path, monkeypatch):
    make, reason = BAD[kind]
    server.answers[f"b/{tiny}"] = make(data)
    monkeypatch.setattr(catalog, "BUCKET", "http://127.0.0.1:9/")
    with pytest.raises(FetchError, match=reason) as error:
        PathManager.get_local_path(NAME)
    for part in (
        f"cannot get {tiny}: {server.url}a/{tiny} (HTTP 404 Not Found)",
        f"; {server.url}b/{tiny} (",
        f"; http://127.0.0.1:9/torch/{tiny} (Connection refused)",
        f"save it as {tmp_path}/cache/resnest_d2/{tiny}, or put it into a folder that "
        "$RESNEST_D2_MIRROR names",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert cached(tmp_path) == []


DEFECTS = (TypeError, KeyError, AttributeError, RuntimeError, ValueError)


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize(
    "step", ["_download", "sha256", "read_checkpoint", "describe_conversion", "write_checkpoint"]
)
def test_a_defect_of_the_conversion_surfaces(
    kind, step, server, tiny, data, tmp_path, monkeypatch, caplog
):
    """It says nothing of the source: no other one is asked, and nothing is left behind."""
    server.answers = {f"{folder}{tiny}": content(data) for folder in ("a/", "b/", "c/torch/")}

    def broken(*args, **kwargs):
        raise kind("a defect")

    monkeypatch.setattr(fetch, step, broken)
    with pytest.raises(kind, match="a defect") as error:
        fetch.local_path(catalog.find(NAME))  # PathManager would ask twice after a TypeError
    assert type(error.value) is kind
    assert server.requests == ([] if step == "_download" else [f"/a/{tiny}"])
    assert cached(tmp_path) == []
    assert "was taken, after" not in caplog.text


@pytest.mark.parametrize("kind", [UnreadableError, OSError, PermissionError])
def test_a_file_of_no_use_leads_to_the_next_source(
    kind, server, tiny, data, imagenet, monkeypatch, caplog
):
    server.answers = {f"{folder}/{tiny}": content(data) for folder in "ab"}
    errors = [kind("of no use")]
    read = fetch.read_checkpoint

    def once(*args, **kwargs):
        if errors:
            raise errors.pop()
        return read(*args, **kwargs)

    monkeypatch.setattr(fetch, "read_checkpoint", once)
    with caplog.at_level("INFO"):
        assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert server.requests == [f"/a/{tiny}", f"/b/{tiny}"]
    assert f"after {server.url}a/{tiny} (of no use)" in caplog.text


@pytest.mark.parametrize("kind", [BadStatusLine, HTTPException, ConnectionResetError])
def test_a_server_that_speaks_no_http_leads_to_the_next_source(
    kind, server, tiny, data, imagenet, monkeypatch
):
    server.answers[f"b/{tiny}"] = content(data)
    open_url = fetch.urlopen

    def urlopen(request, **kwargs):
        if "/a/" in request.full_url:
            raise kind("no HTTP")
        return open_url(request, **kwargs)

    monkeypatch.setattr(fetch, "urlopen", urlopen)
    assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert server.requests == [f"/b/{tiny}"]


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, ConnectionError])
def test_whatever_the_hubs_client_raises_leads_to_the_next_source(
    kind, server, tiny, data, imagenet, monkeypatch, caplog
):
    def hf_hub_download(*args, **kwargs):
        raise kind("the hub is closed")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setitem(catalog.HUB, "tiny", "resnest14d.test")
    server.answers[f"c/torch/{tiny}"] = content(data)
    with caplog.at_level("INFO"):
        assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert "model.safetensors (the hub is closed)" in caplog.text


def test_names_that_do_not_exist():
    for name, suggestion in {
        "resnest://ImageNet/resnst50": "did you mean resnest://ImageNet/resnest50",
        "timm://resnest50d_in1k": "did you mean timm://resnest50d.in1k",
        "resnest://": "known are resnest://ImageNet/resnest50, ",
    }.items():
        assert not PathManager.exists(name)
        with pytest.raises(InputError, match=f"unknown weights '{name}'; {suggestion}"):
            PathManager.get_local_path(name)


def test_redirected_and_slow(server, tiny, data, imagenet):
    server.answers = {
        f"a/{tiny}": status(302, headers={"Location": "/elsewhere"}),
        "elsewhere": slow(data, 1.5),  # in all longer than the timeout
    }
    assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert server.requests == [f"/a/{tiny}", "/elsewhere"]


def test_a_file_that_was_fetched_by_hand(tiny, data, imagenet, tmp_path):
    place = tmp_path / "cache/resnest_d2" / tiny
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert place.read_bytes() == data  # it is somebody's: it stays


def test_a_mirror_comes_first(server, tiny, data, imagenet, tmp_path, monkeypatch):
    server.answers = {f"mirror/{tiny}": content(data), f"a/{tiny}": content(data)}
    monkeypatch.setenv("RESNEST_D2_MIRROR", server.url + "mirror")
    assert_complete(PathManager.get_local_path(NAME), imagenet)
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("RESNEST_D2_MIRROR", str(folder))
    # Not there, then there and wrong: both times the next source has it.
    assert_complete(PathManager.get_local_path(NAME, force=True), imagenet)
    (folder / tiny).write_bytes(data[:-1])
    assert_complete(PathManager.get_local_path(NAME, force=True), imagenet)
    assert server.requests == [f"/mirror/{tiny}", f"/a/{tiny}", f"/a/{tiny}"]
    (folder / tiny).write_bytes(data)
    server.answers.clear()
    assert_complete(PathManager.get_local_path(NAME, force=True), imagenet)
    assert len(server.requests) == 3


MIRRORS = {
    "an absent user": ("~nosuchuser/w", "no such file"),
    "a name that is too long": ("x" * 300, "File name too long"),
    "no address": ("://", "unknown url type"),
    "no host": ("http://[::bad/", "Invalid IPv6"),
    "half a length": ("length", "invalid literal"),
    "a huge length": ("huge", "it takes 1000000000000000 bytes, and"),
    "a loop": ("loop", "infinite loop"),
}


@pytest.mark.parametrize("kind", MIRRORS)
def test_a_bad_mirror_hides_no_source(kind, server, tiny, data, imagenet, monkeypatch, caplog):
    mirror, reason = MIRRORS[kind]
    if mirror in ("length", "huge", "loop"):
        mirror = server.url + mirror
    length = {"Content-Length": "abc"}
    server.answers = {
        f"length/{tiny}": content(data, length),
        f"huge/{tiny}": content(data, {"Content-Length": str(10**15)}),
        f"loop/{tiny}": status(302, headers={"Location": f"/loop/{tiny}"}),
        f"a/{tiny}": content(data),
    }
    monkeypatch.setenv("RESNEST_D2_MIRROR", mirror)
    with caplog.at_level("INFO"):
        assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert reason in caplog.text


def test_an_unhashed_file_of_no_use(hub, tiny, server, data, imagenet, tmp_path, monkeypatch):
    """The hub's file has no hash in its name, and one in a mirror may be anything."""
    monkeypatch.setitem(catalog.HUB, "tiny", "resnest14d.test")
    file = tmp_path / "mirror/timm/resnest14d.test/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(save({k: v.contiguous() for k, v in imagenet.items()})[:-100])
    monkeypatch.setenv("RESNEST_D2_MIRROR", str(tmp_path / "mirror"))
    server.answers[f"a/{tiny}"] = content(data)
    path = PathManager.get_local_path(NAME)
    assert_complete(path, imagenet)
    assert json.loads(Path(path).with_suffix(".json").read_text())["verified"] is True
    # Weights of another network are no use either.
    file.write_bytes(save({k: v.contiguous() for k, v in imagenet.items()}))
    other = tmp_path / "mirror/timm/resnest26d.test/model.safetensors"
    other.parent.mkdir()
    file.rename(other)
    with pytest.raises(FetchError, match=r"it is of a ResNeSt-14, not of a ResNeSt-26"):
        fetch.local_path(
            catalog.Entry(
                "timm://resnest26d.test", (catalog.HubFile("timm/resnest26d.test"),), None
            )
        )


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_it_downloads_is_never_executed(zipped, server, tiny, tmp_path, monkeypatch):
    """Also if its hash is right: who gave the name its hash may be hostile."""
    target, file = tmp_path / "executed", tmp_path / "file"
    torch.save({"model": Hostile(target)}, file, _use_new_zipfile_serialization=zipped)
    hostile = file.read_bytes()
    torch.load(file, weights_only=False)
    target.rmdir()  # it works where it is let

    name = f"tiny-{hashlib.sha256(hostile).hexdigest()[:8]}.pth"
    monkeypatch.setitem(catalog.IMAGENET, "tiny", name)
    server.answers[f"a/{name}"] = content(hostile)
    with pytest.raises(FetchError, match=r"holds Python objects besides tensors \(posix.mkdir\)"):
        PathManager.get_local_path(NAME)
    with pytest.raises(ValueError, match=f"MODEL.WEIGHTS: {file} holds Python obj.*posix.mk"):
        load_weights(backbone(), str(file))
    assert not target.exists()
    assert cached(tmp_path) == []


def test_a_file_without_a_hash_is_told_of(server, tiny, data, imagenet, monkeypatch, caplog):
    monkeypatch.setitem(catalog.IMAGENET, "tiny", "tiny.pth")
    server.answers["a/tiny.pth"] = content(data)
    path = PathManager.get_local_path(NAME)
    assert_complete(path, imagenet)
    assert "without a hash to check it against; it was read as tensors only" in caplog.text
    assert json.loads(Path(path).with_suffix(".json").read_text())["verified"] is False


def test_a_full_disk(server, tiny, data, tmp_path, monkeypatch):
    server.answers[f"a/{tiny}"] = content(data)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(FetchError, match=f"it takes {len(data)} bytes, and 100 are free in"):
            PathManager.get_local_path(NAME)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "CHUNK", 1000)
        patch.setattr(fetch, "NamedTemporaryFile", full_file)
        with pytest.raises(FetchError, match="cannot write weights to .*: No space left") as error:
            PathManager.get_local_path(NAME)
    assert "$FVCORE_CACHE names another folder" in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr(files.torch, "save", full)
        with pytest.raises(FetchError, match="cannot write weights to .*: No space left on device"):
            PathManager.get_local_path(NAME)
    assert cached(tmp_path) == []


def full_file(**kwargs):
    """In place of a temporary file: /dev/full, which is always full."""
    return open("/dev/full", "wb", buffering=0)


def test_no_permission(tiny, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/resnest_d2").write_text("a file in its way")  # root may write everywhere
    with pytest.raises(FetchError, match=r"cannot write weights to .*cache/resnest_d2: "):
        PathManager.get_local_path(NAME)


FETCH = """
import sys
from detectron2.utils.file_io import PathManager
from resnest_d2.weights import catalog
catalog.IMAGENET["tiny"], catalog.RELEASE = sys.argv[1:]
print(PathManager.get_local_path("resnest://ImageNet/tiny"))
"""


def test_processes_wait_for_each_other(server, tiny, data):
    server.answers[f"a/{tiny}"] = slow(data, 5)  # longer than two starts are apart
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda url: run_python(FETCH, tiny, url), [f"{server.url}a/"] * 2))
    assert [result.returncode for result in results] == [0, 0], results
    assert len({result.stdout for result in results}) == 1
    assert server.requests == [f"/a/{tiny}"]


def test_a_broken_cache_is_made_anew(server, tiny, data, imagenet):
    server.answers[f"a/{tiny}"] = content(data)
    path = Path(PathManager.get_local_path(NAME))
    path.write_bytes(path.read_bytes()[:-1])
    assert_complete(PathManager.get_local_path(NAME), imagenet)
    for note in ("{}", "null", "[]", '"x"', "{", '{"version": 1}'):
        path.with_suffix(".json").write_text(note)
        assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert len(server.requests) == 8


def test_a_cache_that_is_only_to_be_read(server, tiny, data, monkeypatch):
    server.answers[f"a/{tiny}"] = content(data)
    path = PathManager.get_local_path(NAME)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fetch, "file_lock", refuse)
    monkeypatch.setattr(fetch, "get_cache_dir", lambda: "/somewhere/else")
    assert PathManager.get_local_path(NAME) == path


def test_names_are_not_written_to(server, tiny, data, imagenet):
    server.answers[f"a/{tiny}"] = content(data)
    path = PathManager.get_local_path(NAME)
    with pytest.raises(ValueError, match="is a name of published weights and cannot be written"):
        PathManager.open(NAME, "wb")
    assert_complete(path, imagenet)
    with PathManager.open(NAME, "rb") as stream:
        assert stream.read() == Path(path).read_bytes()


@pytest.fixture
def hub(server, imagenet, tmp_path, monkeypatch):
    """The server as the Hugging Face hub, with ``timm/resnest14d.test``."""
    data = save({k: v.contiguous() for k, v in imagenet.items()})
    file = "timm/resnest14d.test/resolve/main/model.safetensors"
    commit = {"X-Repo-Commit": "0" * 40}
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    server.answers[file] = content(data, {"ETag": etag, "X-Linked-Etag": etag, **commit})
    monkeypatch.setattr(constants, "ENDPOINT", server.url.rstrip("/"))
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return data


def test_from_the_hub(hub, server, tiny, imagenet, monkeypatch, tmp_path):
    path = PathManager.get_local_path("timm://resnest14d.test")
    assert_complete(path, imagenet)
    note = json.loads(Path(path).with_suffix(".json").read_text())
    assert note["verified"] is True
    assert note["sha256"] == hashlib.sha256(hub).hexdigest()
    assert load_weights(backbone(), "timm://resnest14d.test") == []
    # As one of the sources of another name; here the file is in the hub's cache already.
    monkeypatch.setitem(catalog.HUB, "tiny", "resnest14d.test")
    assert_complete(PathManager.get_local_path(NAME), imagenet)


def test_a_damaged_file_in_the_hubs_cache(hub, server, tiny, imagenet, tmp_path):
    PathManager.get_local_path("timm://resnest14d.test")
    (blob,) = (p for p in (tmp_path / "hub").rglob("blobs/*") if p.is_file())
    blob.write_bytes(hub[:-1] + b"x")
    with pytest.raises(FetchError, match="model.safetensors .wrong hash: SHA-256 starts with"):
        PathManager.get_local_path("timm://resnest14d.test", force=True)
    assert_complete(PathManager.get_local_path("timm://resnest14d.test", force=True), imagenet)


def test_what_the_hub_does_not_have(hub, server, tiny):
    server.answers["timm/resnest14d.other/resolve/main/model.safetensors"] = status(
        404, headers={"X-Error-Code": "RepoNotFound"}
    )
    with pytest.raises(
        FetchError,
        match=r"get timm/resnest14d.other/model.safetensors: .*\(404 Client",
    ):
        PathManager.get_local_path("timm://resnest14d.other")


def test_the_hub_from_a_mirror(server, tiny, imagenet, tmp_path, monkeypatch, caplog):
    file = tmp_path / "mirror/timm/resnest14d.test/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(save({k: v.contiguous() for k, v in imagenet.items()}))
    monkeypatch.setenv("RESNEST_D2_MIRROR", str(tmp_path / "mirror"))
    assert_complete(PathManager.get_local_path("timm://resnest14d.test"), imagenet)
    assert "without a hash" in caplog.text


def test_without_huggingface_hub(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FetchError, match=r"needs huggingface_hub: pip install 'resnest_d2\[hub\]'"):
        PathManager.get_local_path("timm://resnest14d.test")


@pytest.fixture
def detector(server, tiny, monkeypatch, tmp_path):
    """A small detector as the published model ``faster_resnest50``, in the reference's bucket."""
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *SMALL, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32])
    model = resnest_d2.modeling.detector.build_detector(cfg).eval()
    randomize(model)
    file = tmp_path / "detector.pth"
    torch.save({"model": model.state_dict(), "optimizer": {}, "iteration": 5}, file)
    name = f"faster-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    server.answers[f"c/detectron/{name}"] = content(file.read_bytes())
    publisher = Publisher("", server.url + "c/detectron/", 2)
    publication = Publication("faster", name, {"bbox/AP": 1.0}, publisher=publisher)
    monkeypatch.setitem(PUBLICATIONS, "faster_resnest50", publication)
    return cfg, model


def test_a_detector_by_name_and_by_its_old_address(detector, server):
    cfg, model = detector
    path = PathManager.get_local_path("resnest://COCO/faster_resnest50")
    assert PathManager.get_local_path("resnest://COCO/lazy/faster_resnest50") == path
    content = torch.load(path, weights_only=True)
    assert set(content) == {"model", "__author__", "input", "source"}  # nothing of the training
    other = resnest_d2.modeling.detector.build_detector(cfg)
    assert load_weights(other, "resnest://COCO/faster_resnest50") == []
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in other.state_dict().items())
    # The reference's users have the bucket's address in their configs.
    old = "https://s3.us-west-1.wasabisys.com/resnest/detectron/"
    file = PUBLICATIONS["faster_resnest50"].file
    assert load_weights(other, old + file) == []
    assert len(server.requests) == 1


def test_addresses_of_old_have_names():
    for name in catalog.names():
        for source in catalog.find(name).sources:
            if isinstance(source, catalog.WebFile):
                found = catalog.find_address(str(source))
                assert source in found.sources
    old = "https://s3.us-west-1.wasabisys.com/resnest/"
    for address, name in {
        "detectron/resnest50_detectron-255b5649.pth": "ImageNet/resnest50_detectron",
        "torch/resnest101-22405ba7.pth": "ImageNet/resnest101",
        "detectron/mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x-62448b9c.pth": (
            "COCO/cascade_resnest101"
        ),
    }.items():
        assert catalog.find_address(old + address).name == f"resnest://{name}"
        assert PathManager.exists(old + address)
    url = model_zoo.get_checkpoint_url("mmdet/mask_resnest50")
    assert catalog.find_address(url).name == "resnest://COCO/mmdet/mask_resnest50"
    assert not PathManager.exists(old + "something.pth")


def test_another_file_under_such_an_address_is_only_downloaded(server, tiny):
    server.answers["c/else.txt"] = content(b"something else")
    path = fetch.WeightsHandler()._get_local_path(server.url + "c/else.txt")
    assert Path(path).read_bytes() == b"something else"


def test_the_catalog():
    """Each name has sources, and every file with a hash has it in the catalog's facts."""
    facts = json.loads((Path(__file__).parent / "data/weight_files.json").read_text())
    listed = {str(s) for name in catalog.names() for s in catalog.find(name).sources}
    assert set(facts) <= listed
    order = [str(source) for source in catalog.find("resnest://ImageNet/resnest50").sources]
    kinds = ["zhanghang1989", "v0.1-resnest", "openmmlab", "huggingface", "wasabisys"]
    assert all(kind in url for kind, url in zip(kinds, order, strict=True))


def test_reading_a_hub_file_gives_the_weights(imagenet, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(save({k: v.contiguous() for k, v in imagenet.items()}))
    assert read_checkpoint(file)["model"].keys() == imagenet.keys()


def test_addresses_with_a_query_are_fetched_as_they_stand(server, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    signed = "w.pth?Expires=1700000000&Signature=a%2Fb%3D&Key-Pair-Id=K2"
    server.answers = {"w.pth?dl=1": content(data), signed: content(data)}
    for query in ("w.pth?dl=1", signed):
        assert load_weights(backbone(), server.url + query) == []
        assert f"/{query}" in server.requests
    # Cached; and Detectron2's own parameter is not the server's.
    count = len(server.requests)
    assert load_weights(backbone(), f"{server.url}w.pth?dl=1&matching_heuristics=True") == []
    assert len(server.requests) == count
    # Another query is another file.
    with pytest.raises(OSError, match=r"cannot get .*w.pth\?dl=2: HTTP 404"):
        load_weights(backbone(), f"{server.url}w.pth?dl=2")
    assert len(cached(tmp_path)) == 2


@pytest.mark.parametrize("name", ["w.pth", "w.pth?dl=1"])
def test_a_page_in_place_of_weights_is_not_kept(server, data, tmp_path, monkeypatch, name):
    """The server may answer rightly later."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    address = server.url + name
    server.answers[name] = content(b"<!DOCTYPE html><html>please log in</html>")
    with pytest.raises(OSError, match=r"cannot get .*w\.pth.*: it is an HTML page"):
        load_weights(backbone(), address)
    server.answers[name] = content(data)
    assert load_weights(backbone(), address) == []


def test_an_address_is_fetched_once(server, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    server.answers["w.pth"] = slow(data, 0.3)
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(fetch.fetch_address, [f"{server.url}w.pth"] * 3))
    assert Path(*paths).read_bytes() == data
    assert len(server.requests) == 1


def test_the_same_path_on_another_server_is_another_file(server, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    server.answers["w.pth"] = content(data)
    assert load_weights(backbone(), f"{server.url}w.pth") == []
    with Server().running() as other, pytest.raises(OSError, match=r"w\.pth: HTTP 404"):
        load_weights(backbone(), f"{other.url}w.pth")
