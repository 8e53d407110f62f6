"""A small HTTP server for `cargo xtask demo traffic`: server.py NAME FOLDER PORT.

It says who it is, and behaves as the file FOLDER/mode tells it at that moment: a status, and seconds to wait before the
answer. Each request is a line of FOLDER/requests.
"""

import pathlib
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, FOLDER, PORT = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
REQUESTS = open(FOLDER / "requests", "a", buffering=1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one segment.
    wbufsize = 65536

    def do_GET(self):
        status, delay = (FOLDER / "mode").read_text().split()
        attempt = self.headers.get("x-envoy-attempt-count", "-")
        REQUESTS.write(f"{self.command} {self.path} attempt {attempt}\n")
        time.sleep(float(delay))
        body = f"{NAME} answers {self.client_address[0]}\n".encode()
        try:
            self.send_response(int(status))
            self.send_header("content-type", "text/plain")
            self.send_header("content-length", str(len(body)))
            self.send_header("x-served-by", NAME)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
        except ConnectionError:
            # Whoever asked did not want to wait.
            self.close_connection = True

    def log_message(self, *_):
        pass


ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
