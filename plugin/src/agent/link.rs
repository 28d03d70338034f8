// SPDX-License-Identifier: MIT OR Apache-2.0

//! A connection to an agent. No call blocks.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    rc::Rc,
    time::Instant,
};

use ffi::{Flux, Watcher};
use nix::{
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials},
    unistd::geteuid,
};
use protocol::{Incoming, Reply};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use zeroize::Zeroizing;

/// An encoded message, which may contain secrets.
pub(super) type Frame = Zeroizing<Vec<u8>>;

/// The number of bytes that are encoded before the socket accepts them.
const AHEAD: usize = 64 << 10;

/// The most bytes of one read.
const READ: usize = 64 << 10;

/// A connection to an agent.
pub(super) struct Link {
    // Dropped before the socket that it watches.
    _readable: Watcher,
    writable: Option<Watcher>,
    stream: UnixStream,
    /// The process of the agent, if known.
    peer: Option<OwnedFd>,
    incoming: Incoming,
    outgoing: VecDeque<Frame>,
    /// The number of bytes of the first frame that were sent.
    sent: usize,
    received_last: Instant,
}

/// The reason why connecting failed.
pub(super) enum Error {
    /// No agent listens.
    Absent(String),
    /// The listening process is not trusted, or the socket cannot be used.
    Refused(String),
}

impl Link {
    /// Connects to an agent that runs as the same user or as root. `receive` is called when the socket is readable.
    pub fn connect(path: &Path, flux: Flux<'static>, receive: impl Fn() + 'static) -> Result<Self, Error> {
        let refused = |e: &dyn std::fmt::Display| Error::Refused(e.to_string());
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|e| refused(&e))?;
        let address = UnixAddr::new(path).map_err(|e| refused(&format!("{e}: set the key agent to a shorter path")))?;
        connect(fd.as_raw_fd(), &address).map_err(|e| Error::Absent(format!("no process listens there ({e})")))?;
        let peer = getsockopt(&fd, PeerCredentials).map_err(|e| refused(&e))?;
        let own = geteuid().as_raw();
        if peer.uid() != own && peer.uid() != 0 {
            let uid = peer.uid();
            return Err(refused(&format!(
                "uid {uid} listens there, and only uid {own} or root may: find out who created the socket"
            )));
        }
        let stream = UnixStream::from(fd);
        let readable = flux.watch(stream.as_raw_fd(), receive).map_err(|e| refused(&e))?;
        let process = Pid::from_raw(peer.pid()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Ok(Self {
            _readable: readable,
            writable: None,
            stream,
            peer: process.filter(|_| peer.uid() == own),
            incoming: Incoming::default(),
            outgoing: VecDeque::new(),
            sent: 0,
            received_last: Instant::now(),
        })
    }

    /// Returns the time of the last received bytes, or of the connection.
    pub fn received_last(&self) -> Instant {
        self.received_last
    }

    /// Kills the process of the agent.
    pub fn kill_peer(&self) {
        if let Some(process) = &self.peer {
            // The process may have ended.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Reads some of the received bytes.
    ///
    /// # Errors
    /// The reason why the connection must be closed.
    pub fn read(&mut self) -> Result<(), String> {
        let mut buffer = [0; READ];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err("it closed the connection".to_owned()),
            Ok(length) => {
                self.received_last = Instant::now();
                self.incoming.add(&buffer[..length]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Removes and returns the next received reply.
    ///
    /// # Errors
    /// The reason why the connection must be closed.
    pub fn next(&mut self) -> Result<Option<Reply>, String> {
        self.incoming.take().map_err(|e| e.to_string())
    }

    /// Sends frames until there are none left or the socket accepts no more. Then `again` is called when it does.
    ///
    /// # Errors
    /// The reason why the connection must be closed.
    pub fn send(
        &mut self,
        mut next: impl FnMut() -> Option<Result<Frame, protocol::Error>>,
        flux: Flux<'static>,
        again: impl Fn() + 'static,
    ) -> Result<(), String> {
        loop {
            let mut waiting: usize = self.outgoing.iter().map(|frame| frame.len()).sum();
            while waiting < AHEAD
                && let Some(frame) = next()
            {
                let frame = frame.map_err(|e| e.to_string())?;
                waiting += frame.len();
                self.outgoing.push_back(frame);
            }
            let Some(first) = self.outgoing.front() else {
                self.writable = None;
                return Ok(());
            };
            match self.stream.write(&first[self.sent..]) {
                Ok(length) => {
                    self.sent += length;
                    if self.sent == first.len() {
                        self.outgoing.pop_front();
                        self.sent = 0;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.writable.is_none() {
                        let watcher = flux.watch_writable(self.stream.as_raw_fd(), Rc::new(again));
                        self.writable = Some(watcher.map_err(|e| e.to_string())?);
                    }
                    return Ok(());
                }
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}
