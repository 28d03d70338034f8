use rsa::{BigUint, RsaPrivateKey, RsaPublicKey};

use super::{KeyError, MAX_RSA_BITS, MIN_RSA_BITS};

const INVALID: KeyError = KeyError::Invalid("RSA");

/// A public key of modulus and exponent, both big-endian.
pub(super) fn public(n: &[u8], e: &[u8]) -> Result<RsaPublicKey, KeyError> {
    let (n, e) = (BigUint::from_bytes_be(n), BigUint::from_bytes_be(e));
    check(&n)?;
    RsaPublicKey::new(n, e).map_err(|_| INVALID)
}

/// A private key of two primes, or none, which are computed then (RFC 7518 section 6.3.2).
pub(super) fn private(n: &[u8], e: &[u8], d: &[u8], primes: &[&[u8]]) -> Result<RsaPrivateKey, KeyError> {
    let [n, e, d] = [n, e, d].map(BigUint::from_bytes_be);
    check(&n)?;
    let primes = primes.iter().map(|p| BigUint::from_bytes_be(p)).collect();
    let key = RsaPrivateKey::from_components(n, e, d, primes).map_err(|_| INVALID)?;
    key.validate().map_err(|_| INVALID)?;
    Ok(key)
}

/// The crate rsa looks at everything else.
fn check(n: &BigUint) -> Result<(), KeyError> {
    match n.bits() {
        bits if bits < MIN_RSA_BITS => return Err(KeyError::RsaTooShort(bits)),
        bits if bits > MAX_RSA_BITS => return Err(KeyError::RsaTooLong(bits)),
        _ => (),
    }
    if is_weak(n) {
        return Err(KeyError::Roca);
    }
    Ok(())
}

/// Whether the modulus was made by a generator whose primes are powers of 65537 modulo the product of many small ones, so
/// that it can be factored (CVE-2017-15361, "The Return of Coppersmith's Attack", section 3.1).
fn is_weak(n: &BigUint) -> bool {
    const PRIMES: [u16; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107,
        109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];

    PRIMES.iter().all(|&prime| {
        let rest = n % BigUint::from(prime);
        let mut power = 1;
        (1..prime).any(|_| {
            power = power * 65537 % u32::from(prime);
            rest == BigUint::from(power)
        })
    })
}
