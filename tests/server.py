"""A web server on 127.0.0.1 that behaves as badly as it is told to."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


def content(data: bytes, headers: dict[str, str] | None = None) -> Answer:
    """All of it, with its length."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)

    return answer


def cut_off(data: bytes) -> Answer:
    """Half of what the length promises."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2])

    return answer


def slow(data: bytes, seconds: float) -> Answer:
    """In twenty pieces over some seconds, without a length."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        size = len(data) // 20 + 1
        for start in range(0, len(data), size):
            request.wfile.write(data[start : start + size])
            request.wfile.flush()
            time.sleep(seconds / 20)

    return answer


def silent(data: bytes, seconds: float) -> Answer:
    """A third of it, and then nothing for a while."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 3])
        request.wfile.flush()
        time.sleep(seconds)

    return answer


def status(code: int, page: bytes = b"<html>no</html>", headers: dict | None = None) -> Answer:
    """A status other than 200, or a redirection with its Location."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for key, value in {"Content-Length": str(len(page)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(page)

    return answer


class Server:
    """Its ``answers`` are by path; what was asked for is in ``requests``."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        host, port = self.http.server_address[:2]
        return f"http://{host}:{port}/"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                outer.answers.get(self.path.lstrip("/"), status(404))(self)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.http.shutdown()
            self.http.server_close()
