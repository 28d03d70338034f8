// SPDX-License-Identifier: MIT OR Apache-2.0

//! The set-up of a Slurm cluster, on its controllers and nodes.

use std::{
    fs,
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Config, Property};
use slurm::Site;

use super::finding::{Finding, FindingStatus, fail, ok, skip, warn};
use crate::{flux::run_program, people, within};

const CHECK: &str = "slurm";

/// The name of the plugin's object in plugstack.conf.
const PLUGIN: &str = "workflow-token-spank.so";

/// The name of the program for prologs and epilogs.
const PROLOG: &str = "workflow-token-slurmctld";

/// The time that a prolog needs in addition to the timeout of a delivery.
const MARGIN: Duration = Duration::from_secs(10);

/// The timeout of a connection to an agent.
const CONNECT: Duration = Duration::from_secs(2);

/// Checks this node of a cluster. `agent` is the uid of the agent's user.
pub(super) fn check(site: &Site, agent: u32) -> Vec<Finding> {
    let mut findings = vec![caller(agent)];
    match run_program("scontrol", &["show", "config"]) {
        Ok(shown) => {
            findings.extend(slurm_conf(site, &shown));
            if let Ok(shown) = run_program("scontrol", &["show", "partition", "--oneliner"]) {
                findings.extend(partitions(&site.config, &shown));
            }
        }
        Err(e) => findings.push(skip(
            CHECK,
            e.to_string(),
            "run this where `scontrol show config` works",
        )),
    }
    findings.push(step_program(site));
    findings.push(controller(site));
    findings.extend(site.slurm.servers.iter().map(|server| agent_at(server)));
    findings
}

fn caller(agent: u32) -> Finding {
    let (me, agent_user) = (people::me(), people::describe(agent));
    match me == agent || me == 0 {
        true => ok(
            CHECK,
            format!("run as {}; the agent runs as {agent_user}", people::describe(me)),
        ),
        false => warn(
            CHECK,
            format!("run as {}; the agent runs as {agent_user}", people::describe(me)),
            "run this as the agent's user to check what it can read and run",
        ),
    }
}

/// Checks slurm.conf as the controller reports it (scontrol(1)).
fn slurm_conf(site: &Site, shown: &str) -> Vec<Finding> {
    let value = |key: &str| setting(shown, key);
    let mut findings = Vec::new();
    let (cluster, named) = (&site.slurm.cluster, value("ClusterName").unwrap_or_default());
    findings.push(match *cluster == named {
        true => ok(CHECK, format!("cluster {named}")),
        false => fail(
            CHECK,
            format!("slurm.conf contains ClusterName={named}, and the table slurm contains cluster = \"{cluster}\""),
            "write the name from slurm.conf in the table slurm",
        ),
    });
    for key in ["PrologSlurmctld", "EpilogSlurmctld"] {
        findings.push(match value(key) {
            Some(program) if runs_prolog(Path::new(&program)) => ok(CHECK, format!("{key}={program}")),
            Some(program) => warn(
                CHECK,
                format!("{key}={program} does not mention {PROLOG}"),
                format!("let it run {PROLOG}, unless one of its programs does"),
            ),
            None => fail(
                CHECK,
                format!("slurm.conf does not set {key}: no job gets a token"),
                format!("set {key} to {PROLOG}, and restart slurmctld"),
            ),
        });
    }
    findings.extend(prolog_timeout(site, value("PrologEpilogTimeout").as_deref()));
    let proc = Path::new("/proc");
    let host = Host {
        is_controller: is_controller(site),
        has_slurmd: runs(proc, "slurmd"),
    };
    findings.push(host.excuse(plug_stack(&plug_stack_path(shown))));
    findings
}

