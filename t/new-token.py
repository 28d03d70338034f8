#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Prints a new token: it has the form of a JWT, but no valid signature. The arguments are claims, CLAIM=VALUE, where
VALUE is JSON or else a string."""

import base64
import json
import os
import sys
import time


def segment(content):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def claim(text):
    name, value = text.split("=", 1)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


claims = {"sub": "canary", "jti": os.urandom(16).hex(), "exp": int(time.time()) + 3600}
claims.update(claim(arg) for arg in sys.argv[1:])
print(".".join(segment(part) for part in ({"alg": "HS256", "typ": "JWT"}, claims, os.urandom(32))))
