// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keys in all the forms that they are kept in.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{decode, encode, key, secret};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use token::{Algorithm, HmacKey, KeyError, KeySet, SigningKey, VerifyingKey};

const ASYMMETRIC: [Algorithm; 3] = [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Rs256];

/// Checks that one signs what the other verifies.
fn assert_pair(signing: &SigningKey, verifying: &VerifyingKey) {
    let token = signing.sign(&[("typ", "JWT")], b"payload");
    let verified = KeySet::from(verifying.clone()).verify_jws(token.expose_secret());
    assert_eq!(verified.as_deref(), Ok(&b"payload"[..]));
}

fn jwk(key: &SigningKey) -> Value {
    serde_json::from_str(key.to_jwk().expose_secret()).unwrap()
}

fn signing_error(jwk: &Value) -> KeyError {
    SigningKey::from_jwk(jwk.to_string().as_bytes()).err().unwrap()
}

fn verifying_error(jwk: &Value) -> KeyError {
    VerifyingKey::from_jwk(jwk.to_string().as_bytes()).err().unwrap()
}

#[test]
fn each_form_that_is_written_is_read_again() {
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let public = key.verifying_key();
        assert_eq!((key.algorithm(), public.algorithm()), (algorithm, algorithm));
        assert_eq!((key.kid(), public.kid()), (public.thumbprint().as_str(), key.kid()));

        let by_jwk = SigningKey::from_jwk(key.to_jwk().expose_secret().as_bytes()).unwrap();
        assert_pair(&by_jwk, &public);
        assert_eq!(by_jwk.kid(), key.kid());
        assert_eq!(jwk(&by_jwk), jwk(key));

        if algorithm == Algorithm::Hs256 {
            assert!(key.to_pem().is_none() && public.to_pem().is_none() && public.to_jwk().is_none());
            assert_pair(key, &VerifyingKey::from_secret(&secret(key)).unwrap());
            continue;
        }
        let by_pem = SigningKey::from_pem(key.to_pem().unwrap().expose_secret().as_bytes()).unwrap();
        assert_pair(&by_pem, &public);
        assert_eq!(by_pem.kid(), key.kid());
        for public in [
            VerifyingKey::from_pem(public.to_pem().unwrap().as_bytes()).unwrap(),
            VerifyingKey::from_jwk(public.to_jwk().unwrap().to_string().as_bytes()).unwrap(),
        ] {
            assert_pair(key, &public);
            assert_eq!((public.kid(), public.algorithm()), (key.kid(), algorithm));
        }
    }
}

#[test]
fn a_key_of_another_is_no_pair() {
    for algorithm in Algorithm::ALL {
        let token = key(algorithm).sign(&[], b"payload");
        let other = match algorithm {
            // Not worth the time to generate another.
            Algorithm::Rs256 => continue,
            algorithm => SigningKey::generate(algorithm).verifying_key(),
        };
        let other = KeySet::from(other.with_kid(key(algorithm).kid()).unwrap());
        assert!(other.verify_jws(token.expose_secret()).is_err());
    }
}

#[test]
fn the_kid_of_a_jwk_is_kept() {
    for algorithm in Algorithm::ALL {
        let mut private = jwk(key(algorithm));
        private["kid"] = json!("2024 \"é\"/1");
        let key = SigningKey::from_jwk(private.to_string().as_bytes()).unwrap();
        assert_eq!(key.kid(), "2024 \"é\"/1");
        assert_pair(&key, &key.verifying_key());
        assert_eq!(jwk(&key)["kid"], "2024 \"é\"/1");
        if let Some(public) = key.verifying_key().to_jwk() {
            let public = VerifyingKey::from_jwk(public.to_string().as_bytes()).unwrap();
            assert_eq!((public.kid(), public.thumbprint() == public.kid()), (key.kid(), false));
        }
        private["kid"] = json!("");
        assert_eq!(signing_error(&private), KeyError::Kid);
        private["kid"] = json!("x".repeat(token::MAX_KID_LEN + 1));
        assert_eq!(signing_error(&private), KeyError::Kid);
    }
    let renamed = key(Algorithm::EdDsa).verifying_key().with_kid("issuer's").unwrap();
    assert_eq!(renamed.kid(), "issuer's");
    assert_eq!(renamed.with_kid("").err(), Some(KeyError::Kid));
}

