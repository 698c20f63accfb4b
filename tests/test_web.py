"""The page in the browser, and what it does without one."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from helpers import randomize
from PIL import Image

from resnest_d2 import model_zoo
from resnest_d2.commands import web
from resnest_d2.data.images import read_image
from resnest_d2.export import export_model
from resnest_d2.inference import Predictor
from resnest_d2.modeling.detector import build_detector

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that finds something of every score; its weights are drawn."""
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64])
    cfg.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", 12, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    model = build_detector(cfg)
    randomize(model)
    folder = tmp_path_factory.mktemp("model")
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, folder / "model_final.pth")
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def detector():
    return web.Detector("cpu")


def test_it_says_what_it_does(detector, checkpoint, picture):
    said = list(detector.detect(str(checkpoint), str(picture)))
    starts = ("Loading", "Running", "12 detections of any score in ")
    for (text, result), start in zip(said, starts, strict=True):
        assert text.startswith(start)
        assert (result is None) == (start != starts[-1])
    result = said[-1][1]
    scores = result.instances.scores
    drawn, rows, results = detector.show(result, scores[3].item())
    assert Image.open(drawn).size == (640, 480)
    assert len(rows) == len(json.loads(Path(results).read_text())) == 4
    assert [row[1] for row in rows] == pytest.approx(scores[:4].tolist(), abs=1e-3)
    assert rows[0][2:] == pytest.approx(result.instances.pred_boxes.tensor[0].tolist(), abs=0.1)
    assert detector.show(None, 0.5) == (None, [], None)


def test_exported_files_are_shown_as_they_are(checkpoint, picture, tmp_path):
    predictor, file = Predictor(checkpoint, device="cpu"), tmp_path / "model.ts"
    facts = {"input_format": predictor.input_format, "augmentation": predictor.augmentation}
    images = [predictor.prepare(read_image(picture))["image"]]
    export_model(
        predictor.model, file, "torchscript", names=predictor.metadata, images=images, **facts
    )
    *_, (text, result) = web.Detector("cpu").detect(str(file), str(picture))
    assert text.startswith("12 detections of any score in ")
    assert len(result.instances) == 12


def test_what_it_refuses(detector, checkpoint, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 100)

    def said(model, file):
        return list(detector.detect(str(model), file and str(file)))[-1]

    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (101, 100)).save(tmp_path / "large.png")
    assert said(checkpoint, None) == (web.HELP, None)
    text = "The picture cannot be read as a picture: Pillow knows no such format"
    assert said(checkpoint, tmp_path / "text.png") == (text, None)
    large, _ = said(checkpoint, tmp_path / "large.png")
    assert large.startswith("The picture cannot be read as a picture: Image size (10100 pixels) ex")
    assert "no model 'absent'" in said("absent", picture)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pth"], "there is no checkpoint or folder absent.pth"),
        (["README.md"], "README.md is neither a checkpoint nor an exported file nor a config"),
        (["--device", "gpu"], "--device 'gpu' is no device of PyTorch, or not one of this machine"),
        (["--port", "70000"], "--port must be between 1 and 65535, got 70000"),
        (["--port", "0"], "--port must be between 1 and 65535, got 0"),
        (["--examples", "absent"], "--examples: there is no folder absent"),
        (["--max-pixels", "0"], "--max-pixels must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        web.main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'resnest_d2\[web\]'"):
        web.build_page([], None, [])


@pytest.fixture(scope="module")
def address(checkpoint, picture, tmp_path_factory):
    """The page of a server that runs."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "tools/web.py", checkpoint, "--port", port]
    command += ["--device", "cpu", "--examples", picture.parent, "--max-pixels", 10_000]
    log = tmp_path_factory.mktemp("log") / "out.log"
    with log.open("w") as stream:
        server = subprocess.Popen(list(map(str, command)), stdout=stream, stderr=stream)
    until = time.monotonic() + 120
    while "The page is at" not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.mark.slow
def test_files_of_the_server_are_not_served(address):
    """A program that talks to the page in place of a browser."""
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(address + path)
        assert raised.value.code in (403, 404)
    config = json.loads(urllib.request.urlopen(f"{address}/config").read())
    names = [d["api_name"] for d in config["dependencies"] if d["targets"][0][1] == "click"]
    stolen = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    request = urllib.request.Request(
        f"{address}/gradio_api/call/{names[0]}",
        json.dumps({"data": ["model", stolen]}).encode(),
        {"Content-Type": "application/json"},
    )
    answer = json.loads(urllib.request.urlopen(request).read())
    event = f"{address}/gradio_api/call/{names[0]}/{answer['event_id']}"
    text = urllib.request.urlopen(event).read().decode()
    assert "event: error" in text
    assert "root:" not in text


@pytest.fixture
def browser_page(address):
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("there is no chromium or google-chrome")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.goto(address)
        page.get_by_role("button", name="Detect").wait_for(timeout=60_000)
        yield page
        browser.close()


def upload(page, file):
    page.set_input_files("input[type=file]", str(file))
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Detect").click()


def count_rows(page):
    cells = page.locator("#table tbody tr").all_inner_texts()
    return len([text for text in cells if text.strip()])


@pytest.mark.slow
def test_a_picture_in_the_browser(browser_page, picture, tmp_path):
    """Upload, wait, see boxes, move the slider, download, upload a broken file."""
    page = browser_page
    status = page.locator("#status")
    upload(page, picture)
    page.get_by_text(re.compile(r"12 detections of any score")).wait_for(timeout=120_000)
    page.locator("#drawn img").wait_for(timeout=30_000)
    before = count_rows(page)
    slider = page.locator("input[type=range]").first
    slider.fill("0")
    slider.dispatch_event("pointerup")
    page.wait_for_function(
        "n => document.querySelectorAll('#table tbody tr').length > n", arg=before, timeout=30_000
    )
    with page.expect_download() as download:
        page.locator("#json").click()
    download.value.save_as(tmp_path / "found.json")
    assert len(json.loads((tmp_path / "found.json").read_text())) == 12
    with page.expect_download() as download:
        page.locator("#png").click()
    download.value.save_as(tmp_path / "found.png")
    assert Image.open(tmp_path / "found.png").size == (640, 480)
    page.screenshot(path=tmp_path / "page.png")

    page.reload()
    page.get_by_role("button", name="Detect").wait_for(timeout=60_000)
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:40])
    upload(page, tmp_path / "broken.png")
    page.get_by_text("The picture cannot be read as a picture").wait_for(timeout=30_000)
    Image.new("L", (400, 400)).save(tmp_path / "large.png")
    page.reload()
    page.get_by_role("button", name="Detect").wait_for(timeout=60_000)
    upload(page, tmp_path / "large.png")
    page.get_by_text("Image size (160000 pixels) exceeds limit of 10000 pixels").wait_for()
    assert "Traceback" not in status.inner_text()


@pytest.mark.slow
def test_several_clicks_queue_up(browser_page, picture):
    upload(browser_page, picture)
    for _ in range(3):
        browser_page.get_by_role("button", name="Detect").click()
    browser_page.get_by_text(re.compile(r"12 detections of any score")).wait_for(timeout=120_000)
