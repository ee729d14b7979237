"""moto's AWS server, made atomic where real AWS is: Glue checks VersionId, S3 checks If-Match. What it was asked for is
kept in --calls."""

import argparse
import functools
import threading
from pathlib import Path

from aws_calls import Recorder
from moto.glue.exceptions import GlueClientError
from moto.glue.responses import GlueResponse
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.responses import S3Response
from werkzeug.serving import make_server

GLUE = threading.RLock()
S3 = threading.RLock()


def holding(lock, method):
    @functools.wraps(method)
    def locked(self, *args, **kwargs):
        with lock:
            return method(self, *args, **kwargs)

    return locked


def update_table(self, unchecked=GlueResponse.update_table):
    expected = self.parameters.get("VersionId")
    table = self.glue_backend.get_table(
        self.parameters["DatabaseName"], self.parameters["TableInput"]["Name"]
    )
    if expected is not None and expected != table.as_dict()["VersionId"]:
        raise GlueClientError(
            "ConcurrentModificationException", f"Version {expected} is not the current one."
        )
    return unchecked(self)


def patch():
    GlueResponse.update_table = update_table
    for name in ("create_database", "create_table", "update_table", "delete_table", "get_table"):
        setattr(GlueResponse, name, holding(GLUE, getattr(GlueResponse, name)))
    for name in ("put_object", "_key_response_post"):
        setattr(S3Response, name, holding(S3, getattr(S3Response, name)))


class Handler(MotoRequestHandler):
    disable_nagle_algorithm = True

    def log_request(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--calls", type=Path, required=True)
    arguments = parser.parse_args()
    patch()
    application = Recorder(DomainDispatcherApplication(create_backend_app), arguments.calls)
    make_server("127.0.0.1", arguments.port, application, threaded=True, request_handler=Handler).serve_forever()


if __name__ == "__main__":
    main()
