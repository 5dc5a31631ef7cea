"""A model hub on the loopback interface, as much of one as the real client needs for a rule.

It speaks the protocol of the Hub: files are resolved with a HEAD that announces commit, size and
hash; large files live on another host (here: another name of the same one), where no token must
be sent; uploads go through preupload, LFS batch, PUT and a commit of JSON lines. Everything is in
memory. `faults` spoil answers on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_loopback"


@dataclass
class Reply:
    """An answer; `announced` is the Content-Length where it is not the body's."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None


@dataclass
class Fault:
    """Spoils the next `times` answers to requests that match, such as "GET .*safetensors".

    Attributes:
        request: regular expression, searched in "METHOD /path".
        spoil: from what would make the right answer, if it is called, to a wrong one.
        times: how often.
    """

    request: str
    spoil: Callable[[Callable[[], Reply]], Reply]
    times: int = 1_000_000


def status(code: int, request: str, times: int = 1_000_000, error: str | None = None) -> Fault:
    """Do nothing but answer with this status and, if given, the Hub's own name of the error."""
    headers = {} if error is None else {"X-Error-Code": error}
    return Fault(request, lambda right: Reply(code, b"", headers), times)


def truncated(request: str, keep: int, times: int = 1_000_000) -> Fault:
    """Announce the whole body, send `keep` bytes of it and hang up."""

    def spoil(right: Callable[[], Reply]) -> Reply:
        reply = right()
        return Reply(reply.status, reply.body[:keep], reply.headers, len(reply.body))

    return Fault(request, spoil, times)


def altered(request: str, times: int = 1_000_000) -> Fault:
    """Another body of the same size."""

    def spoil(right: Callable[[], Reply]) -> Reply:
        reply = right()
        return Reply(reply.status, bytes(byte ^ 1 for byte in reply.body), reply.headers)

    return Fault(request, spoil, times)


def stalled(request: str, release: threading.Event, times: int = 1_000_000) -> Fault:
    """Answer only when `release` is set."""

    def spoil(right: Callable[[], Reply]) -> Reply:
        release.wait(60)
        return right()

    return Fault(request, spoil, times)


@dataclass
class Repo:
    """Commits in their order, and what points at them."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: Files) -> str:
        """Put a new commit on main; its name depends on nothing but the contents and the past."""
        past = repr((list(self.commits), sorted(files.items()))).encode()
        name = hashlib.sha1(past).hexdigest()
        self.commits[name] = files
        self.refs["main"] = name
        return name

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class LoopbackHub:
    """The server; a context manager.

    Attributes:
        url: its address, for HF_ENDPOINT.
        repos: `user/repo` -> contents.
        faults: the first that matches is applied.
        requests: "METHOD /path" of every request, in order.
        leaks: paths on the storage host that were asked for with a token.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.leaks: list[str] = []
        self.lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_url = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        serve = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        serve.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, repo: str, files: Files, tag: str | None = None) -> str:
        """Commit files directly, over those that are there, and return the commit."""
        home = self.repos.setdefault(repo, Repo())
        latest = home.commits.get(home.refs.get("main", ""), {})
        commit = home.commit(latest | files)
        if tag is not None:
            home.refs[tag] = commit
        return commit

    def spoilt(self, request: str, right: Callable[[], Reply]) -> Reply:
        """The reply, or what the first fault that matches makes of it."""
        with self.lock:
            matching = (f for f in self.faults if f.times > 0 and re.search(f.request, request))
            fault = next(matching, None)
            if fault is not None:
                fault.times -= 1
        return right() if fault is None else fault.spoil(right)


def is_large(path: str) -> bool:
    """Whether the Hub stores a file apart from git."""
    return path.endswith(".safetensors")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def as_json(value: object, code: int = 200) -> Reply:
    return Reply(code, json.dumps(value).encode(), {"Content-Type": "application/json"})


def failure(code: int, error: str) -> Reply:
    return Reply(code, b"", {"X-Error-Code": error, "X-Error-Message": error})


