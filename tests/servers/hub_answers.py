"""How the Hub of the tests answers, route by route."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.hub_repos import File, apply, as_file
from tests.servers.hub_state import Fault, Hub

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_ROUTES = {
    "api": re.compile(r"GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?"),
    "head": re.compile(r"HEAD /(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)"),
    "resolve": re.compile(r"GET /(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)"),
    "small": re.compile(
        r"(GET|HEAD) /api/resolve-cache/models/(?P<repo>[^/]+/[^/]+)/(?P<rev>[^/]+)/(?P<file>.+)"
    ),
    "whoami": re.compile(r"GET /api/whoami-v2"),
    "create": re.compile(r"POST /api/repos/create"),
    "yaml": re.compile(r"POST /api/validate-yaml"),
    "branch": re.compile(r"POST /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)"),
    "unbranch": re.compile(r"DELETE /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)"),
    "preupload": re.compile(r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)"),
    "commit": re.compile(r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)"),
    "batch": re.compile(r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    "cdn": re.compile(r"GET /blob/(?P<oid>[0-9a-f]{64})"),
    "put": re.compile(r"PUT /blob/(?P<oid>[0-9a-f]{64})"),
}


class HubAnswers(BaseHTTPRequestHandler):
    """One connection to the Hub or to its CDN."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    fault: Fault | None = None

    def log_message(self, *_: object) -> None:
        """Say nothing: stderr is the tests'."""

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        for kind, route in _ROUTES.items():
            if match := route.fullmatch(f"{self.command} {url.path}"):
                named = {key: unquote(value) for key, value in match.groupdict().items() if value}
                self._serve_kind(kind, named)
                return
        self._answer(404, {"error": f"no route for {self.command} {url.path}"})

    def _serve_kind(self, kind: str, named: Mapping[str, str]) -> None:
        self.fault = self.hub.next_fault(kind)
        if "Authorization" in self.headers:
            self.hub.authorized[kind] += 1
        if self.fault is not None and self.fault.status:
            error = {"error": self.fault.why}
            self._answer(self.fault.status, error, **self.fault.headers)
        else:
            getattr(self, f"_do_{kind}")(**named)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    # What is asked of the Hub.

    def _do_api(self, repo: str, rev: str = "main") -> None:
        found = self._find(repo, rev, for_files=False)
        if found is None:
            return
        sha, files = found
        siblings = [file.as_sibling(name) for name, file in files.items()]
        if "blobs" not in self.query:
            siblings = [{"rfilename": name} for name in files]
        shown = {"private": self.hub.repos[repo].private, "gated": self.hub.repos[repo].gated}
        self._answer(200, {"id": repo, "sha": sha, "siblings": siblings, **shown})

    def _do_resolve(self, repo: str, rev: str, file: str) -> None:
        found = self._find(repo, rev)
        if found is None:
            return
        sha, files = found
        if file not in files:
            self._refuse(404, "EntryNotFound", "Entry not found", commit=sha)
            return
        said = {
            "X-Repo-Commit": sha,
            "X-Linked-Size": str(len(files[file].content)),
            "X-Linked-Etag": f'"{files[file].etag}"',
        }
        if files[file].is_lfs:
            self._answer(302, {}, Location=self.hub.signed(files[file].sha256), **said)
        else:
            place = f"/api/resolve-cache/models/{repo}/{sha}/{file}"
            self._answer(307, {}, Location=place, **said)

    _do_head = _do_resolve

    def _do_small(self, repo: str, rev: str, file: str) -> None:
        found = self._find(repo, rev)
        if found is not None:
            sha, files = found
            said = {"ETag": f'"{files[file].etag}"', "X-Repo-Commit": sha}
            self._content(files[file].content, said)

    def _do_cdn(self, oid: str) -> None:
        if self._is_signed():
            # A CDN has ETags of its own, which say nothing of the content's hash.
            self._content(self.hub.blobs[oid], {"ETag": '"f00d"'})

    def _do_whoami(self) -> None:
        right = self._right()
        if right in {"", "wrong"}:
            self._answer(401, {"error": "Invalid username or password."})
            return
        token = {"displayName": "tests", "role": right}
        orgs = [{"type": "org", "name": "org", "roleInOrg": "write"}]
        self._answer(200, {"name": "tester", "orgs": orgs, "auth": {"accessToken": token}})

    # What changes it.

    def _do_create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not self._may_write():
            return
        if repo in self.hub.repos:
            self._answer(409, {"error": "You already created this model repo"})
            return
        self.hub.add(repo, {".gitattributes": b""}, private=asked.get("visibility") == "private")
        self._answer(200, {"url": f"{self.hub.endpoint}/{repo}", "id": repo, "name": repo})

    def _do_branch(self, repo: str, rev: str) -> None:
        if self._may_write():
            branches = self.hub.repos[repo].branches
            status = 409 if rev in branches else 200
            branches.setdefault(rev, branches["main"])
            self._answer(status, {})

    def _do_unbranch(self, repo: str, rev: str) -> None:
        if self._may_write():
            self.hub.repos[repo].branches.pop(rev)
            self._answer(200, {})

    def _do_yaml(self) -> None:
        self._answer(200, {"warnings": [], "errors": []})

    def _do_preupload(self, repo: str, rev: str) -> None:
        found = self._find(repo, rev)
        if found is not None and self._may_write():
            modes = [self._mode(file["path"], found[1]) for file in json.loads(self.body)["files"]]
            self._answer(200, {"files": modes})

    def _mode(self, path: str, files: Mapping[str, File]) -> dict[str, Any]:
        mode = "lfs" if as_file(path, b"").is_lfs else "regular"
        oid = files[path].etag if path in files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _do_batch(self, repo: str) -> None:
        if self._find(repo, "main") is not None and self._may_write():
            objects = [self._upload(each) for each in json.loads(self.body)["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, each: Mapping[str, Any]) -> dict[str, Any]:
        if each["oid"] in self.hub.blobs:
            return dict(each)
        return {**each, "actions": {"upload": {"href": self.hub.signed(each["oid"])}}}

    def _do_put(self, oid: str) -> None:
        if self._is_signed():
            self.hub.blobs[oid] = self.body
            self._answer(200, {})

    def _do_commit(self, repo: str, rev: str) -> None:
        if self._find(repo, rev) is not None and self._may_write():
            with self.hub.lock:
                status, said = apply(self.hub.repos[repo], rev, self.body, self.hub.blobs)
            url = f"{self.hub.endpoint}/{repo}/commit/{said.get('commitOid')}"
            self._answer(status, {**said, "commitUrl": url})

    # Who may what.

    def _right(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.tokens.get(token, "wrong" if token else "")

    def _may_write(self) -> bool:
        if self._right() == "write":
            return True
        self._answer(403, {"error": "you have no right to write here"})
        return False

    def _is_signed(self) -> bool:
        if self.query.get("Signature") == [f"cdn-secret-{self.hub.signature}"]:
            return True
        self._answer(403, {"error": "Request has expired"})
        return False

    def _find(
        self, name: str, rev: str, *, for_files: bool = True
    ) -> tuple[str, dict[str, File]] | None:
        """The commit that is asked for, or an answer that says why not."""
        right = self._right()
        repo = self.hub.repos.get(name)
        if right == "wrong":
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not right):
            self._refuse(404 if right else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and for_files and right != "write":
            self._refuse(403 if right else 401, "GatedRepo", f"Access to {name} is restricted")
        elif (sha := repo.find(rev)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        else:
            return sha, repo.commits[sha]
        return None

    # How it is said.

    def _refuse(self, status: int, code: str | None, why: str, commit: str | None = None) -> None:
        said = {"X-Error-Message": why, "X-Error-Code": code, "X-Repo-Commit": commit}
        headers = {key: value for key, value in said.items() if value is not None}
        self._answer(status, {"error": why}, **headers)

    def _content(self, content: bytes, headers: Mapping[str, str]) -> None:
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None or not self.hub.ranges:
            self._send(200, content, {**headers, "Accept-Ranges": "bytes"})
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        span = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206, content[start:stop], {**headers, "Content-Range": span})

    def _answer(self, status: int, document: Mapping[str, Any], **headers: str) -> None:
        self._send(status, json.dumps(document).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if self.command != "HEAD" or "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is None:
            self.wfile.write(body)
            return
        self._suffer(body, self.fault)

    def _suffer(self, body: bytes, fault: Fault) -> None:
        stop = len(body) if fault.cut_after is None else fault.cut_after
        step = 1000 if fault.drip_s else max(stop, 1)
        for start in range(0, stop, step):
            self.wfile.write(body[start : min(start + step, stop)])
            self.wfile.flush()
            time.sleep(fault.drip_s)
        if fault.cut_after is not None:
            time.sleep(fault.stall_s)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
