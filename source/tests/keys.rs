// SPDX-License-Identifier: MIT OR Apache-2.0

//! Key directories of an operator: writing, checks while reading, and changes during use.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use seal::ExposeSecret;
use source::{
    keys::{self, KeyStore, Keys, Want},
    verify::{TokenVerifier, Unverified},
};
use tempfile::TempDir;
use token::{Algorithm, ClaimsToIssue, Grant, SigningKey, VerifyError};

const ALL: [Algorithm; 4] = [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Rs256, Algorithm::Hs256];

struct Site {
    dir: TempDir,
    keys: PathBuf,
    kid: String,
}

impl Site {
    fn new(algorithm: Algorithm) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let kid = keys::create(&keys, algorithm).unwrap();
        Self { dir, keys, kid }
    }

    fn store(&self) -> Arc<KeyStore> {
        KeyStore::signing(self.keys.clone())
    }

    fn trusted(&self) -> TokenVerifier {
        trusted(config::TrustedKeys::Path(path(&self.keys)))
    }

    fn read(&self) -> Result<Keys, String> {
        keys::read(&self.keys, Want::Signing).map_err(|e| e.to_string())
    }

    /// Returns the reason why the directory is rejected.
    #[track_caller]
    fn refused(&self) -> String {
        self.read().expect_err("it was read")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.keys.join(name)
    }

    fn private(&self) -> PathBuf {
        self.at(&format!("signing/{}.pem", self.kid))
    }
}

fn path(path: &Path) -> config::KeyPath {
    config::KeyPath::parse(path.to_str().unwrap()).unwrap()
}

fn trusted(keys: config::TrustedKeys) -> TokenVerifier {
    TokenVerifier::new(&config::Trust {
        name: "site".to_owned(),
        issuer: "https://hpc.example.org".to_owned(),
        keys,
        audience: vec!["service".to_owned()],
        types: Vec::new(),
        leeway: Duration::from_secs(60),
    })
    .unwrap()
}

fn mint(key: &SigningKey) -> String {
    let claims = ClaimsToIssue {
        iss: "https://hpc.example.org".to_owned(),
        sub: "alice".to_owned(),
        aud: vec!["service".to_owned()],
        iat: SystemTime::now(),
        lifetime: Duration::from_secs(60),
        grant: Grant::Cluster,
        status: None,
    };
    token::mint(key, &claims).expose_secret().to_owned()
}

fn signed(store: &KeyStore) -> String {
    mint(store.keys().0.unwrap().signing().unwrap())
}

#[track_caller]
fn accepts(trusted: &TokenVerifier, token: &str) {
    let (result, _) = trusted.verify(token, SystemTime::now());
    result.unwrap_or_else(|e| panic!("refused: {e:?}"));
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_is_private_is_so_from_the_start() {
    for algorithm in ALL {
        let site = Site::new(algorithm);
        let private = match algorithm {
            Algorithm::Hs256 => "hs256",
            _ => "signing",
        };
        assert_eq!(mode(&site.at(private)), 0o700);
        let files: Vec<_> = fs::read_dir(site.at(private))
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1);
        assert_eq!(mode(&files[0]), 0o600);
        assert_eq!(
            fs::read_to_string(site.at("active")).unwrap(),
            format!("{}\n", site.kid)
        );
        let public = site.at(&format!("{}.pub.jwk", site.kid));
        assert_eq!(public.exists(), algorithm != Algorithm::Hs256, "{algorithm}");
        let keys = site.read().unwrap();
        let signing = keys.signing().unwrap();
        assert_eq!((signing.kid(), signing.algorithm()), (&*site.kid, algorithm));
        accepts(&site.trusted(), &mint(signing));
    }
}

#[test]
fn a_directory_that_was_there_is_closed_before_a_private_key_is_in_it() {
    for (algorithm, private) in [(Algorithm::EdDsa, "signing"), (Algorithm::Hs256, "hs256")] {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join(private);
        fs::create_dir(&inner).unwrap();
        chmod(&inner, 0o755);
        keys::create(dir.path(), algorithm).unwrap();
        assert_eq!(mode(&inner), 0o700);
        chmod(&inner, 0o711);
        keys::add(dir.path(), algorithm).unwrap();
        assert_eq!(mode(&inner), 0o700);
    }
}

