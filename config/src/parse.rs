//! From the configuration of Flux, an object, to a [`Config`].

mod issuer;
mod oauth2;
mod project;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value};

use crate::{
    AttributePath, Conditions, Config, Dws, Issuer, Kubernetes, Munge, Principal, Projects, Rule, Source, TABLE,
    Template, Trust, issuer as minting, kubernetes, oauth2 as authorization, parse_duration,
};

const TABLE_KEYS: &[&str] = &[
    "variable",
    "timeout",
    "unlink",
    "max-parallel",
    "agent",
    "agent-program",
    "helper",
    "munge-socket",
    "munge-cipher",
    "munge-mac",
    "munge-ttl",
    "dws",
    "issuer",
    "trust",
    "project",
    "identity",
    "rule",
];
/// The keys of every rule. Each source has more.
const RULE_KEYS: &[&str] = &[
    "attribute",
    "queue",
    "bank",
    "project",
    "user",
    "group",
    "source",
    "timeout",
    "check",
    "trust",
    "variable",
];
const DWS_KEYS: &[&str] = &["source", "object", "namespace", "kubeconfig", "context", "timeout"];

/// The sources, and the keys that only they have.
const SOURCE_KEYS: &[(&str, &[&str])] = &[
    ("file", &["path"]),
    ("command", &["command"]),
    ("kubernetes", kubernetes::KEYS),
    ("issuer", minting::RULE_KEYS),
    ("oauth2", authorization::KEYS),
];

/// The same, for messages.
const SOURCES: &str = "file, command, kubernetes, issuer or oauth2";

/// The longest socket path, in bytes: unix(7) has room for 108 with the NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Why a table was refused: the key, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    key: String,
    wrong: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.wrong)
    }
}

impl std::error::Error for Error {}

impl Config {
    /// Reads the table out of the whole configuration of Flux. Without a table there are no rules, and no job gets a
    /// token.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn from_json(conf: &Value) -> Result<Self, Error> {
        Self::with_overrides(conf, &Value::Null)
    }

    /// The same, with keys that were given when the plugin was loaded in place of the table's.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn with_overrides(conf: &Value, overrides: &Value) -> Result<Self, Error> {
        let mut table = match conf.get(TABLE) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(table)) => table.clone(),
            Some(_) => return Err(wrong(TABLE, "must be a table")),
        };
        match overrides {
            Value::Null => {}
            Value::Object(keys) => table.extend(keys.clone()),
            _ => return Err(wrong(TABLE, "the plugin's own configuration must be a table")),
        }
        Reader {
            prefix: TABLE.to_owned(),
            table: &table,
        }
        .config()
    }
}

impl Kubernetes {
    /// Reads the keys of a table, which may have no others; `name` is what messages call the table.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn from_table(name: &str, table: &Map<String, Value>) -> Result<Self, Error> {
        let reader = Reader {
            prefix: name.to_owned(),
            table,
        };
        reader.known(kubernetes::KEYS)?;
        reader.kubernetes()
    }
}

/// Reads configuration as Flux does: one TOML file, or all `*.toml` of a directory, in order, merged by top-level table.
///
/// # Errors
/// The file that cannot be read, or is no TOML.
pub fn read_files(path: &Path) -> Result<Value, Error> {
    let at = |path: &Path, e: &dyn fmt::Display| wrong(path.display(), e);
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| at(path, &e))?;
        files = entries
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .collect::<Vec<PathBuf>>();
        files.retain(|file| file.extension().is_some_and(|e| e == "toml"));
        files.sort();
    }
    let mut all = Map::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|e| at(&file, &e))?;
        let tables: Map<String, Value> = toml::from_str(&text).map_err(|e| at(&file, &e.to_string().trim_end()))?;
        for (name, table) in tables {
            match (all.get_mut(&name), table) {
                (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                (_, table) => {
                    all.insert(name, table);
                }
            }
        }
    }
    Ok(Value::Object(all))
}

fn wrong(key: impl fmt::Display, wrong: impl fmt::Display) -> Error {
    Error {
        key: key.to_string(),
        wrong: wrong.to_string(),
    }
}

