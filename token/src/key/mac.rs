use std::hint::black_box;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{KeyError, MIN_KEY_LEN, pem};

/// A secret for HMAC with SHA-256 (RFC 2104), and what is computed from it once.
pub(super) struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    state: State,
}

impl Secret {
    pub(super) fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        if is_key(bytes) || from_base64(bytes).is_some_and(|decoded| is_key(&decoded)) {
            return Err(KeyError::KeyAsSecret);
        }
        if bytes.len() < MIN_KEY_LEN {
            return Err(KeyError::TooShort(bytes.len()));
        }
        // HMAC takes keys of any length.
        let state = Hmac::new_from_slice(bytes).expect("HMAC takes any key");
        Ok(Self {
            bytes: Zeroizing::new(bytes.to_vec()),
            state: State(state),
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 32] {
        let mut state = self.state.clone();
        state.0.update(message);
        state.0.finalize_reset().into_bytes().into()
    }

    /// In a time that does not depend on where they differ.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let mut state = self.state.clone();
        state.0.update(message);
        state.0.verify_slice_reset(signature).is_ok()
    }
}

/// The state of an HMAC after its key. Who has it can sign, and the crate hmac does not zeroize it.
#[derive(Clone)]
struct State(Hmac<Sha256>);

impl Drop for State {
    fn drop(&mut self) {
        static OF_NO_KEY: LazyLock<Hmac<Sha256>> =
            LazyLock::new(|| Hmac::new_from_slice(&[]).expect("HMAC takes any key"));

        self.0.clone_from(&OF_NO_KEY);
        // So that the compiler does not find that nobody reads it.
        black_box(&mut self.0);
    }
}

/// Whether these are the bytes of a file with a key, which may be a public one, so that everyone has them: PEM, a JWK or a
/// set of them, a key of SSH, or DER.
fn is_key(bytes: &[u8]) -> bool {
    // Of UTF-16, what is ASCII is left.
    let text = copy(bytes.iter().copied().filter(|&byte| byte != 0), bytes.len());
    let marks: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];
    let unmarked = marks.iter().find_map(|mark| text.strip_prefix(*mark));
    let text = unmarked.unwrap_or(&text).trim_ascii_start();
    // Other text may stand before these. The second is of RFC 4716.
    let marks: [&[u8]; 3] = [b"-----BEGIN ", b"---- BEGIN ", b"\"kty"];
    if marks
        .iter()
        .any(|mark| text.windows(mark.len()).any(|part| part == *mark))
    {
        return true;
    }
    // Random bytes may begin like this, and are no text.
    let is_text_of_key = |text: &str| {
        let starts = ["{", "[", "ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
        // Each key of SSH is in base64, and begins with a length (RFC 4253 section 6.6).
        starts.iter().any(|start| text.starts_with(start)) || text.contains(" AAAA")
    };
    std::str::from_utf8(text).is_ok_and(is_text_of_key) || is_public_der(bytes)
}

/// Whether it is one DER sequence, but for an end of line, and not of a private key, of which the first element is a
/// version, an integer of one byte (RFC 5208, RFC 5915, RFC 8017). Public keys begin with the sequence of their algorithm,
/// or with a large integer, certificates with a sequence.
fn is_public_der(bytes: &[u8]) -> bool {
    if pem::sequence_len(bytes).is_none_or(|len| len.abs_diff(bytes.len()) > 2) {
        return false;
    }
    let header = match bytes[1] {
        octets @ 0x80.. => 2 + usize::from(octets & 0x7f),
        _ => 2,
    };
    let first = bytes.get(header..).unwrap_or_default();
    first.starts_with(&[0x30]) || (first.starts_with(&[0x02]) && !first.starts_with(&[0x02, 1]))
}

/// What a text in base64 or base64url stands for, on one line or several.
fn from_base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let plain = text.iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b'=');
    let plain = copy(
        plain.map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            byte => *byte,
        }),
        text.len(),
    );
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plain.len())]);
    let len = STANDARD_NO_PAD.decode_slice(&*plain, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

/// At most `len` bytes, in memory that is zeroized, and not moved as it fills.
fn copy(bytes: impl Iterator<Item = u8>, len: usize) -> Zeroizing<Vec<u8>> {
    let mut copy = Zeroizing::new(Vec::with_capacity(len));
    copy.extend(bytes);
    copy
}
