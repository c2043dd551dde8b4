"""A Hub on this machine: the requests of huggingface_hub over HTTP, answered as huggingface.co does.

Files are kept by their hashes, and what is sent is checked against hash and size. Writing, and reading what is
private, needs the bearer token of the owner. `HubServer.requests` is what was asked of it, and `HubServer.faults` cuts
connections.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

BINARY = (".safetensors", ".bin", ".png")
LFS_MINIMUM = 10 * 2**20  # bytes of a text file


@dataclass
class Stored:
    """A file of a commit: its hash (sha256 of a large one, that of git otherwise) and its size."""

    oid: str
    size: int
    is_large: bool


@dataclass
class Repository:
    kind: str
    name: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)

    def commit(self, files: dict[str, Stored], branch: str) -> str:
        sha = secrets.token_hex(20)
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def files(self, revision: str = "main") -> dict[str, Stored] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Fault:
    """Cut the connection of the next requests that fit, after `keep` bytes of what they send, or answer a status."""

    method: str
    path: str
    times: int
    keep: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tokens: dict[str, tuple[str, str]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens  # token -> (user, "write" or "read")
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.signatures: dict[str, tuple[str, int]] = {}  # of an upload that was granted -> oid, size
        self.requests: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def make(self, kind: str, name: str, *, private: bool = False) -> Repository:
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        repository.commit({".gitattributes": self.keep(b"*.safetensors filter=lfs\n")}, "main")
        return repository

    def keep(self, content: bytes) -> Stored:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.blobs[oid] = content
        return Stored(oid, len(content), False)

    def content(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Every file of a repository."""
        files = self.repositories[kind, name].files(revision)
        return {path: self.blobs[stored.oid] for path, stored in files.items()}

    def sent(self) -> list[str]:
        """Hashes of the large files that arrived."""
        return [path.partition("?")[0].rpartition("/")[2] for m, path, s in self.requests if m == "PUT" and s == 200]

    def handle_error(self, request, client_address):
        """Connections that are cut are no errors of the server."""


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        """Nothing; `HubServer.requests` has them."""

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        fault = next((f for f in self.server.faults if f.method == self.command and f.path in self.path), None)
        if fault is not None and fault.status is not None:
            self._read_body()
            self._log(fault.status)
            self.send_response(fault.status)
            for name, value in {"Content-Length": "0", **fault.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        if fault is not None:
            self.rfile.read(min(fault.keep, int(self.headers.get("Content-Length") or 0)))
            self._log(0)
            with self.server.lock:
                fault.times -= 1
                self.server.faults = [each for each in self.server.faults if each.times > 0]
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.body = self._read_body()
        try:
            with self.server.lock:
                status, content, headers = self._route()
        except Refused as refusal:
            status, content = refusal.status, {"error": str(refusal)}
            headers = {"X-Error-Message": str(refusal), "X-Error-Code": refusal.code}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self._log(status)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _log(self, status: int):
        with self.server.lock:
            self.server.requests.append((self.command, self.path, status))

    # ---- who asks, and for what ----

    def _user(self, *, to_write: bool = False) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.server.tokens:
            raise Refused(
                401, "Invalid credentials in Authorization header" if token else "Invalid username or password."
            )
        user, role = self.server.tokens[token]
        if to_write and role != "write":
            raise Refused(403, "The token has no permission to write")
        return user

    def _repository(self, kind: str, name: str, *, to_write: bool = False) -> Repository:
        repository = self.server.repositories.get((kind, name))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        reader = self.server.tokens.get(token, ("", ""))[0]
        if repository is None or (repository.private and reader != name.split("/")[0]):
            raise Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        if to_write and self._user(to_write=True) != name.split("/")[0]:
            raise Refused(403, "You don't have the rights to write to this repository")
        return repository

    def _files(self, repository: Repository, revision: str) -> dict[str, Stored]:
        files = repository.files(revision)
        if files is None:
            raise Refused(404, "Revision not found", "RevisionNotFound")
        return files

    def _route(self):
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        if path == "/api/whoami-v2":
            return 200, {"name": self._user(), "type": "user", "orgs": []}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(self.body)["content"])
        if match := re.fullmatch(r"/storage/(\w+)", path):
            return self._store(match[1], query["signature"][0])
        if match := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", path):
            repository = self._repository("space" if match[1] else "model", match[2], to_write=True)
            return (self._batch if match[3] == "batch" else self._verify)(json.loads(self.body), repository)
        if match := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self._repository("space" if match[1] else "model", match[2])
            return self._resolve(repository, match[3], match[4])
        if match := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)(?:/([\w-]+)(?:/(.+))?)?", path):
            kind, name, action, rest = match.groups()
            call = getattr(self, f"_api_{(action or 'revision').replace('-', '_')}", None)
            if call is not None:
                return call(kind, name, rest or "main")
        raise Refused(404, f"No such address: {self.command} {path}")

    # ---- repositories ----

    def _create(self, wanted: dict):
        user = self._user(to_write=True)
        name, kind = f"{wanted.get('organization') or user}/{wanted['name']}", wanted.get("type") or "model"
        if name.split("/")[0] != user:
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace of another")
        url = f"{self.server.url}/{'spaces/' if kind == 'space' else ''}{name}"
        if (kind, name) in self.server.repositories:
            return 409, {"error": "You already created this repo", "url": url}, {}
        self.server.make(kind, name, private=wanted.get("private") or wanted.get("visibility") == "private")
        return 200, {"url": url, "name": name}, {}

    def _validate(self, text: str):
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else {}
            assert isinstance(data, dict), "no mapping"
            for entry in data.get("model-index", []):
                for result in entry["results"]:
                    assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
                    assert all(metric["type"] and "value" in metric for metric in result["metrics"])
                assert entry["name"]
        except (yaml.YAMLError, AssertionError, KeyError, TypeError) as error:
            return 400, {"errors": [{"message": repr(error)}], "warnings": []}, {}
        return 200, {"errors": [], "warnings": []}, {}

    def _api_auth_check(self, kind: str, name: str, rest: str):
        self._repository(kind, name, to_write=rest == "write")
        return 200, {}, {}

    def _api_branch(self, kind: str, name: str, branch: str):
        repository = self._repository(kind, name, to_write=True)
        if branch in repository.branches:
            raise Refused(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return 201, {}, {}

    def _api_revision(self, kind: str, name: str, revision: str):
        repository = self._repository(kind, name)
        files = self._files(repository, revision)
        sha = repository.branches.get(revision, revision)
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings}
        return 200, {**about, "tags": [], "downloads": 0, "likes": 0}, {}

    def _api_tree(self, kind: str, name: str, revision: str):
        files = self._files(self._repository(kind, name), revision)
        return 200, [_entry(path, stored) for path, stored in files.items()], {}

    # ---- uploads ----

    def _api_preupload(self, kind: str, name: str, revision: str):
        files, answers = self._files(self._repository(kind, name, to_write=True), revision), []
        for file in json.loads(self.body)["files"]:
            is_large = file["path"].endswith(BINARY) or file["size"] > LFS_MINIMUM
            answer = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            known = files.get(file["path"])
            answers.append({**answer, "oid": known.oid} if known else answer)
        return 200, {"files": answers}, {}

    def _batch(self, wanted: dict, repository: Repository):
        objects, place = (
            [],
            f"{self.server.url}/{'spaces/' if repository.kind == 'space' else ''}{repository.name}.git",
        )
        for each in wanted["objects"]:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server.blobs:
                signature = secrets.token_hex(8)
                self.server.signatures[signature] = each["oid"], each["size"]
                href = f"{self.server.url}/storage/{each['oid']}?signature={signature}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{place}/info/lfs/objects/verify"}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _store(self, oid: str, signature: str):
        if (oid, len(self.body)) != self.server.signatures.get(signature):
            raise Refused(403, "No such upload was granted")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "The content has another hash")
        self.server.blobs[oid] = self.body
        return 200, {}, {}

    def _verify(self, wanted: dict, repository: Repository):
        if len(self.server.blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "No such object")
        return 200, {}, {}

    def _api_commit(self, kind: str, name: str, branch: str):
        repository = self._repository(kind, name, to_write=True)
        files, wanted = dict(self._files(repository, branch)), [json.loads(line) for line in self.body.splitlines()]
        for item in wanted[1:]:
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = self.server.keep(base64.b64decode(value["content"], validate=True))
            elif item["key"] == "lfsFile":
                if len(self.server.blobs.get(value["oid"], b"")) != value["size"]:
                    raise Refused(400, f"The object of {value['path']} was never uploaded")
                files[value["path"]] = Stored(value["oid"], value["size"], True)
            else:
                raise Refused(400, f"Unknown operation {item['key']}")
        sha = repository.commit(files, branch)
        return 200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha}, {}

    # ---- downloads ----

    def _resolve(self, repository: Repository, revision: str, path: str):
        sha, files = repository.branches.get(revision, revision), self._files(repository, revision)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        stored = files[path]
        headers = {"ETag": f'"{stored.oid}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
        if stored.is_large:
            headers |= {"X-Linked-Etag": f'"{stored.oid}"', "X-Linked-Size": str(stored.size)}
        return 200, self.server.blobs[stored.oid], headers


def _entry(path: str, stored: Stored) -> dict:
    entry = {"type": "file", "path": path, "oid": stored.oid, "size": stored.size}
    if stored.is_large:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{stored.oid}\nsize {stored.size}\n"
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer.encode()).hexdigest()
        entry["lfs"] = {"oid": stored.oid, "size": stored.size, "pointerSize": len(pointer)}
    return entry
