// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `slurm`.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::Deserialize;

use super::{Error, field, wrong_at};
use crate::{Principal, Slurm, TABLE};

/// The maximum number of agents of a cluster: one for each controller.
const MAX_SERVERS: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct SlurmTable {
    #[serde(deserialize_with = "field::name")]
    cluster: String,
    #[serde(deserialize_with = "field::strings")]
    servers: Vec<String>,
    #[serde(default)]
    listen: Option<String>,
    #[serde(default, deserialize_with = "field::socket")]
    socket: Option<PathBuf>,
    #[serde(default, deserialize_with = "field::principal")]
    user: Option<Principal>,
    #[serde(default, deserialize_with = "field::absolute")]
    store: Option<PathBuf>,
    #[serde(default, deserialize_with = "field::absolute")]
    cache: Option<PathBuf>,
    #[serde(default, deserialize_with = "field::absolute")]
    step_program: Option<PathBuf>,
    #[serde(default, deserialize_with = "field::flag")]
    check_address: Option<bool>,
}

impl SlurmTable {
    pub fn slurm(self) -> Result<Slurm, Error> {
        let at = &format!("{TABLE}.slurm");
        if self.servers.len() > MAX_SERVERS {
            return Err(wrong_at(at, "servers", format!("must be at most {MAX_SERVERS}")));
        }
        let servers = self.servers.iter().map(|server| with_port(server));
        let servers = servers
            .collect::<Result<_, _>>()
            .map_err(|e| wrong_at(at, "servers", e))?;
        let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, Slurm::PORT));
        let listen = match &self.listen {
            Some(address) => address
                .parse()
                .map_err(|_| wrong_at(at, "listen", "must be ADDRESS:PORT, as in \"0.0.0.0:6822\""))?,
            None => everywhere,
        };
        Ok(Slurm {
            cluster: self.cluster,
            servers,
            listen,
            socket: self.socket.unwrap_or_else(|| "/run/workflow-token/slurmctld".into()),
            user: self.user.unwrap_or_else(|| Principal::Name("slurm".to_owned())),
            store: self.store.unwrap_or_else(|| "/var/lib/workflow-token".into()),
            cache: self.cache.unwrap_or_else(|| "/run/workflow-token-records".into()),
            step_program: self.step_program,
            check_address: self.check_address.unwrap_or(true),
        })
    }
}

/// Returns HOST:PORT, with the default port if `server` contains none. An IPv6 address is in brackets.
fn with_port(server: &str) -> Result<String, String> {
    let wrong = || {
        format!(
            "`{}` must be HOST or HOST:PORT, as in \"ctl1:6822\"",
            server.escape_debug()
        )
    };
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok().filter(|port| *port > 0)),
        _ => (server, Some(Slurm::PORT)),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let is_host =
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic()) && (is_bracketed || !host.contains(':'));
    match port {
        Some(port) if is_host => Ok(format!("{host}:{port}")),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Config;

    fn read(slurm: Value) -> Result<Slurm, String> {
        let config = Config::from_json(&json!({"workflow-token": {"slurm": slurm}}));
        config.map(|config| config.slurm.unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn servers_have_ports() {
        let servers = json!(["ctl1", "ctl2:7000", "10.0.0.1", "[fd00::1]", "[fd00::1]:7"]);
        let slurm = read(json!({"cluster": "hpc", "servers": servers})).unwrap();
        assert_eq!(
            slurm.servers,
            [
                "ctl1:6822",
                "ctl2:7000",
                "10.0.0.1:6822",
                "[fd00::1]:6822",
                "[fd00::1]:7"
            ]
        );
        assert_eq!(slurm.user, Principal::Name("slurm".to_owned()));
    }

    #[test]
    fn tokens_name_the_cluster_and_no_other_instance() {
        let issuer = json!({"keys": "/k", "name": "https://a", "audience": "a", "instance": "other"});
        let slurm = json!({"cluster": "hpc", "servers": "ctl"});
        let error = Config::from_json(&json!({"workflow-token": {"slurm": slurm, "issuer": issuer}})).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("workflow-token.issuer.instance: is for Flux"),
            "{error}"
        );
    }

    #[test]
    fn mistakes_name_the_key() {
        let long = vec!["ctl"; 9];
        for (slurm, says) in [
            (json!({"servers": "ctl"}), "slurm.cluster: is missing"),
            (json!({"cluster": "hpc"}), "slurm.servers: is missing"),
            (json!({"cluster": "hpc", "servers": []}), "slurm.servers: must be"),
            (
                json!({"cluster": "hpc", "servers": long}),
                "slurm.servers: must be at most 8",
            ),
            (json!({"cluster": "hpc", "servers": "ctl:0"}), "`ctl:0` must be HOST"),
            (
                json!({"cluster": "hpc", "servers": "fd00::1"}),
                "`fd00::1` must be HOST",
            ),
            (json!({"cluster": "hpc", "servers": "a b"}), "`a b` must be HOST"),
            (
                json!({"cluster": "hpc", "servers": "ctl", "listen": "6822"}),
                "slurm.listen: must be",
            ),
            (
                json!({"cluster": "hpc", "servers": "ctl", "store": "x"}),
                "slurm.store: must be an absolute path",
            ),
            (json!({"cluster": "hpc", "servers": "ctl", "port": 1}), "slurm.port"),
        ] {
            let error = read(slurm.clone()).unwrap_err();
            assert!(error.contains(says), "{slurm}: {error}");
        }
    }

    #[test]
    fn flux_takes_no_configuration_of_a_cluster() {
        let slurm = json!({"cluster": "hpc", "servers": "ctl"});
        let config = Config::from_json(&json!({"workflow-token": {"slurm": slurm}})).unwrap();
        let error = config.of_flux().unwrap_err().to_string();
        assert!(
            error.contains("workflow-token.slurm") && error.contains("separate file"),
            "{error}"
        );
    }

    #[test]
    fn conditions_of_the_other_scheduler_name_the_equivalent() {
        let slurm = json!({"cluster": "hpc", "servers": "ctl"});
        let with = |slurm: &Value, key: &str| {
            let rule = json!({"source": "file", "path": "/t", key: "system.x"});
            let config = Config::from_json(&json!({"workflow-token": {"slurm": slurm, "rule": [rule]}}));
            config.map(drop).map_err(|e| e.to_string())
        };
        for (key, says) in [
            ("queue", "use partition"),
            ("bank", "use account"),
            ("attribute", "use comment"),
        ] {
            let error = with(&slurm, key).unwrap_err();
            assert!(
                error.contains(&format!("rule[0].{key}")) && error.contains(says),
                "{error}"
            );
            assert_eq!(with(&Value::Null, key), Ok(()));
        }
        for (key, says) in [
            ("partition", "use queue"),
            ("account", "use bank"),
            ("qos", "use queue"),
            ("cluster", "its own configuration"),
            ("comment", "use attribute"),
        ] {
            let error = with(&Value::Null, key).unwrap_err();
            assert!(error.contains("Flux has no ") && error.contains(says), "{error}");
            assert_eq!(with(&slurm, key), Ok(()));
        }
    }
}
