// SPDX-License-Identifier: MIT OR Apache-2.0

//! `token-rate ROUNDS`: how many tokens are issued and verified each second on one core, by each algorithm, and the ratio to
//! bare jsonwebtoken with the same key, header and claims. The two are run in turns, and medians compared. A line each, with
//! tabs between: what, ours, the peer's, and the ratio.

use std::env;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, decode, encode};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use token::{Algorithm, ClaimsToIssue, Grant, Job, JobScheduler, KeySet, SigningKey, Verifier, mint};

const ISSUER: &str = "https://hpc.example.org";
const AUDIENCE: &str = "copy-offload";
/// How long each turn takes.
const TURN: Duration = Duration::from_millis(200);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The claims of a workflow token, as one would write them down for jsonwebtoken.
#[derive(Serialize, Deserialize)]
struct PeerClaims {
    iss: String,
    sub: String,
    aud: String,
    exp: u64,
    nbf: u64,
    iat: u64,
    jti: String,
    scope: String,
    workspace: String,
    flux: PeerJob,
}

#[derive(Serialize, Deserialize)]
struct PeerJob {
    jobid: String,
    uid: u32,
    instance: String,
}

fn main() -> ExitCode {
    let rounds = env::args().nth(1).and_then(|rounds| rounds.parse().ok());
    match rounds.filter(|rounds| *rounds > 0).map(run) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(why)) => {
            eprintln!("token-rate: {why}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("usage: token-rate ROUNDS");
            ExitCode::FAILURE
        }
    }
}

fn run(rounds: usize) -> Result<()> {
    for algorithm in Algorithm::ALL {
        let key = SigningKey::generate(algorithm);
        let peer = Peer::of(&key)?;
        let claims = ClaimsToIssue {
            iss: ISSUER.into(),
            sub: "alice".into(),
            aud: vec![AUDIENCE.into()],
            iat: SystemTime::now(),
            lifetime: Duration::from_secs(86_400),
            grant: Grant::Session {
                workspace: "hydro".parse()?,
                job: Job {
                    id: "f4dVSvb".parse()?,
                    uid: 1000,
                    instance: "ƒ2u".into(),
                    scheduler: JobScheduler::default(),
                },
            },
            status: None,
        };
        let verifier = Verifier::new(KeySet::from(key.verifying_key()))
            .issuer(ISSUER)
            .audience(AUDIENCE);
        let token = mint(&key, &claims);
        let token = token.expose_secret();
        let peer_claims: PeerClaims = decode(token, &peer.decoding, &peer.validation)?.claims;

        compare(
            &format!("{algorithm} verify"),
            rounds,
            || verifier.verify(token, SystemTime::now()).is_ok(),
            || decode::<PeerClaims>(token, &peer.decoding, &peer.validation).is_ok(),
        )?;
        compare(
            &format!("{algorithm} issue"),
            rounds,
            || !mint(&key, &claims).expose_secret().is_empty(),
            || encode(&peer.header, &peer_claims, &peer.encoding).is_ok(),
        )?;
    }
    Ok(())
}

struct Peer {
    header: Header,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl Peer {
    fn of(key: &SigningKey) -> Result<Self> {
        let pem = key.to_pem();
        let pem = pem
            .as_ref()
            .map(|pem| pem.expose_secret().as_bytes())
            .unwrap_or_default();
        let public = key.verifying_key().to_pem().unwrap_or_default();
        let (algorithm, encoding, decoding) = match key.algorithm() {
            Algorithm::EdDsa => (
                jsonwebtoken::Algorithm::EdDSA,
                EncodingKey::from_ed_pem(pem)?,
                DecodingKey::from_ed_pem(public.as_bytes())?,
            ),
            Algorithm::Es256 => (
                jsonwebtoken::Algorithm::ES256,
                EncodingKey::from_ec_pem(pem)?,
                DecodingKey::from_ec_pem(public.as_bytes())?,
            ),
            Algorithm::Rs256 => (
                jsonwebtoken::Algorithm::RS256,
                EncodingKey::from_rsa_pem(pem)?,
                DecodingKey::from_rsa_pem(public.as_bytes())?,
            ),
            Algorithm::Hs256 => {
                let jwk: serde_json::Value = serde_json::from_str(key.to_jwk().expose_secret())?;
                let secret = URL_SAFE_NO_PAD.decode(jwk["k"].as_str().unwrap_or_default())?;
                let keys = (EncodingKey::from_secret(&secret), DecodingKey::from_secret(&secret));
                (jsonwebtoken::Algorithm::HS256, keys.0, keys.1)
            }
        };
        let mut header = Header::new(algorithm);
        header.kid = Some(key.kid().to_owned());
        let mut validation = Validation::new(algorithm);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.validate_nbf = true;
        Ok(Self {
            header,
            encoding,
            decoding,
            validation,
        })
    }
}

/// Runs the two in turns; the order changes each round, so that neither always finds the warmer machine.
fn compare(what: &str, rounds: usize, ours: impl Fn() -> bool, peer: impl Fn() -> bool) -> Result<()> {
    let (mut our_rates, mut peer_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let (our, other) = if round % 2 == 0 {
            let our = rate(&ours)?;
            (our, rate(&peer)?)
        } else {
            let other = rate(&peer)?;
            (rate(&ours)?, other)
        };
        our_rates.push(our);
        peer_rates.push(other);
        ratios.push(our / other);
    }
    println!(
        "{what}\t{:.0}\t{:.0}\t{:.4}",
        median(our_rates),
        median(peer_rates),
        median(ratios)
    );
    Ok(())
}

fn rate(once: impl Fn() -> bool) -> Result<f64> {
    let (start, mut done) = (Instant::now(), 0_u32);
    while start.elapsed() < TURN {
        for _ in 0..8 {
            if !black_box(once()) {
                return Err("a token was refused".into());
            }
        }
        done += 8;
    }
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
