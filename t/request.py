#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""request.py URL [--token FILE] [--client ID:FILE] [--form NAME=VALUE|NAME=@FILE]… [--header NAME:VALUE|NAME:@FILE]…: sends a
request and prints the status, the headers and the body of the response. URL may be unix:SOCKET:PATH. A token or secret is in a FILE, never
in the arguments."""

import argparse
import base64
import http.client
import socket
import urllib.parse


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


def read(path):
    with open(path) as file:
        return file.read().strip()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--token")
    parser.add_argument("--client")
    parser.add_argument("--form", action="append", default=[])
    parser.add_argument("--header", action="append", default=[])
    args = parser.parse_args()
    if args.url.startswith("unix:"):
        _, path, target = args.url.split(":", 2)
        connection = Unix(path)
    else:
        url = urllib.parse.urlsplit(args.url)
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
        target = args.url.split(url.netloc, 1)[1] or "/"
    headers = dict(header.split(":", 1) for header in args.header)
    headers = {name: read(value[1:]) if value.startswith("@") else value for name, value in headers.items()}
    if args.token:
        headers["Authorization"] = "Bearer " + read(args.token)
    if args.client:
        name, secret = args.client.split(":", 1)
        headers["Authorization"] = "Basic " + base64.b64encode((name + ":" + read(secret)).encode()).decode()
    body = None
    if args.form:
        form = [pair.split("=", 1) for pair in args.form]
        form = [(name, read(value[1:]) if value.startswith("@") else value) for name, value in form]
        body = urllib.parse.urlencode(form)
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    connection.request("POST" if body else "GET", target, body, headers)
    response = connection.getresponse()
    print(response.status)
    for name, value in response.getheaders():
        print(f"{name.lower()}: {value}")
    print()
    print(response.read().decode())


main()
