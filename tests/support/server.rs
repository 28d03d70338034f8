// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that run beside a test. If one exits early or is not ready in time, its output is reported.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// The timeout for a server. It measures nothing; it only ends a test that would hang.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A running program. Dropping it kills it.
pub struct Server {
    name: String,
    child: Child,
    lines: Receiver<String>,
    output: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a program, and keeps what it prints.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().display().to_string();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("{name} cannot be started: {e}"));
        let (sender, lines) = channel();
        let output = Arc::new(Mutex::new(String::new()));
        keep(child.stdout.take(), &output, Some(sender));
        keep(child.stderr.take(), &output, None);
        Self {
            name,
            child,
            lines,
            output,
        }
    }

    /// Returns the next line of the program's standard output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(TIMEOUT) {
            Ok(line) => line,
            Err(_) => self.fail("printed no more line"),
        }
    }

    /// Returns the next line of the program's standard output, if it has printed one.
    pub fn line_now(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Waits until the program is ready.
    #[track_caller]
    pub fn until(&mut self, mut is_ready: impl FnMut() -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !is_ready() {
            if self.child.try_wait().expect("its status").is_some() || Instant::now() > end {
                self.fail("did not get ready");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails the test, with what the program printed.
    #[track_caller]
    pub fn fail(&mut self, what: &str) -> ! {
        // A program that closes its output is about to exit.
        let end = Instant::now() + Duration::from_secs(2);
        let mut status = None;
        while status.is_none() && Instant::now() < end {
            status = self.child.try_wait().expect("its status");
            thread::sleep(Duration::from_millis(10));
        }
        let status = status.map_or("still running".to_owned(), |status| status.to_string());
        panic!("{} {what} ({status}); its output:\n{}", self.name, self.output());
    }

    /// Returns the output so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the process. Its standard input may be a pipe.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program to exit. The caller must cause it to exit.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("its status")
    }

    /// Kills the program, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stores the output from a pipe, and forwards its lines.
fn keep(pipe: Option<impl Read + Send + 'static>, output: &Arc<Mutex<String>>, lines: Option<Sender<String>>) {
    let output = Arc::clone(output);
    let mut pipe = BufReader::new(pipe.expect("a pipe"));
    thread::spawn(move || {
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            output.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            if let Some(lines) = &lines {
                // The test may no longer listen.
                let _ = lines.send(text.trim_end_matches('\n').to_owned());
            }
            line.clear();
        }
    });
}
