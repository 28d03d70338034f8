// SPDX-License-Identifier: MIT OR Apache-2.0

mod mistakes;

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::{AttributePath, Check, Facts, KeyPath, Principal, Property, Selection, Source, TrustedKeys};

fn parse(text: &str) -> Result<Config, Error> {
    Config::from_json(&toml::from_str(text).unwrap())
}

const DOCUMENTED: &str = r#"
    [workflow-token]
    variable = "DW_WORKFLOW_TOKEN"
    timeout = "60s"
    unlink = true
    munge-socket = "/run/munge/munge.socket.2"

    [[workflow-token.rule]]
    attribute = "system.dw"
    source = "file"
    path = "/var/lib/tokens/{jobid}.jwt"
    check = "shape"

    [[workflow-token.rule]]
    queue = "debug"
    source = "command"
    command = ["/usr/libexec/get-token", "{user}"]
    timeout = "10s"
"#;

#[test]
fn the_documented_example_is_read() {
    let config = parse(DOCUMENTED).unwrap();
    assert_eq!(config.variable, "DW_WORKFLOW_TOKEN");
    assert_eq!(config.timeout, Duration::from_secs(60));
    assert_eq!(config.rules[0].check, Check::Shape);
    assert_eq!(config.rules[0].timeout, Duration::from_secs(60));
    assert_eq!(config.rules[1].timeout, Duration::from_secs(10));
    assert_eq!(config.rules[1].source.name(), "command");
}

#[test]
fn without_a_table_no_job_gets_a_token() {
    assert!(Config::from_json(&json!({})).unwrap().rules.is_empty());
}

fn table(line: &str) -> String {
    format!("[workflow-token]\n{line}")
}

fn rule(line: &str) -> String {
    format!("[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\n{line}")
}

fn issuer(line: &str) -> String {
    format!("[workflow-token.issuer]\n{line}")
}

fn project(line: &str) -> String {
    format!("[[workflow-token.project]]\nname = \"hydro\"\n{line}")
}

/// Returns the table `identity` with one of its keys replaced.
fn identity(key: &str, line: &str) -> String {
    let all = ["token = \"/run/{uid}\"", "trust = \"site\"", "claim = \"groups\""];
    let others: Vec<&str> = all
        .into_iter()
        .filter(|l| key.is_empty() || !l.starts_with(key))
        .collect();
    let site = "[workflow-token.trust.site]\nissuer = \"https://i\"\naudience = \"a\"";
    format!("{site}\n[workflow-token.identity]\n{}\n{line}", others.join("\n"))
}

/// Asserts that each text is rejected with an error that begins with its key.
fn assert_refused<T: AsRef<str>>(cases: &[(T, &str)]) {
    for (text, key) in cases {
        let text = text.as_ref();
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{key}: ")), "{text}\ngave: {error}");
    }
}

#[test]
fn a_rule_finds_the_workflow_of_a_job_where_flux_coral2_puts_it() {
    let config = parse("[[workflow-token.rule]]\nsource = \"kubernetes\"").unwrap();
    let Source::Kubernetes(found) = &config.rules[0].source else {
        panic!("{:?}", config.rules[0].source);
    };
    assert_eq!(found.object.to_string(), "fluxjob-{jobid.dec}");
    assert_eq!(found.namespace, "default");
    assert_eq!((&found.kubeconfig, &found.context), (&None, &None));
    assert_eq!(config.rules[0].variable, "DW_WORKFLOW_TOKEN");
    assert_eq!(config.dws, None);
}

#[test]
fn a_rule_mints_by_the_table_issuer_and_verifies_by_a_table_trust() {
    let config = parse(
        r#"
        [workflow-token.issuer]
        keys = "~/keys"
        name = "https://hpc.example.org"
        audience = "copy-offload"
        margin = "5m"

        [workflow-token.trust.site]
        issuer = "https://hpc.example.org"
        keys = "$KEYS/site.jwks"
        audience = ["copy-offload", "other"]

        [workflow-token.trust.login]
        issuer = "https://login.example.org"
        audience = "hpc"
        proxy = "http://proxy:3128"

        [[workflow-token.rule]]
        queue = "debug"
        source = "issuer"
        audience = ["a", "b"]
        workspace = "u-{uid}"
        check = "verify"
        trust = "site"

        [[workflow-token.project]]
        name = "hydro"
        users = ["alice"]

        [[workflow-token.rule]]
        source = "issuer"
        "#,
    )
    .unwrap();
    let minted = |rule: usize| match &config.rules[rule].source {
        Source::Issuer(issuer) => issuer.clone(),
        other => panic!("{other:?}"),
    };
    let (first, second) = (minted(0), minted(1));
    assert_eq!(first.audience, ["a", "b"]);
    assert_eq!(first.workspace.unwrap().to_string(), "u-{uid}");
    assert_eq!(second.audience, ["copy-offload"]);
    assert_eq!((second.workspace, second.instance), (None, None));
    assert_eq!((second.keys.as_str(), second.name), ("~/keys", first.name));
    assert_eq!(
        (second.margin, second.max_lifetime),
        (Duration::from_secs(300), Duration::from_secs(86_400))
    );
    let Check::Verify(trust) = config.rules[0].check else {
        panic!("{:?}", config.rules[0].check);
    };
    assert_eq!(config.trusts[trust].name, "site");
    assert_eq!(
        config.trusts[trust].keys,
        TrustedKeys::Path(KeyPath::parse("$KEYS/site.jwks").unwrap())
    );
    let login = config.trusts.iter().find(|trust| trust.name == "login").unwrap();
    let TrustedKeys::Discovered(discovery) = &login.keys else {
        panic!("{:?}", login.keys);
    };
    assert_eq!(discovery.proxy.as_deref(), Some("http://proxy:3128"));
    assert_eq!(
        (discovery.refresh, login.leeway),
        (Duration::from_secs(3600), Duration::from_secs(60))
    );
    assert_eq!(config.rules[1].check, Check::Shape);
}

