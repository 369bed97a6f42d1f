"An S3-compatible server for tests: moto, in a process of its own."

import os
import socket
import subprocess
import sys
import time
import urllib.request

SERVER = "from moto.server import ThreadedMotoServer; import sys, time; ThreadedMotoServer(ip_address='127.0.0.1', port=int(sys.argv[1])).start(); time.sleep(1e9)"


def start():
    "The process, and what the environment of its clients has to hold."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=5)
            break
        except OSError:
            assert server.poll() is None, "moto did not start"
            time.sleep(0.2)
    return server, {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
