//! The issuer of the tokens that the instance mints, for the token service: its public keys, and the responses that it signs.
//!
//! The service chooses neither the type nor the shape of what is signed: a response to an introspection has the type
//! `token-introspection+jwt` and no `exp`, so nobody accepts it as a token.

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use protocol::{Answer, IssuerQuestion};
use seal::ExposeSecret;
use serde_json::{Map, Value, json};
use source::keys::KeyStore;
use tokio::time::timeout;

/// The time that the file system of the keys may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The type of a response to an introspection (RFC 9701 section 5).
const INTROSPECTION: &str = "token-introspection+jwt";

/// An issuer.
pub struct Issuer {
    name: String,
    keys: Arc<KeyStore>,
}

impl Issuer {
    /// Returns the issuer of a configuration, if it has one. Reads nothing.
    ///
    /// # Errors
    /// For the operator: the path of the keys cannot be used.
    pub fn of(config: &config::Config) -> Result<Option<Arc<Self>>, String> {
        let Some(issuer) = &config.issuer else { return Ok(None) };
        let keys = source::expand(&issuer.keys).map_err(|e| format!("workflow-token.issuer.keys: {e}"))?;
        Ok(Some(Arc::new(Self {
            name: issuer.name.clone(),
            keys: KeyStore::signing(keys),
        })))
    }

    /// Returns the claim `iss` of its tokens.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Answers a question. Blocks, as the keys are files.
    fn answer(&self, question: IssuerQuestion) -> Answer {
        let (keys, warnings) = self.keys.keys();
        for warning in warnings {
            eprintln!("workflow-token-agent: {warning}");
        }
        let keys = match keys {
            Ok(keys) => keys,
            Err(e) => return Answer::Failed(e.to_string()),
        };
        match question {
            IssuerQuestion::PublicKeys => Answer::PublicKeys(keys.verifying().public_jwks()),
            IssuerQuestion::SignIntrospection { audience, response } => {
                let Some(key) = keys.signing() else {
                    return failed("no key is the active one: promote one with `flux workflow-token rotate promote`");
                };
                let Ok(response) = serde_json::from_str::<Map<String, Value>>(&response) else {
                    return failed("the response to an introspection is no JSON object");
                };
                let iat = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs();
                let claims = json!({
                    "iss": self.name,
                    "aud": audience,
                    "iat": iat,
                    "token_introspection": response,
                });
                let signed = key.sign(&[("typ", INTROSPECTION)], claims.to_string().as_bytes());
                Answer::Signed(signed.expose_secret().to_owned())
            }
        }
    }
}

/// Answers a question to the issuer of a name.
pub async fn answer(issuer: Option<Arc<Issuer>>, name: &str, question: IssuerQuestion) -> Answer {
    let Some(issuer) = issuer else {
        let name = name.escape_debug();
        return failed(format!(
            "no configuration of the agent has the issuer {name}: set the key name of [workflow-token.issuer], or correct the \
             key issuer of the service"
        ));
    };
    match timeout(TIMEOUT, tokio::task::spawn_blocking(move || issuer.answer(question))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => failed("an internal error"),
        Err(_) => failed("the file system of the keys does not answer"),
    }
}

fn failed(why: impl Display) -> Answer {
    Answer::Failed(why.to_string())
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use token::{Algorithm, KeySet, Verifier};

    use super::*;

    fn issuer(directory: &std::path::Path) -> Arc<Issuer> {
        source::keys::create(directory, Algorithm::EdDsa).unwrap();
        let issuer = json!({"keys": directory, "name": "https://a.example.org", "audience": "a"});
        let config = config::Config::from_json(&json!({"workflow-token": {"issuer": issuer}})).unwrap();
        Issuer::of(&config).unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_signed_response_is_not_a_token() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = issuer(&directory.path().join("keys"));
        let Answer::PublicKeys(jwks) = answer(Some(issuer.clone()), "", IssuerQuestion::PublicKeys).await else {
            panic!("no keys");
        };
        assert!(!jwks.contains("\"d\""));
        let question = |response: &str| IssuerQuestion::SignIntrospection {
            audience: "client".to_owned(),
            response: response.to_owned(),
        };
        // The service could try to have a token signed.
        let claims = r#"{"iss":"https://a.example.org","aud":"client","sub":"root","exp":9e9}"#;
        let Answer::Signed(signed) = answer(Some(issuer.clone()), "", question(claims)).await else {
            panic!("not signed");
        };
        let part = |n| URL_SAFE_NO_PAD.decode(signed.split('.').nth(n).unwrap()).unwrap();
        let header: Value = serde_json::from_slice(&part(0)).unwrap();
        assert_eq!(header["typ"], "token-introspection+jwt");
        let payload: Value = serde_json::from_slice(&part(1)).unwrap();
        assert_eq!((&payload["aud"], &payload["exp"]), (&json!("client"), &Value::Null));
        assert_eq!(payload["token_introspection"]["sub"], "root");
        let (keys, _) = KeySet::from_jwks(jwks.as_bytes()).unwrap();
        let verifier = Verifier::new(keys).any_audience();
        assert!(verifier.clone().verify(&signed, SystemTime::now()).is_err());
        assert!(verifier.typ(INTROSPECTION).verify(&signed, SystemTime::now()).is_err());
        for wrong in ["", "[]", "{"] {
            assert!(matches!(
                answer(Some(issuer.clone()), "", question(wrong)).await,
                Answer::Failed(_)
            ));
        }
        let Answer::Failed(why) = answer(None, "https://b\n", IssuerQuestion::PublicKeys).await else {
            panic!("somebody is known");
        };
        assert!(
            why.contains(r"https://b\n") && why.contains("[workflow-token.issuer]"),
            "{why}"
        );
    }
}
