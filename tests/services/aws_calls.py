"""Which permissions the requests to an AWS server need, by their access key, kept as the file calls-<key>.json."""

import json
import re
import threading
from urllib.parse import parse_qs, unquote

CREDENTIAL = re.compile(r"Credential=([^/,]+)/[0-9]+/[^/]+/([^/]+)/")


def s3_action(method, path, query):
    """The IAM action of a path-style request."""
    key = unquote(path).lstrip("/").partition("/")[2]
    if not key:
        if method == "POST" and "delete" in query:
            return "s3:DeleteObject"
        if method in ("GET", "HEAD"):
            return "s3:ListBucketMultipartUploads" if "uploads" in query else "s3:ListBucket"
        return {"PUT": "s3:CreateBucket", "DELETE": "s3:DeleteBucket"}.get(method, f"s3:{method}")
    if "uploadId" in query:
        return {"DELETE": "s3:AbortMultipartUpload", "GET": "s3:ListMultipartUploadParts"}.get(method, "s3:PutObject")
    known = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}
    return known.get(method, "s3:PutObject")


def action(environ):
    """Who asks and for what, or nothing for a request that is not signed."""
    found = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    if not found:
        return None
    key, service = found.groups()
    if service == "s3":
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        return key, s3_action(environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/"), query)
    return key, f"{service}:{environ.get('HTTP_X_AMZ_TARGET', '?').rpartition('.')[2]}"


class Recorder:
    """A WSGI application around another."""

    def __init__(self, application, folder):
        self.application, self.folder = application, folder
        self.actions, self.lock = {}, threading.Lock()

    def __call__(self, environ, start_response):
        if asked := action(environ):
            key, name = asked
            with self.lock:
                known = self.actions.setdefault(key, set())
                if name not in known:
                    known.add(name)
                    (self.folder / f"calls-{key}.json").write_text(json.dumps(sorted(known), indent=1) + "\n")
        return self.application(environ, start_response)
