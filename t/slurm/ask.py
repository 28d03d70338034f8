#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""ask.py SOCKET PORT RESTRICT CLUSTER JOBID UID NODE [COUNT]: requests the record of a job from an agent, as a node
does, and prints the kind of each of its COUNT replies to the same credential: Record, Failed, Unknown, or the error.

SOCKET is munged's; the credential is restricted to the uid RESTRICT. The messages are those of the crate `protocol`."""

import socket
import struct
import subprocess
import sys


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def text(value):
    return varint(len(value)) + value


def main():
    munge_socket, port, restrict, cluster, jobid, uid, node = sys.argv[1:8]
    request = varint(2) + text(cluster.encode()) + varint(int(jobid)) + varint(int(uid)) + text(node.encode())
    frame = struct.pack("<I", len(request)) + request
    credential = subprocess.run(
        ["munge", "-S", munge_socket, "-u", restrict], input=frame[4:], stdout=subprocess.PIPE, check=True
    ).stdout.strip()
    body = text(credential)
    for _ in range(int(sys.argv[8]) if len(sys.argv) > 8 else 1):
        with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as agent:
            agent.sendall(struct.pack("<I", len(body)) + body)
            header = agent.recv(4, socket.MSG_WAITALL)
            if len(header) < 4:
                print("closed")
                continue
            answer = agent.recv(struct.unpack("<I", header)[0], socket.MSG_WAITALL)
            print({0: "Record", 1: "Failed", 2: "Unknown"}.get(answer[0], "malformed"))


main()
