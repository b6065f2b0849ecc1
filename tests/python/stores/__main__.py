"""An object store on loopback, of Azure's kind or Google's, for a test: see tests/stores."""

import atexit
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading

BUCKET = "box"


class Azure:
    """Azurite's blob service."""

    def __init__(self, azurite):
        from azure.storage.blob import BlobServiceClient

        # The account and the key that Azurite documents.
        account = "devstoreaccount1"
        key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
        # A client may speak a newer version of the protocol than this server.
        options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
        command = [azurite, "--blobHost", "127.0.0.1", "--blobPort", "0", *options]
        found = started(command, r"successfully listens on (http://\S+)")
        endpoint = f"{found[1]}/{account}"
        self.container = BlobServiceClient(endpoint, credential=key).create_container(BUCKET)
        self.variables = {
            "AZURE_STORAGE_ACCOUNT_NAME": account,
            "AZURE_STORAGE_ACCOUNT_KEY": key,
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_ALLOW_HTTP": "true",
        }

    def put(self, name, content):
        self.container.upload_blob(name, content)

    def names(self, prefix):
        return list(self.container.list_blob_names(name_starts_with=prefix))

    def get(self, name):
        return self.container.download_blob(name).readall()


class Google:
    """fake-gcs-server, behind what it lacks."""

    def __init__(self, server):
        import google
        from urllib.request import Request, urlopen

        self.open, self.request = urlopen, Request
        # It does not say the port that the system picks for it.
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = free.getsockname()
        place = ["-host", address[0], "-port", str(address[1]), "-public-host", address[0]]
        command = [server, "-scheme", "http", "-backend", "memory", *place]
        started(command, "server started at ")
        front = google.Front(address)
        threading.Thread(target=front.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{front.server_port}"
        made = json.dumps({"name": BUCKET}).encode()
        urlopen(Request(f"{self.url}/storage/v1/b", made, {"Content-Type": "application/json"})).close()
        self.variables = {
            "GOOGLE_BASE_URL": self.url,
            "GOOGLE_ALLOW_HTTP": "true",
            # A key by which object_store asks nobody for a token.
            "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
                {"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True}
            ),
        }

    def put(self, name, content):
        self.open(self.request(f"{self.url}/{BUCKET}/{name}", content, method="PUT")).close()

    def names(self, prefix):
        with self.open(f"{self.url}/storage/v1/b/{BUCKET}/o?prefix={prefix}") as answer:
            return [found["name"] for found in json.load(answer).get("items", [])]

    def get(self, name):
        with self.open(f"{self.url}/{BUCKET}/{name}") as answer:
            return answer.read()


def started(command, listens):
    """Starts a server that ends with this process. Gives what matches `listens` of the line by which it says where it is."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    atexit.register(process.kill)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(listens, line):
            # It must not wait for somebody to read what it says next.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found
    sys.exit(f"{command[0]} does not start: {''.join(lines)}")


def main(scheme, server, model):
    store = {"az": Azure, "gs": Google}[scheme](server)
    model = pathlib.Path(model)
    for file in model.rglob("*"):
        if file.is_file():
            store.put(f"model/{file.relative_to(model)}", file.read_bytes())
    print(json.dumps(store.variables), flush=True)
    for line in sys.stdin:
        prefix, folder = line.split()
        names = store.names(prefix)
        for name in names:
            path = pathlib.Path(folder) / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(name))
        print(len(names), flush=True)


main(*sys.argv[1:])
