"""examples/web.py as visitors reach it: in a browser, and by programs that mean it ill."""

import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from commands import ROOT
from PIL import Image
from server import Server, content
from test_examples import picture  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
FOUND = "12 detections of any score."


class Page:
    """A running page, in a current and a temporary folder of its own."""

    def __init__(self, model, root):
        pytest.importorskip("gradio")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.address = str(model), f"http://127.0.0.1:{self.port}"
        self.current, self.temporary = root / "current", root / "temporary"
        for folder in (self.current, self.temporary):
            folder.mkdir()
        command = [sys.executable, ROOT / "examples/web.py", model, "--port", self.port]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(root)}
        environment |= {"TMPDIR": str(self.temporary), "CUDA_VISIBLE_DEVICES": ""}
        log = root / "out.log"
        options = {"cwd": self.current, "env": environment, "stderr": subprocess.STDOUT}
        with log.open("w") as stream:
            self.process = subprocess.Popen(list(map(str, command)), stdout=stream, **options)
        while "The page is at" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.1)

    def upload(self, file):
        """Return the path of a file on the server, or the status that it is refused with."""
        with open(file, "rb") as stream:
            url = f"{self.address}/gradio_api/upload"
            answer = httpx.post(url, files={"files": stream}, timeout=60)
        return answer.json()[0] if answer.status_code == 200 else answer.status_code

    def detect(self, file, model=None):
        """The events of the endpoint that the button calls, as the browser would get them."""
        url = f"{self.address}/gradio_api/call/detect"
        event = httpx.post(url, json={"data": [model or self.model, file]}).json()["event_id"]
        return httpx.get(f"{url}/{event}", timeout=120).text


@pytest.fixture(scope="module")
def page(small_detector, tmp_path_factory):
    page = Page(small_detector, tmp_path_factory.mktemp("page"))
    yield page
    page.process.terminate()
    page.process.wait()


def data(**fields):
    return {"meta": {"_type": "gradio.FileData"}, **fields}


def test_what_is_uploaded_is_run(page, picture):  # noqa: F811
    """The control of the attacks below: the same endpoint does find something."""
    assert FOUND in page.detect(data(path=page.upload(picture)))


def test_files_of_the_server_are_out_of_reach(page, picture):  # noqa: F811
    """A picture outside of the uploads would be found something in, if it were read."""
    uploads = page.upload(picture).rpartition("/")[0]
    for path in (
        *(str(picture), f"{uploads}/../../../..{picture}", "/etc/passwd"),
        f"file://{picture}",
    ):
        for stolen in (data(path=path), data(path=path, url=path), data(path="", url=path)):
            answer = page.detect(stolen)
            assert "event: error" in answer
            assert FOUND not in answer
            assert "root:" not in answer
    for path in (str(picture), "/etc/passwd", "..%2F..%2F..%2F..%2Fetc/passwd"):
        assert httpx.get(f"{page.address}/gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433"])
def test_addresses_within_the_network_are_not_fetched(page, picture, host):  # noqa: F811
    server = Server()
    server.answers = {"photo.png": content(picture.read_bytes())}
    with server.running():
        port = server.url.rpartition(":")[2].strip("/")
        address = f"http://{host}:{port}/photo.png"
        for stolen in (data(path=address), data(path=address, url=address)):
            assert FOUND not in page.detect(stolen)
        assert server.requests == []


def test_models_are_those_of_the_list(page, picture):  # noqa: F811
    """Not any file that the server could open."""
    answer = page.detect(data(path=page.upload(picture)), "/etc/passwd")
    assert "event: error" in answer
    assert FOUND not in answer


def test_a_picture_that_unpacks_to_too_many_pixels(page, tmp_path):
    Image.new("L", (8000, 8000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    answer = page.detect(data(path=page.upload(tmp_path / "bomb.png")))
    assert "The picture cannot be read as a picture: Image size (64000000 pixels)" in answer


def test_a_file_that_is_too_large_is_not_kept(page, tmp_path):
    with (tmp_path / "zeros.png").open("wb") as zeros:
        zeros.truncate(200_000_000)
    assert page.upload(tmp_path / "zeros.png") == 413
    kept = sum(f.stat().st_size for f in page.temporary.rglob("*") if f.is_file())
    assert kept < 50_000_000


def test_it_leaves_no_files(small_detector, picture, tmp_path):  # noqa: F811
    """Neither in the current folder nor, after SIGTERM, in the temporary one."""
    page = Page(small_detector, tmp_path)
    assert FOUND in page.detect(data(path=page.upload(picture)))
    assert list(page.temporary.rglob("photo.png"))
    page.process.send_signal(signal.SIGTERM)
    assert page.process.wait(30) == 0
    assert list(page.current.iterdir()) == []
    assert [file for file in page.temporary.rglob("*") if file.is_file()] == []


def upload(shown, file):
    shown.get_by_role("button", name="Detect").wait_for(timeout=60_000)
    shown.set_input_files("input[type=file]", str(file))
    shown.wait_for_timeout(1000)
    shown.get_by_role("button", name="Detect").click()


def count_rows(shown):
    cells = shown.locator("#table tbody tr").all_inner_texts()
    return len([text for text in cells if text.strip()])


def test_a_picture_in_the_browser(page, picture, tmp_path):  # noqa: F811
    """Upload, wait, see boxes, move the slider, upload a broken file."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("there is no chromium or google-chrome")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=FLAGS)
        shown = browser.new_page(viewport={"width": 1280, "height": 1100})
        shown.goto(page.address)
        upload(shown, picture)
        shown.get_by_text(FOUND).wait_for(timeout=120_000)
        shown.locator("#drawn img").wait_for(timeout=30_000)
        before = count_rows(shown)
        slider = shown.locator("input[type=range]").first
        slider.fill("0")
        more = "n => document.querySelectorAll('#table tbody tr').length > n"
        shown.wait_for_function(more, arg=before, timeout=30_000)
        shown.reload()
        (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:40])
        upload(shown, tmp_path / "broken.png")
        shown.get_by_text("The picture cannot be read as a picture").wait_for(timeout=30_000)
        assert "Traceback" not in shown.locator("#status").inner_text()
        browser.close()
