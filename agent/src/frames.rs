//! Receives messages from streams.

use std::io;

use protocol::HEADER;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroizing;

/// Receives a message of at most `limit` bytes. Wipes the bytes of its frame, which may be secret.
///
/// # Errors
/// The stream has ended or failed; the message is too long or malformed.
pub async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<T> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let length = protocol::body_length(header).map_err(io::Error::other)?;
    if length > limit {
        return Err(io::Error::other(format!(
            "a message has {length} bytes, more than {limit}"
        )));
    }
    let mut body = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut body).await?;
    protocol::decode(&body).map_err(io::Error::other)
}