#[test]
fn a_jwk_for_something_else_is_refused() {
    for algorithm in ASYMMETRIC {
        let private = jwk(key(algorithm));
        let public = key(algorithm).verifying_key().to_jwk().unwrap();
        for (member, value, expected) in [
            ("alg", json!("HS256"), KeyError::OtherAlgorithm),
            ("alg", json!("RS512"), KeyError::OtherAlgorithm),
            ("use", json!("enc"), KeyError::NotForSignatures),
            ("key_ops", json!(["encrypt"]), KeyError::NotForSignatures),
            ("key_ops", json!([]), KeyError::NotForSignatures),
            ("kty", json!("DSA"), KeyError::OtherKind),
            (
                "kty",
                json!(7),
                KeyError::NotJwk("a member is there twice, or is not the string that it should be"),
            ),
        ] {
            for (of, error) in [
                (&private, signing_error as fn(&Value) -> KeyError),
                (&public, verifying_error),
            ] {
                let mut other = of.clone();
                other[member] = value.clone();
                assert_eq!(error(&other), expected, "{algorithm} {member}");
            }
        }
        let mut sign_only = public.clone();
        sign_only["key_ops"] = json!(["sign"]);
        assert_eq!(verifying_error(&sign_only), KeyError::NotForSignatures);
        assert_eq!(
            signing_error(&public),
            KeyError::NotJwk("`d` is missing: what is public cannot sign")
        );
        assert_eq!(verifying_error(&private), KeyError::PrivateAsPublic);
    }
    assert_eq!(verifying_error(&jwk(key(Algorithm::Hs256))), KeyError::SecretAsPublic);
}

#[test]
fn a_public_jwk_has_no_part_of_a_private_one() {
    for algorithm in ASYMMETRIC {
        let public = key(algorithm).verifying_key().to_jwk().unwrap();
        for member in ["d", "p", "q", "dp", "dq", "qi", "k"] {
            let mut private = public.clone();
            private[member] = json!("AQAB");
            assert_eq!(
                verifying_error(&private),
                KeyError::PrivateAsPublic,
                "{algorithm} {member}"
            );
        }
    }
}

#[test]
fn a_jwk_of_the_parts_of_two_keys_is_refused() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let mut private = jwk(key(algorithm));
        private["d"] = jwk(&SigningKey::generate(algorithm))["d"].clone();
        assert_eq!(signing_error(&private), KeyError::Mismatch);
    }
}

