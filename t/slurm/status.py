#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""status.py entry TOKEN: prints the URI of the status list that a token names, and its index there.
status.py status LIST URI INDEX ISSUER: prints the status at an index of a status list, 0 or 1. Both are in files."""

import base64
import json
import sys
import zlib


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def read(path):
    with open(path) as file:
        header, claims, _ = file.read().strip().split(".")
    return json.loads(decode(header)), json.loads(decode(claims))


def main():
    header, claims = read(sys.argv[2])
    if sys.argv[1] == "entry":
        entry = claims["status"]["status_list"]
        return print(entry["uri"], entry["idx"])
    uri, index, issuer = sys.argv[3], int(sys.argv[4]), sys.argv[5]
    assert header["typ"] == "statuslist+jwt", header
    assert (claims["sub"], claims["iss"], claims["exp"] - claims["iat"]) == (uri, issuer, 600), claims["sub"]
    assert claims["status_list"]["bits"] == 1
    bits = zlib.decompress(decode(claims["status_list"]["lst"]))
    print(bits[index // 8] >> index % 8 & 1)


main()