#[test]
fn a_rotation_refuses_no_token_until_its_key_is_retired() {
    for (old, new) in [
        (Algorithm::EdDsa, Algorithm::Es256),
        (Algorithm::Hs256, Algorithm::EdDsa),
        (Algorithm::Es256, Algorithm::Hs256),
    ] {
        let site = Site::new(old);
        let (store, trusted) = (site.store(), site.trusted());
        let before = signed(&store);
        let kid = keys::add(&site.keys, new).unwrap();
        assert_eq!(
            store.keys().0.unwrap().signing().unwrap().kid(),
            site.kid,
            "added, not yet active"
        );
        let added = signed(&store);

        assert_eq!(keys::promote(&site.keys, None).unwrap(), kid);
        assert_eq!(store.keys().0.unwrap().signing().unwrap().kid(), kid);
        let after = signed(&store);
        for token in [&before, &added, &after] {
            accepts(&trusted, token);
        }

        keys::retire(&site.keys, &site.kid).unwrap();
        let (result, _) = trusted.verify(&before, SystemTime::now());
        // The only remaining key is not the one that the token names.
        assert!(
            matches!(&result, Err(Unverified::Refused(VerifyError::UnknownKid(_)))),
            "{result:?}"
        );
        accepts(&trusted, &after);
        let left: Vec<_> = ["signing", "hs256"]
            .iter()
            .filter_map(|name| fs::read_dir(site.at(name)).ok())
            .flatten()
            .collect();
        assert_eq!(left.len(), 1, "the private key is gone too");
    }
}

#[test]
fn a_step_that_would_break_it_is_refused() {
    let site = Site::new(Algorithm::EdDsa);
    let says = |result: Result<(), keys::KeysError>, words: &str| {
        let error = result.expect_err(words).to_string();
        assert!(
            error.starts_with(site.keys.to_str().unwrap()) && error.contains(words),
            "{error:?} does not say {words:?}"
        );
    };
    says(keys::retire(&site.keys, &site.kid), "is active");
    says(keys::retire(&site.keys, "nobody"), "there is no key nobody");
    says(keys::retire(&site.keys, "../active"), "there is no key ../active");
    says(keys::promote(&site.keys, None).map(drop), "it contains no inactive key");
    says(
        keys::promote(&site.keys, Some("nobody")).map(drop),
        "there is no key nobody",
    );
    says(
        keys::create(&site.keys, Algorithm::EdDsa).map(drop),
        "already contains keys",
    );

    let kid = keys::add(&site.keys, Algorithm::EdDsa).unwrap();
    fs::remove_file(site.at(&format!("{kid}.pub.jwk"))).unwrap();
    says(
        keys::promote(&site.keys, Some(&kid)).map(drop),
        "no service could verify its tokens",
    );
    keys::add(&site.keys, Algorithm::EdDsa).unwrap();
    says(
        keys::promote(&site.keys, None).map(drop),
        "it contains several inactive keys",
    );
    assert_eq!(site.read().unwrap().signing().unwrap().kid(), site.kid);
}

#[test]
fn what_others_could_have_a_hand_in_is_refused() {
    let site = Site::new(Algorithm::EdDsa);
    let public = site.at(&format!("{}.pub.jwk", site.kid));
    for (path, bad, good, says) in [
        (site.private(), 0o640, 0o600, "chmod 0600"),
        (site.private(), 0o604, 0o600, "chmod 0600"),
        (site.at("signing"), 0o770, 0o700, "chmod go-w"),
        (site.keys.clone(), 0o777, 0o755, "chmod go-w"),
        (site.at("active"), 0o666, 0o644, "lets others write"),
        (public.clone(), 0o664, 0o644, "lets others write"),
    ] {
        chmod(&path, bad);
        let error = site.refused();
        assert!(
            error.contains(path.to_str().unwrap()) && error.contains(says),
            "{error}"
        );
        chmod(&path, good);
        site.read().unwrap();
    }
    // This includes a key that does not sign yet.
    let kid = keys::add(&site.keys, Algorithm::Es256).unwrap();
    chmod(&site.at(&format!("signing/{kid}.pem")), 0o644);
    assert!(site.refused().contains("chmod 0600"));
    chmod(&site.at(&format!("signing/{kid}.pem")), 0o600);

    let elsewhere = site.dir.path().join("elsewhere.jwk");
    fs::rename(&public, &elsewhere).unwrap();
    symlink(&elsewhere, &public).unwrap();
    assert!(site.refused().contains("symbolic link"));
}