#[test]
fn weak_keys_are_refused() {
    let rsa = |n: &[u8], e: &str| json!({"kty": "RSA", "n": encode(n), "e": e});
    let bits = |bits: usize| vec![0xff; bits / 8];
    assert_eq!(verifying_error(&rsa(&bits(2040), "AQAB")), KeyError::RsaTooShort(2040));
    assert_eq!(
        verifying_error(&rsa(&[&[0; 8], &bits(2040)[..]].concat(), "AQAB")),
        KeyError::RsaTooShort(2040)
    );
    assert_eq!(verifying_error(&rsa(&bits(4104), "AQAB")), KeyError::RsaTooLong(4104));
    for e in ["AQ", "Ag", "AA", "BA", "", "AQABAQABAQABAQAB"] {
        assert_eq!(verifying_error(&rsa(&bits(2048), e)), KeyError::Invalid("RSA"), "{e}");
    }
    let mut even = bits(2048);
    even[255] = 0xfe;
    assert_eq!(verifying_error(&rsa(&even, "AQAB")), KeyError::Invalid("RSA"));
    // The modulus of a public test vector, of a key that was made by a chip with the defect.
    let chip = "AanFpofbj7KjD4Lf-N2hVMKR7yewSyXhhbirIMTGpfYEhZ_lnt5UoK98DnKIgArXGTu3MaW_HhFw16HGaTDUHqPrId7fe4r11CqRw09yBFuW\
        79V8sYIwHdzCaWflUI6auImYbVfoN9_nD5n8N8SY9DwXw7mwZM9wREPXoDPgOoIWl6q_MPsp7n0zs3Z5ZaiQWOOzl1S9OhwAfSiiOwz6efnX\
        EaxuTEtPd7BjSx7NaFka8Dx9U7YqXy2RFj1O9PjyaDGuRh7YXsX3iMUSP_wSyHQg_c_qHRtKUsNSGCT7OZg0hzm2KphtjnayKJvC64vAbROB\
        R4Ubg6Bxg9IQVZ-QYyE";
    assert_eq!(verifying_error(&rsa(&decode(chip), "AQAB")), KeyError::Roca);

    // The neutral element, for which a signature of zeros verifies anything; and no point of the curve.
    let ed = |x: [u8; 32]| json!({"kty": "OKP", "crv": "Ed25519", "x": encode(x)});
    let mut neutral = [0; 32];
    neutral[0] = 1;
    assert_eq!(verifying_error(&ed(neutral)), KeyError::Invalid("Ed25519"));
    assert_eq!(verifying_error(&ed([0; 32])), KeyError::Invalid("Ed25519"));
    let mut none = [0; 32];
    none[0] = 2;
    assert_eq!(verifying_error(&ed(none)), KeyError::Invalid("Ed25519"));

    let ec = |x: [u8; 32], y: [u8; 32]| json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)});
    assert_eq!(verifying_error(&ec([0; 32], [0; 32])), KeyError::Invalid("P-256"));
    assert_eq!(verifying_error(&ec([1; 32], [1; 32])), KeyError::Invalid("P-256"));
    let mut zero = jwk(key(Algorithm::Es256));
    zero["d"] = json!(encode([0; 32]));
    assert_eq!(signing_error(&zero), KeyError::Invalid("P-256"));
}

