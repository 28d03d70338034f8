// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `public-client`: the client id and settings of command-line tools.

use http::HeaderName;
use serde::Deserialize;

use crate::strict;

/// The public client (RFC 6749 section 2.1) of command-line tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicClient {
    /// Its id.
    pub id: String,
    /// The redirect URIs at which a tool receives codes: loopback addresses only (RFC 8252 section 7.3).
    pub redirect_uris: Vec<String>,
    /// The scopes that a tool requests.
    pub scopes: Vec<String>,
    /// The audience that a tool requests.
    pub audience: Option<String>,
    /// The header in which a tool sends its token.
    pub authorization_metadata_key: HeaderName,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct PublicClientTable {
    client_id: String,
    #[serde(default)]
    redirect_uris: Vec<String>,
    #[serde(default)]
    scopes: Vec<String>,
    audience: Option<String>,
    authorization_metadata_key: Option<String>,
}

impl PublicClientTable {
    pub fn public_client(self) -> Result<PublicClient, String> {
        if self.client_id.is_empty()
            || !self
                .client_id
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b':')
        {
            return Err("public-client.client-id: must be visible ASCII without a colon".to_owned());
        }
        // Without TLS, `check_url` accepts only loopback addresses.
        let is_loopback = |uri: &String| config::check_url(uri).is_ok() && config::is_plain_url(uri);
        if let Some(i) = self.redirect_uris.iter().position(|uri| !is_loopback(uri)) {
            return Err(format!(
                "public-client.redirect-uris[{i}]: must be on this machine, as in http://localhost:53593/callback"
            ));
        }
        let is_scope = |scope: &String| !scope.is_empty() && scope.bytes().all(strict::is_scope_byte);
        if !self.scopes.iter().all(is_scope) {
            let what = "must be words of visible ASCII, without quotes and backslashes";
            return Err(format!("public-client.scopes: {what}"));
        }
        if self.audience.as_ref().is_some_and(String::is_empty) {
            return Err("public-client.audience: must not be empty".to_owned());
        }
        let header = self.authorization_metadata_key.as_deref().unwrap_or("authorization");
        Ok(PublicClient {
            id: self.client_id,
            redirect_uris: self.redirect_uris,
            scopes: self.scopes,
            audience: self.audience,
            authorization_metadata_key: header.parse().map_err(|_| {
                "public-client.authorization-metadata-key: must be the name of a header, such as \"authorization\""
                    .to_owned()
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::Settings;

    #[test]
    fn codes_are_sent_to_this_machine_only() {
        let start = "issuer = \"https://a\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n[public-client]\n";
        let parse = |rest: &str| Settings::parse(&format!("{start}{rest}")).map(|settings| settings.public_client);
        for uri in [
            "http://localhost:53593/callback",
            "http://127.0.0.1/x",
            "http://[::1]:1/x",
        ] {
            let client = parse(&format!("client-id = \"a\"\nredirect-uris = [\"{uri}\"]"))
                .unwrap()
                .unwrap();
            assert_eq!(client.redirect_uris, [uri]);
            assert_eq!(client.authorization_metadata_key, "authorization");
        }
        for (rest, says) in [
            ("", "public-client: missing field `client-id`"),
            ("client-id = \"\"", "public-client.client-id: "),
            ("client-id = \"a b\"", "public-client.client-id: "),
            ("client-id = \"a\"\nscopes = [\"a b\"]", "public-client.scopes: "),
            ("client-id = \"a\"\naudience = \"\"", "public-client.audience: "),
            (
                "client-id = \"a\"\nauthorization-metadata-key = \"a b\"",
                "public-client.authorization-metadata-key: ",
            ),
        ] {
            let error = parse(rest).unwrap_err();
            assert!(error.contains(says), "{rest}: {error}");
        }
        for uri in [
            "https://localhost/x",
            "http://a.example.org/x",
            "http://localhost.example.org/x",
            "http://localhost@evil.example.org/x",
            "http://localhost/x#y",
            "com.example.app:/x",
            "",
        ] {
            let error = parse(&format!(
                "client-id = \"a\"\nredirect-uris = [\"http://localhost/\", \"{uri}\"]"
            ))
            .unwrap_err();
            assert!(
                error.starts_with("public-client.redirect-uris[1]: must be on this machine"),
                "{uri}: {error}"
            );
        }
    }
}