#[test]
fn the_table_dws_has_the_same_keys() {
    let service_only = parse("[workflow-token.dws]").unwrap().dws.unwrap();
    assert_eq!(
        (service_only.kubernetes, service_only.timeout),
        (None, Duration::from_secs(60))
    );

    let keys =
        "kubeconfig = \"/k\"\ncontext = \"c\"\nnamespace = \"n\"\nobject = \"o-{jobid.dec}\"\nsource = \"kubernetes\"";
    let config = parse(&format!(
        "[workflow-token]\ntimeout = \"30s\"\n[workflow-token.dws]\ntimeout = \"40s\"\n{keys}\n[[workflow-token.rule]]\n{keys}"
    ))
    .unwrap();
    let dws = config.dws.unwrap();
    assert_eq!(
        dws.timeout,
        Duration::from_secs(30),
        "the timeout of a source is at most that of the delivery"
    );
    let Source::Kubernetes(of_rule) = &config.rules[0].source else {
        panic!("{:?}", config.rules[0].source);
    };
    assert_eq!(dws.kubernetes.as_ref(), Some(of_rule));
    assert_eq!(of_rule.kubeconfig, Some(PathBuf::from("/k")));
    assert_eq!(of_rule.object.to_string(), "o-{jobid.dec}");
}

#[test]
fn keys_given_at_load_time_win() {
    let conf: Value = toml::from_str(DOCUMENTED).unwrap();
    let config =
        Config::with_overrides(&conf, &json!({"timeout": "5s", "unlink": "false", "max-parallel": "3"})).unwrap();
    assert_eq!(
        (config.timeout, config.unlink, config.max_parallel),
        (Duration::from_secs(5), false, 3)
    );
    assert_eq!(config.rules[1].timeout, Duration::from_secs(5));
}

#[test]
fn projects_are_read_with_who_is_in_them() {
    let config = parse(
        r#"
        [workflow-token.trust.site]
        issuer = "https://login.example.org"
        audience = "cluster"

        [workflow-token.identity]
        token = "/run/user/{uid}/identity.jwt"
        trust = "site"
        claim = "groups"

        [[workflow-token.project]]
        name = "hydro"
        users = ["alice", 1000, 1001]
        groups = ["hydro", 100]
        claims = ["hydro-team"]
        default = true

        [[workflow-token.project]]
        name = "0"
        groups = ["fusion"]

        [[workflow-token.rule]]
        project = "hydro"
        source = "file"
        path = "/tokens/{project}/{user}"
    "#,
    )
    .unwrap();
    let name = |name: &str| Principal::Name(name.to_owned());
    let [hydro, other] = config.projects.list.as_slice() else {
        panic!("{:?}", config.projects.list);
    };
    assert_eq!(hydro.users, [name("alice"), Principal::Id(1000), Principal::Id(1001)]);
    assert_eq!(hydro.groups, [name("hydro"), Principal::Id(100)]);
    assert_eq!(
        (hydro.claims.as_slice(), hydro.default),
        (&["hydro-team".to_owned()][..], true)
    );
    assert_eq!((&*other.name, other.default), ("0", false));
    let identity = config.projects.identity().unwrap();
    assert!(
        matches!(&identity.token, crate::IdentityToken::File(path) if path.to_string() == "/run/user/{uid}/identity.jwt")
    );
    assert_eq!(
        (&*identity.trust, &*identity.claim, &*identity.user),
        ("site", "groups", "sub")
    );
    assert!(config.rules[0].source.needs_project());
}

