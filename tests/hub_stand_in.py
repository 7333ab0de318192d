"""A stand-in for the Hugging Face Hub: the few endpoints that its client calls, over files in memory."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlparse


class Hub(ThreadingHTTPServer):
    """Repositories by name, each its files by path; `asked`: every (method, path), with the token that came along."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.asked, self.tokens = {}, [], set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo):
        """A revision: the fingerprint of what is there."""
        held = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in self.repos[repo].items())
        return hashlib.sha1(json.dumps(held).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body=b"", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def asked(self):
        path = unquote(urlparse(self.path).path)
        self.server.asked.append((self.command, path))
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        path, body = self.asked()
        if not self.headers.get("Authorization"):
            return self.answer(401, {"error": "Invalid username or password."})
        self.server.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            status = 409 if repo in self.server.repos else 200
            self.server.repos.setdefault(repo, {})
            return self.answer(status, {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        repo, _, action = path.removeprefix("/api/models/").partition("/")[0:3]
        repo, _, action = (f"{repo}/{action.partition('/')[0]}", "", action.partition("/")[2])
        if repo not in self.server.repos:
            return self.missing(repo)
        if action.startswith("preupload/"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = self.server.commit(repo)
        return self.answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit})

    def do_GET(self):
        path, _ = self.asked()
        if path.startswith(("/api/models/", "/api/datasets/")):
            _, _, _, user, name, *rest = path.split("/")
            repo = f"{user}/{name}"
            if repo not in self.server.repos:
                return self.missing(repo)
            files = self.server.repos[repo]
            if rest[:1] == ["tree"]:
                sizes = {file: len(content) for file, content in files.items()}
                return self.answer(
                    200, [{"type": "file", "path": f, "size": s, "oid": oid(files[f])} for f, s in sizes.items()]
                )
            siblings = [{"rfilename": file} for file in files]
            return self.answer(200, {"id": repo, "sha": self.server.commit(repo), "siblings": siblings})
        user, name, *inner = path.strip("/").split("/")  # USER/NAME/resolve/REVISION/FILE
        content = self.server.repos.get(f"{user}/{name}", {}).get("/".join(inner[2:]))
        if content is None:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        return self.answer(200, content, ETag=f'"{oid(content)}"', X_Repo_Commit=self.server.commit(f"{user}/{name}"))

    do_HEAD = do_GET  # noqa: N815

    def missing(self, repo):
        self.answer(404, {"error": f"Repository {repo} not found"}, X_Error_Code="RepoNotFound")

    def log_message(self, *_):
        pass


def oid(content):
    return hashlib.sha1(content).hexdigest()


@contextmanager
def stand_in():
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
