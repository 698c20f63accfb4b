"""The Hugging Face hub: huggingface_hub itself, against a hub of one process on this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from commands import run_command

TOKEN = "hf_a_secret_of_the_user"
NAME = "somebody/digits"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that a commit of small files and a download take."""

    def log_message(self, *args):
        pass

    def answer(self, body, code=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        sent, files = self.rfile.read(length), self.server.files
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path.endswith("/repos/create"):
            return self.answer({"url": f"http://{self.headers['Host']}/{NAME}", "id": NAME})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(sent)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            url = f"http://{self.headers['Host']}/{NAME}/commit/1"
            facts = {"commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""}
            return self.answer({"success": True, **facts})
        return self.answer({"errors": [], "warnings": []})  # of the card

    def do_GET(self):
        files = self.server.files
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Repository not found"}, 401)
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            return self.answer(listed)
        data = files.get(path.removeprefix(f"/{NAME}/resolve/main/"))
        if data is None:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self.answer(data, ETag=etag, X_Repo_Commit="1" * 40)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(hub, tmp_path):
    host, port = hub.server_address
    endpoint = f"http://{host}:{port}"
    return {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hub")}


def predict(model, output, *options):
    words = ("predict", "--model", model, "--input", "examples/nuclei/images", "--output", output)
    return *words, *options


@pytest.mark.slow
def test_a_model_goes_to_the_hub_and_comes_back(small_detector, hub, environment, tmp_path):
    hub.files |= {"digits-01234567.pth": b"weights of before", ".gitattributes": b""}
    words = ("publish", small_detector, tmp_path / "out", "--name", "digits", "--hub", NAME)
    done = run_command(*words, **environment)
    assert done.returncode == 0, done.stderr
    assert f"resnest-d2 predict --model hf://{NAME}" in done.stdout
    (weights,) = (tmp_path / "out").glob("digits-*.pth")
    assert {*hub.files} == {weights.name, "README.md", "config.yaml", ".gitattributes"}
    assert hub.files[weights.name] == weights.read_bytes()
    assert f"--model hf://{NAME} --input" in hub.files["README.md"].decode()
    said = [done.stdout + done.stderr]
    for name in (f"hf://{NAME}", f"hf://{NAME}/{weights.name}"):
        output = tmp_path / f"drawn{len(said)}"
        words = predict(name, output, "--no-draw", "--json", output / "found.json")
        done = run_command(*words, **environment)
        assert done.returncode == 0, done.stderr
        assert (output / "found.json").stat().st_size > 100
        said.append(done.stdout + done.stderr)
    assert TOKEN not in "".join(said)
    hub.files["second.pth"] = b""
    done = run_command(*predict(f"hf://{NAME}", "x"), **environment)
    assert done.returncode == 2
    assert f"hf://{NAME} holds several weight files: add one of digits-" in done.stderr


@pytest.mark.slow
def test_the_hub_refuses(small_detector, environment, tmp_path):
    environment["HF_TOKEN"] = "hf_wrong"
    words = ("publish", small_detector, tmp_path / "out", "--name", "digits", "--hub")
    done = run_command(*words, NAME, **environment)
    assert done.returncode == 2
    assert f"error: --hub {NAME}: the hub says " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "hf_wrong" not in done.stdout + done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3  # nothing is lost
    words = ("publish", small_detector, tmp_path / "other", "--hub")
    done = run_command(*words, "digits", **environment)
    assert not (tmp_path / "other").exists()
    assert "error: --hub must be user/repository, got 'digits'" in done.stderr
    done = run_command(*predict(f"hf://{NAME}", tmp_path), **environment)
    assert f"error: cannot get hf://{NAME}: " in done.stderr
