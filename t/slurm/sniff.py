#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""sniff.py FILE: appends all packets of the loopback interface to FILE until it is killed (packet(7)). Needs root. FILE exists
once recording has begun."""

import socket
import sys

ETH_P_ALL = 3

packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
packets.bind(("lo", 0))
with open(sys.argv[1], "wb", buffering=0) as file:
    while True:
        file.write(packets.recv(1 << 17))
