"""Serves this folder, opens a headless browser on it, and ends with the page's verdict.

    serve.py FOLDER BROWSER [ARGUMENT ...]
"""

import functools
import http.server
import subprocess
import sys
import threading

SECONDS = 180


class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".wasm": "application/wasm",
        ".js": "text/javascript",
    }
    report = None
    done = threading.Event()

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        Handler.report = self.rfile.read(length).decode()
        self.send_response(204)
        self.end_headers()
        Handler.done.set()

    def log_message(self, *args):
        pass


def main():
    folder, *browser = sys.argv[1:]
    handler = functools.partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/index.html"
    with subprocess.Popen([*browser, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        Handler.done.wait(SECONDS)
        process.kill()
    if Handler.report is None:
        sys.exit(f"the page reported nothing within {SECONDS} s")
    print(Handler.report)
    sys.exit(Handler.report.splitlines()[-1] != "passed")


main()
