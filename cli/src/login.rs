// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use protocol::{JobLogin, job_login_payload};
use source::token_service::{Begun, Progress};

use crate::{
    print,
    service::{Error, Service, ServiceArgs},
};

/// Log in, so that your jobs get tokens of your login
///
/// MUNGE proves your identity on the cluster. Open the printed address in a browser, on any machine, compare the code,
/// and log in. The login serves all of your jobs until `logout`, or until the provider ends it.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    service: ServiceArgs,
}

/// End the login that serves your jobs
#[derive(clap::Args)]
pub struct LogoutArgs {
    #[command(flatten)]
    service: ServiceArgs,
}

/// Show whether a login serves your jobs
///
/// The exit status is 0 if one does, and 1 if none does.
#[derive(clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    service: ServiceArgs,
}

/// The bounds of the polling interval, in seconds.
const INTERVALS: (u64, u64) = (1, 60);

/// The default interval (RFC 8628 section 3.2), and its increase after `slow_down` (section 3.5), in seconds.
const INTERVAL: u64 = 5;

/// The longest duration of a login, in seconds.
const MAX_EXPIRES: u64 = 3600;

/// Logs in.
///
/// # Errors
/// [`Error`].
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let service = args.service.connect()?;
    let credential = service.seal(&job_login_payload(&service.issuer, JobLogin::Begin))?;
    let begun = service.client.begin_login(&credential).map_err(failed)?;
    let address = begun
        .verification_uri_complete
        .as_ref()
        .unwrap_or(&begun.verification_uri);
    print::out(&format!(
        "Open this address in a browser, and log in:\n\n    {}\n\nThe page shows the code {}.\n",
        print::hidden(address),
        print::hidden(&begun.user_code)
    ))?;
    wait(&service, &begun)?;
    print::out("You are logged in. Your jobs get tokens of this login.\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until the user has logged in.
fn wait(service: &Service, begun: &Begun) -> Result<(), Error> {
    let end = Instant::now() + Duration::from_secs(begun.expires_in.min(MAX_EXPIRES));
    let mut interval = begun.interval.unwrap_or(INTERVAL).clamp(INTERVALS.0, INTERVALS.1);
    while Instant::now() < end {
        sleep(Duration::from_secs(interval));
        match service.client.progress(begun).map_err(failed)? {
            Progress::Done => return Ok(()),
            Progress::Pending => {}
            Progress::TooEarly => interval = (interval + INTERVAL).min(INTERVALS.1),
        }
    }
    Err(Error::Service("nobody logged in in time: run this again".to_owned()))
}

/// Ends the login.
///
/// # Errors
/// [`Error`].
pub fn log_out(args: &LogoutArgs) -> Result<ExitCode, Error> {
    let service = args.service.connect()?;
    ask(&service, JobLogin::End)?;
    print::out("You are logged out. Jobs that have a token keep it until it expires.\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints whether a login exists.
///
/// # Errors
/// [`Error`].
pub fn status(args: &StatusArgs) -> Result<ExitCode, Error> {
    let service = args.service.connect()?;
    match ask(&service, JobLogin::Status)? {
        Some(since) => {
            let since = jiff::Timestamp::from_second(i64::try_from(since).unwrap_or(i64::MAX)).unwrap_or_default();
            print::out(&format!("A login serves your jobs. It was used or began at {since}.\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            print::out("No login serves your jobs. Log in with `workflow-token login`.\n")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn ask(service: &Service, request: JobLogin) -> Result<Option<u64>, Error> {
    let credential = service.seal(&job_login_payload(&service.issuer, request))?;
    service.client.job_login(request.name(), &credential).map_err(failed)
}

fn failed(why: String) -> Error {
    Error::Service(print::hidden(why))
}