#[test]
fn a_secret_is_long_enough_and_no_key_file() {
    let error = |secret: &[u8]| VerifyingKey::from_secret(secret).err();
    assert_eq!(error(&[7; 31]), Some(KeyError::TooShort(31)));
    let secret: Vec<u8> = (1..=32).collect();
    assert_eq!(error(&secret[..31]), Some(KeyError::TooShort(31)));
    assert_eq!(error(&secret), None);
    assert_eq!(error(&[7; 32]), Some(KeyError::Repetition));
    assert_eq!(SigningKey::from_secret(&[7; 31]).err(), Some(KeyError::TooShort(31)));
    for algorithm in ASYMMETRIC {
        let public = key(algorithm).verifying_key();
        let (pem, jwk) = (public.to_pem().unwrap(), public.to_jwk().unwrap());
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(&base64).unwrap();
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        for (what, public) in [
            ("PEM", pem.clone().into_bytes()),
            ("a JWK", format!("\n{jwk}").into_bytes()),
            ("a JWKS", json!({"keys": [jwk]}).to_string().into_bytes()),
            ("an array", format!("[{jwk}]").into_bytes()),
            ("JSON as a string", json!(jwk.to_string()).to_string().into_bytes()),
            (
                "with attributes",
                format!("Bag Attributes: <No Attributes>\n{pem}").into_bytes(),
            ),
            ("with a mark", format!("\u{feff}{pem}").into_bytes()),
            ("a JWK with a mark", format!("\u{feff}{jwk}").into_bytes()),
            ("in UTF-16", utf16(&format!("\u{feff}{pem}"))),
            ("in base64", STANDARD.encode(&pem).into_bytes()),
            ("DER", der.clone()),
            ("DER and a line end", [&der[..], b"\r\n"].concat()),
            ("DER in base64", format!("{base64}\n").into_bytes()),
            ("DER in base64url", encode(&der).into_bytes()),
        ] {
            assert_eq!(error(&public), Some(KeyError::KeyAsSecret), "{algorithm} {what}");
            // An end that is a line end may have been taken off.
            if public[0] == 0x30 {
                assert_eq!(
                    error(&public[..public.len() - 1]),
                    Some(KeyError::KeyAsSecret),
                    "{algorithm} {what}"
                );
            }
            let jwk = json!({"kty": "oct", "k": encode(&public)}).to_string();
            assert_eq!(
                SigningKey::from_jwk(jwk.as_bytes()).err(),
                Some(KeyError::KeyAsSecret),
                "{algorithm} {what}"
            );
        }
    }
    let ssh = "AAAAC3NzaC1lZDI1NTE5AAAAIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF";
    for line in [
        format!("ssh-ed25519 {ssh} alice"),
        format!("login.example.org ssh-ed25519 {ssh}"),
        format!("ecdsa-sha2-nistp256 {ssh}"),
        format!("sk-ssh-ed25519@openssh.com {ssh}"),
        format!("---- BEGIN SSH2 PUBLIC KEY ----\n{ssh}"),
    ] {
        assert_eq!(error(line.as_bytes()), Some(KeyError::KeyAsSecret), "{line}");
    }
    // PKCS #1.
    let rsa = key(Algorithm::Rs256).verifying_key().to_jwk().unwrap();
    let pkcs1 = [
        &[0x30, 0x82, 1, 10, 2, 0x82, 1, 1, 0][..],
        &decode(rsa["n"].as_str().unwrap()),
        &[2, 3, 1, 0, 1],
    ];
    assert_eq!(error(&pkcs1.concat()), Some(KeyError::KeyAsSecret));
}

#[test]
fn what_may_be_a_secret_is_taken_for_one() {
    let private = include_str!("../testdata/rabbit.pem");
    let base64: String = private.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(&base64).unwrap();
    let mut random = *b"{[0\x82\xfe\xff\x00\xc0\x80\xf8 of random bytes, such";
    for first in *b"{[0\x02 " {
        random[0] = first;
        VerifyingKey::from_secret(&random).unwrap();
        VerifyingKey::from_secret(STANDARD.encode(random).as_bytes()).unwrap();
    }
    for secret in [
        &der[..],
        base64.as_bytes(),
        "\u{feff}correct horse battery staple, and more".as_bytes(),
    ] {
        VerifyingKey::from_secret(secret).unwrap();
    }
}

