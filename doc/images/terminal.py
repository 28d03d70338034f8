#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Draws the output of a command as a terminal, in SVG: terminal.py COMMAND <OUTPUT >FILE.svg.

doc/images/demo.svg shows a run of `make demo`: its part on Slurm, from the line with the release on.
"""

import sys
from html import escape

SIZE, WIDTH, LINE, MARGIN, BAR = 14, 8.43, 20, 20, 36
STYLE = """
    text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d8dee9; white-space: pre }
    .prompt { fill: #a3be8c } .step { fill: #88c0d0; font-weight: bold } .title { fill: #9aa5b8; text-anchor: middle }
"""


def look(line):
    if line.startswith("$ "):
        return "prompt"
    return "step" if line.startswith("== ") else "plain"


def main(command):
    lines = [f"$ {command}", *sys.stdin.read().strip().splitlines()]
    width = max(map(len, lines)) * WIDTH + 2 * MARGIN
    height = len(lines) * LINE + BAR + MARGIN
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img">'
    )
    print(f"  <title>{escape(command)}</title>\n  <style>{STYLE}  </style>")
    print(
        f'  <rect width="100%" height="100%" rx="8" fill="#1f2430"/>\n  <rect width="100%" height="{BAR - 8}" rx="8" fill="#2e3440"/>'
    )
    print(f'  <text class="title" x="50%" y="{LINE - 1}">{escape(command)}</text>')
    for n, line in enumerate(lines):
        if line.strip():
            print(
                f'  <text class="{look(line)}" x="{MARGIN}" y="{BAR + SIZE + n * LINE}" xml:space="preserve">{escape(line.rstrip())}</text>'
            )
    print("</svg>")


main(sys.argv[1])
