// SPDX-License-Identifier: MIT OR Apache-2.0

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::{KeyPairComponents, KeySize};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, RsaPublicKeyComponents};
use num_bigint::BigUint;

use super::{KeyError, MAX_RSA_BITS, MIN_RSA_BITS, der};

const INVALID: KeyError = KeyError::Invalid("RSA");

/// The most bits of a public exponent that aws-lc takes.
const MAX_EXPONENT_BITS: u64 = 33;

/// A public key that was checked, and its numbers, big-endian without leading zeros.
#[derive(Clone)]
pub(super) struct Public {
    pub(super) n: Vec<u8>,
    pub(super) e: Vec<u8>,
    pub(super) key: ParsedPublicKey,
}

impl Public {
    /// A public key of modulus and exponent, both big-endian.
    pub(super) fn new(n: &[u8], e: &[u8]) -> Result<Self, KeyError> {
        let (n, e) = (without_zeros(n).to_vec(), without_zeros(e).to_vec());
        check(&BigUint::from_bytes_be(&n), &BigUint::from_bytes_be(&e))?;
        let key = RsaPublicKeyComponents { n: &n, e: &e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256);
        let key = key.map_err(|_| INVALID)?;
        Ok(Self { n, e, key })
    }

    /// The private key that belongs to this one, of `d`, `p`, `q`, `dp`, `dq` and `qi` (RFC 7518 section 6.3.2). aws-lc
    /// checks that they belong together.
    pub(super) fn private(&self, [d, p, q, dp, dq, qi]: [&[u8]; 6]) -> Result<RsaKeyPair, KeyError> {
        let components = KeyPairComponents {
            public_key: RsaPublicKeyComponents {
                n: self.n.as_slice(),
                e: &self.e,
            },
            d,
            p,
            q,
            dP: dp,
            dQ: dq,
            qInv: qi,
        };
        RsaKeyPair::from_components(&components).map_err(|_| INVALID)
    }
}

/// A new key of [`MIN_RSA_BITS`].
pub(super) fn generate() -> Result<RsaKeyPair, Unspecified> {
    RsaKeyPair::generate(KeySize::Rsa2048)
}

/// PKCS #8 (RFC 5958).
pub(super) fn to_pkcs8(key: &RsaKeyPair) -> Result<Pkcs8V1Der<'static>, Unspecified> {
    key.as_der()
}

/// Has something done with `n`, `e`, `d`, `p`, `q`, `dp`, `dq` and `qi`, big-endian without leading zeros.
pub(super) fn with_numbers<T>(key: &RsaKeyPair, what: impl FnOnce([&[u8]; 8]) -> T) -> T {
    let der = to_pkcs8(key).expect("a private key can be encoded");
    let numbers = match der::private(der.as_ref()) {
        Ok(der::DerKey::Rsa(key)) => der::rsa_private(key),
        _ => Err(INVALID),
    };
    what(numbers.expect("aws-lc writes PKCS #8 of PKCS #1"))
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|&byte| byte != 0).unwrap_or(number.len());
    &number[start..]
}

fn check(n: &BigUint, e: &BigUint) -> Result<(), KeyError> {
    match usize::try_from(n.bits()).unwrap_or(usize::MAX) {
        bits if bits < MIN_RSA_BITS => return Err(KeyError::RsaTooShort(bits)),
        bits if bits > MAX_RSA_BITS => return Err(KeyError::RsaTooLong(bits)),
        _ => (),
    }
    if !n.bit(0) || !e.bit(0) || e.bits() < 2 || e.bits() > MAX_EXPONENT_BITS {
        return Err(INVALID);
    }
    if is_roca(n) {
        return Err(KeyError::Roca);
    }
    if is_factored(n) {
        return Err(KeyError::RsaFactors);
    }
    Ok(())
}

/// Odd primes up to and including 65537.
static SMALL_PRIMES: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let is_prime = |n: &u64| {
        (3..)
            .step_by(2)
            .take_while(|d| d * d <= *n)
            .all(|d| !n.is_multiple_of(d))
    };
    (3..=65537).step_by(2).filter(is_prime).collect()
});

/// Returns whether anyone can compute the private key: the modulus has a factor of up to 65537, is the square of a
/// number, or is a prime.
///
/// A generator that does its work makes none of these. NIST SP 800-89 section 5.3.3 demands as much, with a bound of
/// 752; the larger one takes a millisecond. For the test that it is no prime, Fermat's to the base 2, there is no
/// cheaper way: it is one exponentiation by a number as long as the modulus, and takes as long as signing without the
/// primes. All this is done once, when a key is read, and never for a token.
fn is_factored(n: &BigUint) -> bool {
    let has_small_factor = SMALL_PRIMES.chunks(3).any(|primes| {
        // Three of them have less than 64 bits together, and one division of the modulus serves for all.
        let rest = remainder(n, primes.iter().product());
        primes.iter().any(|prime| rest.is_multiple_of(*prime))
    });
    let root = n.sqrt();
    has_small_factor || &root * &root == *n || BigUint::from(2_u8).modpow(&(n - 1_u8), n) == BigUint::from(1_u8)
}

/// Returns whether the modulus was made by a generator whose primes are powers of 65537 modulo the product of many
/// small ones, so that it can be factored (CVE-2017-15361, "The Return of Coppersmith's Attack", section 3.1).
fn is_roca(n: &BigUint) -> bool {
    SMALL_PRIMES.iter().take_while(|&&prime| prime <= 167).all(|&prime| {
        let rest = remainder(n, prime);
        let mut power = 1;
        (1..prime).any(|_| {
            power = power * 65537 % prime;
            rest == power
        })
    })
}

fn remainder(n: &BigUint, divisor: u64) -> u64 {
    (n % divisor).iter_u64_digits().next().unwrap_or(0)
}
