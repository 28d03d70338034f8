// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mistakes. Each is rejected with an error that names the key.

use super::*;

#[test]
fn mistakes_in_table_are_refused() {
    assert_refused(&[
        ("workflow-token = 1".to_owned(), "workflow-token"),
        (table("variable = 1"), "workflow-token.variable"),
        (table("variable = \"1A\""), "workflow-token.variable"),
        (table("timeout = true"), "workflow-token.timeout"),
        (table("timeout = \"soon\""), "workflow-token.timeout"),
        (table("timeout = 0"), "workflow-token.timeout"),
        (table("unlink = 1"), "workflow-token.unlink"),
        (table("max-parallel = 0"), "workflow-token.max-parallel"),
        (table("helper = \"x\""), "workflow-token.helper"),
        (table("munge-socket = \"x\""), "workflow-token.munge-socket"),
        (
            table(&format!("munge-socket = \"/{}\"", "x".repeat(107))),
            "workflow-token.munge-socket",
        ),
        (table("munge-cipher = \"none\""), "workflow-token.munge-cipher"),
        (table("munge-mac = \"md5\""), "workflow-token.munge-mac"),
        (table("munge-ttl = \"2h\""), "workflow-token.munge-ttl"),
        (table("inner-jobs = \"ignore\""), "workflow-token.inner-jobs"),
        (table("rule = 1"), "workflow-token.rule"),
        (table("rule = [1]"), "workflow-token.rule[0]"),
        (table("tiemout = 1"), "workflow-token.tiemout"),
    ]);
}

#[test]
fn mistakes_in_conditions_are_refused() {
    assert_refused(&[
        (rule("atribute = \"x\""), "workflow-token.rule[0].atribute"),
        (rule("attribute = \"system..dw\""), "workflow-token.rule[0].attribute"),
        (rule("attribute = 1"), "workflow-token.rule[0].attribute"),
        (rule("queue = \"\""), "workflow-token.rule[0].queue"),
        (rule("bank = 1"), "workflow-token.rule[0].bank"),
        (rule("project = []"), "workflow-token.rule[0].project"),
        (rule("user = -1"), "workflow-token.rule[0].user"),
        (rule("user = 4294967295"), "workflow-token.rule[0].user"),
        (rule("group = true"), "workflow-token.rule[0].group"),
        (rule("check = \"deep\""), "workflow-token.rule[0].check"),
        (rule("variable = \"A-B\""), "workflow-token.rule[0].variable"),
        (rule("timeout = \"1w\""), "workflow-token.rule[0].timeout"),
        (rule("wait = \"soon\""), "workflow-token.rule[0].wait"),
        (rule("wait = \"60s\""), "workflow-token.rule[0].wait"),
        (rule("timeout = \"5s\"\nwait = \"5s\""), "workflow-token.rule[0].wait"),
        (
            "[[workflow-token.rule]]\nsource = \"kubernetes\"\nwait = \"5s\"".to_owned(),
            "workflow-token.rule[0].wait",
        ),
        (rule("command = [\"/x\"]"), "workflow-token.rule[0].command"),
        (rule("namespace = \"default\""), "workflow-token.rule[0].namespace"),
        (rule("audience = \"a\""), "workflow-token.rule[0].audience"),
    ]);
}

#[test]
fn mistakes_in_renewals_and_names_are_refused() {
    let two = |one: &str, other: &str| {
        let rules =
            [one, other].map(|more| format!("[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\n{more}\n"));
        rules.concat()
    };
    assert_refused(&[
        (rule("renew = 0.05"), "workflow-token.rule[0].renew"),
        (rule("renew = 1"), "workflow-token.rule[0].renew"),
        (rule("renew = \"often\""), "workflow-token.rule[0].renew"),
        (
            rule("renew-signal = \"SIGKILL\""),
            "workflow-token.rule[0].renew-signal",
        ),
        (rule("renew-signal = 10"), "workflow-token.rule[0].renew-signal"),
        (
            rule("renew = false\nrenew-signal = \"SIGUSR1\""),
            "workflow-token.rule[0].renew-signal",
        ),
        (rule("on-expiry = \"ignore\""), "workflow-token.rule[0].on-expiry"),
        (
            rule("renew = false\non-expiry = \"warn\""),
            "workflow-token.rule[0].on-expiry",
        ),
        (
            rule("bearer-token-file = 1"),
            "workflow-token.rule[0].bearer-token-file",
        ),
        (
            rule("on-shortfall = \"exception\""),
            "workflow-token.rule[0].on-shortfall",
        ),
        (rule("name = \"A B\""), "workflow-token.rule[0].name"),
        // Two names share a variable, and a rule that is never reached.
        (two("", "name = \"b\""), "workflow-token.rule[1].variable"),
        (two("name = \"a\"", "name = \"a\""), "workflow-token.rule[1]"),
    ]);
}

