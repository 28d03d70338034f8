// SPDX-License-Identifier: MIT OR Apache-2.0

//! Parses pages as a browser receives them.

use axum::{
    body::to_bytes,
    http::{HeaderMap, StatusCode},
};
use service::pages::Page;

/// The response with a page.
pub struct Answered {
    pub name: &'static str,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub html: String,
}

/// A start tag, and the text up to the next tag.
#[derive(Debug)]
pub struct Tag<'a> {
    pub name: &'a str,
    pub attributes: Vec<(&'a str, &'a str)>,
    pub text: &'a str,
}

impl<'a> Tag<'a> {
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let mut attributes = self.attributes.iter();
        attributes.find(|(each, _)| *each == name).map(|(_, value)| *value)
    }
}

impl Answered {
    pub async fn of(name: &'static str, page: impl Page) -> Self {
        let (parts, body) = page.response().into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Self {
            name,
            status: parts.status,
            headers: parts.headers,
            html: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn tags(&self) -> Vec<Tag<'_>> {
        tags(&self.html)
    }

    /// Returns the texts of the tags with these names, in order.
    pub fn texts(&self, names: &[&str]) -> Vec<&str> {
        let tags = self.tags().into_iter();
        tags.filter(|tag| names.contains(&tag.name))
            .map(|tag| tag.text.trim())
            .collect()
    }
}

/// Splits HTML in which `<`, `>` and `"` occur only in tags and attributes; all others are escaped.
pub fn tags(html: &str) -> Vec<Tag<'_>> {
    let mut tags = Vec::new();
    for part in html.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("the end of a tag");
        if tag.starts_with(['/', '!']) {
            continue;
        }
        let (name, mut rest) = tag.split_once([' ', '\n']).unwrap_or((tag, ""));
        let mut attributes = Vec::new();
        while !rest.trim_matches(['/', ' ', '\n']).is_empty() {
            rest = rest.trim_start();
            let end = rest.find(['=', ' ', '\n']).unwrap_or(rest.len());
            let attribute = &rest[..end];
            rest = &rest[end..];
            let value = match rest.strip_prefix("=\"") {
                Some(quoted) => {
                    let (value, after) = quoted.split_once('"').expect("the end of an attribute");
                    rest = after;
                    value
                }
                None => "",
            };
            attributes.push((attribute, value));
        }
        tags.push(Tag { name, attributes, text });
    }
    tags
}
