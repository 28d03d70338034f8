// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keys that anyone could use, or that two readers could take for different ones, are refused when they are read.

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{encode, key};
use num_bigint::BigUint;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Algorithm, HmacKey, KeyError, KeySet, MAX_KEYS, SigningKey, VerifyingKey};

const ASYMMETRIC: [Algorithm; 3] = [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Rs256];

fn jwk(key: &SigningKey) -> Value {
    serde_json::from_str(key.to_jwk().expose_secret()).unwrap()
}

#[track_caller]
fn assert_no_signing_key(jwk: impl ToString) {
    assert!(SigningKey::from_jwk(jwk.to_string().as_bytes()).is_err());
}

#[track_caller]
fn assert_no_verifying_key(jwk: impl ToString) {
    let jwk = jwk.to_string();
    assert!(VerifyingKey::from_jwk(jwk.as_bytes()).is_err(), "{jwk}");
    let (set, skipped) = KeySet::from_jwks(format!("{{\"keys\":[{jwk}]}}").as_bytes()).unwrap();
    assert_eq!((set.len(), skipped.len()), (0, 1), "{jwk}");
}

fn public_jwk(algorithm: Algorithm) -> Value {
    key(algorithm).verifying_key().to_jwk().unwrap()
}

#[test]
fn an_rsa_key_without_all_of_its_private_numbers_is_refused() {
    let good = jwk(key(Algorithm::Rs256));
    assert!(SigningKey::from_jwk(good.to_string().as_bytes()).is_ok());
    for bad in ["", "AA", "AQ", "Ag", "AQAB"] {
        for member in ["d", "p", "q", "dp", "dq", "qi"] {
            let mut key = good.clone();
            key[member] = json!(bad);
            assert_no_signing_key(&key);
        }
        // Without the primes, which would have to be computed from `d`.
        let [n, e] = [&good["n"], &good["e"]];
        assert_no_signing_key(json!({"kty": "RSA", "n": n, "e": e, "d": bad}));
        assert_no_signing_key(json!({"kty": "RSA", "n": n, "e": e, "d": bad, "p": "AQ", "q": n}));
    }
    // The right numbers in the wrong places.
    for (one, other) in [("p", "q"), ("dp", "dq"), ("d", "qi"), ("p", "n")] {
        let mut key = good.clone();
        (key[one], key[other]) = (good[other].clone(), good[one].clone());
        assert_no_signing_key(&key);
    }
}

#[test]
fn a_secret_that_repeats_itself_is_refused() {
    let constant = |byte: u8, len: usize| vec![byte; len];
    for secret in [
        constant(0, 32),
        constant(b'a', 32),
        constant(b'\n', 33),
        constant(7, 32),
        constant(0xff, 4096),
        b"ab".repeat(16),
        b"password".repeat(5),
        [&constant(b'a', 32)[..], b"\n"].concat(),
        [&constant(b'a', 32)[..], b"\r\n"].concat(),
        STANDARD.encode([0; 32]).into_bytes(),
        encode([1; 32]).into_bytes(),
        "00".repeat(32).into_bytes(),
        "7f".repeat(32).into_bytes(),
    ] {
        assert!(VerifyingKey::from_secret(&secret).is_err(), "{secret:?}");
        assert!(SigningKey::from_secret(&secret).is_err(), "{secret:?}");
        assert_no_signing_key(json!({"kty": "oct", "k": encode(&secret)}));
    }
    for secret in [
        b"0123456789abcdef".repeat(2),
        [&constant(0, 31)[..], b"\x01"].concat(),
        (0..32).collect(),
    ] {
        assert!(VerifyingKey::from_secret(&secret).is_ok(), "{secret:?}");
    }
}

#[test]
fn a_public_key_in_hexadecimal_or_as_a_point_is_no_secret() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for algorithm in ASYMMETRIC {
        let pem = key(algorithm).verifying_key().to_pem().unwrap();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(&base64).unwrap();
        let lines: Vec<_> = hex(&der).as_bytes().chunks(32).map(<[u8]>::to_vec).collect();
        let bytes: Vec<_> = der.iter().map(|byte| format!("{byte:02X}")).collect();
        for secret in [
            hex(&der),
            hex(&der).to_uppercase(),
            format!("0x{}\n", hex(&der)),
            bytes.join(":"),
            bytes.join(" "),
            String::from_utf8(lines.join(&b'\n')).unwrap(),
            hex(pem.as_bytes()),
            hex(public_jwk(algorithm).to_string().as_bytes()),
        ] {
            assert!(VerifyingKey::from_secret(secret.as_bytes()).is_err(), "{secret}");
            assert_no_signing_key(json!({"kty": "oct", "k": encode(&secret)}));
        }
    }
    let ec = public_jwk(Algorithm::Es256);
    let coordinate = |name: &str| common::decode(ec[name].as_str().unwrap());
    let point = [&[4][..], &coordinate("x"), &coordinate("y")].concat();
    for secret in [point.clone(), hex(&point).into_bytes(), encode(&point).into_bytes()] {
        assert!(VerifyingKey::from_secret(&secret).is_err(), "{secret:?}");
    }
    // No point of the curve: these may be random bytes.
    let mut other = point;
    other[64] ^= 1;
    assert!(VerifyingKey::from_secret(&other).is_ok());
}