/// Reports partitions of rules that the cluster does not have. `shown` is the output of scontrol(1).
fn partitions(config: &Config, shown: &str) -> Vec<Finding> {
    let name = |line| str::split_whitespace(line).find_map(|word| word.strip_prefix("PartitionName="));
    let known: Vec<&str> = shown.lines().filter_map(name).collect();
    let conditions = config.rules.iter().enumerate().flat_map(|(index, rule)| {
        let properties = rule.conditions.properties.iter();
        properties.map(move |(property, value)| (index, property, value))
    });
    let unknown =
        conditions.filter(|(_, property, value)| **property == Property::Partition && !known.contains(&value.as_str()));
    let finding = |(index, _, value): (usize, _, &String)| {
        let what = format!(
            "rule {index}: the cluster has no partition \"{}\"",
            value.escape_debug()
        );
        warn("rule", what, "correct the key partition: no job matches the rule")
    };
    unknown.map(finding).collect()
}

/// Returns the value of a key in the output of `scontrol show config`, which prints `(null)` for a key that is not set.
fn setting(shown: &str, key: &str) -> Option<String> {
    let value = shown.lines().find_map(|line| {
        let (found, value) = line.split_once('=')?;
        // Releases that support several programs number them.
        (found.trim().split('[').next() == Some(key)).then(|| value.trim())
    });
    value.filter(|value| *value != "(null)").map(str::to_owned)
}

/// Returns the path of plugstack.conf. By default, it is beside slurm.conf (slurm.conf(5)).
fn plug_stack_path(shown: &str) -> PathBuf {
    setting(shown, "PlugStackConfig").map_or_else(
        || {
            let slurm_conf = setting(shown, "SLURM_CONF").unwrap_or_else(|| "/etc/slurm/slurm.conf".to_owned());
            Path::new(&slurm_conf).with_file_name("plugstack.conf")
        },
        PathBuf::from,
    )
}

/// Checks the program that keeps tokens in files on nodes.
fn step_program(site: &Site) -> Finding {
    match slurm::step_program(site.slurm.step_program.as_deref()) {
        Ok(program) => ok(CHECK, format!("tokens are kept in files by {}", program.display())),
        Err(e) => warn(
            CHECK,
            e,
            "install it on all nodes that run jobs: without it, there are no token files, and tokens are not renewed",
        ),
    }
}

/// Checks the time after which Slurm kills a prolog, and then requeues or kills its job (slurm.conf(5)).
fn prolog_timeout(site: &Site, value: Option<&str>) -> Option<Finding> {
    let seconds = value?.split_ascii_whitespace().next()?.parse::<u64>().ok()?;
    let needed = (site.config.timeout + MARGIN).as_secs();
    // 65534 means "no limit" in some releases.
    (seconds < needed && seconds != 0).then(|| {
        fail(
            CHECK,
            format!("PrologEpilogTimeout={seconds} is shorter than a delivery may take"),
            format!("set it to {needed} or more, or set a shorter timeout in the table workflow-token"),
        )
    })
}

fn runs_prolog(program: &Path) -> bool {
    program.ends_with(PROLOG) || fs::read(program).is_ok_and(|text| contains(&text, PROLOG))
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Returns whether this is a controller: slurmctld runs, or the agent's socket for it exists.
pub(super) fn is_controller(site: &Site) -> bool {
    site.slurm.socket.exists() || runs(Path::new("/proc"), "slurmctld")
}

/// Omits a failure about a file of a rule on a node that is no controller. Only the agent reads these files.
pub(super) fn of_node(finding: Finding) -> Finding {
    match finding.status {
        FindingStatus::Fail => skip(
            finding.check,
            format!(
                "{}. This node is no controller, so it needs no file of a rule",
                finding.what
            ),
            "check each controller",
        ),
        _ => finding,
    }
}

/// The daemons of this node.
struct Host {
    /// Set if slurmctld runs, or the agent's socket for it exists.
    is_controller: bool,
    has_slurmd: bool,
}

impl Host {
    /// Omits a failure of plugstack.conf on a controller without slurmd. Only slurmd and the programs that users run
    /// load SPANK plugins.
    fn excuse(&self, finding: Finding) -> Finding {
        match finding.status {
            FindingStatus::Fail if self.is_controller && !self.has_slurmd => skip(
                CHECK,
                format!(
                    "{}. This controller runs no slurmd, so it needs no {PLUGIN}",
                    finding.what
                ),
                "check each node that runs jobs",
            ),
            _ => finding,
        }
    }
}

/// Returns whether a daemon runs, by the names of processes (proc_pid_comm(5)).
fn runs(proc: &Path, daemon: &str) -> bool {
    let Ok(entries) = fs::read_dir(proc) else { return false };
    entries
        .flatten()
        .any(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim_end() == daemon))
}

