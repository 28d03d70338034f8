// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a token costs besides its cryptography: one allocation to verify, for its claims, and two to issue, for its claims
//! and itself.

mod common;

use allocation_counter::measure;
use common::{claims, encoding_key, key, now, session, verifier};
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use secrecy::ExposeSecret;
use token::{Algorithm, mint};

#[test]
fn the_claims_are_all_that_is_allocated() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Hs256] {
        let (key, claims, verifier) = (key(algorithm), claims(session()), verifier());
        // What is there once for each thread.
        let token = mint(key, &claims);
        assert!(verifier.verify(token.expose_secret(), now()).is_ok());

        // What the cryptography costs, by the same library.
        let (other, encoding_key) = encoding_key(key);
        let signer = (DEFAULT_PROVIDER.signer_factory)(&other, &encoding_key).unwrap();
        let signed = fewest(|| drop(signer.sign(b"message")));

        let issued = fewest(|| drop(mint(key, &claims)));
        assert_eq!(issued - signed, 2, "{algorithm} issue");
        let verified = measure(|| drop(verifier.verify(token.expose_secret(), now())));
        assert_eq!(verified.count_total, 1, "{algorithm} verify");
    }
}

/// How many allocations it takes, at the least: signatures by ES256 differ in length.
fn fewest(what: impl Fn()) -> u64 {
    (0..100).map(|_| measure(&what).count_total).min().unwrap()
}
