// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks of public keys for Ed25519 that aws-lc does not make (RFC 8032 section 5.1).

use num_bigint::BigUint;

use super::KeyError;

const INVALID: KeyError = KeyError::Invalid("Ed25519");

/// The `y` of a point of order 8; that of the others is its negative.
const Y_OF_ORDER_8: [u8; 32] = [
    0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53,
    0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
];

/// Checks that a public key is the only encoding of a point of the curve, and that not anyone can sign for it.
///
/// A `y` of the prime or more would give one key several names, and the eight points whose order divides 8 have
/// signatures that verify for any message.
pub(super) fn check(key: &[u8; 32]) -> Result<(), KeyError> {
    let one = BigUint::from(1_u8);
    let prime = (&one << 255) - 19_u8;
    let mut y = *key;
    // The sign of x.
    y[31] &= 0x7f;
    let y = BigUint::from_bytes_le(&y);
    if y >= prime {
        return Err(INVALID);
    }
    let of_order_8 = BigUint::from_bytes_le(&Y_OF_ORDER_8);
    let small = [
        BigUint::ZERO,
        one.clone(),
        &prime - &one,
        &prime - &of_order_8,
        of_order_8,
    ];
    if small.contains(&y) {
        return Err(INVALID);
    }
    // The curve is -x² + y² = 1 + dx²y², so that x² = (y² - 1) / (dy² + 1), which is a square if the product of the two is
    // (Euler's criterion).
    let d = (&prime - 121_665_u32) * BigUint::from(121_666_u32).modpow(&(&prime - 2_u8), &prime);
    let square = &y * &y;
    let product = (&square - &one) * (d * &square + &one);
    let is_square = product.modpow(&((&prime - &one) >> 1), &prime) == one;
    if is_square { Ok(()) } else { Err(INVALID) }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    #[test]
    fn accepts_keys_and_about_half_of_all_other_points() {
        let mut valid = 0;
        for seed in 0..64 {
            let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
            assert_eq!(check(key.public_key().as_ref().try_into().unwrap()), Ok(()));
            valid += usize::from(check(&[seed; 32]).is_ok());
        }
        assert!((16..48).contains(&valid), "{valid}");
    }

    #[test]
    fn refuses_each_point_of_small_order_and_each_second_name_of_a_point() {
        let prime = (BigUint::from(1_u8) << 255) - 19_u8;
        let order_8 = BigUint::from_bytes_le(&Y_OF_ORDER_8);
        let small = [BigUint::ZERO, 1_u8.into(), &prime - 1_u8, &prime - &order_8, order_8];
        let too_large = (0_u8..19).map(|more| &prime + more);
        for y in small.into_iter().chain(too_large) {
            let mut key = [0; 32];
            let bytes = y.to_bytes_le();
            key[..bytes.len()].copy_from_slice(&bytes);
            for sign in [0, 0x80] {
                key[31] = key[31] & 0x7f | sign;
                assert_eq!(check(&key), Err(INVALID), "{y} {sign}");
            }
        }
    }
}
