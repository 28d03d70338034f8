use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::EncodingKey;
use zeroize::Zeroizing;

/// The shortest key that is taken, in bytes of DER: HS256 needs a key at least as long as its hash
/// (RFC 7518 section 3.2).
pub const MIN_KEY_LEN: usize = 32;

/// A key to issue tokens with: the DER bytes of a private key, used as they are as the secret of an HMAC.
///
/// The rabbit software keeps an elliptic curve key and uses its encoding as a long random secret; the kind of key does
/// not matter to it, nor here. The bytes are zeroized when the key is dropped; it implements no `Debug`.
pub struct HmacKey(EncodingKey);

impl HmacKey {
    /// Reads the key from a PEM file's contents (RFC 7468).
    ///
    /// The file holds exactly one block, its label ends in `PRIVATE KEY` and its content is one DER `SEQUENCE`. A reader
    /// in Go takes the first block of a file whatever it is; a second block would let the two sides use different bytes,
    /// and a public block would be a secret that everyone knows.
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; it holds nothing of the key. The caller adds which file it was.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| KeyError::NotPem)?;
        let (label, body) = only_block(text)?;
        match label {
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
            _ if label.ends_with("PRIVATE KEY") => (),
            _ => return Err(KeyError::NotPrivate(printable(label))),
        }

        // Sized up front: a vector that grows would leave copies behind that nothing zeroizes.
        let mut base64 = Zeroizing::new(Vec::with_capacity(body.len()));
        for (number, line) in body.lines().enumerate() {
            // A header such as "Proc-Type: 4,ENCRYPTED" (RFC 1421)
            if line.contains(':') {
                return Err(KeyError::Encrypted);
            }
            let line = line.trim_ascii();
            if line
                .bytes()
                .any(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=')))
            {
                return Err(KeyError::Base64Line(number + 1));
            }
            base64.extend_from_slice(line.as_bytes());
        }
        let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(base64.len())]);
        let len = STANDARD
            .decode_slice(&*base64, &mut der)
            .map_err(|_| KeyError::Base64)?;
        let der = &der[..len];

        if der.len() < MIN_KEY_LEN {
            return Err(KeyError::TooShort(der.len()));
        }
        if sequence_len(der) != Some(der.len()) {
            return Err(KeyError::NotDer);
        }
        Ok(Self(EncodingKey::from_secret(der)))
    }

    pub(crate) fn encoding_key(&self) -> &EncodingKey {
        &self.0
    }
}

/// Why a file is not a key to issue tokens with. Holds nothing of the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no PEM block.
    #[error("no PEM block (-----BEGIN … PRIVATE KEY-----): give the private key in PEM, not DER")]
    NotPem,
    /// A block that does not end, or ends with another label.
    #[error("its PEM block has no END line for its label: the file is cut or edited, copy it again")]
    NoEnd,
    /// Something besides the one block.
    #[error(
        "it holds more than one PEM block or other text (openssl ecparam writes a second block unless given -noout): \
         keep the private key block only"
    )]
    NotAlone,
    /// Another kind of block, by its label.
    #[error("it holds a PEM block \"{0}\" where a PRIVATE KEY is needed: what is public cannot sign")]
    NotPrivate(String),
    /// The key is encrypted with a passphrase.
    #[error("the key is encrypted: decrypt it (openssl pkey -in FILE) and protect the file by its permissions")]
    Encrypted,
    /// A line with a character that is not base64; counted from the line after BEGIN.
    #[error("line {0} of its PEM block has a character that is not base64: the file is damaged, copy it again")]
    Base64Line(usize),
    /// The block as a whole is not base64.
    #[error("its PEM block is not base64 of whole bytes: the file is damaged, copy it again")]
    Base64,
    /// Shorter than [`MIN_KEY_LEN`].
    #[error(
        "the key has {0} bytes, and HS256 needs at least {MIN_KEY_LEN} (RFC 7518 section 3.2): generate a longer one"
    )]
    TooShort(usize),
    /// The content is not one whole DER sequence.
    #[error("its content is not one whole DER sequence as every private key is: the file is damaged, copy it again")]
    NotDer,
}

/// Label and body of the PEM block that is all of `text` but white space.
fn only_block(text: &str) -> Result<(&str, &str), KeyError> {
    const BEGIN: &str = "-----BEGIN ";

    let Some(begin) = text.find(BEGIN) else {
        return Err(KeyError::NotPem);
    };
    let (before, rest) = text.split_at(begin);
    let Some((label, rest)) = rest[BEGIN.len()..].split_once("-----") else {
        return Err(KeyError::NotPem);
    };
    if label.contains(['\n', '\r']) {
        return Err(KeyError::NotPem);
    }
    let Some((body, after)) = rest.split_once(&format!("-----END {label}-----")) else {
        return Err(KeyError::NoEnd);
    };
    if !before.trim_ascii().is_empty() || !after.trim_ascii().is_empty() {
        return Err(KeyError::NotAlone);
    }
    Ok((label, body.trim_ascii()))
}

/// A label as it may be shown: no label has more than these characters, and anything else may be part of a key.
fn printable(label: &str) -> String {
    let ok = label.len() <= 40 && label.bytes().all(|b| b.is_ascii_uppercase() || b == b' ');
    if ok {
        label.to_owned()
    } else {
        "(an unusual label)".to_owned()
    }
}

/// Length of the whole DER `SEQUENCE` that `der` begins with, by its own count (X.690 sections 8.1 and 10.1).
fn sequence_len(der: &[u8]) -> Option<usize> {
    const SEQUENCE: u8 = 0x30;

    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag != SEQUENCE {
        return None;
    }
    if first < 0x80 {
        return Some(2 + usize::from(first));
    }
    let octets = usize::from(first & 0x7f);
    if !(1..=4).contains(&octets) {
        return None;
    }
    let content = rest
        .get(..octets)?
        .iter()
        .fold(0, |len, &octet| len << 8 | usize::from(octet));
    content.checked_add(2 + octets)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A P-521 key in PKCS #8 under the label "EC PRIVATE KEY", which is how the rabbit software writes it.
    pub(crate) const RABBIT: &str = include_str!("../testdata/rabbit.pem");
    const EC: &str = include_str!("../testdata/ec.pem");
    const EC_WITH_PARAMETERS: &str = include_str!("../testdata/ec-with-parameters.pem");
    const RSA: &str = include_str!("../testdata/rsa.pem");
    const ENCRYPTED: &str = include_str!("../testdata/encrypted.pem");
    const ENCRYPTED_RFC_1421: &str = include_str!("../testdata/encrypted-rfc1421.pem");
    const PUBLIC: &str = include_str!("../testdata/public.pem");

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
