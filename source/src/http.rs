// SPDX-License-Identifier: MIT OR Apache-2.0

//! The HTTP client of the sources: verified TLS, and bounded answers.
//!
//! Bodies of requests and answers are in memory that is zeroized. The buffers of hyper and rustls are not; they live as
//! long as their connection.

mod error;
mod retry;
pub(crate) mod tls;

use std::{
    pin::pin,
    time::{Duration, SystemTime},
};

use http::{
    Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, HeaderMap, RETRY_AFTER},
};
use http_body_util::{BodyExt, Full, LengthLimitError};
use hyper::body::{Body, Bytes};
use tower::BoxError;
use zeroize::Zeroizing;

pub(crate) use http_client::{Http, Transport, bounded, client};

pub(crate) use self::{
    error::{Peer, Retry, SourceError, causes, quote},
    retry::{Attempts, pauses},
};

/// The header `User-Agent` of each request.
pub(crate) const USER_AGENT: &str = concat!("flux-workflow-token/", env!("CARGO_PKG_VERSION"));

/// The initial capacity for a body whose length is not known, in bytes.
const FIRST_BODY: usize = 16 << 10;

/// The reply of a server.
pub(crate) struct HttpReply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl HttpReply {
    /// Reads an answer whose body has at most `max_body` bytes.
    pub async fn read<B>(response: Response<B>, max_body: usize, peer: &Peer) -> Result<Self, SourceError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = response.into_parts();
        if let Some(encoding) = head.headers.get(CONTENT_ENCODING)
            && head.status.is_success()
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            return Err(SourceError::permanent(
                peer.unwell,
                format_args!(
                    "its answer is compressed ({}), which was not requested",
                    quote(&encoding, &[])
                ),
                "configure the server, or the proxy in front of it, to answer without a Content-Encoding",
            ));
        }
        Ok(Self {
            status: head.status,
            headers: head.headers,
            body: collect(body, max_body, peer).await?,
        })
    }

    /// Returns the body for a JSON parser, without the byte order mark that some servers send (RFC 8259 section 8.1).
    pub fn json(&self) -> &[u8] {
        self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.body)
    }

    /// Returns the pause that the server requests (RFC 9110 section 10.2.3): seconds or a date. Seconds that overflow
    /// saturate.
    pub fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        Some(date.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Returns the status, and the requested pause as the server wrote it.
    pub fn status_text(&self) -> String {
        let code = self.status.as_u16();
        match self.headers.get(RETRY_AFTER) {
            Some(value) => {
                let text = String::from_utf8_lossy(value.as_bytes());
                format!("{code}, Retry-After: {}", quote(&text, &[]))
            }
            None => code.to_string(),
        }
    }

    /// Returns whether another attempt can succeed, for any kind of server.
    pub fn retry(&self) -> Retry {
        let is_transient = matches!(
            self.status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        ) || self.status.is_server_error();
        if is_transient {
            Retry::Backoff(self.retry_after())
        } else {
            Retry::Never
        }
    }

    /// Returns the time that the answer remains fresh (RFC 9111 section 5.2.2.1).
    pub fn max_age(&self) -> Option<Duration> {
        let values = self.headers.get_all(CACHE_CONTROL).iter();
        let directives = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','));
        let mut ages = directives.filter_map(|directive| {
            let (name, value) = directive.split_once('=')?;
            let is_age = name.trim().eq_ignore_ascii_case("max-age");
            is_age.then(|| value.trim().trim_matches('"').parse().ok())?
        });
        ages.next().map(Duration::from_secs)
    }
}

/// Sends a request and reads the answer, whose body has at most `max_body` bytes.
pub(crate) async fn exchange(
    http: &Http,
    request: Request<Full<Bytes>>,
    max_body: usize,
    peer: &Peer,
) -> Result<HttpReply, SourceError> {
    let response = http.request(request).await;
    let response = response.map_err(|e| SourceError::of_request(&e, peer))?;
    HttpReply::read(response, max_body, peer).await
}

/// Returns a body in memory that is zeroized.
pub(crate) fn body(bytes: Zeroizing<Vec<u8>>) -> Full<Bytes> {
    Full::new(Bytes::from_owner(bytes))
}

async fn collect<B>(body: B, max: usize, peer: &Peer) -> Result<Zeroizing<Vec<u8>>, SourceError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = pin!(bounded(body, max));
    let known = body.size_hint().exact().and_then(|len| usize::try_from(len).ok());
    let mut all = Zeroizing::new(Vec::with_capacity(known.unwrap_or(FIRST_BODY).min(max)));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            if causes(&*e).any(|cause| cause.is::<LengthLimitError>()) {
                return SourceError::permanent(
                    peer.unwell,
                    format_args!("it answered with more than {max} bytes"),
                    format_args!("check that {} is the address of {}", peer.address, peer.server),
                );
            }
            SourceError::of_request(&*e, peer)
        })?;
        if let Some(data) = frame.data_ref() {
            append(&mut all, data);
        }
    }
    Ok(all)
}

/// Appends bytes. Unlike a vector that grows, it zeroizes the former memory.
pub(crate) fn append(all: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    if all.capacity() - all.len() < data.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity((all.len() + data.len()) * 2));
        larger.extend_from_slice(all);
        *all = larger;
    }
    all.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &'static str, value: &str) -> HttpReply {
        HttpReply {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())]),
            body: Zeroizing::default(),
        }
    }

    #[test]
    fn the_time_to_wait_is_seconds_or_a_date() {
        let after = |value| answer("retry-after", value).retry_after();
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(after("Sat, 06 Nov 2094 08:49:37 GMT").unwrap() > Duration::from_secs(86400));
        assert_eq!(after("18446744073709551616"), Some(Duration::from_secs(u64::MAX)));
        for bad in ["soon", "-1", "", "1.5", "+1"] {
            assert_eq!(after(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_time_to_keep_is_found_among_other_directives() {
        let age = |value| answer("cache-control", value).max_age();
        assert_eq!(
            age("public, max-age=300, must-revalidate"),
            Some(Duration::from_secs(300))
        );
        assert_eq!(age("Max-Age=\"5\""), Some(Duration::from_secs(5)));
        for none in ["no-store", "s-maxage=5", "max-age=", "max-age=x", "max-age"] {
            assert_eq!(age(none), None, "{none}");
        }
    }
}
