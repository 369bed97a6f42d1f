"""A stand-in for Kaggle's API, as far as datasets, kernels and submissions go: the request sequences of KAGGLE.md.

`with KaggleServer() as server:` listens on a free port; `server.env(home)` is the environment that leads the real client to it.
What goes wrong is switched on by attributes: `fail_put`, `lose`, `resize`, `states`, `create_error`, ...
"""

import base64
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

USER, KEY = "ann", "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


class KaggleServer:
    def __init__(self):
        self.datasets = {}  # 'owner/slug' -> {'files': {name: bytes}, 'versions': n, 'asked': n}
        self.blobs = {}  # token -> [name, bytes or None]
        self.kernels = {}  # 'owner/slug' -> list of SaveKernel requests
        self.submissions, self.calls, self.requests = [], [], []
        self.fail_put = {}  # file name -> status of its PUT; (status, n) fails n times
        self.lose, self.resize = set(), {}  # files that vanish, or change their size, after a successful upload
        self.states = ["READY"]  # of a dataset, one for each question; the last one stays
        self.stale = 0  # so many lists of files are still those of the former version
        self.kernel_states = ["COMPLETE"]
        self.failure, self.log, self.output = (
            "",
            '[{"stream_name":"stdout","time":1,"data":"done\\n"}]',
            {"submission.csv": b"fname,Bark\na.wav,0.5\n"},
        )
        self.errors = {}  # method -> (status, body) in place of its reply
        self.push_reply = {}  # merged into the reply of SaveKernel
        self.page_size = 200

    def __enter__(self):
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"server_state": self}))
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.httpd.shutdown()
        self.httpd.server_close()

    def env(self, home):
        "The environment variables that direct the client to this server, with made-up credentials."
        port = self.httpd.server_address[1]
        keep = {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": f"http://127.0.0.1:{port}",
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home),
            "TMPDIR": str(home),
        }
        return {**keep, "KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY, "no_proxy": "", "NO_PROXY": ""}

    def names(self, method):
        return [body for name, body in self.requests if name == method]

    # --- datasets ---

    def GetDatasetStatus(self, q):
        found = self.datasets.get(f"{q['ownerSlug']}/{q['datasetSlug']}")
        if found is None:
            return 404, {"code": 404, "message": "Dataset not found"}
        state = self.states[min(found["asked"], len(self.states) - 1)]
        found["asked"] += 1
        return 200, {"status": state}

    def StartBlobUpload(self, q):
        token = f"tok{len(self.blobs)}"
        self.blobs[token] = [q["name"], None]
        return 200, {"token": token, "createUrl": f"http://localhost/upload/{token}?sig=s3cr3t"}

    def CreateDataset(self, q):
        ref = f"{q['ownerSlug']}/{q['slug']}"
        if ref in self.datasets:
            return 200, {
                "ref": ref,
                "url": "",
                "status": "error",
                "error": f'The requested title "{q["title"]}" is already in use by a dataset. Please choose another title.',
            }
        return self._store(ref, q.get("files", []))

    def CreateDatasetVersion(self, q):
        return self._store(f"{q['ownerSlug']}/{q['datasetSlug']}", q["body"].get("files", []))

    def _store(self, ref, tokens):
        files = {}
        for token in (t["token"] for t in tokens):
            name, data = self.blobs[token]
            if name not in self.lose:
                files[name] = data if name not in self.resize else data[: self.resize[name]]
        old = self.datasets.get(ref, {"versions": 0, "files": {}})
        self.datasets[ref] = {"files": files, "former": old["files"], "versions": old["versions"] + 1, "asked": 0}
        return 200, {"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok", "error": ""}

    def ListDatasetFiles(self, q):
        found = self.datasets[f"{q['ownerSlug']}/{q['datasetSlug']}"]
        files = found["files"]
        if self.stale and found["versions"] > 1:
            self.stale -= 1
            files = found["former"]
        at = int(q.get("pageToken") or 0)
        some = sorted(files)[at : at + self.page_size]
        token = str(at + self.page_size) if at + self.page_size < len(files) else ""
        listed = [{"name": n, "totalBytes": len(files[n]), "creationDate": "2026-11-21T02:00:00.000Z"} for n in some]
        return 200, {"datasetFiles": listed, "nextPageToken": token}

    # --- kernels and submissions ---

    def SaveKernel(self, q):
        versions = self.kernels.setdefault(q["slug"], [])
        versions.append(q)
        return 200, {
            "ref": q["slug"],
            "url": f"https://www.kaggle.com/code/{q['slug']}",
            "versionNumber": len(versions),
            "error": "",
            **self.push_reply,
        }

    def GetKernelSessionStatus(self, q):
        state = self.kernel_states.pop(0) if len(self.kernel_states) > 1 else self.kernel_states[0]
        return 200, {"status": state, "failureMessage": self.failure if state == "ERROR" else ""}

    def ListKernelSessionOutput(self, q):
        return 200, {
            "files": [{"url": f"http://localhost/output/{n}", "fileName": n} for n in self.output],
            "log": self.log,
            "nextPageToken": "",
        }

    def CreateCodeSubmission(self, q):
        self.submissions.append(q)
        return 200, {"message": f"Successfully submitted to {q['competitionName']}", "ref": len(self.submissions)}

    def GetSubmissionLimits(self, q):
        return 200, {"numAllowedNow": 4}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state = None

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in {
            "Content-Type": "application/octet-stream" if isinstance(body, bytes) else "application/json",
            "Content-Length": len(data),
            **headers,
        }.items():
            self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        s, query = self.server_state, json.loads(self.body() or b"{}")
        method = re.search(r"/api/v1/[\w.]+/(\w+)$", urlsplit(self.path).path)[1]
        s.calls.append(method)
        s.requests.append((method, query))
        login = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            return self.answer(401, {"code": 401, "message": "Unauthenticated"})
        self.answer(*(s.errors[method] if method in s.errors else getattr(s, method)(query)))

    def do_PUT(self):
        s, data = self.server_state, self.body()
        token = urlsplit(self.path).path.split("/")[-1]
        name = s.blobs[token][0]
        s.calls.append("PUT " + name)
        fault = s.fail_put.get(name)
        if isinstance(fault, tuple):
            s.fail_put[name] = (fault[0], fault[1] - 1) if fault[1] > 1 else None
            fault = fault[0]
        if fault:
            return self.answer(fault, b"no")
        if (self.headers.get("Content-Range") or "").startswith("bytes */"):  # how much is there already?
            return self.answer(308 if s.blobs[token][1] is None else 200, b"")
        s.blobs[token][1] = data
        self.answer(200, b"")

    def do_GET(self):
        name = urlsplit(self.path).path.split("/")[-1]
        self.answer(200, self.server_state.output[name], Last_Modified="Sat, 21 Nov 2026 02:00:00 GMT")


def counted(calls):
    "How often each method was called, PUTs together."
    return Counter(c.split()[0] for c in calls)