#[test]
fn a_pem_file_of_another_kind_is_refused() {
    let key = key(Algorithm::Es256);
    let private = key.to_pem().unwrap();
    let public = key.verifying_key().to_pem().unwrap();
    let signing = |pem: &str| SigningKey::from_pem(pem.as_bytes()).err();
    let verifying = |pem: &str| VerifyingKey::from_pem(pem.as_bytes()).err();
    assert_eq!(verifying(private.expose_secret()), Some(KeyError::PrivateAsPublic));
    assert_eq!(signing(&public), Some(KeyError::NotPrivate("PUBLIC KEY".into())));
    assert_eq!(
        verifying(&public.replace("PUBLIC KEY", "PGP PUBLIC KEY BLOCK")),
        Some(KeyError::NotPublic("PGP PUBLIC KEY BLOCK".into()))
    );
    // Of a certificate, with a chain or text around it, the error says how its public key is extracted.
    let certificate = public.replace("PUBLIC KEY", "CERTIFICATE");
    for pem in [
        certificate.clone(),
        format!("{certificate}{certificate}"),
        format!("subject=CN = hpc.example.org\n{certificate}{}", private.expose_secret()),
        public.replace("PUBLIC KEY", "TRUSTED CERTIFICATE"),
        public.replace("PUBLIC KEY", "X509 CERTIFICATE"),
    ] {
        let error = verifying(&pem).unwrap();
        assert_eq!(error, KeyError::Certificate("x509"));
        assert!(
            error.to_string().contains("openssl x509 -in FILE -pubkey -noout"),
            "{error}"
        );
    }
    for request in ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"] {
        let error = verifying(&public.replace("PUBLIC KEY", request)).unwrap();
        assert!(
            error.to_string().contains("openssl req -in FILE -pubkey -noout"),
            "{error}"
        );
    }
    assert_eq!(verifying(&format!("{public}{public}")), Some(KeyError::NotAlone));
    assert_eq!(signing(&private.expose_secret()[..100]), Some(KeyError::NoEnd));
    for (label, error) in [
        ("EC PRIVATE KEY", KeyError::NotDer),
        ("RSA PRIVATE KEY", KeyError::NotDer),
    ] {
        assert_eq!(
            signing(&private.expose_secret().replace("PRIVATE KEY", label)),
            Some(error)
        );
    }
    // Of the curve P-521, and encrypted.
    let file = |name: &str| std::fs::read_to_string(format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert_eq!(signing(&file("encrypted.pem")), Some(KeyError::Encrypted));
    assert_eq!(
        signing(&file("rabbit.pem").replace("EC PRIVATE", "PRIVATE")),
        Some(KeyError::OtherKind)
    );
}

#[test]
fn a_set_skips_what_it_cannot_use_and_says_why() {
    let public = |algorithm| key(algorithm).verifying_key().to_jwk().unwrap();
    let jwks = json!({"keys": [
        public(Algorithm::EdDsa), public(Algorithm::EdDsa), jwk(key(Algorithm::Hs256)), {"kty": "EC", "crv": "P-384"}, 7,
        public(Algorithm::Rs256), {"kid": "broken", "kty": "RSA"}, jwk(key(Algorithm::Es256)),
    ], "other": 1});
    let (set, skipped) = KeySet::from_jwks(jwks.to_string().as_bytes()).unwrap();
    assert_eq!(set.len(), 2);
    let skipped: Vec<_> = skipped
        .iter()
        .map(|key| (key.index, key.kid.as_deref(), &key.reason))
        .collect();
    let kid = |algorithm| Some(key(algorithm).kid());
    assert_eq!(
        skipped,
        [
            (1, kid(Algorithm::EdDsa), &KeyError::SameKid),
            (2, kid(Algorithm::Hs256), &KeyError::SecretAsPublic),
            (3, None, &KeyError::OtherKind),
            (4, None, &KeyError::NotJwk("it is not a JSON object")),
            (6, Some("broken"), &KeyError::NotJwk("`n` is missing")),
            (7, kid(Algorithm::Es256), &KeyError::PrivateAsPublic),
        ]
    );
    for bad in ["", "[]", "{}", "{\"keys\": {}}", "{\"keys\": [}", "\"keys\""] {
        assert_eq!(
            KeySet::from_jwks(bad.as_bytes()).err(),
            Some(KeyError::NotJwks),
            "{bad}"
        );
    }
}

#[test]
fn the_public_set_has_no_secret_and_is_read_again() {
    let all: KeySet = Algorithm::ALL
        .into_iter()
        .map(|algorithm| key(algorithm).verifying_key())
        .collect();
    let jwks = all.public_jwks();
    assert!(!jwks.contains("oct") && !jwks.contains("\"k\"") && !jwks.contains("\"d\""));
    let (set, skipped) = KeySet::from_jwks(jwks.as_bytes()).unwrap();
    assert_eq!((set.len(), skipped), (3, Vec::new()));
    assert_eq!(set.public_jwks(), jwks);
}