#[test]
fn mistakes_in_kubernetes_rules_are_refused() {
    let kubernetes = |line: &str| format!("[[workflow-token.rule]]\nsource = \"kubernetes\"\n{line}");
    assert_refused(&[
        (kubernetes("path = \"/t\""), "workflow-token.rule[0].path"),
        (kubernetes("command = [\"/x\"]"), "workflow-token.rule[0].command"),
        (kubernetes("object = \"{jobid}\""), "workflow-token.rule[0].object"),
        (kubernetes("object = \"{job}\""), "workflow-token.rule[0].object"),
        (kubernetes("object = \"a/{uid}\""), "workflow-token.rule[0].object"),
        (kubernetes("object = 1"), "workflow-token.rule[0].object"),
        (kubernetes("namespace = \"\""), "workflow-token.rule[0].namespace"),
        (kubernetes("namespace = \"../x\""), "workflow-token.rule[0].namespace"),
        (
            kubernetes("kubeconfig = \"~/.kube/config\""),
            "workflow-token.rule[0].kubeconfig",
        ),
        (kubernetes("context = \"c\""), "workflow-token.rule[0].context"),
        (
            kubernetes("kubeconfig = \"/k\"\ncontext = \"\""),
            "workflow-token.rule[0].context",
        ),
        (kubernetes("server = \"x\""), "workflow-token.rule[0].server"),
    ]);
}

#[test]
fn mistakes_in_issuer_are_refused() {
    let minted = |of_table: &str, of_rule: &str| {
        let table = issuer(&format!("keys = \"/k\"\nname = \"n\"\n{of_table}"));
        format!("{table}\n[[workflow-token.rule]]\nsource = \"issuer\"\n{of_rule}")
    };
    assert_refused(&[
        (table("issuer = 1"), "workflow-token.issuer"),
        (issuer(""), "workflow-token.issuer.keys"),
        (issuer("keys = \"k\""), "workflow-token.issuer.keys"),
        (issuer("keys = \"/k\""), "workflow-token.issuer.name"),
        (issuer("keys = \"/k\"\nname = \"\""), "workflow-token.issuer.name"),
        (issuer("key = \"/k\""), "workflow-token.issuer.key"),
        (
            issuer("keys = \"/k\"\nname = \"n\"\naudience = []"),
            "workflow-token.issuer.audience",
        ),
        (
            issuer("keys = \"/k\"\nname = \"n\"\nmargin = \"inf\""),
            "workflow-token.issuer.margin",
        ),
        (
            issuer("keys = \"/k\"\nname = \"n\"\nmax-lifetime = \"10ms\""),
            "workflow-token.issuer.max-lifetime",
        ),
        (minted("", ""), "workflow-token.rule[0].audience"),
        (minted("", "audience = [\"a\", 1]"), "workflow-token.rule[0].audience"),
        (
            minted("audience = \"a\"", "workspace = \"A\""),
            "workflow-token.rule[0].workspace",
        ),
        (
            minted("audience = \"a\"", "workspace = \"{jobid}\""),
            "workflow-token.rule[0].workspace",
        ),
        (minted("audience = \"a\"", ""), "workflow-token.rule[0].workspace"),
        (
            minted("audience = \"a\"", "workspace = \"{project}\""),
            "workflow-token.rule[0]",
        ),
        (
            minted("audience = \"a\"", "path = \"/t\""),
            "workflow-token.rule[0].path",
        ),
    ]);
}

#[test]
fn mistakes_in_sources_are_refused() {
    assert_refused(&[
        (
            "[[workflow-token.rule]]\nsource = \"issuer\"".to_owned(),
            "workflow-token.rule[0].source",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"file\"\npath = \"/{project}\"".to_owned(),
            "workflow-token.rule[0]",
        ),
        (
            format!("{}\n{}", project("users = [\"a\"]"), rule("project = \"other\"")),
            "workflow-token.rule[0].project",
        ),
        (
            "[[workflow-token.rule]]\npath = \"/t\"".to_owned(),
            "workflow-token.rule[0].source",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"web\"".to_owned(),
            "workflow-token.rule[0].source",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"file\"".to_owned(),
            "workflow-token.rule[0].path",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"file\"\npath = \"t\"".to_owned(),
            "workflow-token.rule[0].path",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"file\"\npath = \"/{x}\"".to_owned(),
            "workflow-token.rule[0].path",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"command\"".to_owned(),
            "workflow-token.rule[0].command",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"command\"\ncommand = [\"sh\"]".to_owned(),
            "workflow-token.rule[0].command",
        ),
        (
            "[[workflow-token.rule]]\nsource = \"command\"\ncommand = \"/x y\"".to_owned(),
            "workflow-token.rule[0].command",
        ),
        (
            format!("{}\n{}", rule(""), rule("queue = \"x\"")),
            "workflow-token.rule[1]",
        ),
    ]);
}

