"""A small hub on this machine, for huggingface_hub's own client: repositories are folders, a revision is a sha1."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


class Hub(ThreadingHTTPServer):
    """`requests` are the paths that were asked for; `cut` breaks off the bodies of files with this suffix."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.requests, self.cut = root, list[str](), ""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self.tell("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", tree="tree" in parts[4:5])
        elif len(parts) > 4 and parts[2] == "resolve":
            self.give("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "EntryNotFound")

    def tell(self, name: str, revision: str, *, tree: bool) -> None:
        """The commit and the files, as /api/models/{name}/revision/{revision} and .../tree/{revision} tell them."""
        if not self.known(name, revision):
            return
        folder = self.server.root / name
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        found: object = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
        if tree:
            sizes = {file: (folder / file).stat().st_size for file in files}
            found = [{"type": "file", "path": file, "size": size, "oid": COMMIT} for file, size in sizes.items()]
        self.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def give(self, name: str, revision: str, file: str) -> None:
        if not self.known(name, revision):
            return
        path = self.server.root / name / file
        if not path.is_file():
            self.refuse(404, "EntryNotFound")
            return
        body = path.read_bytes()
        etag = hashlib.sha256(body).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream"}
        cut = bool(self.server.cut) and file.endswith(self.server.cut)
        self.answer(200, body, headers, cut=cut)

    def known(self, name: str, revision: str) -> bool:
        if name.endswith("/gated"):
            self.refuse(403, "GatedRepo")
        elif name.endswith("/private") or not (self.server.root / name).is_dir():
            self.refuse(401 if name.endswith("/private") else 404, "RepoNotFound")
        elif revision not in REVISIONS:
            self.refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