class Handler(BaseHTTPRequestHandler):
    """From a request to a reply; one method for each thing that the client asks."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def answer(self) -> None:
        """Read the request, find the reply, spoil it if a fault says so, send it."""
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        body = self.read_body()
        self.hub.requests.append(request)
        method = "GET" if self.command == "HEAD" else self.command
        parts = path.strip("/").split("/")
        self.send(self.hub.spoilt(request, lambda: self.route(method, parts, body)))

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, reply: Reply) -> None:
        length = len(reply.body) if reply.announced is None else reply.announced
        try:
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(length), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)
        except ConnectionError:  # the client has given up
            self.close_connection = True
        self.close_connection |= length != len(reply.body)

    def route(self, method: str, parts: list[str], body: bytes) -> Reply:
        writes = method != "GET" and "validate-yaml" not in parts and parts[0] != "storage"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if writes and token != TOKEN:
            return Reply(401)
        match (method, parts):
            case ("GET", ["storage", digest]):
                return self.read_storage(digest)
            case ("PUT", ["storage", digest]):
                return self.write_storage(digest, body)
            case ("POST", ["api", "repos", "create"]):
                return self.create(json.loads(body))
            case ("POST", ["api", "validate-yaml"]):
                return as_json({"errors": [], "warnings": []})
            case ("GET" | "POST", ["api", "models", user, name, *rest]):
                return self.in_repo(
                    f"{user}/{name}", token, lambda repo: self.api(repo, rest, body)
                )
            case ("POST", [user, name, "info", "lfs", "objects", "batch"]):
                return self.batch(json.loads(body))
            case ("GET", [user, name, "resolve", revision, *path]):
                return self.in_repo(
                    f"{user}/{name}", token, lambda repo: self.resolve(repo, revision, *path)
                )
        return failure(404, "NoSuchEndpoint")

    def in_repo(self, name: str, token: str, then: Callable[[Repo], Reply]) -> Reply:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and token != TOKEN):
            return failure(401 if token != TOKEN else 404, "RepoNotFound")
        return then(repo)

    def create(self, wanted: dict[str, str]) -> Reply:
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repos:
            return as_json(url, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repos[name] = Repo(private=private)
        self.hub.repos[name].commit({})
        return as_json(url)

    def api(self, repo: Repo, parts: list[str], body: bytes) -> Reply:
        match parts:
            case ["preupload", _]:
                asked = [item["path"] for item in json.loads(body)["files"]]
                modes = [
                    {
                        "path": path,
                        "uploadMode": "lfs" if is_large(path) else "regular",
                        "shouldIgnore": False,
                    }
                    for path in asked
                ]
                return as_json({"files": modes})
            case ["commit", "main"]:
                return self.commit(repo, [json.loads(line) for line in body.splitlines() if line])
            case ["tree", revision]:
                return self.tree(repo, revision)
            case ["refs"]:
                refs = [
                    {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
                    for name, commit in repo.refs.items()
                ]
                return as_json({"branches": [], "tags": refs, "converts": []})
            case ["tag", revision]:
                name, commit = json.loads(body)["tag"], repo.resolve(revision)
                if name in repo.refs or commit is None:
                    return as_json({"error": "Reference already exists"}, 409)
                repo.refs[name] = commit
                return as_json({})
            case [] | ["revision", _]:
                commit = repo.resolve(parts[1] if parts else "main")
                return as_json({"id": "user/repo", "sha": commit, "siblings": []})
        return failure(404, "NoSuchEndpoint")

    def tree(self, repo: Repo, revision: str) -> Reply:
        """What lies in a commit; there are no folders."""
        commit = repo.resolve(revision)
        if commit is None:
            return failure(404, "RevisionNotFound")
        files = repo.commits[commit].items()
        return as_json(
            [
                {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
                for path, data in files
            ]
        )

    def commit(self, repo: Repo, lines: list[dict[str, dict[str, str]]]) -> Reply:
        files = dict(repo.commits[repo.refs["main"]])
        for line in lines:
            value = line["value"]
            if str(line["key"]) == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif str(line["key"]) == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif str(line["key"]) == "deletedFile":
                del files[value["path"]]
        name = repo.commit(files)
        return as_json({"commitOid": name, "commitUrl": f"{self.hub.url}/user/repo/commit/{name}"})

    def batch(self, wanted: dict[str, list[dict[str, str]]]) -> Reply:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.url}/storage/{item['oid']}"}}}
            for item in wanted["objects"]
        ]
        return as_json({"transfer": "basic", "objects": objects})

    def write_storage(self, digest: str, body: bytes) -> Reply:
        if sha256(body) != digest:
            return Reply(400)
        self.hub.blobs[digest] = body
        return Reply()

    def read_storage(self, digest: str) -> Reply:
        if "Authorization" in self.headers:
            self.hub.leaks.append(self.path)
        return self.part(self.hub.blobs[digest], {"ETag": f'"{digest}"'})

    def resolve(self, repo: Repo, revision: str, *parts: str) -> Reply:
        commit, path = repo.resolve(revision), "/".join(parts)
        if commit is None:
            return failure(404, "RevisionNotFound")
        if path not in repo.commits[commit]:
            return failure(404, "EntryNotFound")
        data = repo.commits[commit][path]
        headers = {"X-Repo-Commit": commit}
        if not is_large(path):
            return self.part(data, headers | {"ETag": f'"{git_hash(data)}"'})
        digest = sha256(data)
        self.hub.blobs[digest] = data
        location = f"{self.hub.storage_url}/storage/{digest}"
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
        return Reply(302, b"", headers | {"Location": location})

    def part(self, data: bytes, headers: dict[str, str]) -> Reply:
        """The whole, or from where a broken download goes on."""
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            return Reply(200, data, headers)
        first = int(start[1])
        span = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        return Reply(206, data[first:], headers | span)
