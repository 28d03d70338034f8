// SPDX-License-Identifier: MIT OR Apache-2.0

//! `seal-rate seal|open SOCKET THREADS SECONDS LENGTH`: prints how many records were sealed each second, or sealed and
//! opened, by so many threads, with a payload of so many bytes: what `remunge -e` and `remunge -d` do, with all that a
//! delivery and a job shell add to it.

use std::{
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use seal::{Expected, Munge, Owner, Record, Secret, Variables};

fn main() -> ExitCode {
    bench::print_rate("seal-rate", "seal|open SOCKET THREADS SECONDS LENGTH", run)
}

fn run(args: &[String]) -> Result<f64, Box<dyn std::error::Error>> {
    let [what, socket, threads, seconds, length] = args else {
        return Err("wrong number of arguments".into());
    };
    let open = match what.as_str() {
        "seal" => false,
        "open" => true,
        _ => return Err("neither seal nor open".into()),
    };
    let me = rustix::process::getuid().as_raw();
    let uid = if open { me } else { 1000 };
    let munge = Munge::new(Some(Path::new(socket)))?;
    let (threads, seconds, length): (usize, f64, usize) = (threads.parse()?, seconds.parse()?, length.parse()?);
    // The payload has some 80 bytes around the value.
    let mut variables = Variables::new();
    variables.insert(
        "DW_WORKFLOW_TOKEN",
        Secret::from("x".repeat(length.saturating_sub(80).max(1))),
    )?;
    let (sealed, start) = (AtomicU64::new(0), Instant::now());
    let end = start + Duration::from_secs_f64(seconds);
    thread::scope(|scope| {
        let seal = || -> Result<(), seal::Error> {
            for jobid in 0.. {
                if Instant::now() >= end {
                    break;
                }
                let owner = Owner { jobid, uid };
                let record = Record::seal(&munge, owner, 0, &variables, &Default::default())?.to_json();
                if open {
                    let instance_owner = me;
                    Record::from_json(&record)?.open(&munge, &Expected { owner, instance_owner })?;
                }
                sealed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(seal)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    Ok(sealed.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}
