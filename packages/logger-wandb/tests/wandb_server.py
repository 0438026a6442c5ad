"""As much of a W&B server as a run needs: GraphQL by the names of its operations, and the stream of a run's history."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RUN = {"id": "run", "name": "run", "displayName": "demo", "config": "{}", "sweepName": None, "historyLineCount": 0}
PROJECT = {"id": "project", "name": "uncategorized", "entity": {"id": "entity", "name": "team"}}


class Server:
    """Keeps what arrives; while it is :attr:`down` it closes every connection without an answer.

    Attributes:
        rows: the history, by its line.
        turned_away: requests that came while it was down.
    """

    def __init__(self):
        self.rows = {}
        self.turned_away = 0
        self.down = threading.Event()
        self.changed = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer({})

            def do_PUT(self):
                self._body()
                self._answer({})

            def do_POST(self):
                body = self._body()
                if server.down.is_set():
                    with server.changed:
                        server.turned_away += 1
                        server.changed.notify_all()
                    self.close_connection = True
                elif self.path == "/graphql":
                    self._answer({"data": server.graphql(json.loads(body))})
                else:
                    if self.path.endswith("/file_stream"):
                        server.stream(json.loads(body))
                    self._answer({})

            def _body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _answer(self, found):
                data = json.dumps(found).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def graphql(self, asked):
        query = asked["query"]
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": RUN | {"project": PROJECT}, "inserted": True}}
        if "createRunFiles" in query:
            names = asked["variables"]["files"]
            files = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in names]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        if "bucket(" in query:
            return {"model": PROJECT | {"bucket": None}}
        return {}

    def stream(self, body):
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history is None:
            return
        with self.changed:
            for number, line in enumerate(history["content"], history["offset"]):
                self.rows[number] = json.loads(line)
            self.changed.notify_all()

    def wait(self, for_what, timeout=120):
        """Whether it came true in time."""
        with self.changed:
            return self.changed.wait_for(for_what, timeout)

    def steps(self):
        """Of the rows, in their order."""
        return [self.rows[number]["step"] for number in sorted(self.rows)]


@contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