/// What rules have from the whole table.
struct Defaults<'a> {
    variable: &'a str,
    timeout: Duration,
    issuer: Option<&'a Issuer>,
    trusts: &'a [Trust],
    projects: &'a Projects,
}

/// One table, and where it stands.
struct Reader<'a> {
    prefix: String,
    table: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn config(&self) -> Result<Config, Error> {
        self.known(TABLE_KEYS)?;
        let variable = self.name("variable")?.unwrap_or_else(|| "DW_WORKFLOW_TOKEN".to_owned());
        let timeout = self.duration("timeout")?.unwrap_or(Duration::from_secs(60));
        let max_parallel = match self.table.get("max-parallel") {
            None => 32,
            Some(value) => match parsed(value).as_u64() {
                Some(n @ 1..=1024) => n as usize,
                _ => return Err(self.wrong("max-parallel", "must be a number from 1 to 1024")),
            },
        };
        let unlink = match self.table.get("unlink").map(parsed) {
            None => true,
            Some(Value::Bool(b)) => b,
            Some(_) => return Err(self.wrong("unlink", "must be true or false")),
        };
        let trusts = self.trusts()?;
        let projects = self.projects(&trusts)?;
        let issuer = self.issuer()?;
        let rules = self.rules(&Defaults {
            variable: &variable,
            timeout,
            issuer: issuer.as_ref(),
            trusts: &trusts,
            projects: &projects,
        })?;
        let dws = self.dws(timeout)?;
        let object = dws.as_ref().and_then(|dws| dws.kubernetes.as_ref());
        if projects.is_empty() && object.is_some_and(|settings| settings.object.needs_project()) {
            return Err(self.wrong("dws.object", project::OPEN));
        }
        Ok(Config {
            timeout,
            unlink,
            max_parallel,
            agent: self.socket("agent")?,
            agent_program: self.absolute("agent-program")?,
            helper: self.absolute("helper")?,
            munge: self.munge()?,
            dws,
            instance: issuer.and_then(|issuer| issuer.instance),
            projects,
            trusts,
            rules,
            variable,
        })
    }

    /// The absolute path of a Unix socket.
    fn socket(&self, key: &str) -> Result<Option<PathBuf>, Error> {
        let socket = self.absolute(key)?;
        let is_too_long = |path: &PathBuf| path.as_os_str().len() > MAX_SOCKET_PATH;
        if socket.as_ref().is_some_and(is_too_long) {
            let limit = format!("is longer than {MAX_SOCKET_PATH} bytes, which no socket can be");
            return Err(self.wrong(key, limit));
        }
        Ok(socket)
    }

    fn munge(&self) -> Result<Munge, Error> {
        let socket = self.socket("munge-socket")?;
        let ttl = match self.duration("munge-ttl")? {
            None => seal::Ttl::Default,
            Some(ttl) if ttl.subsec_nanos() == 0 && ttl.as_secs() <= 3600 => seal::Ttl::Seconds(ttl.as_secs() as u32),
            Some(_) => return Err(self.wrong("munge-ttl", "must be whole seconds, 1h at most")),
        };
        Ok(Munge {
            socket,
            cipher: self
                .string("munge-cipher")?
                .map(|s| s.parse())
                .transpose()
                .map_err(|e: String| self.wrong("munge-cipher", e))?
                .unwrap_or_default(),
            mac: self
                .string("munge-mac")?
                .map(|s| s.parse())
                .transpose()
                .map_err(|e: String| self.wrong("munge-mac", e))?
                .unwrap_or_default(),
            ttl,
        })
    }

    fn rules(&self, defaults: &Defaults<'_>) -> Result<Vec<Rule>, Error> {
        let Some(rules) = self.table.get("rule") else {
            return Ok(Vec::new());
        };
        let Value::Array(rules) = rules else {
            return Err(self.wrong("rule", "must be an array of tables: write [[workflow-token.rule]]"));
        };
        let mut out = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let prefix = format!("{}.rule[{index}]", self.prefix);
            let Value::Object(table) = rule else {
                return Err(wrong(prefix, "must be a table"));
            };
            let reader = Reader { prefix, table };
            let rule = reader.rule(defaults)?;
            reader.rule_of_projects(&rule, defaults.projects)?;
            out.push(rule);
            if out[..index].iter().any(|former| former.conditions.is_empty()) {
                return Err(wrong(
                    format!("{}.rule[{index}]", self.prefix),
                    "is never reached: a rule before it has no condition and is for every job",
                ));
            }
        }
        Ok(out)
    }

    fn rule(&self, defaults: &Defaults<'_>) -> Result<Rule, Error> {
        let of_sources = SOURCE_KEYS.iter().flat_map(|(_, keys)| *keys);
        let mut keys: Vec<&str> = Vec::new();
        for key in RULE_KEYS.iter().chain(of_sources) {
            if !keys.contains(key) {
                keys.push(key);
            }
        }
        self.known(&keys)?;
        let conditions = Conditions {
            attribute: self
                .string("attribute")?
                .map(AttributePath::parse)
                .transpose()
                .map_err(|e| self.wrong("attribute", e))?,
            queue: self.nonempty("queue")?,
            bank: self.nonempty("bank")?,
            project: self.nonempty("project")?,
            user: self.principal("user")?,
            group: self.principal("group")?,
        };
        let source = match self.string("source")? {
            Some("file") => Source::File { path: self.path()? },
            Some("command") => Source::Command { argv: self.argv()? },
            Some("kubernetes") => Source::Kubernetes(self.kubernetes()?),
            Some("issuer") => Source::Issuer(self.minted(defaults.issuer)?),
            Some("oauth2") => Source::OAuth2(Box::new(self.oauth2()?)),
            Some(other) => {
                return Err(self.wrong(
                    "source",
                    format!("`{}` is not a source: use {SOURCES}", other.escape_debug()),
                ));
            }
            None => return Err(self.wrong("source", format!("is missing: use {SOURCES}"))),
        };
        self.keys_of_other_sources(Some(source.name()))?;
        Ok(Rule {
            conditions,
            variable: self.name("variable")?.unwrap_or_else(|| defaults.variable.to_owned()),
            source,
            timeout: self
                .duration("timeout")?
                .unwrap_or(defaults.timeout)
                .min(defaults.timeout),
            check: self.check(defaults.trusts)?,
        })
    }

    fn dws(&self, timeout: Duration) -> Result<Option<Dws>, Error> {
        let table = match self.table.get("dws").map(parsed) {
            None => return Ok(None),
            Some(Value::Object(table)) => table,
            Some(_) => return Err(self.wrong("dws", "must be a table: write [workflow-token.dws]")),
        };
        let reader = Reader {
            prefix: format!("{}.dws", self.prefix),
            table: &table,
        };
        reader.known(DWS_KEYS)?;
        let source = reader.string("source")?;
        reader.keys_of_other_sources(source)?;
        let kubernetes = match source {
            None => None,
            Some("kubernetes") => Some(reader.kubernetes()?),
            Some(other) => {
                return Err(reader.wrong(
                    "source",
                    format!(
                        "`{}` is not a source of this table: use kubernetes, or leave it out",
                        other.escape_debug()
                    ),
                ));
            }
        };
        Ok(Some(Dws {
            kubernetes,
            timeout: reader.duration("timeout")?.unwrap_or(timeout).min(timeout),
        }))
    }

    fn kubernetes(&self) -> Result<Kubernetes, Error> {
        let object = self.string("object")?.unwrap_or(kubernetes::OBJECT);
        let object = self.template("object", object)?;
        kubernetes::check_object(&object).map_err(|e| self.wrong("object", e))?;
        let namespace = self.string("namespace")?.unwrap_or(kubernetes::NAMESPACE);
        kubernetes::check_label(namespace).map_err(|e| self.wrong("namespace", e))?;
        let kubeconfig = self.absolute("kubeconfig")?;
        let context = self.nonempty("context")?;
        if context.is_some() && kubeconfig.is_none() {
            return Err(self.wrong("context", "is of a kubeconfig file: set the key kubeconfig too"));
        }
        Ok(Kubernetes {
            kubeconfig,
            context,
            namespace: namespace.to_owned(),
            object,
        })
    }

    /// Refuses keys that are not for this source.
    fn keys_of_other_sources(&self, source: Option<&str>) -> Result<(), Error> {
        let of = |name| {
            SOURCE_KEYS
                .iter()
                .filter(move |(other, _)| (source == Some(*other)) == name)
        };
        let own: Vec<_> = of(true).flat_map(|(_, keys)| *keys).collect();
        for (name, keys) in of(false) {
            for key in keys.iter().filter(|key| !own.contains(key)) {
                self.unused(key, &format!("is for source = \"{name}\""))?;
            }
        }
        Ok(())
    }

    fn path(&self) -> Result<Template, Error> {
        let Some(text) = self.string("path")? else {
            return Err(self.wrong("path", "is missing: source = \"file\" needs it"));
        };
        let template = self.template("path", text)?;
        if !template.starts_with("/") {
            return Err(self.wrong("path", "must be absolute"));
        }
        Ok(template)
    }

    fn argv(&self) -> Result<Vec<Template>, Error> {
        let wanted = "must be an array of strings, the first an absolute path";
        let argv = match self.table.get("command") {
            Some(Value::Array(argv)) if !argv.is_empty() => argv,
            Some(_) => return Err(self.wrong("command", wanted)),
            None => return Err(self.wrong("command", "is missing: source = \"command\" needs it")),
        };
        let argv = argv.iter().map(|word| match word {
            Value::String(text) => self.template("command", text),
            _ => Err(self.wrong("command", wanted)),
        });
        let argv = argv.collect::<Result<Vec<_>, _>>()?;
        if !argv[0].starts_with("/") || !argv[0].is_constant() {
            return Err(self.wrong("command", "the program must be an absolute path without placeholders"));
        }
        Ok(argv)
    }

    fn template(&self, key: &str, text: &str) -> Result<Template, Error> {
        if text.contains('\0') {
            return Err(self.wrong(key, "has a NUL character"));
        }
        Template::parse(text).map_err(|e| self.wrong(key, e))
    }

    fn known(&self, keys: &[&str]) -> Result<(), Error> {
        match self.table.keys().find(|key| !keys.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(self.wrong(
                &key.escape_debug().to_string(),
                format!("is not known: use one of {}", keys.join(", ")),
            )),
        }
    }

    fn unused(&self, key: &str, why: &str) -> Result<(), Error> {
        if self.table.contains_key(key) {
            Err(self.wrong(key, why))
        } else {
            Ok(())
        }
    }

    fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "must be a string")),
        }
    }

    fn nonempty(&self, key: &str) -> Result<Option<String>, Error> {
        match self.string(key)? {
            Some("") => Err(self.wrong(key, "must not be empty")),
            text => Ok(text.map(str::to_owned)),
        }
    }

    fn duration(&self, key: &str) -> Result<Option<Duration>, Error> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => parse_duration(text).map(Some).map_err(|e| self.wrong(key, e)),
            Some(Value::Number(n)) => parse_duration(&n.to_string()).map(Some).map_err(|e| self.wrong(key, e)),
            Some(_) => Err(self.wrong(key, "must be a duration, as in \"60s\"")),
        }
    }

    fn absolute(&self, key: &str) -> Result<Option<PathBuf>, Error> {
        match self.string(key)? {
            None => Ok(None),
            Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(Some(PathBuf::from(path))),
            Some(_) => Err(self.wrong(key, "must be an absolute path")),
        }
    }

    fn name(&self, key: &str) -> Result<Option<String>, Error> {
        let Some(name) = self.string(key)? else { return Ok(None) };
        seal::check_name(name).map_err(|e| self.wrong(key, e))?;
        Ok(Some(name.to_owned()))
    }

    fn principal(&self, key: &str) -> Result<Option<Principal>, Error> {
        let value = self.table.get(key).map(project::principal);
        value.transpose().map_err(|e| self.wrong(key, e))
    }

    fn wrong(&self, key: &str, what: impl fmt::Display) -> Error {
        wrong(format!("{}.{key}", self.prefix), what)
    }
}

/// `flux jobtap load FILE key=value` brings strings where the value is not JSON; booleans and numbers may come as either.
fn parsed(value: &Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
        value => value.clone(),
    }
}

#[cfg(test)]
mod tests;