#[test]
fn what_is_not_as_it_should_be_is_named_and_nothing_is_used() {
    let site = Site::new(Algorithm::EdDsa);
    let public = fs::read_to_string(site.at(&format!("{}.pub.jwk", site.kid))).unwrap();
    let private = fs::read_to_string(site.private()).unwrap();
    let secret = SigningKey::generate(Algorithm::Hs256)
        .to_jwk()
        .expose_secret()
        .to_owned();
    let other = SigningKey::generate(Algorithm::EdDsa);
    let same_kid = other
        .verifying_key()
        .with_kid(&site.kid)
        .unwrap()
        .to_jwk()
        .unwrap()
        .to_string();
    for (name, mode, content, says) in [
        // A secret or a private key among the public keys.
        ("secret.jwk", 0o600, secret.as_str(), ""),
        ("private.pem", 0o600, &private, "private key"),
        ("private.jwk", 0o600, other.to_jwk().expose_secret(), "private key"),
        // `~` sorts last, so this file is read after the one with the same kid, and the error names it.
        ("~other.jwk", 0o644, &same_kid, "a different key with the same kid"),
        ("text.pem", 0o644, "hello", "no PEM block"),
        ("text.jwk", 0o644, "{", ""),
        ("text.jwks", 0o644, "{}", "not a JWKS"),
        // A public key among the secrets.
        ("hs256/public.jwk", 0o600, &public, ""),
        ("hs256/readable.jwk", 0o644, &secret, "chmod 0600"),
        ("active", 0o644, "../../etc/passwd", "does not contain a kid"),
        ("active", 0o644, "nobody", "names the key nobody"),
    ] {
        let former = fs::read(site.at(name));
        fs::create_dir_all(site.at("hs256")).unwrap();
        chmod(&site.at("hs256"), 0o700);
        fs::write(site.at(name), content).unwrap();
        chmod(&site.at(name), mode);
        let error = site.refused();
        assert!(error.contains(name) && error.contains(says), "{name}: {error}");
        for secret in [&private, &secret] {
            let line = secret.lines().nth(1).unwrap_or(secret);
            assert!(!error.contains(line), "{name}: a secret was told");
        }
        fs::remove_file(site.at(name)).unwrap();
        if let Ok(former) = former {
            fs::write(site.at(name), former).unwrap();
            chmod(&site.at(name), 0o644);
        }
        site.read().unwrap();
    }
    // A name that the issuer chose is shown without terminal control characters.
    let named = |key: &SigningKey| {
        let key = key
            .verifying_key()
            .with_kid("k\u{1b}]0;pwned\u{7}\u{1b}[2J\u{202e}")
            .unwrap();
        key.to_jwk().unwrap().to_string()
    };
    fs::write(site.at("a.jwk"), named(&other)).unwrap();
    fs::write(site.at("b.jwk"), named(&SigningKey::generate(Algorithm::EdDsa))).unwrap();
    let error = site.refused();
    assert!(
        error.contains("k\\u{1b}]0;pwned\\u{7}\\u{1b}[2J\\u{202e}: give one"),
        "{error}"
    );
    fs::remove_file(site.at("a.jwk")).unwrap();
    fs::remove_file(site.at("b.jwk")).unwrap();
    // Without the public key of the active key, no service could verify tokens.
    fs::rename(site.at(&format!("{}.pub.jwk", site.kid)), site.at("away")).unwrap();
    fs::write(site.at("some.jwk"), other.verifying_key().to_jwk().unwrap().to_string()).unwrap();
    assert!(site.refused().contains("public key is missing"));
    fs::rename(site.at("away"), site.at(&format!("{}.pub.jwk", site.kid))).unwrap();
    // A key in a file that is named after another key.
    fs::rename(site.private(), site.at("signing/other.pem")).unwrap();
    fs::write(site.at("active"), "other").unwrap();
    assert!(site.refused().contains("rename it"), "{}", site.refused());
}

