"""The S3 server: moto on 127.0.0.1, in memory, with one bucket made at the start."""
import logging
import os
import signal
import threading

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

# One log line for each request would fill the disk in a long test.
logging.getLogger("werkzeug").setLevel(logging.WARNING)

port = int(os.environ["SANDBOX_PORT"])
region = os.environ["SANDBOX_S3_REGION"]
stop = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.set())

app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", port, app, threaded=True, request_handler=MotoRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
s3 = boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{port}",
    region_name=region,
    aws_access_key_id=os.environ["SANDBOX_S3_ACCESS_KEY"],
    aws_secret_access_key=os.environ["SANDBOX_S3_SECRET_KEY"],
    config=Config(s3={"addressing_style": "path"}, proxies={}),
)
place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
s3.create_bucket(Bucket=os.environ["SANDBOX_S3_BUCKET"], **place)
with open(os.environ["SANDBOX_READY_FILE"], "w") as f:
    f.write(f"{os.getpid()}\n")
stop.wait()
os._exit(0)  # requests under way would keep the server's own threads alive
