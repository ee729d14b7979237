#!/usr/bin/env python3
"""token_endpoint.py CERTIFICATES PLACE: gives out tokens by OAuth 2's client credentials grant, and the key they are
signed with. Writes the file PLACE when it is there: `http` and `https` are its addresses, to which
`/<lifetime in seconds>/<audience>` is added.
"""

import base64
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CLIENT, SECRET, SCOPE = "icestream", "open:sesame", "read"
KEY = "token.key"


def encoded(data):
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def openssl(*arguments, given=b""):
    return subprocess.run(["openssl", *arguments], input=given, stdout=subprocess.PIPE, check=True, cwd=FOLDER).stdout


def token(lifetime, audience):
    now = int(time.time())
    claims = {"iss": "tests", "sub": CLIENT, "aud": audience, "scope": SCOPE, "iat": now, "exp": now + 1 + lifetime}
    signed = f"{encoded({'alg': 'RS256', 'kid': KEY})}.{encoded({**claims, 'jti': uuid.uuid4().hex})}"
    return f"{signed}.{encoded(openssl('dgst', '-sha256', '-sign', KEY, given=signed.encode()))}"


class Endpoint(BaseHTTPRequestHandler):
    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        modulus = openssl("rsa", "-in", KEY, "-noout", "-modulus").decode().strip().removeprefix("Modulus=")
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY, "n": encoded(bytes.fromhex(modulus)), "e": "AQAB"}
        self.answer(200, {"keys": [key]})

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        known = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if self.headers["Authorization"] != known:
            return self.answer(401, {"error": "invalid_client", "error_description": "no such client, or another secret"})
        if form != {"grant_type": ["client_credentials"], "scope": [SCOPE]}:
            return self.answer(400, {"error": "invalid_scope"})
        _, lifetime, audience = self.path.split("/")
        granted = {"token_type": "Bearer", "expires_in": int(lifetime)}
        self.answer(200, {**granted, "access_token": token(int(lifetime), audience)})


def serve(context=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever).start()
    return f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"


FOLDER, PLACE = Path(sys.argv[1]), Path(sys.argv[2])
openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", KEY)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(FOLDER / "ours-broker.pem", FOLDER / "ours-broker.key")
http, https = serve(), serve(tls)
there = {"http": http, "https": https, "keys": f"{http}/keys", "client": CLIENT, "secret": SECRET, "scope": SCOPE}
unfinished = PLACE.with_suffix(".part")
unfinished.write_text(json.dumps(there))
unfinished.rename(PLACE)
