// SPDX-License-Identifier: MIT OR Apache-2.0

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{KeyError, MIN_KEY_LEN, SigningKey, VerifyingKey, pem};

/// A key to issue tokens with: the DER bytes of a private key, used as they are as the secret of an HMAC.
///
/// The rabbit software keeps an elliptic curve key and uses its encoding as a long random secret; the kind of key does
/// not matter to it, nor here. The bytes are zeroized when the key is dropped; it implements no `Debug`.
pub struct HmacKey(SigningKey);

impl HmacKey {
    /// Reads the key from a PEM file's contents (RFC 7468).
    ///
    /// The file holds exactly one block, its label ends in `PRIVATE KEY` and its content is one DER `SEQUENCE`. A reader
    /// in Go takes the first block of a file whatever it is; a second block would let the two sides use different bytes,
    /// and a public block would be a secret that everyone knows.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, HmacKey, KeyError, SigningKey};
    ///
    /// let pem = SigningKey::generate(Algorithm::Es256).to_pem().expect("the private key");
    /// assert!(HmacKey::from_pem(pem.expose_secret().as_bytes()).is_ok());
    /// assert_eq!(HmacKey::from_pem(b"no key").err(), Some(KeyError::NotPem));
    /// ```
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; it holds nothing of the key. The caller adds which file it was.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let (label, der) = pem::read(pem)?;
        if !label.ends_with("PRIVATE KEY") {
            return Err(KeyError::NotPrivate(pem::printable(label)));
        }
        if der.len() < MIN_KEY_LEN {
            return Err(KeyError::TooShort(der.len()));
        }
        if pem::sequence_len(&der) != Some(der.len()) {
            return Err(KeyError::NotDer);
        }
        SigningKey::from_secret(&der).map(Self)
    }

    /// The key that verifies what this one has signed: the same bytes, kept as secretly.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, HmacKey, KeySet, SigningKey, issue};
    ///
    /// let pem = SigningKey::generate(Algorithm::Es256).to_pem().expect("the private key");
    /// let key = HmacKey::from_pem(pem.expose_secret().as_bytes())?;
    /// let token = issue(&key, "user-container", 1_800_000_000);
    /// assert!(KeySet::from(key.verifying_key()).verify_jws(token.expose_secret()).is_ok());
    /// # Ok::<(), token::KeyError>(())
    /// ```
    pub fn verifying_key(&self) -> VerifyingKey {
        self.0.verifying_key()
    }

    /// A token with that header and those claims, both JSON.
    pub(crate) fn sign(&self, header: &str, claims: &Zeroizing<String>) -> SecretString {
        self.0
            .compact(&super::signing::encode(header.as_bytes()), claims.as_bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    /// A P-521 key in PKCS #8 under the label "EC PRIVATE KEY", which is how the rabbit software writes it.
    pub(crate) const RABBIT: &str = include_str!("../../testdata/rabbit.pem");
    const EC: &str = include_str!("../../testdata/ec.pem");
    const EC_WITH_PARAMETERS: &str = include_str!("../../testdata/ec-with-parameters.pem");
    const RSA: &str = include_str!("../../testdata/rsa.pem");
    const ENCRYPTED: &str = include_str!("../../testdata/encrypted.pem");
    const ENCRYPTED_RFC_1421: &str = include_str!("../../testdata/encrypted-rfc1421.pem");
    const PUBLIC: &str = include_str!("../../testdata/public.pem");

    fn error(pem: impl AsRef<[u8]>) -> KeyError {
        HmacKey::from_pem(pem.as_ref()).err().expect("refused")
    }

    #[test]
    fn takes_private_keys_of_any_kind() {
        for pem in [RABBIT, EC, RSA] {
            assert!(HmacKey::from_pem(pem.as_bytes()).is_ok());
            assert!(HmacKey::from_pem(pem.replace('\n', "\r\n").as_bytes()).is_ok());
            assert!(HmacKey::from_pem(format!("\n{pem}\n\n").as_bytes()).is_ok());
        }
    }

    #[test]
    fn says_why_a_file_is_not_taken() {
        assert_eq!(error(""), KeyError::NotPem);
        assert_eq!(error(b"\x30\x81\xee\x02"), KeyError::NotPem);
        assert_eq!(error("-----BEGIN EC PRIVATE KEY"), KeyError::NotPem);
        assert_eq!(error(EC_WITH_PARAMETERS), KeyError::NotAlone);
        assert_eq!(error(format!("{EC}{RSA}")), KeyError::NotAlone);
        assert_eq!(error(format!("my key\n{EC}")), KeyError::NotAlone);
        assert_eq!(error(ENCRYPTED), KeyError::Encrypted);
        assert_eq!(error(ENCRYPTED_RFC_1421), KeyError::Encrypted);
        assert_eq!(error(PUBLIC), KeyError::NotPrivate("PUBLIC KEY".into()));
        assert_eq!(error(EC.replace("END EC", "END RSA")), KeyError::NoEnd);
        assert_eq!(error(&EC[..EC.len() / 2]), KeyError::NoEnd);
        assert_eq!(error(EC.replacen("\nM", "\n!M", 1)), KeyError::Base64Line(1));
        assert_eq!(error(EC.replacen("\nM", "\nMM", 1)), KeyError::Base64);
        assert_eq!(
            error("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"),
            KeyError::TooShort(2)
        );
        let text = STANDARD.encode("a secret that is long enough, but text");
        assert_eq!(
            error(format!(
                "-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"
            )),
            KeyError::NotDer
        );
    }

    #[test]
    fn refuses_a_key_that_lacks_a_line() {
        let mut lines: Vec<_> = RSA.lines().collect();
        lines.remove(3);
        assert_eq!(error(lines.join("\n")), KeyError::NotDer);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = HmacKey::from_pem(&bytes);
        }

        #[test]
        fn never_panics_in_a_block(label in "\\PC{0,10}", body in "\\PC{0,80}", der in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = HmacKey::from_pem(format!("-----BEGIN {label}-----{body}-----END {label}-----").as_bytes());
            let body = STANDARD.encode([&[0x30], &der[..]].concat());
            let _ = HmacKey::from_pem(format!("-----BEGIN PRIVATE KEY-----{body}-----END PRIVATE KEY-----").as_bytes());
        }
    }
}
