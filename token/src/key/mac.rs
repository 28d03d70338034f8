use std::hint::black_box;
use std::sync::LazyLock;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{KeyError, MIN_KEY_LEN};

/// A secret for HMAC with SHA-256 (RFC 2104), and what is computed from it once.
pub(super) struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    state: State,
}

impl Secret {
    pub(super) fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.trim_ascii_start().starts_with(b"-----BEGIN ") || bytes.trim_ascii_start().starts_with(b"{") {
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
