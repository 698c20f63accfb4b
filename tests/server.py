"""A web server on 127.0.0.1 that behaves as badly as it is told to."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


def content(
    body: bytes,
    code: int = 200,
    headers: dict[str, str | None] | None = None,
    send: int | None = None,
    seconds: float = 0.0,
) -> Answer:
    """An answer with a body.

    Args:
        body: what its length promises.
        code: its status.
        headers: more of them, or others; None in place of a value leaves a header out.
        send: how many bytes really come; None sends all.
        seconds: that pass before the answer ends.
    """

    def reply(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            if value is not None:
                request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body[:send])
        time.sleep(seconds)

    return reply


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
                outer.answers.get(self.path.lstrip("/"), content(b"<html>no</html>", 404))(self)

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
