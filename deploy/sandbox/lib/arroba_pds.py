"""A PDS that is not the reference one: arroba, on 127.0.0.1, its repositories in memory.

Its repositories, commits, tree and stream are arroba's own and used as they are. What a PDS needs besides is here:
accounts and sessions, and blobs, which arroba only redirects to. Accounts and blobs are kept in the data folder; the
repositories are not, so after a restart every account is empty and the sequence starts over.
"""
import hashlib
import json
import logging
import os
import signal
import threading
from pathlib import Path

port = int(os.environ["SANDBOX_PORT"])
url = f"http://localhost:{port}"
os.environ["PDS_HOST"] = f"localhost:{port}"
os.environ["PLC_HOST"] = os.environ["SANDBOX_PLC_URL"].removeprefix("http://")

from arroba import did as dids, firehose, server, util, xrpc_repo, xrpc_server, xrpc_sync  # noqa: E402,F401
from arroba.repo import Repo  # noqa: E402
from arroba.storage import MemoryStorage  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
import dag_json  # noqa: E402
from flask import Flask, Response, request  # noqa: E402
from lexrpc.base import XrpcError  # noqa: E402
from lexrpc.flask_server import init_flask  # noqa: E402
from multiformats import CID, multihash  # noqa: E402
import requests  # noqa: E402
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

# One log line for each request would fill the disk in a long test.
logging.getLogger("werkzeug").setLevel(logging.WARNING)

token = os.environ["REPO_TOKEN"]
data = Path(os.environ["SANDBOX_DATA"])
accounts_file = data / "accounts.json"
blobs = data / "blobs"
blobs.mkdir(parents=True, exist_ok=True)
storage = server.storage = MemoryStorage()
writing = threading.RLock()
accounts = json.loads(accounts_file.read_text()) if accounts_file.exists() else {}


def callback(data=None, lost_seq=None):
    if data:
        firehose.send_events()
    elif lost_seq:
        firehose.mark_seq_lost(lost_seq)


def open_repository(did, account):
    key = ec.derive_private_key(int(account["key"], 16), ec.SECP256K1())
    Repo.create(storage, did, handle=account["handle"], signing_key=key, callback=callback)


def answer(value, status=200):
    return Response(dag_json.encode(value, dialect="atproto"), status, content_type="application/json")


app = Flask("arroba-pds")


@app.errorhandler(XrpcError)
@app.errorhandler(ValueError)
def refused(error):
    return answer({"error": getattr(error, "name", "InvalidRequest"), "message": str(error)}, 400)


def owner():
    """Every session has the one token."""
    if request.headers.get("Authorization") != f"Bearer {token}":
        raise XrpcError("Invalid token", name="InvalidToken")


@app.get("/xrpc/_health")
def health():
    return answer({"version": "arroba"})


@app.post("/xrpc/com.atproto.server.createAccount")
def create_account():
    asked = request.get_json()
    key = util.new_key()

    def post(to, json):
        # It speaks only https; the directory here does not.
        return requests.post(to.replace("https://", "http://"), json=json, timeout=30)

    with writing:
        made = dids.create_plc(asked["handle"], signing_key=key, pds_url=url, post_fn=post)
        accounts[made.did] = {
            "handle": asked["handle"],
            "password": asked["password"],
            "key": hex(key.private_numbers().private_value),
        }
        accounts_file.write_text(json.dumps(accounts))
        open_repository(made.did, accounts[made.did])
    firehose.start()
    return answer({"did": made.did, "handle": asked["handle"], "accessJwt": token, "refreshJwt": token})


@app.post("/xrpc/com.atproto.server.createSession")
def create_session():
    asked = request.get_json()
    for did, account in accounts.items():
        if asked["identifier"] in (did, account["handle"]) and asked["password"] == account["password"]:
            return answer({"did": did, "handle": account["handle"], "accessJwt": token, "refreshJwt": token})
    raise XrpcError("Invalid identifier or password", name="AuthenticationRequired")


@app.post("/xrpc/com.atproto.repo.<name>")
def write(name):
    """arroba's own methods, one at a time; and it does not say which commit a write made."""
    owner()
    if name == "uploadBlob":
        return upload()
    asked = dag_json.decode(request.get_data(), dialect="atproto")
    if name == "deleteRecord":
        # Its own gives nothing, where the lexicon wants an object.
        one = {"$type": "com.atproto.repo.applyWrites#delete", "collection": asked["collection"], "rkey": asked["rkey"]}
        name, asked = "applyWrites", {"repo": asked["repo"], "writes": [one]}
    with writing:
        done = server.server.call(f"com.atproto.repo.{name}", input=asked) or {}
        head = server.load_repo(asked["repo"]).head
    return answer({**done, "commit": {"cid": head.cid.encode("base32"), "rev": head.decoded["rev"]}})


def upload():
    content, kind = request.get_data(), request.content_type or "application/octet-stream"
    cid = CID("base32", 1, "raw", multihash.digest(content, "sha2-256"))
    (blobs / str(cid)).write_bytes(content)
    (blobs / f"{cid}.type").write_text(kind)
    return answer({"blob": {"$type": "blob", "ref": cid, "mimeType": kind, "size": len(content)}})


def blobs_in(value):
    if isinstance(value, dict):
        if value.get("$type") == "blob" and isinstance(value.get("ref"), CID):
            yield value["ref"].encode("base32")
        for inner in value.values():
            yield from blobs_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from blobs_in(inner)


def blobs_of(did):
    with writing:
        contents = server.load_repo(did).get_contents()
    records = [record for records in contents.values() for record in records.values()]
    return sorted({cid for record in records for cid in blobs_in(record)})


@app.get("/xrpc/com.atproto.sync.listBlobs")
def list_blobs():
    after, most = request.args.get("cursor", ""), int(request.args.get("limit", 500))
    cids = [cid for cid in blobs_of(request.args["did"]) if cid > after][:most]
    return answer({"cids": cids, **({"cursor": cids[-1]} if len(cids) == most else {})})


@app.get("/xrpc/com.atproto.sync.getBlob")
def get_blob():
    cid = request.args["cid"]
    if cid not in blobs_of(request.args["did"]):
        raise XrpcError("Blob not found", name="BlobNotFound")
    return Response((blobs / cid).read_bytes(), content_type=(blobs / f"{cid}.type").read_text())


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"


def stop(*_):
    os._exit(0)  # threads that serve the stream would keep it alive


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
for did, account in accounts.items():
    open_repository(did, account)
if accounts:
    firehose.start()
init_flask(server.server, app)
web = make_server("127.0.0.1", port, app, threaded=True, request_handler=Handler)
Path(os.environ["SANDBOX_READY_FILE"]).write_text(f"{os.getpid()}\n")
web.serve_forever()