/// Checks plugstack.conf on this node, and the object that it names (spank(8)).
fn plug_stack(path: &Path) -> Finding {
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => {
            let todo = format!("write a line `required PATH/{PLUGIN}` there, on each node");
            return fail(CHECK, format!("{shown}: {e}"), todo);
        }
    };
    let mut words = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().split_ascii_whitespace());
    let named = words.find_map(|mut words| {
        let (kind, object) = (words.next()?, words.next()?);
        object.ends_with(PLUGIN).then(|| (kind.to_owned(), object.to_owned()))
    });
    match named {
        None if text.contains("include") => warn(
            CHECK,
            format!("{shown} does not name {PLUGIN} itself"),
            "check that a file that it includes does",
        ),
        None => fail(
            CHECK,
            format!("{shown} does not name {PLUGIN}: no job gets a token here"),
            format!("write a line `required PATH/{PLUGIN}` there, on each node"),
        ),
        Some((_, object)) if !Path::new(&object).exists() && object.starts_with('/') => fail(
            CHECK,
            format!("{shown} names {object}, which does not exist"),
            "install it on this node: Slurm drains nodes that lack a required plugin",
        ),
        Some((kind, object)) if kind != "required" => warn(
            CHECK,
            format!("{shown}: {object} is {kind}: where it is missing, jobs start without their token"),
            "write `required`",
        ),
        Some((_, object)) => ok(CHECK, format!("{shown}: required {object}")),
    }
}

/// Checks the agent's socket for the controller.
fn controller(site: &Site) -> Finding {
    let socket = site.slurm.socket.clone();
    let shown = socket.display().to_string();
    if !socket.exists() {
        let what = format!("{shown} does not exist: this is not a controller, or no agent runs here");
        return skip(CHECK, what, "on a controller, start workflow-token-agent");
    }
    match within::timeout(move || UnixStream::connect(&socket)) {
        Some(Ok(_)) => ok(CHECK, format!("an agent listens at {shown}")),
        Some(Err(e)) => fail(
            CHECK,
            format!("{shown}: {e}"),
            "start workflow-token-agent, or run this as its user",
        ),
        None => fail(CHECK, format!("{shown}: no answer"), "restart workflow-token-agent"),
    }
}