#[test]
fn public_keys_are_read_from_files_of_any_kind_and_secrets_from_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, mode: u32, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        chmod(&path, mode);
        path
    };
    let key = SigningKey::generate(Algorithm::Es256);
    let public = key.verifying_key();
    let jwk = public.to_jwk().unwrap();
    let secret = SigningKey::generate(Algorithm::Hs256);
    let secret_jwk: serde_json::Value = serde_json::from_str(secret.to_jwk().expose_secret()).unwrap();
    let jwks = serde_json::json!({"keys": [jwk, secret_jwk]}).to_string();
    for (name, content) in [
        ("a.pem", public.to_pem().unwrap()),
        ("a.jwk", jwk.to_string()),
        ("a.jwks", jwks.clone()),
        ("of-any-name", jwks),
    ] {
        let path = write(name, 0o644, content.as_bytes());
        let keys = trusted(config::TrustedKeys::Path(self::path(&path)));
        accepts(&keys, &mint(&key));
        // Everybody can read a secret among the public keys.
        let (result, notes) = keys.verify(&mint(&secret), SystemTime::now());
        assert!(
            matches!(&result, Err(Unverified::Refused(VerifyError::UnknownKid(_)))),
            "{name}: {result:?}"
        );
        let all = keys::read(&path, Want::Verifying).unwrap();
        assert_eq!((all.verifying().len(), notes.len()), (1, 0), "{name}: {notes:?}");
        assert_eq!(all.notes().len(), usize::from(content.contains("\"keys\"")), "{name}");
    }

    for (name, content) in [
        ("secret.jwk", secret.to_jwk().expose_secret().as_bytes().to_vec()),
        ("secret", b"0123456789abcdef0123456789abcdef\n".to_vec()),
    ] {
        let path = write(name, 0o600, &content);
        let keys = trusted(config::TrustedKeys::Secret(self::path(&path)));
        let signing = match name {
            "secret" => SigningKey::from_secret(b"0123456789abcdef0123456789abcdef").unwrap(),
            _ => SigningKey::from_jwk(&content).unwrap(),
        };
        accepts(&keys, &mint(&signing));
        chmod(&path, 0o640);
        let fresh = keys::read_secret(&path).unwrap_err().to_string();
        assert!(fresh.contains("chmod 0600"), "{fresh}");
    }
    let path = write("short", 0o600, b"short\n");
    assert!(keys::read_secret(&path).is_err());
    let pem = public.to_pem().unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    for (content, says) in [
        (pem.clone(), "where a PRIVATE KEY is needed"),
        (format!("Bag Attributes: <No Attributes>\n{pem}"), "other text"),
        (format!("\u{feff}{pem}"), "other text"),
        (format!("\u{feff}{jwk}"), "a secret that everyone knows"),
        (format!("[{jwk}]\n"), "a secret that everyone knows"),
        (base64, "a secret that everyone knows"),
    ] {
        let path = write("public", 0o600, content.as_bytes());
        let error = keys::read_secret(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{content}: {error}");
    }
}

