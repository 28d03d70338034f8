// SPDX-License-Identifier: MIT OR Apache-2.0

//! The plugins of the job shell: whether the required ones are in its plugin path, and its initrc loads them in the
//! correct order.

use std::fs;
use std::path::{Path, PathBuf};

use config::Config;

use super::files;
use super::finding::{Finding, fail, ok, skip, warn};
use super::initrc::{Initrc, Order};
use super::instance::Instance;
use super::job_manager::Loaded;
use crate::{flux, people};

const CHECK: &str = "shell";

const CRAY_PMI: &str = "cray-pmi-bootstrap.so";
/// The plugin of flux-coral2 that uses the ports and the secret that Cray PMI bootstrap sets.
const CRAY_PALS: &str = "cray_pals.so";

/// An object, the effect of its absence, and a text that only the file of this project contains, if there is another
/// file with the same name.
struct Object {
    name: &'static str,
    without: &'static str,
    mark: Option<&'static str>,
}

const WORKFLOW_TOKEN: Object = Object {
    name: "workflow-token.so",
    without: "without it, jobs start without their tokens",
    mark: None,
};
const DWS_ENVIRONMENT: Object = Object {
    name: "dws_environment.so",
    without: "without it, rabbit jobs start without their variables",
    // The key of the record that the plugin reads.
    mark: Some(seal::key::DWS_ENVIRONMENT),
};
const CRAY_PMI_BOOTSTRAP: Object = Object {
    name: CRAY_PMI,
    without: "without it, cray_pals.so finds no secret, and jobs on several nodes do not start",
    mark: None,
};

/// Searches the plugin path of the job shell for the counterparts of the plugins that the job manager has loaded.
pub(super) fn check(instance: &Instance, loaded: Loaded, config: Option<&Config>) -> Vec<Finding> {
    let dirs = match setting(instance, "shell_pluginpath") {
        Ok(dirs) => dirs,
        Err(flux::Error::NotFound(_)) => {
            let todo = "add the directory that contains flux to PATH";
            return vec![skip(CHECK, "flux is not on PATH", todo)];
        }
        Err(e) => return vec![fail(CHECK, e.to_string(), "check that flux on PATH is the real one")],
    };
    let dirs: Vec<_> = dirs
        .split(':')
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .collect();

    let has_no_rule = config.is_some_and(|config| config.rules.is_empty());
    let is_needed = loaded.workflow_token || !has_no_rule || !(loaded.dws || loaded.cray_pmi);
    let needed = [
        is_needed.then_some(WORKFLOW_TOKEN),
        loaded.dws.then_some(DWS_ENVIRONMENT),
        loaded.cray_pmi.then_some(CRAY_PMI_BOOTSTRAP),
    ];
    let initrc = setting(instance, "shell_initrc")
        .ok()
        .and_then(|path| Initrc::read(Path::new(&path), &dirs));
    let mut findings = Vec::new();
    for object in needed.into_iter().flatten() {
        let finding = object.find(&dirs);
        let is_there = finding.status == super::finding::FindingStatus::Ok;
        findings.push(finding);
        findings.extend(
            initrc
                .iter()
                .filter(|_| is_there)
                .filter_map(|initrc| initrc.check(&object)),
        );
    }
    if loaded.cray_pmi {
        findings.extend(initrc.and_then(|initrc| initrc.check_order()));
    }
    findings
}

/// Returns a broker attribute of the instance, or else the built-in default of flux.
fn setting(instance: &Instance, name: &str) -> Result<String, flux::Error> {
    match instance {
        Instance::Here { .. } => flux::run(&["getattr", &format!("conf.{name}")]),
        Instance::None(_) | Instance::Broken(_) => flux::run(&["config", "builtin", name]),
    }
}

impl Object {
    /// Searches the directories. The first one takes precedence.
    fn find(&self, dirs: &[PathBuf]) -> Finding {
        let Self { name, without, .. } = self;
        let Some(path) = dirs.iter().map(|dir| dir.join(name)).find(|path| path.exists()) else {
            let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
            return fail(
                CHECK,
                format!(
                    "{name} is in no directory of conf.shell_pluginpath ({})",
                    dirs.join(":")
                ),
                format!("install it there, on every node: {without}"),
            );
        };
        let shown = path.display();
        match fs::metadata(&path).map(|meta| files::writers(&meta, people::me())) {
            Ok(None) if !self.is_ours(&path) => fail(
                CHECK,
                format!("{shown} does not belong to this project but to flux-coral2, and cannot open sealed records"),
                "install the one of this project, on every node: until then, rabbit jobs do not start",
            ),
            Ok(None) => ok(CHECK, format!("{shown} is installed")),
            Ok(Some(who)) => fail(
                CHECK,
                format!("{shown} can be changed by {who}, and runs in the shell of every job"),
                format!("chown root {shown} && chmod 0755 {shown}"),
            ),
            Err(e) => warn(CHECK, format!("{shown}: {e}"), "make it readable for every user"),
        }
    }

    /// Returns whether the file belongs to this project. An unreadable file gets the benefit of the doubt.
    fn is_ours(&self, path: &Path) -> bool {
        let Some(mark) = self.mark else { return true };
        let Ok(content) = fs::read(path) else { return true };
        content.windows(mark.len()).any(|part| part == mark.as_bytes())
    }
}

impl Initrc {
    /// Checks that the initrc loads an installed object.
    fn check(&self, object: &Object) -> Option<Finding> {
        let Object { name, without, .. } = object;
        let path = self.path.display();
        (!self.loads(name)).then(|| {
            warn(
                CHECK,
                format!("no line of {path} loads {name}"),
                format!(
                    "add plugin.load {{ file = \"{name}\" }} to it, on every node, unless a file that it sources \
                     does so: {without}"
                ),
            )
        })
    }

    /// Checks that the secret for Cray PMI is set before it is read.
    fn check_order(&self) -> Option<Finding> {
        let path = self.path.display();
        let todo = format!(
            "make {path} load it by name before all others, on every node: plugin.load {{ file = \"{CRAY_PMI}\" }} \
             as the first line"
        );
        match self.order(CRAY_PMI, CRAY_PALS)? {
            Order::Before => Some(ok(CHECK, format!("{path} loads {CRAY_PMI} before {CRAY_PALS}"))),
            Order::Together => Some(warn(
                CHECK,
                format!(
                    "one line of {path} loads both {CRAY_PMI} and {CRAY_PALS}, in an order that depends on the locale \
                     of the job shell. In the wrong order, jobs on several nodes do not start"
                ),
                todo,
            )),
            Order::After => Some(fail(
                CHECK,
                format!(
                    "{path} loads {CRAY_PMI} after {CRAY_PALS}, which reads the secret for Cray PMI too early: jobs on \
                     several nodes do not start"
                ),
                todo,
            )),
        }
    }
}
