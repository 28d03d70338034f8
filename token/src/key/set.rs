// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::MapAccess;
use serde_json::json;
use serde_json::value::RawValue;

use super::{KeyError, MAX_KEYS, VerifyingKey};
use crate::Algorithm;
use crate::json::{Members, Skipped, Unique, without_mark};

/// Keys to verify tokens with, by their `kid`. Two of different algorithms may have the same (RFC 7517 section 4.5).
#[derive(Clone, Debug, Default)]
pub struct KeySet(BTreeMap<String, BTreeMap<Algorithm, VerifyingKey>>);

/// A key of a JWKS that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedKey {
    /// Its place in the array, from 0.
    pub index: usize,
    /// Its `kid`, where it has one.
    pub kid: Option<String>,
    /// The reason.
    pub reason: KeyError,
}

impl KeySet {
    /// No keys.
    ///
    /// ```
    /// assert!(token::KeySet::new().is_empty());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// The public keys of a JWKS (RFC 7517 section 5), and those of its keys that cannot be used, which are skipped, as
    /// that section demands. A secret (`"kty":"oct"`) in a JWKS is skipped too, and so is all after the first [`MAX_KEYS`].
    ///
    /// ```
    /// use token::KeySet;
    ///
    /// // The key of RFC 8037, appendix A.2, and one for encryption.
    /// let jwks = br#"{"keys":[
    ///     {"kty":"OKP","crv":"Ed25519","kid":"2026","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    ///     {"kty":"OKP","crv":"X25519","x":"hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo"}]}"#;
    /// let (keys, skipped) = KeySet::from_jwks(jwks)?;
    /// assert!(keys.get("2026").is_some());
    /// assert_eq!(skipped[0].index, 1);
    /// # Ok::<(), token::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError::NotJwks`] where it is not a JWKS at all.
    pub fn from_jwks(jwks: &[u8]) -> Result<(Self, Vec<SkippedKey>), KeyError> {
        #[derive(Default)]
        struct Jwks<'a> {
            keys: Option<Vec<&'a RawValue>>,
        }
        impl<'de> Members<'de> for Jwks<'de> {
            type Unknown = Skipped;

            fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
                if name == "keys" {
                    self.keys = Some(map.next_value()?);
                }
                Ok(name == "keys")
            }
        }
        #[derive(Deserialize)]
        struct Named {
            kid: Option<String>,
        }

        let jwks = without_mark(jwks);
        if !jwks.trim_ascii_start().starts_with(b"{") {
            return Err(KeyError::NotJwks);
        }
        let Unique(jwks) = serde_json::from_slice::<Unique<Jwks>>(jwks).map_err(|_| KeyError::NotJwks)?;
        let keys = jwks.keys.ok_or(KeyError::NotJwks)?;
        let (mut set, mut skipped) = (Self::new(), Vec::new());
        for (index, jwk) in keys.into_iter().enumerate() {
            if index == MAX_KEYS {
                let (kid, reason) = (None, KeyError::TooMany);
                skipped.push(SkippedKey { index, kid, reason });
                break;
            }
            let read = VerifyingKey::from_jwk(jwk.get().as_bytes()).and_then(|key| {
                match set.find(key.kid(), key.algorithm()) {
                    Some(_) => Err(KeyError::SameKid),
                    None => Ok(key),
                }
            });
            match read {
                Ok(key) => drop(set.insert(key)),
                Err(reason) => {
                    let kid = serde_json::from_str(jwk.get()).ok().and_then(|named: Named| named.kid);
                    skipped.push(SkippedKey { index, kid, reason });
                }
            }
        }
        Ok((set, skipped))
    }

    /// Adds a key, and returns the one of the same `kid` and algorithm that it replaces.
    ///
    /// ```
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let mut keys = KeySet::new();
    /// keys.insert(SigningKey::generate(Algorithm::EdDsa).verifying_key());
    /// assert_eq!(keys.len(), 1);
    /// ```
    pub fn insert(&mut self, key: VerifyingKey) -> Option<VerifyingKey> {
        let same_kid = self.0.entry(key.kid().to_owned()).or_default();
        same_kid.insert(key.algorithm(), key)
    }

    /// The key of that `kid`; of several, any.
    ///
    /// ```
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let keys = KeySet::from(key.verifying_key());
    /// assert!(keys.get(key.kid()).is_some());
    /// assert!(keys.get("another").is_none());
    /// ```
    pub fn get(&self, kid: &str) -> Option<&VerifyingKey> {
        self.0.get(kid)?.values().next()
    }

    /// The key of that `kid` for an algorithm.
    ///
    /// ```
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let keys = KeySet::from(key.verifying_key());
    /// assert!(keys.find(key.kid(), Algorithm::EdDsa).is_some());
    /// assert!(keys.find(key.kid(), Algorithm::Es256).is_none());
    /// ```
    pub fn find(&self, kid: &str, algorithm: Algorithm) -> Option<&VerifyingKey> {
        self.0.get(kid)?.get(&algorithm)
    }

    /// All keys, in the order of their `kid`.
    ///
    /// ```
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let keys = KeySet::from(SigningKey::generate(Algorithm::EdDsa).verifying_key());
    /// assert!(keys.iter().all(|key| key.algorithm() == Algorithm::EdDsa));
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// Returns how many keys there are.
    ///
    /// ```
    /// assert_eq!(token::KeySet::new().len(), 0);
    /// ```
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Returns whether there are none.
    ///
    /// ```
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let keys = KeySet::from(SigningKey::generate(Algorithm::EdDsa).verifying_key());
    /// assert!(!keys.is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public keys as a JWKS (RFC 7517 section 5); secrets for HS256 are left out.
    ///
    /// ```
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let jwks = KeySet::from(key.verifying_key()).public_jwks();
    /// let (keys, skipped) = KeySet::from_jwks(jwks.as_bytes())?;
    /// assert!(keys.get(key.kid()).is_some() && skipped.is_empty());
    /// # Ok::<(), token::KeyError>(())
    /// ```
    pub fn public_jwks(&self) -> String {
        let keys: Vec<_> = self.iter().filter_map(VerifyingKey::to_jwk).collect();
        json!({ "keys": keys }).to_string()
    }
}

impl Extend<VerifyingKey> for KeySet {
    fn extend<T: IntoIterator<Item = VerifyingKey>>(&mut self, keys: T) {
        for key in keys {
            self.insert(key);
        }
    }
}

impl FromIterator<VerifyingKey> for KeySet {
    fn from_iter<T: IntoIterator<Item = VerifyingKey>>(keys: T) -> Self {
        let mut set = Self::new();
        set.extend(keys);
        set
    }
}

impl From<VerifyingKey> for KeySet {
    fn from(key: VerifyingKey) -> Self {
        [key].into_iter().collect()
    }
}
