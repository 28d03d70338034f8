#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""search.py SECRETS HAYSTACK…: searches for secrets in places where they must not be.

SECRETS is a file with a token, or a number of at least 16 digits, on each line. A HAYSTACK is a file, a directory
(all files below it), or `proc:PID,…`: the arguments and the environment of all processes except those. In SQLite
files of the content store, each blob is unpacked, and the write-ahead log is included.

It finds any 23 consecutive characters of the signature, or of a claim that is a long string: unchanged, in base64 at
each alignment and alphabet (like the payload), and in hexadecimal; and each of these inside another base64, which is
how the KVS stores values. Of a number, it finds 16 consecutive digits, in the same forms. It prints the places and
how much was searched. The exit status is that of grep.
"""

import base64
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile

WINDOW = 16
STEP = 8
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")


def forms(text):
    """Yields the forms in which a secret may appear."""
    yield text
    yield text.hex().encode()
    yield text.hex().upper().encode()
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + text)
        # The characters at both ends depend on what stands beside the secret.
        coded = coded[4:-4]
        yield coded
        yield coded.translate(bytes.maketrans(b"+/", b"-_"))


def parts(token):
    """Returns the unique parts of a token: its signature, and the claims that are long strings. A window of the payload
    without them reveals nothing. A window with them is their base64 at one of its alignments. A number is entirely
    secret."""
    if token.isdigit():
        if len(token) < WINDOW:
            raise ValueError("a number has too few digits")
        yield token.encode()
        return
    _, payload, signature = (decode(segment) for segment in token.split("."))
    yield token.rsplit(".", 1)[1].encode()
    yield signature
    yield from (value.encode() for value in json.loads(payload).values() if isinstance(value, str) and len(value) >= 32)


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def windows(secrets):
    """All sequences of WINDOW bytes that reveal a secret."""
    found = {}
    for number, token in enumerate(secrets, 1):
        for part in parts(token):
            for form in forms(part):
                for at in range(len(form) - WINDOW + 1):
                    found[form[at : at + WINDOW]] = number
    return found


def decoded(data):
    for run in BASE64.finditer(data):
        text = run[0].rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        text = text[: len(text) - (len(text) % 4 == 1)]
        yield base64.b64decode(text + b"=" * (-len(text) % 4))


def hits(data, needles, step):
    """Returns the numbers of the secrets in data. Sampling finds everything that is longer than a window by a step."""
    found = {needles[data[at : at + WINDOW]] for at in range(0, len(data), step) if data[at : at + WINDOW] in needles}
    return found


def unpack(packed, size):
    """Decompresses a block of LZ4: sequences of literals and matches."""
    out, at = bytearray(), 0

    def length(number):
        nonlocal at
        if number == 15:
            while True:
                more = packed[at]
                at += 1
                number += more
                if more != 255:
                    break
        return number

    while at < len(packed):
        token = packed[at]
        at += 1
        literals = length(token >> 4)
        out += packed[at : at + literals]
        at += literals
        if at >= len(packed):
            break
        offset = packed[at] | packed[at + 1] << 8
        at += 2
        for _ in range(length(token & 15) + 4):
            out.append(out[-offset])
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes were unpacked and {size} were expected")
    return bytes(out)


def blobs(path):
    with tempfile.TemporaryDirectory() as copy:
        # The broker holds the lock, so search a copy. Reading it applies the write-ahead log.
        for end in ("", "-wal"):
            if os.path.exists(path + end):
                shutil.copy(path + end, os.path.join(copy, "content.sqlite" + end))
        store = sqlite3.connect(os.path.join(copy, "content.sqlite"))
        for digest, size, packed in store.execute("SELECT CAST(hash AS BLOB), size, object FROM objects"):
            packed = bytes(packed)
            yield f"{path}: blob {digest.hex()[:12]}", packed if size == -1 else unpack(packed, size)
        store.close()


def files(path):
    if not os.path.isdir(path):
        yield path
        return
    for directory, _, names in os.walk(path):
        yield from (os.path.join(directory, name) for name in names)


def haystacks(name):
    if name.startswith("proc:"):
        skipped = {*name[5:].split(","), str(os.getpid())}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for what in ("cmdline", "environ"):
                try:
                    with open(f"/proc/{pid}/{what}", "rb") as file:
                        data = file.read()
                except OSError:
                    continue
                if pid not in skipped:
                    yield f"/proc/{pid}/{what}", data
        return
    for path in files(name):
        if not os.path.isfile(path) or os.path.getsize(path) == 0:
            continue
        with open(path, "rb") as file:
            yield path, file.read()
        if path.endswith(".sqlite"):
            yield from blobs(path)


def main():
    with open(sys.argv[1]) as file:
        secrets = file.read().split()
    needles = windows(secrets)
    step = 1 if any(map(str.isdigit, secrets)) else STEP
    count = size = 0
    found = False
    for name in sys.argv[2:]:
        for where, data in haystacks(name):
            count += 1
            size += len(data)
            numbers = hits(data, needles, step)
            for inner in decoded(data):
                numbers |= hits(inner, needles, step)
            for number in sorted(numbers):
                found = True
                print(f"found: secret {number} in {where}")
    print(f"searched: {count} places, {size} bytes")
    return 0 if found else 1


if __name__ == "__main__":
    try:
        status = main()
    except Exception as e:
        # Python's own exit status would mean that nothing was found.
        print(f"search.py: {e!r}", file=sys.stderr)
        status = 2
    sys.exit(status)
