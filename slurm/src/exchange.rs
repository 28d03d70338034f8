// SPDX-License-Identifier: MIT OR Apache-2.0

//! One request and its reply, within a time limit that no peer can extend.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

/// The longest reply, in bytes. A sealed record is shorter.
pub const MAX_REPLY: usize = 2 << 20;

/// A blocking stream whose operations have a timeout (SO_RCVTIMEO, SO_SNDTIMEO, socket(7)).
pub trait Stream: Read + Write {
    /// Sets the timeout of each following operation.
    ///
    /// # Errors
    /// From setsockopt(2).
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

impl Stream for UnixStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

/// The moment at which waiting ends.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// Returns the moment `time` from now, at most a day.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time.min(Duration::from_secs(24 * 3600)))
    }

    /// Returns this moment or `time` from now, whichever is earlier.
    #[must_use]
    pub fn at_most(self, time: Duration) -> Self {
        Self(self.0.min(Self::after(time).0))
    }

    /// Returns the remaining time.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if no time remains.
    pub fn left(self) -> io::Result<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

/// A stream with one deadline for all of its operations.
struct Bounded<'a, S> {
    stream: &'a mut S,
    deadline: Deadline,
}

impl<S: Stream> Bounded<'_, S> {
    fn ready(&self) -> io::Result<()> {
        self.stream.set_timeout(self.deadline.left()?)
    }
}

/// Converts the error: a socket reports its timeout as WouldBlock.
fn timed_out(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => e,
    }
}

impl<S: Stream> Read for Bounded<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.ready()?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl<S: Stream> Write for Bounded<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ready()?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Sends a request, and receives a reply of at most `limit` bytes before the deadline.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`]; [`io::ErrorKind::InvalidData`] if the reply is malformed; the errors of the stream.
pub fn exchange<T: DeserializeOwned>(
    stream: &mut impl Stream,
    request: &impl Serialize,
    limit: usize,
    deadline: Deadline,
) -> io::Result<T> {
    let mut stream = Bounded { stream, deadline };
    let frame = protocol::encode(request).map_err(io::Error::other)?;
    stream.write_all(&frame)?;
    protocol::receive(&mut stream, limit)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// A peer that sends byte by byte must not delay a job.
    #[test]
    fn a_slow_reply_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&100_000_u32.to_le_bytes()).unwrap();
            while stream.write_all(&[1]).is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let mut stream = TcpStream::connect(address).unwrap();
        let error = exchange::<String>(
            &mut stream,
            &"request",
            MAX_REPLY,
            Deadline::after(Duration::from_millis(100)),
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        drop(stream);
        peer.join().unwrap();
    }

    #[test]
    fn no_reply_ends_at_the_deadline() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let error = exchange::<String>(
            &mut ours,
            &"request",
            MAX_REPLY,
            Deadline::after(Duration::from_millis(20)),
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}
