// SPDX-License-Identifier: MIT OR Apache-2.0

//! The variables of a job: its ports in the format of libpmi, and a secret of 64 random bits.

use std::{fmt::Write, io};

use seal::{Secret, Variables};
use zeroize::Zeroizing;

use crate::ports::Pair;

const PORT: &str = "PMI_CONTROL_PORT";
const SECRET: &str = "PMI_SHARED_SECRET";

/// Returns the variables of a job: its ports, and a new random secret.
///
/// # Errors
/// The system returned no random bytes.
pub fn variables(pair: Pair) -> io::Result<Variables> {
    let mut bytes = Zeroizing::new([0; 8]);
    let filled = rustix::rand::getrandom(bytes.as_mut_slice(), rustix::rand::GetRandomFlags::empty())?;
    if filled < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // No number of 64 bits has more digits, so the text is never reallocated, which would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(20));
    let number = Zeroizing::new(u64::from_ne_bytes(*bytes));
    write!(text, "{}", *number).map_err(io::Error::other)?;
    let mut variables = Variables::new();
    let [first, second] = pair;
    for (name, value) in [
        (PORT, Secret::from(format!("{first},{second}"))),
        (SECRET, Secret::from(text.as_str())),
    ] {
        variables.insert(name, value).map_err(io::Error::other)?;
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use seal::ExposeSecret;

    use super::*;

    #[test]
    fn each_job_has_a_secret_of_its_own() {
        let secret = || {
            let variables = variables([11_999, 11_998]).unwrap();
            let found: Vec<_> = variables
                .iter()
                .map(|(n, v)| (n.to_owned(), v.expose_secret().to_owned()))
                .collect();
            assert_eq!(found[0], (PORT.to_owned(), "11999,11998".to_owned()));
            assert_eq!(found[1].0, SECRET);
            found[1].1.parse::<u64>().unwrap()
        };
        assert_ne!(secret(), secret());
    }
}
