use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::builder::NonEmptyStringValueParser;
use secrecy::ExposeSecret;
use token::{HmacKey, KeyError};
use zeroize::Zeroizing;

use crate::{people, print};

/// Issue a token as the rabbit software does: HS256 over the DER bytes of a PEM private key
///
/// The token is printed to standard output and nowhere else. It never expires: whoever has it can use it until the key
/// is replaced.
#[derive(clap::Args)]
pub struct Args {
    /// PEM file with the private key; it must be owned by you or root and closed to everyone else (mode 0600)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// Whom the token is about (claim `sub`); the rabbit software uses "user-container"
    #[arg(long, value_name = "SUBJECT", value_parser = NonEmptyStringValueParser::new())]
    sub: String,

    /// When it was issued (claim `iat`), in seconds since 1970 [default: now]
    #[arg(long, value_name = "SECONDS")]
    iat: Option<u64>,
}

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--key -: a key is read from a file only, whose owner and mode show that nobody else has it")]
    KeyFromStdin,
    #[error("key file {0}: {1}")]
    Unreadable(String, std::io::Error),
    #[error("key file {0}: not a regular file: give the path of the PEM file itself")]
    NotFile(String),
    #[error(
        "key file {path}: owned by {owner}, who could have made the key: it must be owned by {me} or root (use chown)"
    )]
    Owner { path: String, owner: String, me: String },
    #[error(
        "key file {path}: mode {mode:04o} lets others than its owner in: use chmod 0600, and replace the key if it was readable for long"
    )]
    Mode { path: String, mode: u32 },
    #[error("key file {0}: larger than {MAX_KEY_FILE} bytes, which no key is: see that it is the right file")]
    TooLarge(String),
    #[error("key file {0}: {1}")]
    NotKey(String, KeyError),
    #[error("the clock of this node is before 1970: set it, or give --iat")]
    Clock,
    #[error("the token could not be written: {0}")]
    Write(std::io::Error),
}

/// An RSA key of 16,384 bits takes 13 KiB.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Issues a token.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let key = read_key(&args.key)?;
    let iat = match args.iat {
        Some(iat) => iat,
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|_| Error::Clock)?
            .as_secs(),
    };
    let token = token::issue(&key, &args.sub, iat);
    print::out(token.expose_secret())
        .and_then(|()| print::out("\n"))
        .map_err(Error::Write)?;
    Ok(ExitCode::SUCCESS)
}

fn read_key(path: &Path) -> Result<HmacKey, Error> {
    if path.as_os_str() == "-" {
        return Err(Error::KeyFromStdin);
    }
    let name = || path.display().to_string();
    // A FIFO or device is refused below; opening one must not block.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path)
        .map_err(|e| Error::Unreadable(name(), e))?;
    check_file(&file, path)?;

    // One byte more tells "too large" from "just fits"; sized up front, so that no copy is left behind.
    let mut pem = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize + 1));
    file.take(MAX_KEY_FILE + 1)
        .read_to_end(&mut pem)
        .map_err(|e| Error::Unreadable(name(), e))?;
    if pem.len() as u64 > MAX_KEY_FILE {
        return Err(Error::TooLarge(name()));
    }
    HmacKey::from_pem(&pem).map_err(|e| Error::NotKey(name(), e))
}

/// Looks at the file that was opened, not at its name, which may be another file by then.
fn check_file(file: &File, path: &Path) -> Result<(), Error> {
    let name = || path.display().to_string();
    let meta = file.metadata().map_err(|e| Error::Unreadable(name(), e))?;
    if !meta.is_file() {
        return Err(Error::NotFile(name()));
    }
    let me = people::me();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(Error::Owner {
            path: name(),
            owner: people::describe(meta.uid()),
            me: people::describe(me),
        });
    }
    if meta.mode() & 0o077 != 0 {
        return Err(Error::Mode {
            path: name(),
            mode: meta.mode() & 0o7777,
        });
    }
    Ok(())
}