#[test]
fn an_rsa_key_whose_modulus_anyone_can_factor_is_refused() {
    // RFC 3526 section 3, a prime of 2048 bits.
    let prime = BigUint::parse_bytes(
        b"FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B\
        302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE6\
        49286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB9ED529077096966D\
        670C354E4ABC9804F1746C08CA18217C32905E462E36CE3BE39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
        3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
        16,
    )
    .unwrap();
    let one = BigUint::from(1_u8);
    let multiple = |of: u32| ((&prime / of) | &one) * of;
    let root = prime.sqrt() | &one;
    let moduli = [3_u32, 5, 181, 751, 757, 4099, 65_521, 65_537].map(multiple);
    for n in moduli.into_iter().chain([&root * &root, prime.clone()]) {
        assert_eq!(n.bits(), 2048);
        assert_no_verifying_key(json!({"kty": "RSA", "n": encode(n.to_bytes_be()), "e": "AQAB"}));
    }
}

#[test]
fn an_ed25519_key_has_one_name() {
    // Of one of these at least, the smaller number is a key.
    for beyond in 0..19 {
        for sign in [0, 0x80] {
            let mut x = [0xff; 32];
            (x[0], x[31]) = (0xed + beyond, 0x7f | sign);
            assert_no_verifying_key(json!({"kty": "OKP", "crv": "Ed25519", "x": encode(x)}));
        }
    }
}

#[test]
fn a_member_is_there_once() {
    for algorithm in Algorithm::ALL {
        let private = key(algorithm).to_jwk().expose_secret().to_owned();
        for twice in [
            r#""kty":"RSA","#,
            r#""kid":"a","#,
            r#""ext":1,"ext":1,"#,
            r#""ext":1,"\u0065xt":1,"#,
            r#""ext":[{"a":1,"a":1}],"#,
        ] {
            let member = |jwk: &str| jwk.replacen('{', &format!("{{{twice}"), 1);
            assert_no_signing_key(member(&private));
            if let Some(public) = key(algorithm).verifying_key().to_jwk() {
                assert_no_verifying_key(member(&public.to_string()));
            }
        }
    }
    for jwks in [r#"{"keys":[],"keys":[]}"#, r#"{"x":1,"keys":[],"x":2}"#] {
        assert!(KeySet::from_jwks(jwks.as_bytes()).is_err(), "{jwks}");
    }
}

#[test]
fn an_operation_is_there_once() {
    for algorithm in ASYMMETRIC {
        let (mut private, mut public) = (jwk(key(algorithm)), public_jwk(algorithm));
        private["key_ops"] = json!(["sign", "verify"]);
        public["key_ops"] = json!(["verify"]);
        assert!(SigningKey::from_jwk(private.to_string().as_bytes()).is_ok());
        assert!(VerifyingKey::from_jwk(public.to_string().as_bytes()).is_ok());
        private["key_ops"] = json!(["sign", "verify", "sign"]);
        public["key_ops"] = json!(["verify", "verify"]);
        assert_no_signing_key(&private);
        assert_no_verifying_key(&public);
    }
}

#[test]
fn a_set_has_a_limited_number_of_keys() {
    let jwk = |i: usize| {
        let mut jwk = public_jwk(Algorithm::EdDsa);
        jwk["kid"] = json!(i.to_string());
        jwk
    };
    for (count, taken) in [(MAX_KEYS, MAX_KEYS), (MAX_KEYS + 2, MAX_KEYS)] {
        let jwks = json!({"keys": (0..count).map(jwk).collect::<Vec<_>>()}).to_string();
        let (set, skipped) = KeySet::from_jwks(jwks.as_bytes()).unwrap();
        let skipped: Vec<_> = skipped.iter().map(|key| (key.index, &key.reason)).collect();
        assert_eq!(set.len(), taken);
        assert_eq!(skipped.is_empty(), count == taken);
        assert!(skipped.iter().all(|key| *key == (MAX_KEYS, &KeyError::TooMany)));
    }
}

/// The key of the rabbit software is used as bytes, and is as long as a private key: none of these checks is in its way.
#[test]
fn the_key_of_the_rabbit_software_is_taken() {
    assert!(HmacKey::from_pem(include_bytes!("../testdata/rabbit.pem")).is_ok());
}
