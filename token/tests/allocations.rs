//! What a token costs besides its cryptography: one allocation to verify, for its claims, and two to issue, for its claims
//! and itself.

mod common;

use allocation_counter::measure;
use common::{claims, key, now, session, verifier};
use secrecy::ExposeSecret;
use token::{Algorithm, mint};

#[test]
fn the_claims_are_all_that_is_allocated() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Hs256] {
        let (key, claims, verifier) = (key(algorithm), claims(session()), verifier());
        // What is there once for each thread.
        let token = mint(key, &claims);
        assert!(verifier.verify(token.expose_secret(), now()).is_ok());

        let issued = measure(|| drop(mint(key, &claims)));
        assert_eq!(issued.count_total, 2, "{algorithm} issue");
        let verified = measure(|| drop(verifier.verify(token.expose_secret(), now())));
        assert_eq!(verified.count_total, 1, "{algorithm} verify");
    }
}