/// As `openssl ecparam -name prime256v1 -genkey` writes it.
#[test]
fn parameters_before_a_key_are_skipped() {
    const PARAMETERS: &str = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let file = |name: &str| std::fs::read_to_string(format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let signing = |pem: &str| SigningKey::from_pem(pem.as_bytes()).map(|key| key.kid().to_owned());
    let alone = file("ec.pem");
    let kid = signing(&alone).unwrap();
    for good in [
        format!("{PARAMETERS}{alone}"),
        format!("\n{PARAMETERS}\n{alone}\n").replace('\n', "\r\n"),
        format!("\u{feff}{PARAMETERS}{alone}"),
        format!("\u{feff}{alone}"),
    ] {
        assert_eq!(signing(&good), Ok(kid.clone()), "{good}");
    }
    assert!(signing(&file("ec-with-parameters.pem")).is_ok());
    let verifying = |pem: &str| VerifyingKey::from_pem(pem.as_bytes()).err();
    assert_eq!(
        verifying(&file("ec-with-parameters.pem")),
        Some(KeyError::PrivateAsPublic)
    );
    for (bad, error) in [
        (format!("{PARAMETERS}{PARAMETERS}{alone}"), KeyError::NotAlone),
        (format!("{PARAMETERS}{alone}{alone}"), KeyError::NotAlone),
        (format!("{alone}{PARAMETERS}"), KeyError::NotAlone),
        (format!("{PARAMETERS}my key\n{alone}"), KeyError::NotAlone),
        (PARAMETERS.to_owned(), KeyError::NotPem),
    ] {
        assert_eq!(signing(&bad), Err(error), "{bad}");
    }
}

/// Some editors and servers put a mark before the text.
#[test]
fn a_mark_before_a_text_is_skipped() {
    let key = key(Algorithm::Es256);
    let public = key.verifying_key();
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let jwks = KeySet::from(public.clone()).public_jwks();
    assert_eq!(KeySet::from_jwks(&marked(&jwks)).unwrap().0.len(), 1);
    let jwk = public.to_jwk().unwrap().to_string();
    assert_eq!(VerifyingKey::from_jwk(&marked(&jwk)).unwrap().kid(), public.kid());
    assert_eq!(
        VerifyingKey::from_pem(&marked(&public.to_pem().unwrap()))
            .unwrap()
            .kid(),
        public.kid()
    );
    assert!(VerifyingKey::from_jwk(&marked(&format!("\u{feff}{jwk}"))).is_err());
}

/// RFC 7517 section 4.5: keys may have the same kid if their types differ.
#[test]
fn keys_of_one_kid_are_told_apart_by_their_algorithm() {
    let keys = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa].map(SigningKey::generate);
    let jwk = |key: &SigningKey, changes: Value| {
        let mut jwk = key.verifying_key().with_kid("same").unwrap().to_jwk().unwrap();
        for (name, change) in changes.as_object().unwrap() {
            jwk[name] = change.clone();
        }
        jwk
    };
    // The first is for an algorithm that is not known, as that of some issuers.
    let mut all = vec![jwk(&keys[0], json!({"alg": "RS384"}))];
    all.extend(keys.iter().map(|key| jwk(key, json!({}))));
    all.push(jwk(&keys[1], json!({"alg": "ES512"})));
    let (set, skipped) = KeySet::from_jwks(json!({ "keys": all }).to_string().as_bytes()).unwrap();
    assert_eq!(set.len(), 3);
    let indices: Vec<_> = skipped.iter().map(|key| key.index).collect();
    assert_eq!(indices, [0, 4]);
    for key in &keys {
        let jwt = |kid: Value| {
            let header = common::with(common::header(key), json!({ "kid": kid }));
            common::sign(key, header, common::payload().to_string())
        };
        let verifier = common::verifier().with_keys(set.clone());
        for kid in [json!("same"), json!(null)] {
            let verified = verifier.verify(&jwt(kid.clone()), common::now());
            assert!(verified.is_ok(), "{} {kid}: {verified:?}", key.algorithm());
        }
    }
}

