// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{people, print};
use ::slurm::Site;
use finding::{Finding, FindingStatus, fail, ok, warn};
use instance::Instance;

mod agents_host;
mod clock;
mod configuration;
mod files;
mod finding;
mod initrc;
mod instance;
mod job_manager;
mod keys;
mod kubernetes;
mod munge;
mod servers;
mod shell;
mod slurm;

/// Check the set-up on this node, and print how to correct it
///
/// On Flux, run it as the instance owner on the node of rank 0: the instance owner reads token files and runs commands.
/// Also run it on the other nodes, for the checks of MUNGE and of the job shell plugins. On Slurm, run it as the
/// agent's user on a controller, and as root on each node. The exit status is 0 if no check failed.
#[derive(clap::Args)]
pub struct Args {
    /// Check the configuration in this TOML file, or in the files of this directory, instead of the instance's
    #[arg(long, value_name = "FILE|DIR")]
    config: Option<PathBuf>,

    /// Socket of munged [default: that of the configuration, or else MUNGE's own]
    #[arg(long, value_name = "PATH")]
    munge_socket: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs all checks, and prints their findings.
pub fn run(args: &Args) -> Result<ExitCode, io::Error> {
    let path = args.config.clone().or_else(default_cluster);
    if let Some(unreadable) = path.as_deref().and_then(unreadable) {
        return report(args, &[unreadable]);
    }
    if let Some(path) = path.filter(|path| is_of_cluster(path)) {
        let findings = match Site::read(&path) {
            Ok(site) => check_cluster(args, &site, &path),
            Err(e) => vec![fail(
                "config",
                e,
                "correct the key; flux-config-workflow-token(5) names its page",
            )],
        };
        return report(args, &findings);
    }
    let instance = Instance::find();
    let mut findings = vec![caller(&instance), clock::check()];
    let (config, found) = configuration::check(&instance, args.config.as_deref());
    findings.push(found);
    findings.extend(config.iter().flat_map(configuration::obsolete));
    findings.extend(config.iter().flat_map(configuration::digit_names));
    findings.extend(configuration::replaced(args.config.as_deref()));
    findings.extend(munge::check(config.as_ref(), args.munge_socket.as_deref()));
    let (loaded, found) = job_manager::check(&instance, config.as_ref());
    findings.extend(found);
    findings.extend(shell::check(&instance, loaded, config.as_ref()));
    let trusted = match instance {
        Instance::Here { owner } => owner,
        Instance::None(_) | Instance::Broken(_) => people::me(),
    };
    findings.extend(config.iter().flat_map(|config| files::check(config, trusted)));
    findings.extend(config.iter().flat_map(|config| keys::check(config, trusted)));
    findings.extend(config.iter().flat_map(|config| kubernetes::check(config, trusted)));
    findings.extend(config.iter().flat_map(|config| servers::check(config, trusted)));
    findings.extend(config.iter().flat_map(|config| agents_host::check(config, trusted)));

    report(args, &findings)
}

/// Returns the finding about a file that cannot be read, unless there is a Flux instance to check.
fn unreadable(path: &Path) -> Option<Finding> {
    let error = config::read_files(path).err()?;
    let is_alone = matches!(Instance::find(), Instance::None(_));
    is_alone.then(|| fail("config", error.to_string(), "correct the file, or name another one"))
}

/// Returns whether a configuration contains the table `slurm`, valid or not.
fn is_of_cluster(path: &Path) -> bool {
    let files = config::read_files(path).map(|files| files.conf);
    files.is_ok_and(|conf| conf[config::TABLE].get("slurm").is_some())
}

/// Returns the default configuration of a Slurm cluster if it exists, and there is no Flux instance.
fn default_cluster() -> Option<PathBuf> {
    let path = PathBuf::from(::slurm::CONFIG);
    (path.exists() && matches!(Instance::find(), Instance::None(_))).then_some(path)
}

/// Runs the checks of a Slurm cluster.
fn check_cluster(args: &Args, site: &Site, path: &Path) -> Vec<Finding> {
    let config = &site.config;
    let found = configuration::judge(config, true, &path.display().to_string(), "reload the agents");
    let mut findings = vec![clock::check(), found];
    findings.extend(configuration::replaced(Some(path)));
    findings.extend(configuration::digit_names(config));
    findings.extend(munge::check(Some(config), args.munge_socket.as_deref()));
    match site.agent_uid() {
        Ok(agent) => {
            findings.extend(slurm::check(site, agent));
            let files = files::check(config, agent).into_iter();
            let is_controller = slurm::is_controller(site);
            findings.extend(files.map(|finding| {
                if is_controller {
                    finding
                } else {
                    slurm::of_node(finding)
                }
            }));
            findings.extend(keys::check(config, agent));
            findings.extend(kubernetes::check(config, agent));
            findings.extend(servers::check(config, agent));
            if is_controller {
                findings.extend(agents_host::check(config, agent));
            }
        }
        Err(e) => findings.push(fail("slurm", e, "create the user, or correct the key")),
    }
    findings
}

fn report(args: &Args, findings: &[Finding]) -> Result<ExitCode, io::Error> {
    let ok = findings.iter().all(|finding| finding.status != FindingStatus::Fail);
    print::out(&if args.json {
        print::json(&as_json(findings, ok)) + "\n"
    } else {
        as_text(findings)
    })?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks that the caller is the instance owner, so that the other checks have the same access as the instance.
fn caller(instance: &Instance) -> Finding {
    const CHECK: &str = "instance";

    let me = people::me();
    match instance {
        Instance::Here { owner } if *owner == me => {
            ok(CHECK, format!("run as the instance owner, {}", people::describe(me)))
        }
        Instance::Here { owner } => warn(
            CHECK,
            format!(
                "run as {}; the instance belongs to {}",
                people::describe(me),
                people::describe(*owner)
            ),
            "run this as the instance owner to check what it can read and run",
        ),
        Instance::None(_) => instance.absence(CHECK).unwrap_or_else(|| ok(CHECK, "")),
        Instance::Broken(e) => fail(CHECK, "the Flux instance does not answer", e.to_string()),
    }
}

fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding {
        status,
        check,
        what,
        todo,
    } in findings
    {
        let lines: Vec<_> = what.lines().map(print::word).collect();
        let what = lines.join(&format!("\n{:20}", ""));
        text.push_str(&format!("{:<4}  {check:<12}  {what}\n", status.name()));
        if !todo.is_empty() {
            text.push_str(&format!("{:20}→ {}\n", "", print::word(todo)));
        }
    }
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    text.push_str(&format!(
        "{} ok, {} warn, {} fail, {} skip\n",
        count(FindingStatus::Ok),
        count(FindingStatus::Warn),
        count(FindingStatus::Fail),
        count(FindingStatus::Skip)
    ));
    text
}

fn as_json(findings: &[Finding], ok: bool) -> Value {
    let findings: Vec<_> = findings
        .iter()
        .map(
            |Finding {
                 status,
                 check,
                 what,
                 todo,
             }| {
                json!({"status": status.name(), "check": check, "what": what, "do": (!todo.is_empty()).then_some(todo)})
            },
        )
        .collect();
    json!({"ok": ok, "findings": findings})
}
