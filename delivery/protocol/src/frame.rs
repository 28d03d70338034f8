// SPDX-License-Identifier: MIT OR Apache-2.0

//! Frames: a little-endian length of four bytes, and a message of that many bytes in the postcard wire format.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// The length of a frame's header, in bytes.
pub const HEADER: usize = 4;

/// The longest message, in bytes. A record has at most 1 MiB; a configuration of thousands of rules is also shorter.
pub const MAX_FRAME: usize = 8 << 20;

/// The reason why a frame was rejected. The connection must be closed after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The message is longer than [`MAX_FRAME`].
    #[error("a message of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    /// The bytes are not a message.
    #[error("a message is malformed")]
    Malformed,
}

/// Returns a message as a frame. Its memory is zeroized when dropped, and is never reallocated before.
///
/// # Errors
/// [`Error::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, Error> {
    let length = postcard::experimental::serialized_size(message).map_err(|_| Error::Malformed)?;
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let header = header.ok_or(Error::TooLong(length))?;
    let mut frame = Zeroizing::new(vec![0; HEADER + length]);
    frame[..HEADER].copy_from_slice(&header.to_le_bytes());
    postcard::to_slice(message, &mut frame[HEADER..]).map_err(|_| Error::Malformed)?;
    Ok(frame)
}

/// Returns the length of the message behind a header, in bytes.
///
/// # Errors
/// [`Error::TooLong`].
pub fn body_length(header: [u8; HEADER]) -> Result<usize, Error> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(Error::TooLong(length));
    }
    Ok(length)
}

/// Receives a message from a blocking stream, and wipes the bytes of its frame.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if the message is longer than `limit` or malformed; the errors of the stream.
pub fn receive<T: DeserializeOwned>(stream: &mut impl io::Read, limit: usize) -> io::Result<T> {
    let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let length = body_length(header).map_err(invalid)?;
    if length > limit {
        return Err(invalid(Error::TooLong(length)));
    }
    let mut body = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut body)?;
    decode(&body).map_err(invalid)
}

/// Returns the message in the body of a frame. Trailing bytes are an error.
///
/// # Errors
/// [`Error::Malformed`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(Error::Malformed),
    }
}

/// Buffers received bytes until they are a message, for a reader that never waits.
#[derive(Debug, Default)]
pub struct Incoming {
    buffer: Vec<u8>,
    taken: usize,
}

/// The size, in bytes, up to which an empty buffer keeps its memory.
const ROOM: usize = 64 << 10;

impl Incoming {
    /// Adds received bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Removes and returns the next message, if it is complete.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let received = &self.buffer[self.taken..];
        let Some((header, rest)) = received.split_first_chunk::<HEADER>() else {
            self.shrink();
            return Ok(None);
        };
        let length = body_length(*header)?;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = decode(body)?;
        self.taken += HEADER + length;
        Ok(Some(message))
    }

    fn shrink(&mut self) {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
            self.buffer.shrink_to(ROOM);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Origin, Reply, Request, SecretText, VERSION};

    use super::*;

    fn replies() -> Vec<Reply> {
        (0..100).map(|number| Reply::NoRule { number }).collect()
    }

    #[test]
    fn messages_arrive_whatever_pieces_they_come_in() {
        let bytes: Vec<u8> = replies()
            .iter()
            .flat_map(|reply| encode(reply).unwrap().to_vec())
            .collect();
        for size in [1, 2, 3, 5, 7, 64, bytes.len()] {
            let mut incoming = Incoming::default();
            let mut numbers = Vec::new();
            for piece in bytes.chunks(size) {
                incoming.add(piece);
                while let Some(reply) = incoming.take::<Reply>().unwrap() {
                    let Reply::NoRule { number } = reply else {
                        panic!("{reply:?}")
                    };
                    numbers.push(number);
                }
            }
            assert_eq!(numbers, (0..100).collect::<Vec<_>>(), "pieces of {size}");
        }
    }

    #[test]
    fn a_length_from_outside_is_bounded_before_memory_is_taken() {
        let mut incoming = Incoming::default();
        incoming.add(&u32::MAX.to_le_bytes());
        assert_eq!(incoming.take::<Reply>().unwrap_err(), Error::TooLong(u32::MAX as usize));
        // A list that claims to have more elements than the body has bytes.
        let mut body = vec![2];
        body.extend([0xff; 9]);
        assert_eq!(decode::<Reply>(&body).unwrap_err(), Error::Malformed);
    }

    #[test]
    fn bytes_behind_a_message_are_no_part_of_it() {
        let mut frame = encode(&Request::Cancel { number: 1 }).unwrap().to_vec();
        frame.push(0);
        assert_eq!(decode::<Request>(&frame[HEADER..]).unwrap_err(), Error::Malformed);
    }

    #[test]
    fn a_secret_does_not_print() {
        let secret = SecretText(Zeroizing::new("canary".to_owned()));
        let origin = Origin::Provided(vec![("NAME".to_owned(), secret)]);
        assert!(!format!("{origin:?} {VERSION}").contains("canary"));
    }
}
