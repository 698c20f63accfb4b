"""Weights by name, from servers that work and servers that do not."""

import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.file_io import PathManager
from helpers import small_backbone
from safetensors.torch import save
from server import Server, content

from resnest_d2 import model_zoo
from resnest_d2.config import InputError
from resnest_d2.model_zoo.published import PUBLICATIONS, Publication, Publisher
from resnest_d2.weights import (
    FetchError,
    UnreadableError,
    catalog,
    convert,
    fetch,
    load_weights,
    open_weights,
)

NAME = "resnest://ImageNet/tiny"
FACTS = json.loads((Path(__file__).parent / "data/weight_files.json").read_text())


@pytest.fixture(scope="module")
def safetensors(imagenet) -> bytes:
    return save({k: v.contiguous() for k, v in imagenet.items()})


@pytest.fixture(scope="module")
def data(imagenet, tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("data") / "file"
    torch.save(imagenet, file)
    return file.read_bytes()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """With an empty cache for what is fetched from it."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with Server().running() as running:
        yield running


@pytest.fixture
def names_anew():
    """The catalogue lists its names once."""
    catalog.entries.cache_clear()
    yield
    catalog.entries.cache_clear()


@pytest.fixture
def make_tiny(server, monkeypatch, names_anew):
    """Puts ``resnest://ImageNet/tiny`` at three places of the server."""

    def make(body, **places):
        digest = hashlib.sha256(body).hexdigest()[:8]
        monkeypatch.setattr(catalog, "BACKBONES", (catalog.Backbone("tiny", digest, **places),))
        catalog.entries.cache_clear()
        return f"tiny-{digest}.pth"

    for name, folder in (("RELEASE", "a/"), ("TIMM_RELEASE", "b/"), ("BUCKET", "c/")):
        monkeypatch.setattr(catalog, name, server.url + folder)
    monkeypatch.delenv("RESNEST_D2_MIRROR", raising=False)
    monkeypatch.setattr(fetch, "TIMEOUT", 1.0)
    return make


@pytest.fixture
def tiny(make_tiny, data):
    """Its file's name."""
    return make_tiny(data)


def cached(tmp_path) -> list[str]:
    """Files in the cache, but for locks."""
    root = tmp_path / "cache"
    files = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return sorted(file for file in files if not file.endswith(".lock"))


CONVERTED = ["resnest_d2/v2/resnest/ImageNet/tiny.pth"]
SECOND = "b/v0.1-resnest/"


def assert_complete(path, imagenet):
    expected, model = convert(imagenet), torch.load(path, weights_only=True)["model"]
    assert model.keys() == expected.keys()
    assert all(torch.equal(model[key], expected[key]) for key in expected)


def test_the_first_source(server, tiny, data, imagenet, tmp_path, capfd, monkeypatch):
    server.answers[f"a/{tiny}"] = content(data)
    path = PathManager.get_local_path(NAME)
    assert_complete(path, imagenet)
    assert cached(tmp_path) == CONVERTED
    digest = hashlib.sha256(data).hexdigest()
    source = {"source": f"{server.url}a/{tiny}", "sha256": digest, "verified": True}
    assert open_weights(NAME).source == source
    assert open_weights(NAME).input_format == catalog.IMAGENET_RGB
    assert "100%" in capfd.readouterr().err
    # The second time the cache does, also without any server, and where it can only be read;
    # `force` fetches anew.
    server.answers.clear()
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "file_lock", lambda *a: 1 / 0)
        patch.setattr(fetch, "get_cache_dir", lambda: "/somewhere/else")
        assert PathManager.get_local_path(NAME) == path
    assert server.requests == [f"/a/{tiny}"]
    with pytest.raises(FetchError, match=f"cannot get {tiny}: .*HTTP 404 Not Found"):
        PathManager.get_local_path(NAME, force=True)
    assert_complete(path, imagenet)