#[test]
fn a_change_that_cannot_be_read_is_told_once_and_does_no_harm() {
    let site = Site::new(Algorithm::EdDsa);
    let store = site.store();
    let (before, trusted) = (signed(&store), site.trusted());
    accepts(&trusted, &before);
    let told = || {
        let (keys, notes) = store.keys();
        assert_eq!(keys.unwrap().signing().unwrap().kid(), site.kid);
        notes
    };
    assert_eq!(told(), Vec::<String>::new());

    let broken = site.at("broken.pem");
    fs::write(&broken, "-----BEGIN").unwrap();
    let notes = told();
    assert!(
        notes.len() == 1 && notes[0].contains(broken.to_str().unwrap()) && notes[0].contains("remain in use"),
        "{notes:?}"
    );
    for _ in 0..3 {
        assert_eq!(told(), Vec::<String>::new());
    }
    accepts(&trusted, &before);

    fs::remove_file(&broken).unwrap();
    let notes = told();
    assert!(notes.len() == 1 && notes[0].contains("are valid again"), "{notes:?}");

    // The whole directory is missing, like an unmounted file system.
    let away = site.dir.path().join("away");
    fs::rename(&site.keys, &away).unwrap();
    assert_eq!(told().len(), 1);
    fs::rename(&away, &site.keys).unwrap();
    assert_eq!(told().len(), 1);
    accepts(&site.trusted(), &signed(&store));

    // Without former keys, there are none to keep in use.
    let never = KeyStore::signing(site.dir.path().join("never"));
    assert!(never.keys().0.unwrap_err().to_string().contains("never"));
}

#[test]
fn changes_that_follow_each_other_at_once_are_all_seen() {
    let site = Site::new(Algorithm::EdDsa);
    let kids = [site.kid.clone(), keys::add(&site.keys, Algorithm::EdDsa).unwrap()];
    let store = site.store();
    // Written in place with the same length: only the time changes, and its resolution is coarse.
    for kid in kids.iter().cycle().take(500) {
        fs::write(site.at("active"), format!("{kid}\n")).unwrap();
        assert_eq!(store.keys().0.unwrap().signing().unwrap().kid(), kid);
    }
}

#[test]
fn a_configuration_that_is_loaded_again_keeps_the_last_good_keys() {
    let site = Site::new(Algorithm::EdDsa);
    let store = site.store();
    signed(&store);
    fs::write(site.at("broken.pem"), "-----BEGIN").unwrap();
    let again = site.store();
    drop(store);
    assert_eq!(again.keys().0.unwrap().signing().unwrap().kid(), site.kid);
}

/// Three rotations by an operator during concurrent minting and verification.
#[test]
fn ten_thousand_tokens_over_three_rotations_and_none_is_refused() {
    const TOKENS: usize = 10_000;

    let site = Site::new(Algorithm::EdDsa);
    let (store, trusted) = (site.store(), site.trusted());
    let counts: [AtomicUsize; 4] = Default::default();
    let all = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<usize>();
    let over = AtomicBool::new(false);
    let work = |mine: &AtomicUsize| {
        let mut kids = BTreeSet::new();
        while !over.load(Ordering::Relaxed) || all() < TOKENS {
            let keys = store.keys().0.unwrap();
            let key = keys.signing().unwrap();
            kids.insert(key.kid().to_owned());
            accepts(&trusted, &mint(key));
            mine.fetch_add(1, Ordering::Relaxed);
        }
        kids
    };
    thread::scope(|scope| {
        let workers: Vec<_> = counts.iter().map(|mine| scope.spawn(move || work(mine))).collect();
        let until = |is_so: &dyn Fn() -> bool| {
            while !is_so() {
                assert!(
                    workers.iter().all(|worker| !worker.is_finished()),
                    "a token was refused"
                );
                thread::yield_now();
            }
        };
        let mut active = site.kid.clone();
        for (round, algorithm) in [Algorithm::Es256, Algorithm::Hs256, Algorithm::EdDsa]
            .into_iter()
            .enumerate()
        {
            until(&|| all() >= TOKENS * (2 * round + 1) / 7);
            let new = keys::add(&site.keys, algorithm).unwrap();
            until(&|| all() >= TOKENS * (2 * round + 2) / 7);
            assert_eq!(keys::promote(&site.keys, None).unwrap(), new);
            // Each thread has verified a token of the former key after another iteration.
            let then = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            until(&|| {
                counts
                    .iter()
                    .zip(then)
                    .all(|(count, then)| count.load(Ordering::Relaxed) > then + 1)
            });
            keys::retire(&site.keys, &active).unwrap();
            active = new;
        }
        over.store(true, Ordering::Relaxed);
        let kids: BTreeSet<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        assert_eq!(kids.len(), 4, "each key has signed");
    });
    assert!(all() >= TOKENS);
}
