//! The table `service`.

use std::path::PathBuf;

use serde::Deserialize;

use super::field;
use crate::{Principal, Service};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct ServiceTable {
    #[serde(deserialize_with = "field::socket")]
    socket: Option<PathBuf>,
    #[serde(deserialize_with = "field::principal")]
    user: Option<Principal>,
}

impl ServiceTable {
    pub fn service(self) -> Service {
        let user = || Principal::Name("workflow-tokend".to_owned());
        Service {
            socket: self.socket.unwrap_or_else(|| "/run/workflow-token/service".into()),
            user: self.user.unwrap_or_else(user),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Config, Principal};

    #[test]
    fn a_table_has_defaults_and_mistakes_name_the_key() {
        let read = |service| Config::from_json(&json!({"workflow-token": {"service": service}}));
        let service = read(json!({})).unwrap().agent.service.unwrap();
        assert_eq!(service.user, Principal::Name("workflow-tokend".to_owned()));
        assert_eq!(service.socket.to_str(), Some("/run/workflow-token/service"));
        let service = read(json!({"socket": "/run/s", "user": 998}))
            .unwrap()
            .agent
            .service
            .unwrap();
        assert_eq!(
            (service.socket.to_str(), service.user),
            (Some("/run/s"), Principal::Id(998))
        );
        for (table, says) in [
            (
                json!({"socket": "s"}),
                "workflow-token.service.socket: must be an absolute path",
            ),
            (json!({"user": ""}), "workflow-token.service.user: must have"),
            (json!({"port": 1}), "workflow-token.service.port"),
            (json!("x"), "a table"),
        ] {
            let error = read(table.clone()).unwrap_err().to_string();
            assert!(error.contains(says), "{table}: {error}");
        }
    }
}
