// SPDX-License-Identifier: MIT OR Apache-2.0

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

/// Receives a message like [`receive`], or returns `None` if the stream ends before its first byte.
///
/// # Errors
/// Those of [`receive`].
pub async fn receive_any<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<Option<T>> {
    let mut first = [0];
    match stream.read(&mut first).await? {
        0 => Ok(None),
        _ => receive(&mut first.as_slice().chain(stream), limit).await.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_stream_without_a_byte_is_no_message() {
        let frame = protocol::encode(&"text".to_owned()).unwrap();
        let received = |bytes: Vec<u8>| async move { receive_any::<String>(&mut bytes.as_slice(), 100).await };
        assert_eq!(received(frame.to_vec()).await.unwrap().as_deref(), Some("text"));
        assert_eq!(received(Vec::new()).await.unwrap(), None);
        for length in 1..frame.len() {
            let error = received(frame[..length].to_vec()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
    }
}