PAGE = b"<html>sorry</html>"
HOSTILE = b"\x80\x02cposix\nmkdir\nX\x03\x00\x00\x00ran\x85R."  # makes a folder where it may run
BAD = {
    "cut off": (lambda data: content(data, send=len(data) // 2), "(it cannot be read|wrong hash)"),
    "silent": (lambda data: content(data, send=len(data) // 3, seconds=2), "timed out"),
    "forbidden": (lambda data: content(PAGE, 403), "HTTP 403 Forbidden"),
    "another file": (lambda data: content(data + b"x"), "wrong hash: SHA-256 starts with"),
    "a page": (lambda data: content(PAGE), "it is a web page: a server"),
    "a program": (lambda data: content(HOSTILE), "besides tensors .posix.mkdir"),
    "no length": (lambda data: content(data, headers={"Content-Length": "abc"}), "invalid literal"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_source_leads_to_the_next_one(
    kind, server, tiny, data, imagenet, tmp_path, caplog, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make, reason = BAD[kind]
    server.answers = {f"a/{tiny}": make(data), f"{SECOND}{tiny}": content(data)}
    with caplog.at_level("INFO"):
        assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert server.requests == [f"/a/{tiny}", f"/{SECOND}{tiny}"]
    assert cached(tmp_path) == CONVERTED
    assert not (tmp_path / "ran").exists()
    (message,) = [m for m in caplog.messages if f"{NAME} from {server.url}{SECOND}{tiny} is" in m]
    assert re.search(rf", after {server.url}a/{tiny} \(.*{reason}", message)


def test_without_a_good_source(server, tiny, tmp_path, monkeypatch):
    server.answers[f"{SECOND}{tiny}"] = content(PAGE)
    monkeypatch.setattr(catalog, "BUCKET", "http://127.0.0.1:9/")
    catalog.entries.cache_clear()
    with pytest.raises(FetchError) as error:
        PathManager.get_local_path(NAME)
    for part in (
        f"cannot get {tiny}: {server.url}a/{tiny} (HTTP 404 Not Found)",
        f"; {server.url}{SECOND}{tiny} (it is a web page",
        f"; http://127.0.0.1:9/torch/{tiny} (Connection refused)",
        "put it into a folder that $RESNEST_D2_MIRROR names",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert cached(tmp_path) == []


@pytest.mark.parametrize("step", ["_download", "read_checkpoint", "rename"])
def test_a_defect_surfaces(step, server, tiny, data, tmp_path, monkeypatch):
    """It says nothing of the source: no other one is asked, and nothing is left behind."""
    server.answers = {f"{folder}{tiny}": content(data) for folder in ("a/", SECOND, "c/torch/")}

    def broken(*args, **kwargs):
        raise KeyError("a defect")

    monkeypatch.setattr(fetch, step, broken)
    with pytest.raises(KeyError, match="a defect"):
        PathManager.get_local_path(NAME)
    assert server.requests == ([] if step == "_download" else [f"/a/{tiny}"])
    assert cached(tmp_path) == []


def test_names_that_do_not_exist():
    for name, suggestion in {
        "resnest://ImageNet/resnst50": "did you mean resnest://ImageNet/resnest50",
        "timm://resnest50d_in1k": "did you mean timm://resnest50d.in1k",
        "resnest://": "known are resnest://ImageNet/resnest50, ",
    }.items():
        assert not PathManager.exists(name)
        with pytest.raises(InputError, match=f"unknown weights '{name}'; {suggestion}"):
            open_weights(name)


def test_a_mirror_comes_first(server, tiny, data, imagenet, tmp_path, monkeypatch, caplog):
    server.answers = {f"mirror/{tiny}": content(data), f"a/{tiny}": content(data)}
    monkeypatch.setenv("RESNEST_D2_MIRROR", server.url + "mirror")
    assert_complete(PathManager.get_local_path(NAME), imagenet)
    monkeypatch.setenv("RESNEST_D2_MIRROR", str(tmp_path))
    # It is wrong there: the next source has it.
    (tmp_path / tiny).write_bytes(data[:-1])
    assert_complete(PathManager.get_local_path(NAME, force=True), imagenet)
    assert server.requests == [f"/mirror/{tiny}", f"/a/{tiny}"]
    (tmp_path / tiny).write_bytes(data)
    assert_complete(PathManager.get_local_path(NAME, force=True), imagenet)
    assert len(server.requests) == 2
    monkeypatch.setenv("RESNEST_D2_MIRROR", "nothing://x")
    with caplog.at_level("INFO"):
        assert_complete(PathManager.get_local_path(NAME, force=True), imagenet)
    assert "unknown url type" in caplog.text


def test_no_permission(tiny, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/resnest_d2").write_text("a file in its way")  # root may write everywhere
    with pytest.raises(FetchError, match=r"cannot write weights to .*FVCORE_CACHE names another"):
        PathManager.get_local_path(NAME)


@pytest.fixture
def hub(safetensors, tmp_path, monkeypatch):
    """A stand-in for huggingface_hub, whose cache has files under their SHA-256."""
    stub = SimpleNamespace(asked=[], data=safetensors, error=None)

    def hf_hub_download(repository, file):
        stub.asked.append((repository, file))
        if stub.error:
            raise stub.error
        blob = tmp_path / "hub/blobs" / hashlib.sha256(stub.data).hexdigest()
        link = tmp_path / "hub/snapshots" / repository / file
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.exists() or blob.write_bytes(stub.data)
        link.exists() or link.symlink_to(blob)
        return str(link)

    stub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    return stub


def test_from_the_hub(hub, make_tiny, data, imagenet, tmp_path):
    path = PathManager.get_local_path("timm://resnest14d.test")
    assert_complete(path, imagenet)
    assert hub.asked == [("timm/resnest14d.test", "model.safetensors")]
    source = open_weights("timm://resnest14d.test").source
    assert (source["verified"], source["sha256"]) == (True, hashlib.sha256(hub.data).hexdigest())
    assert load_weights(small_backbone(), "timm://resnest14d.test") == []
    # As one of the sources of another name.
    make_tiny(data, timm="resnest14d.test")
    assert_complete(PathManager.get_local_path(NAME), imagenet)
    # Damaged, in the hub's own cache.
    (blob,) = (tmp_path / "hub/blobs").iterdir()
    blob.write_bytes(hub.data[:-1] + b"x")
    with pytest.raises(FetchError, match="model.safetensors .wrong hash: SHA-256 starts with"):
        PathManager.get_local_path("timm://resnest14d.test", force=True)


def test_any_file_of_the_hub(hub, make_tiny):
    """It is taken as it stands, in whatever folder of its repository."""
    name = "hf://somebody/detectors/models/resnest14.safetensors"
    assert PathManager.exists(name)
    assert load_weights(small_backbone(), name) == []
    assert hub.asked == [("somebody/detectors", "models/resnest14.safetensors")]
    for wrong in ("hf://some", "hf://some/", "hf:///body/x.pth"):
        with pytest.raises(InputError, match=r"' is not of the form hf://user/repository"):
            open_weights(wrong)
    hub.error = RuntimeError("401 Client Error\nand more")
    with pytest.raises(FetchError, match="^cannot get hf://a/b/c: 401 Client Error$"):
        open_weights("hf://a/b/c")


def test_whatever_the_hubs_client_raises_leads_to_the_next_source(
    hub, server, make_tiny, data, imagenet, caplog
):
    hub.error = ValueError("closed")
    tiny = make_tiny(data, timm="resnest14d.test")
    server.answers[f"c/torch/{tiny}"] = content(data)
    with caplog.at_level("INFO"):
        assert_complete(PathManager.get_local_path(NAME), imagenet)
    assert "model.safetensors: closed)" in caplog.text


def test_without_huggingface_hub(make_tiny, imagenet, safetensors, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name, kind in (("timm://resnest14d.test", FetchError), ("hf://a/b/c.pth", ImportError)):
        with pytest.raises(kind, match=r"'resnest_d2\[hub\]'"):
            PathManager.get_local_path(name)
    # A mirror has the file without the hash that the hub's cache names it by.
    file = tmp_path / "mirror/timm/resnest14d.test/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(safetensors)
    monkeypatch.setenv("RESNEST_D2_MIRROR", str(tmp_path / "mirror"))
    assert_complete(PathManager.get_local_path("timm://resnest14d.test"), imagenet)
    assert "has no hash to check it against; it was read as tensors only" in caplog.text
    assert open_weights("timm://resnest14d.test").source["verified"] is False


def test_a_detector_by_name_and_by_its_old_address(
    server, names_anew, tmp_path, monkeypatch, imagenet
):
    """The reference's users have the dead bucket's address in their configs."""
    weights = {f"backbone.bottom_up.{k}": v for k, v in convert(imagenet).items()}
    weights["roi_heads.box_predictor.cls_score.bias"] = torch.rand(5)
    file = tmp_path / "detector.pth"
    torch.save({"model": weights, "optimizer": {}, "iteration": 5}, file)
    name = f"faster-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    server.answers[f"c/{name}"] = content(file.read_bytes())
    publication = Publication(name, {}, publisher=Publisher("", f"{server.url}c/", 2))
    monkeypatch.setitem(PUBLICATIONS, "faster_resnest14", publication)
    path = PathManager.get_local_path("resnest://COCO/faster_resnest14")
    assert set(torch.load(path, weights_only=True)) == {"model", "__author__", "input", "source"}
    old = "https://s3.us-west-1.wasabisys.com/resnest/detectron/"
    for address in ("resnest://COCO/faster_resnest14", old + name):
        found = open_weights(address).weights
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert len(server.requests) == 1


def test_old_addresses_stand_for_names():
    old = "https://s3.us-west-1.wasabisys.com/resnest/"
    for address, name in {
        "detectron/resnest50_detectron-255b5649.pth": "ImageNet/resnest50_detectron",
        "torch/resnest101-22405ba7.pth": "ImageNet/resnest101",
    }.items():
        assert catalog.find(old + address).name == f"resnest://{name}"


def test_the_catalog_has_the_facts():
    """Each known address is a source of a name, in the order of what is likeliest to be alive."""
    listed = {web_address(s) for entry in catalog.entries().values() for s in entry.sources}
    assert {*FACTS, *map(model_zoo.get_checkpoint_url, PUBLICATIONS)} <= listed
    order = catalog.find("resnest://ImageNet/resnest50").sources
    kinds = ["zhanghang1989", "v0.1-resnest", "openmmlab", "hf://timm", "wasabisys"]
    assert all(kind in source for kind, source in zip(kinds, order, strict=True))


def web_address(source: str) -> str:
    """The web's address of a source on the hub."""
    user, repository, file = source.removeprefix("hf://").split("/", 2)
    page = f"https://huggingface.co/{user}/{repository}/resolve/main/{file}"
    return page if source.startswith("hf://") else source


def test_a_page_in_place_of_weights_says_where_it_lies(server, tmp_path):
    """Detectron2's handler keeps what it has fetched."""
    server.answers["w.pth"] = content(b"<!DOCTYPE html><html>please log in</html>")
    with pytest.raises(UnreadableError, match=rf"w.pth \(at {tmp_path}/cache/.*\) is a web page"):
        open_weights(f"{server.url}w.pth")
    with pytest.raises(FetchError, match=r"cannot get .*none.pth: HTTP Error 404"):
        open_weights(f"{server.url}none.pth")


def test_addresses_with_a_query_are_fetched_as_they_stand(server, data, safetensors):
    query = "Expires=1700000000&Signature=a%2Fb%3D"
    for name, body in (("w.pth", data), ("w.safetensors", safetensors)):
        server.answers[f"{name}?{query}"] = content(body)
        assert load_weights(small_backbone(), f"{server.url}{name}?{query}") == []
    # Detectron2's own parameter is not the server's.
    address = f"{server.url}w.pth?{query}&matching_heuristics=True"
    assert load_weights(small_backbone(), address) == []