#[test]
fn mistakes_in_trust_are_refused() {
    let trust = |line: &str| format!("[workflow-token.trust.t]\n{line}");
    assert_refused(&[
        (table("trust = 1"), "workflow-token.trust"),
        (table("trust.a = 1"), "workflow-token.trust.a"),
        (table("trust.A.issuer = \"i\""), "workflow-token.trust.A"),
        (trust("audience = \"a\""), "workflow-token.trust.t.issuer"),
        (trust("issuer = \"i\""), "workflow-token.trust.t.issuer"),
        (
            trust("issuer = \"i\"\nkeys = \"/k\""),
            "workflow-token.trust.t.audience",
        ),
        (trust("typ = []"), "workflow-token.trust.t.typ"),
        (trust("keys = \"~k\"\nsecret = \"/s\""), "workflow-token.trust.t.secret"),
        (trust("secret = \"s\""), "workflow-token.trust.t.secret"),
        (trust("keys = \"/k\"\nproxy = \"p\""), "workflow-token.trust.t.proxy"),
        (trust("leeway = \"11m\""), "workflow-token.trust.t.leeway"),
        (trust("ca-file = \"c\""), "workflow-token.trust.t.ca-file"),
        (rule("check = \"verify\""), "workflow-token.rule[0].trust"),
        (
            rule("check = \"verify\"\ntrust = \"t\""),
            "workflow-token.rule[0].trust",
        ),
        (rule("trust = \"t\""), "workflow-token.rule[0].trust"),
    ]);
}

#[test]
fn mistakes_in_project_are_refused() {
    let identified = |line: &str| format!("{}\n{}", identity("", ""), project(line));
    assert_refused(&[
        (table("project = 1"), "workflow-token.project"),
        (table("project = [1]"), "workflow-token.project[0]"),
        (project(""), "workflow-token.project[0]"),
        (project("users = []\ngroups = []"), "workflow-token.project[0]"),
        (project("user = \"a\""), "workflow-token.project[0].user"),
        (project("users = \"a\""), "workflow-token.project[0].users"),
        (project("users = [\"a\", \"\"]"), "workflow-token.project[0].users[1]"),
        (project("users = [4294967295]"), "workflow-token.project[0].users[0]"),
        (project("groups = [-1]"), "workflow-token.project[0].groups[0]"),
        (project("groups = [true]"), "workflow-token.project[0].groups[0]"),
        (
            project("users = [\"a\"]\ndefault = 1"),
            "workflow-token.project[0].default",
        ),
        (project("claims = [\"x\"]"), "workflow-token.project[0].claims"),
        (identified("claims = [1]"), "workflow-token.project[0].claims[0]"),
        (identified("claims = [\"\"]"), "workflow-token.project[0].claims[0]"),
        (
            table("[[workflow-token.project]]\nusers = [\"a\"]"),
            "workflow-token.project[0].name",
        ),
        (
            format!("{}\n{}", project("users = [\"a\"]"), project("users = [\"b\"]")),
            "workflow-token.project[1].name",
        ),
        (
            format!(
                "{}\n[[workflow-token.project]]\nname = \"b\"\nusers = [\"a\"]\ndefault = true",
                project("users = [\"a\"]\ndefault = true")
            ),
            "workflow-token.project[1].default",
        ),
    ]);
}

#[test]
fn mistakes_in_identity_are_refused() {
    assert_refused(&[
        (table("identity = 1"), "workflow-token.identity"),
        (identity("token", ""), "workflow-token.identity.token"),
        (
            identity("token", "token = \"run/{uid}\""),
            "workflow-token.identity.token",
        ),
        (
            identity("token", "token = \"/run/token\""),
            "workflow-token.identity.token",
        ),
        (
            identity("token", "token = \"/run/{uid}/{jobid}\""),
            "workflow-token.identity.token",
        ),
        (identity("trust", ""), "workflow-token.identity.trust"),
        (identity("trust", "trust = \"other\""), "workflow-token.identity.trust"),
        (identity("claim", ""), "workflow-token.identity.claim"),
        (identity("claim", "claim = \"\""), "workflow-token.identity.claim"),
        (identity("claim", "claim = 1"), "workflow-token.identity.claim"),
        (identity("", "user = \"\""), "workflow-token.identity.user"),
        (identity("", "from = \"login\""), "workflow-token.identity.from"),
        (identity("token", "from = \"login\""), "workflow-token.identity.trust"),
        (
            "[workflow-token.identity]\nfrom = \"login\"\nclaim = \"groups\"".to_owned(),
            "workflow-token.identity.from",
        ),
        (identity("", "audience = \"x\""), "workflow-token.identity.audience"),
    ]);
}

#[test]
fn mistakes_in_dws_are_refused() {
    let dws = |line: &str| format!("[workflow-token.dws]\n{line}");
    assert_refused(&[
        (table("dws = 1"), "workflow-token.dws"),
        (dws("source = \"file\""), "workflow-token.dws.source"),
        (dws("namespace = \"default\""), "workflow-token.dws.namespace"),
        (
            dws("source = \"kubernetes\"\nobject = \"A\""),
            "workflow-token.dws.object",
        ),
        (dws("timeout = \"soon\""), "workflow-token.dws.timeout"),
        (dws("variable = \"X\""), "workflow-token.dws.variable"),
        (
            dws("source = \"kubernetes\"\nobject = \"{project}\""),
            "workflow-token.dws.object",
        ),
    ]);
}
