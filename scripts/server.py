# SPDX-License-Identifier: MIT OR Apache-2.0
"""Programs that run beside the caller. If one exits early or is not ready in time, its output is reported."""

import select
import subprocess
import sys
import tempfile
import time

PATIENCE = 60  # timeout of every wait, in seconds


class Server:
    """A running program, ended by `kill`. Its standard output is read line by line, or else stored with its errors."""

    def __init__(self, argv, lines=False, name=None, **options):
        self.name = name or argv[0]
        # Use a file, because nobody may read a pipe.
        self.errors = tempfile.TemporaryFile()
        options = {"stdout": subprocess.PIPE if lines else self.errors, "text": True, **options}
        self.process = subprocess.Popen(argv, stderr=self.errors, **options)

    def line(self, what="printed no line", patience=PATIENCE):
        """Returns the next line that the program prints, if its output is read line by line."""
        if select.select([self.process.stdout], [], [], patience)[0]:
            line = self.process.stdout.readline()
            if line:
                return line
        self.fail(what)

    def until(self, is_ready, patience=PATIENCE):
        """Waits until the program is ready."""
        end = time.monotonic() + patience
        while not is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.fail("did not get ready")
            time.sleep(0.1)

    def fail(self, what):
        """Ends the caller, and shows the output of the program."""
        try:
            # A program that closes its output is about to exit.
            status = f"status {self.process.wait(timeout=2)}"
        except subprocess.TimeoutExpired:
            status = "still running"
        self.errors.seek(0)
        output = self.errors.read().decode(errors="replace").strip()
        sys.exit(f"{self.name} {what} ({status}); its output:\n{output or '(none)'}")

    def kill(self):
        self.process.kill()
        self.process.wait()
