"""Google's XML API, as far as fake-gcs-server lacks it, over the JSON API of that server: conditional puts, parts, removals."""

import json
import uuid
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree

GENERATION = "x-goog-if-generation-match"
# Headers that belong to one connection.
OWN = {"connection", "content-length", "date", "host", "server", "transfer-encoding"}


class Front(ThreadingHTTPServer):
    """A server on loopback that answers for the one at the address `behind`."""

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), Request)
        self.behind = behind
        self.lock, self.uploads = Lock(), {}


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        bucket, _, query = self.place()
        status, headers, body = self.ask(self.command, self.path, self.content(), self.headers)
        # That server fails to list a bucket that is not there.
        if "list-type" in query and self.ask("GET", f"/storage/v1/b/{bucket}")[0] == 404:
            status, headers, body = 404, {}, tagged("Error", "Code", "NoSuchBucket")
        self.answer(status, headers, body)

    do_HEAD = do_GET

    def do_PUT(self):
        bucket, key, query = self.place()
        content = self.content()
        if "uploadId" in query:
            with self.server.lock:
                self.server.uploads[query["uploadId"]][int(query["partNumber"])] = content
            self.answer(200, {"ETag": f'"{query["partNumber"]}"'})
        else:
            self.answer(*self.inserted(bucket, key, content))

    def do_POST(self):
        if self.path.startswith("/storage/"):
            return self.do_GET()
        bucket, key, query = self.place()
        content = self.content()
        if "uploads" in query:
            upload = uuid.uuid4().hex
            with self.server.lock:
                self.server.uploads[upload] = {}
            return self.answer(200, {}, tagged("InitiateMultipartUploadResult", "UploadId", upload))
        with self.server.lock:
            parts = self.server.uploads.pop(query["uploadId"])
        numbers = [int(part.findtext("PartNumber")) for part in ElementTree.fromstring(content)]
        status, headers, body = self.inserted(bucket, key, b"".join(parts[number] for number in numbers))
        if status == 200:
            body = tagged("CompleteMultipartUploadResult", "ETag", headers["ETag"])
        self.answer(status, headers, body)

    def do_DELETE(self):
        bucket, key, query = self.place()
        if "uploadId" in query:
            with self.server.lock:
                self.server.uploads.pop(query["uploadId"], None)
            return self.answer(204)
        status, _, body = self.ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}")
        self.answer(*((204,) if status == 200 else (status, {}, body)))

    def inserted(self, bucket, key, content):
        """The answer to a put of a whole object."""
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}"
        if GENERATION in self.headers:
            path += f"&ifGenerationMatch={self.headers[GENERATION]}"
        status, _, body = self.ask("POST", path, content, {"Content-Type": "application/octet-stream"})
        if status != 200:
            return status, {}, body
        made = json.loads(body)
        return 200, {"ETag": f'"{made["etag"]}"', "x-goog-generation": made["generation"]}, b""

    def place(self):
        parts = urlsplit(self.path)
        bucket, _, key = parts.path[1:].partition("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        return bucket, unquote(key), {name: values[0] for name, values in query.items()}

    def content(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None

    def ask(self, method, path, content=None, headers=None):
        connection = HTTPConnection(*self.server.behind)
        kept = {name: value for name, value in (headers or {}).items() if name.lower() not in OWN}
        connection.request(method, path, content, kept)
        answer = connection.getresponse()
        response = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return response

    def answer(self, status, headers=None, content=b""):
        headers = headers or {}
        # That of an object whose content is not asked for.
        length = headers.get("Content-Length", 0) if self.command == "HEAD" else len(content)
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in OWN:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def tagged(name, inner, text):
    root = ElementTree.Element(name)
    ElementTree.SubElement(root, inner).text = text
    return ElementTree.tostring(root)