#[test]
fn names_of_projects_are_labels() {
    let project = |name: &str| {
        parse(&format!(
            "[[workflow-token.project]]\nname = {}\nusers = [\"a\"]",
            json!(name)
        ))
    };
    for good in ["a", "0", "a-b", "a--b", &"a".repeat(63)] {
        assert_eq!(project(good).unwrap().projects.list[0].name, good);
    }
    for bad in [
        "",
        "-",
        "-a",
        "a-",
        "A",
        "a.b",
        "a/b",
        "a_b",
        "ä",
        "a b",
        "a\n",
        &"a".repeat(64),
    ] {
        let error = project(bad).unwrap_err().to_string();
        assert!(
            error.starts_with("workflow-token.project[0].name: must be"),
            "{bad:?}: {error}"
        );
    }
}

/// A job whose owner's groups are not known.
struct Job<'a>(&'a [&'a str]);

impl Facts for Job<'_> {
    fn has_attribute(&self, path: &AttributePath) -> Option<bool> {
        Some(self.0.contains(&path.components().join(".").as_str()))
    }
    fn property_is(&self, property: Property, value: &str) -> Option<bool> {
        Some(self.0.contains(&format!("{}={value}", property.key()).as_str()))
    }
    fn project_is(&self, name: &str) -> Option<bool> {
        Some(self.0.contains(&format!("project={name}").as_str()))
    }
    fn owner_is(&self, user: &Principal) -> Option<bool> {
        Some(*user == Principal::Name("alice".to_owned()))
    }
    fn owner_in(&self, _: &Principal) -> Option<bool> {
        None
    }
}

#[test]
fn the_first_rule_that_matches_wins_and_what_is_not_known_is_not_guessed() {
    let rule = |line: &str| format!("[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\n{line}\n");
    let text = [
        rule("attribute = \"system.dw\"\nqueue = \"debug\""),
        rule("attribute = \"system.dw\""),
        rule("queue = \"batch\"\ngroup = \"staff\""),
        rule("bank = \"b\"\nuser = \"alice\""),
        rule("bank = \"b\"\nuser = \"bob\""),
    ]
    .concat();
    let config = parse(&text).unwrap();
    let select = |facts: &[&str]| config.select(&Job(facts));
    assert_eq!(select(&["system.dw", "queue=debug"]), Selection::Rule(0));
    assert_eq!(select(&["system.dw", "queue=batch"]), Selection::Rule(1));
    assert_eq!(select(&["queue=batch", "bank=b"]), Selection::Unknown);
    assert_eq!(select(&["bank=b"]), Selection::Rule(3));
    assert_eq!(select(&["queue=debug"]), Selection::None);
}

#[test]
fn for_each_name_the_first_rule_that_matches_counts() {
    let rule = |line: &str| format!("[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\n{line}\n");
    let text = [
        rule("bank = \"b\""),
        rule("name = \"s\"\nvariable = \"S\"\ngroup = \"staff\""),
        rule("group = \"staff\""),
        rule("name = \"s\"\nvariable = \"S\""),
        rule(""),
    ]
    .concat();
    let config = parse(&text).unwrap();
    let of = |facts: &[&str]| config.by_name(&config.candidates(&Job(facts)));
    assert_eq!(of(&["bank=b"]), [vec![0], vec![1, 3]]);
    assert_eq!(of(&["bank=c"]), [vec![1, 3], vec![2, 4]]);
    assert_eq!(config.rules[0].renewal, crate::Renewal::default());
}

#[test]
fn a_path_below_attributes_begins_below_attributes() {
    let attribute = |path: &str| {
        parse(&format!(
            "[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\nattribute = \"{path}\""
        ))
    };
    for (bad, says) in [
        ("attributes.system.dw", "write `system.dw`"),
        ("jobspec.attributes.system.dw", "write `system.dw`"),
        ("attributes.user.a.b", "write `user.a.b`"),
        ("dw", "system.dw"),
        ("system", "system.dw"),
        (".attributes.system.dw", "system.dw"),
        ("System.dw", "system.dw"),
        ("shell.options.x", "system.dw"),
    ] {
        let error = attribute(bad).unwrap_err().to_string();
        assert!(error.starts_with("workflow-token.rule[0].attribute: "), "{error}");
        assert!(error.contains(says), "{bad}: {error}");
    }
    for good in ["system.dw", "user.a", "system.shell.options.a.b.c"] {
        assert!(attribute(good).is_ok(), "{good}");
    }
}