/// Checks that an agent accepts connections, as nodes make them.
fn agent_at(server: &str) -> Finding {
    let name = server.to_owned();
    let connected = within::timeout(move || {
        let mut last = std::io::Error::other("it has no address");
        for address in name.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(_) => return Ok(()),
                Err(e) => last = e,
            }
        }
        Err(last)
    });
    match connected {
        Some(Ok(())) => ok(CHECK, format!("the agent at {server} accepts connections")),
        Some(Err(e)) => fail(
            CHECK,
            format!("the agent at {server} cannot be reached: {e}"),
            "start workflow-token-agent there, and let nodes connect to it",
        ),
        None => fail(
            CHECK,
            format!("the name {server} could not be resolved in time"),
            "write an address instead of a name",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_needs_no_files_of_rules() {
        let finding = of_node(fail("rule", "rule 0: no such file", "create it"));
        assert!(finding.status == FindingStatus::Skip && finding.what.starts_with("rule 0: no such file"));
        assert_eq!(finding.todo, "check each controller");
        assert!(of_node(ok("rule", "rule 0")).status == FindingStatus::Ok);
    }

    #[test]
    fn a_rule_for_a_partition_that_does_not_exist_is_reported() {
        let rule = |partition: &str| serde_json::json!({"partition": partition, "source": "file", "path": "/t"});
        let slurm = serde_json::json!({"cluster": "hpc", "servers": "ctl"});
        let rules = [rule("gpu"), rule("gpux")];
        let config = serde_json::json!({"workflow-token": {"slurm": slurm, "rule": rules}});
        let config = Config::from_json(&config).unwrap();
        let shown = "PartitionName=gpu AllowGroups=ALL\nPartitionName=cpu AllowGroups=ALL\n";
        let findings = partitions(&config, shown);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].status == FindingStatus::Warn && findings[0].what.contains("rule 1:"));
        assert!(findings[0].what.contains("gpux"));
    }

    #[test]
    fn a_prolog_must_not_be_ended_before_its_delivery() {
        let slurm = serde_json::json!({"cluster": "hpc", "servers": "ctl"});
        let config = serde_json::json!({"workflow-token": {"timeout": "30s", "slurm": slurm}});
        let config = config::Config::from_json(&config).unwrap();
        let slurm = config.slurm.clone().unwrap();
        let conf = serde_json::Value::Null;
        let site = Site { config, slurm, conf };
        for (value, is_wrong) in [
            ("65534", false),
            ("0", false),
            ("40 sec", false),
            ("39 sec", true),
            ("x", false),
        ] {
            assert_eq!(prolog_timeout(&site, Some(value)).is_some(), is_wrong, "{value}");
        }
        assert!(prolog_timeout(&site, None).is_none());
    }

    #[test]
    fn a_key_that_is_not_set_is_null() {
        let shown = "Configuration data as of 2026-11-22T14:06:55\nEpilogSlurmctld         = (null)\n\
                     PrologSlurmctld[0]      = /a b\nPlugStackConfig         = (null)\n\
                     SLURM_CONF              = /srv/slurm/slurm.conf\n";
        assert_eq!(setting(shown, "PrologSlurmctld").as_deref(), Some("/a b"));
        assert_eq!(setting(shown, "EpilogSlurmctld"), None);
        assert_eq!(setting(shown, "Prolog"), None);
        assert_eq!(plug_stack_path(shown), Path::new("/srv/slurm/plugstack.conf"));
        assert_eq!(plug_stack_path(""), Path::new("/etc/slurm/plugstack.conf"));
        assert_eq!(
            plug_stack_path("PlugStackConfig = /srv/p.conf"),
            Path::new("/srv/p.conf")
        );
    }

    #[test]
    fn a_controller_without_slurmd_needs_no_plugstack() {
        let directory = tempfile::tempdir().unwrap();
        for (is_controller, has_slurmd, status) in [
            (true, false, "skip"),
            (true, true, "fail"),
            (false, false, "fail"),
            (false, true, "fail"),
        ] {
            let host = Host {
                is_controller,
                has_slurmd,
            };
            let finding = host.excuse(plug_stack(&directory.path().join("plugstack.conf")));
            assert_eq!(finding.status.name(), status, "{}", finding.what);
        }
        let controller = Host {
            is_controller: true,
            has_slurmd: false,
        };
        assert_eq!(controller.excuse(ok(CHECK, "a fact")).status.name(), "ok");
    }

    #[test]
    fn a_daemon_is_found_by_its_name() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, name) in [("1", "init"), ("20", "slurmctld"), ("21", "slurmstepd")] {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("comm"), format!("{name}\n")).unwrap();
        }
        assert!(!runs(proc.path(), "slurmd") && runs(proc.path(), "slurmctld"));
        fs::create_dir(proc.path().join("22")).unwrap();
        fs::write(proc.path().join("22/comm"), "slurmd\n").unwrap();
        assert!(runs(proc.path(), "slurmd"));
        assert!(!runs(&proc.path().join("missing"), "slurmd"));
    }

    #[test]
    fn plugstack_must_require_the_plugin() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugstack.conf");
        let object = directory.path().join(PLUGIN);
        let check = |text: &str| {
            fs::write(&path, text.replace("OBJECT", object.to_str().unwrap())).unwrap();
            let finding = plug_stack(&path);
            (finding.status.name(), finding.what)
        };
        assert_eq!(check("required OBJECT").0, "fail");
        fs::write(&object, "").unwrap();
        for (text, status) in [
            ("required OBJECT config=/x", "ok"),
            ("optional OBJECT", "warn"),
            ("# required OBJECT", "fail"),
            ("required /other.so # OBJECT", "fail"),
            ("include /etc/slurm/plugstack.conf.d/*", "warn"),
            ("", "fail"),
        ] {
            let (found, what) = check(text);
            assert_eq!(found, status, "{text}: {what}");
        }
    }
}
