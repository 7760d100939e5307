"""A stand-in of the hub's endpoint on this machine: what an upload in one commit and a download ask
for, and no more.

- Files go as the hub takes them: .safetensors by Git LFS, the others in the commit.
- `requests` holds what was asked for, as (method, path); `refuse` answers some of it with an error.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REFUSED = "you may not write here"


class Hub(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.stored, self.commits, self.requests = {}, {}, [], []
        self.repos, self.refuse = {}, {}  # {repo: what created it}, {end of a path: status}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sha(self):
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def commit(self, lines):
        header, *changes = [json.loads(line) for line in lines]
        for change in changes:
            value = change["value"]
            if change["key"] == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]
            else:
                self.files[value["path"]] = base64.b64decode(value["content"])
        paths = sorted(change["value"]["path"] for change in changes)
        self.commits.append({"summary": header["value"]["summary"], "paths": paths})


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format, *args):
        pass

    def answer(self, content, status=200, **headers):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        for name, value in {"Content-Length": len(raw), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def handle_request(self):
        path = self.path.partition("?")[0]
        body = self.read()
        self.server.requests.append((self.command, path))
        for ending, status in self.server.refuse.items():
            if path.endswith(ending):
                return self.answer({"error": REFUSED}, status)
        reply = getattr(self, self.command.lower())
        return reply(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def post(self, path, body):
        hub = self.server
        if path == "/api/repos/create":
            made = json.loads(body)
            repo = f"{made['organization']}/{made['name']}"
            there = {"url": f"{hub.address}/{repo}"}
            if repo in hub.repos:
                return self.answer({"error": "You already created this model repo", **there}, 409)
            hub.repos[repo] = made
            return self.answer(there)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**file, "actions": {"upload": {"href": f"{hub.address}/lfs/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            hub.commit(body.splitlines())
            repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
            address = f"{hub.address}/{repo}/commit/{hub.sha()}"
            return self.answer({"commitUrl": address, "commitOid": hub.sha()})
        return self.answer({"error": f"no {path} here"}, 404)

    def put(self, path, body):
        oid = path.removeprefix("/lfs/")
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.stored[oid] = body
        return self.answer({})

    def get(self, path, body):
        hub = self.server
        if "/tree/" in path:
            return self.answer([self.entry(name) for name in hub.files])
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            if repo not in hub.repos:
                return self.answer(
                    {"error": "no such repository"}, 404, X_Error_Code="RepoNotFound"
                )
            return self.answer({"id": repo, "sha": hub.sha(), "siblings": []})
        name = path.rpartition("/")[2]
        raw = hub.files[name]
        tag = {"ETag": f'"{self.entry(name)["oid"]}"', "X_Repo_Commit": hub.sha()}
        return self.answer(raw, **tag)

    head = get

    def entry(self, name):
        raw = self.server.files[name]
        oid = hashlib.sha1(raw).hexdigest()
        return {"type": "file", "path": name, "size": len(raw), "oid": oid}