#[test]
fn a_string_is_a_name_and_a_number_is_an_id() {
    let config = parse(
        r#"
        [[workflow-token.project]]
        name = "hydro"
        users = ["12345", 12345]
        groups = ["777", 777]

        [[workflow-token.rule]]
        source = "file"
        path = "/t"
        user = "12345"
        group = "0777"
        "#,
    )
    .unwrap();
    let name = |name: &str| Principal::Name(name.to_owned());
    let project = &config.projects.list[0];
    assert_eq!(project.users, [name("12345"), Principal::Id(12345)]);
    assert_eq!(project.groups, [name("777"), Principal::Id(777)]);
    let conditions = &config.rules[0].conditions;
    assert_eq!(conditions.user, Some(name("12345")));
    assert_eq!(conditions.group, Some(name("0777")));
    assert_eq!(
        config.digit_names(),
        [
            ("workflow-token.project[0].users[0]".to_owned(), "user", "12345"),
            ("workflow-token.project[0].groups[0]".to_owned(), "group", "777"),
            ("workflow-token.rule[0].user".to_owned(), "user", "12345"),
            ("workflow-token.rule[0].group".to_owned(), "group", "0777"),
        ]
    );
}

#[test]
fn status_lists_need_a_directory_and_an_issuer_that_services_can_reach() {
    let parse = |name: &str, directory: &str| {
        parse(&issuer(&format!(
            "keys = \"/k\"\nname = \"{name}\"\nstatus-list = \"{directory}\""
        )))
    };
    let config = parse("https://hpc.example.org", "/var/lib/status").unwrap();
    assert_eq!(config.issuer.unwrap().status_list, Some("/var/lib/status".into()));
    for (name, directory, key) in [
        ("https://hpc.example.org", "status", "status-list"),
        ("hpc", "/status", "issuer.name"),
    ] {
        let error = parse(name, directory).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn a_duration_that_no_clock_can_add_is_refused_wherever_one_is_given() {
    let rule = "[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\n";
    let issuer = "[workflow-token.issuer]\nkeys = \"/k\"\nname = \"n\"\n";
    let trust = "[workflow-token.trust.t]\nissuer = \"https://i\"\naudience = \"a\"\n";
    for (table, key) in [
        ("[workflow-token]\n", "timeout"),
        (rule, "timeout"),
        ("[workflow-token.dws]\n", "timeout"),
        (issuer, "margin"),
        (issuer, "max-lifetime"),
        (trust, "refresh"),
    ] {
        for bad in ["\"200000000000000d\"", "\"366d\"", "1e300", "\"1e19\""] {
            let error = parse(&format!("{table}{key} = {bad}")).unwrap_err().to_string();
            assert!(error.contains(&format!(".{key}: ")), "{error}");
        }
        assert!(parse(&format!("{table}{key} = \"365d\"")).is_ok(), "{table}{key}");
    }
}

#[test]
fn what_is_no_configuration_is_an_error_and_not_an_empty_one() {
    for bad in [json!(null), json!(1), json!("x"), json!([])] {
        assert!(Config::from_json(&bad).is_err(), "{bad}");
    }
    let mut deep = "1".to_owned();
    for _ in 0..140 {
        deep = format!("[{deep}]");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("deep.toml");
    std::fs::write(&file, format!("{DOCUMENTED}\n[other]\nx = {deep}")).unwrap();
    for path in [&file, directory.path()] {
        let error = crate::read_files(path).err().unwrap().to_string();
        assert!(error.contains("deep.toml: "), "{error}");
    }
}

#[test]
fn an_agent_that_systemd_started_is_named_by_its_socket() {
    let config = parse("[workflow-token]\nagent = \"/run/workflow-token/agent.sock\"").unwrap();
    assert_eq!(
        config.agent.socket,
        Some(PathBuf::from("/run/workflow-token/agent.sock"))
    );
    for bad in [
        "\"agent.sock\"".to_owned(),
        "1".to_owned(),
        format!("\"/{}\"", "x".repeat(107)),
    ] {
        let error = parse(&format!("[workflow-token]\nagent = {bad}"))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("workflow-token.agent: "), "{error}");
    }
}

#[test]
fn a_key_that_is_gone_is_reported_and_does_no_harm() {
    let config = parse("[workflow-token]\nhelper = \"/usr/libexec/flux-workflow-token\"").unwrap();
    let [line] = config.obsolete.as_slice() else {
        panic!("{:?}", config.obsolete);
    };
    assert!(line.starts_with("workflow-token.helper: "), "{line}");
    assert!(parse(DOCUMENTED).unwrap().obsolete.is_empty());
}

#[test]
fn a_file_is_waited_for_if_its_rule_says_so() {
    let wait = |line: &str| {
        let text = format!("[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\n{line}");
        match &parse(&text).unwrap().rules[0].source {
            Source::File { wait, .. } => *wait,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(wait(""), None);
    assert_eq!(wait("wait = \"5s\""), Some(Duration::from_secs(5)));
    assert_eq!(wait("wait = \"59s\"\ntimeout = \"2m\""), Some(Duration::from_secs(59)));
}
