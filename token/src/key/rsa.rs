use rsa::{BigUint, RsaPrivateKey, RsaPublicKey};

use super::{KeyError, MAX_RSA_BITS, MIN_RSA_BITS};

const INVALID: KeyError = KeyError::Invalid("RSA");

/// A public key of modulus and exponent, both big-endian.
pub(super) fn public(n: &[u8], e: &[u8]) -> Result<RsaPublicKey, KeyError> {
    let (n, e) = (BigUint::from_bytes_be(n), BigUint::from_bytes_be(e));
    check(&n, &e)?;
    RsaPublicKey::new(n, e).map_err(|_| INVALID)
}

/// A private key of two primes, or none, which are computed then (RFC 7518 section 6.3.2).
pub(super) fn private(n: &[u8], e: &[u8], d: &[u8], primes: &[&[u8]]) -> Result<RsaPrivateKey, KeyError> {
    let [n, e, d] = [n, e, d].map(BigUint::from_bytes_be);
    check(&n, &e)?;
    let primes = primes.iter().map(|p| BigUint::from_bytes_be(p)).collect();
    let key = RsaPrivateKey::from_components(n, e, d, primes).map_err(|_| INVALID)?;
    key.validate().map_err(|_| INVALID)?;
    Ok(key)
}

fn check(n: &BigUint, e: &BigUint) -> Result<(), KeyError> {
    match n.bits() {
        bits if bits < MIN_RSA_BITS => return Err(KeyError::RsaTooShort(bits)),
        bits if bits > MAX_RSA_BITS => return Err(KeyError::RsaTooLong(bits)),
        _ => (),
    }
    // With an exponent of 1, every signature is its own message; an even one has no inverse.
    let odd = |number: &BigUint| number.to_bytes_le().first().is_some_and(|byte| byte & 1 == 1);
    if !odd(n) || !odd(e) || *e < BigUint::from(3_u8) {
        return Err(INVALID);
    }
    Ok(())
}