#[test]
fn a_key_of_the_same_kid_and_algorithm_replaces_the_former() {
    let mut set = KeySet::new();
    let named = |key: &SigningKey| key.verifying_key().with_kid("a").unwrap();
    let former = SigningKey::generate(Algorithm::EdDsa);
    assert!(set.insert(named(&former)).is_none());
    let replaced = set.insert(named(key(Algorithm::EdDsa)));
    assert_eq!(
        replaced.map(|key| key.thumbprint()),
        Some(former.verifying_key().thumbprint())
    );
    assert!(set.insert(named(key(Algorithm::Es256))).is_none());
    assert_eq!(set.len(), 2);
    let found = set.find("a", Algorithm::Es256).map(VerifyingKey::algorithm);
    assert_eq!(found, Some(Algorithm::Es256));
    assert!(set.find("a", Algorithm::Rs256).is_none() && set.find("b", Algorithm::Es256).is_none());
}

#[test]
fn tokens_of_the_rabbit_software_verify_with_its_key() {
    let key = HmacKey::from_pem(include_bytes!("../testdata/rabbit.pem")).unwrap();
    let token = token::issue(&key, "user-container", 1_700_000_000);
    let keys = KeySet::from(key.verifying_key());
    assert_eq!(
        keys.verify_jws(token.expose_secret()).as_deref(),
        Ok(&br#"{"iat":1700000000,"sub":"user-container"}"#[..])
    );
}

/// Runs openssl with `input`, and returns what it prints.
fn openssl(args: &[&str], input: &str) -> SecretString {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {args:?}");
    SecretString::from(String::from_utf8(output.stdout).unwrap())
}

#[needs::needs(openssl)]
#[test]
fn openssl_reads_our_keys_and_we_read_its() {
    for (algorithm, generate, own_form) in [
        (Algorithm::EdDsa, &["genpkey", "-algorithm", "ed25519"][..], None),
        (
            Algorithm::Es256,
            &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Some("EC PRIVATE KEY"),
        ),
        (
            Algorithm::Rs256,
            &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
            Some("RSA PRIVATE KEY"),
        ),
    ] {
        let ours = key(algorithm).to_pem().unwrap();
        for private in [ours, openssl(generate, "")] {
            let private = private.expose_secret();
            let key = SigningKey::from_pem(private.as_bytes()).unwrap();
            let public = openssl(&["pkey", "-pubout"], private);
            assert_eq!(key.verifying_key().to_pem().as_deref(), Some(public.expose_secret()));
            let public = VerifyingKey::from_pem(public.expose_secret().as_bytes()).unwrap();
            assert_pair(&key, &public);
            assert_eq!((key.kid(), key.algorithm()), (public.kid(), algorithm));
            if let Some(label) = own_form {
                let traditional = openssl(&["pkey", "-traditional"], private);
                assert!(traditional.expose_secret().contains(label));
                let again = SigningKey::from_pem(traditional.expose_secret().as_bytes()).unwrap();
                assert_eq!(again.kid(), key.kid());
            }
        }
    }
    let rsa = key(Algorithm::Rs256).to_pem().unwrap();
    let pkcs1 = openssl(&["rsa", "-RSAPublicKey_out"], rsa.expose_secret());
    assert!(pkcs1.expose_secret().contains("BEGIN RSA PUBLIC KEY"));
    let public = VerifyingKey::from_pem(pkcs1.expose_secret().as_bytes()).unwrap();
    assert_eq!(public.kid(), key(Algorithm::Rs256).kid());
    let short = openssl(
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"],
        "",
    );
    assert_eq!(
        SigningKey::from_pem(short.expose_secret().as_bytes()).err(),
        Some(KeyError::RsaTooShort(1024))
    );
    let p384 = openssl(
        &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        "",
    );
    let p384 = openssl(&["pkey", "-traditional"], p384.expose_secret());
    assert_eq!(
        SigningKey::from_pem(p384.expose_secret().as_bytes()).err(),
        Some(KeyError::OtherKind)
    );
}
