// SPDX-License-Identifier: MIT OR Apache-2.0

//! The connection between the instance and a job shell: JSON values, one per line, over a socket. Neither side ever
//! waits for the other to read.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use serde_json::Value;

use crate::reactor::{Reactor, Watcher};

/// The maximum length of a line. A longer line ends the connection.
const LINE_MAX: usize = 16 << 20;

/// One end of a connection.
pub struct Channel {
    stream: UnixStream,
    reactor: Rc<Reactor>,
    input: RefCell<Vec<u8>>,
    output: RefCell<Vec<u8>>,
    writer: RefCell<Option<Rc<Watcher>>>,
}

impl Channel {
    /// Takes over a connected socket.
    pub fn new(stream: UnixStream, reactor: Rc<Reactor>) -> io::Result<Rc<Channel>> {
        stream.set_nonblocking(true)?;
        let (input, output) = (RefCell::default(), RefCell::default());
        Ok(Rc::new(Channel {
            stream,
            reactor,
            input,
            output,
            writer: RefCell::default(),
        }))
    }

    /// Returns the descriptor, for a watcher.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Sends a value now, or when the socket is writable. Values that the other side no longer reads are lost.
    pub fn send(self: &Rc<Self>, value: &Value) {
        self.output
            .borrow_mut()
            .extend_from_slice(format!("{value}\n").as_bytes());
        self.flush();
    }

    fn flush(self: &Rc<Self>) {
        let mut output = self.output.borrow_mut();
        while !output.is_empty() {
            match (&self.stream).write(&output) {
                Ok(n) => drop(output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let channel = Rc::downgrade(self);
                    self.writer.borrow_mut().get_or_insert_with(|| {
                        self.reactor.watch_writable(self.fd(), move || {
                            if let Some(channel) = channel.upgrade() {
                                channel.flush();
                            }
                        })
                    });
                    return;
                }
                Err(_) => output.clear(),
            }
        }
        if let Some(writer) = self.writer.take() {
            writer.stop();
        }
    }

    /// Receives the values that have arrived. Returns None once the connection has ended and all values were received.
    pub fn receive(&self) -> Option<Vec<Value>> {
        let mut input = self.input.borrow_mut();
        let mut buf = [0; 65536];
        let mut ended = false;
        loop {
            match (&self.stream).read(&mut buf) {
                Ok(0) => ended = true,
                Ok(n) => {
                    input.extend_from_slice(&buf[..n]);
                    if input.len() < LINE_MAX {
                        continue;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => (),
                Err(_) => ended = true,
            }
            break;
        }
        let complete = input.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = input.drain(..complete).collect();
        let values: Vec<Value> = lines
            .split(|&b| b == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let broken = ended || input.len() >= LINE_MAX;
        (!broken || !values.is_empty()).then_some(values)
    }
}
