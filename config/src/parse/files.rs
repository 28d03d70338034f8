// SPDX-License-Identifier: MIT OR Apache-2.0

//! Configuration files.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{Error, wrong};
use crate::TABLE;

/// The configuration of one or several files.
pub struct Files {
    /// All tables, an object.
    pub conf: Value,
    /// The arrays that several files define, if they concern workflow tokens.
    pub replaced: Vec<Replaced>,
}

/// An array that several files define. Flux merges tables at any depth, but an array in a later file replaces the one
/// in an earlier file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The key, as in `workflow-token.rule`.
    pub key: String,
    /// The files whose arrays have no effect.
    pub without_effect: Vec<PathBuf>,
    /// The file whose array takes effect.
    pub in_force: PathBuf,
}

/// Reports the files, for the operator.
impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without: Vec<_> = self
            .without_effect
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        write!(
            f,
            "{}: the array in {} replaces the one in {}, because Flux merges tables but not arrays",
            self.key,
            self.in_force.display(),
            without.join(", ")
        )
    }
}

/// Reads the configuration as Flux does: one TOML file, or all `*.toml` of a directory, in order (flux_conf_parse(3)).
///
/// # Errors
/// The file that cannot be read or is not TOML.
pub fn read_files(path: &Path) -> Result<Files, Error> {
    let at = |path: &Path, e: &dyn fmt::Display| wrong(path.display(), e);
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| at(path, &e))?;
        files = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<PathBuf>, _>>()
            .map_err(|e| at(path, &e))?;
        files.retain(|file| is_configuration(file));
        files.sort();
    }
    let (mut conf, mut arrays) = (Map::new(), Arrays::new());
    for file in files {
        let text = fs::read_to_string(&file).map_err(|e| at(&file, &e))?;
        let tables: Map<String, Value> = toml::from_str(&text).map_err(|e| at(&file, &e.to_string().trim_end()))?;
        merge(&mut conf, tables, &file, "", &mut arrays);
    }
    let replaced = arrays.into_iter().filter_map(|(key, mut files)| {
        let concerns_us = key.starts_with(&format!("{TABLE}.")) || key == "job-manager.plugins";
        let in_force = files.pop().filter(|_| concerns_us && !files.is_empty())?;
        Some(Replaced {
            key,
            without_effect: files,
            in_force,
        })
    });
    Ok(Files {
        replaced: replaced.collect(),
        conf: Value::Object(conf),
    })
}

/// The files that define an array, by its key.
type Arrays = BTreeMap<String, Vec<PathBuf>>;

/// Returns whether Flux reads a file. It uses glob(3), which skips hidden files.
fn is_configuration(file: &Path) -> bool {
    let is_hidden = file
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden && file.extension().is_some_and(|e| e == "toml")
}

fn merge(into: &mut Map<String, Value>, tables: Map<String, Value>, file: &Path, at: &str, arrays: &mut Arrays) {
    for (name, value) in tables {
        let key = format!("{at}{name}");
        if value.is_array() {
            arrays.entry(key.clone()).or_default().push(file.to_owned());
        }
        match (into.get_mut(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new, file, &format!("{key}."), arrays),
            // This also records the arrays in a new table.
            (_, Value::Object(new)) => {
                let mut table = Map::new();
                merge(&mut table, new, file, &format!("{key}."), arrays);
                into.insert(name, Value::Object(table));
            }
            (_, value) => drop(into.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_are_merged_and_arrays_replaced_as_flux_does() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "10-a.toml",
            "[workflow-token]\ntimeout = \"5s\"\n[workflow-token.issuer]\nname = \"a\"\naudience = [\"a\"]\n\
             [[workflow-token.rule]]\nqueue = \"a\"\n[[resource.config]]\nhosts = \"a\"\n",
        );
        write(
            "20-b.toml",
            "[[workflow-token.rule]]\nqueue = \"b\"\n[[resource.config]]\nhosts = \"b\"\n",
        );
        write(
            "30-c.toml",
            "[workflow-token]\ntimeout = \"6s\"\n[workflow-token.issuer]\nkeys = \"/k\"\n\
             [[workflow-token.rule]]\nqueue = \"c\"\n[[workflow-token.project]]\nname = \"c\"\n",
        );
        write(".40-hidden.toml", "[workflow-token]\ntimeout = \"7s\"\n");
        write("50-other.conf", "[workflow-token]\ntimeout = \"8s\"\n");
        let files = read_files(dir.path()).unwrap();
        let merged = json!({
            "timeout": "6s",
            "issuer": {"name": "a", "audience": ["a"], "keys": "/k"},
            "rule": [{"queue": "c"}],
            "project": [{"name": "c"}],
        });
        assert_eq!(files.conf[TABLE], merged);
        let [replaced] = &files.replaced[..] else {
            panic!("{:?}", files.replaced);
        };
        let name = |file: &str| dir.path().join(file).display().to_string();
        let (a, b, c) = (name("10-a.toml"), name("20-b.toml"), name("30-c.toml"));
        let text = format!("workflow-token.rule: the array in {c} replaces the one in {a}, {b}, because Flux");
        assert!(replaced.to_string().starts_with(&text), "{replaced}");
        assert_eq!(read_files(Path::new(&a)).unwrap().replaced, []);
    }

    #[test]
    fn the_arrays_of_plugins_and_those_in_tables_are_reported_too() {
        let dir = tempfile::tempdir().unwrap();
        for (file, more) in [
            ("1.toml", ""),
            ("2.toml", "\n[[workflow-token.project]]\nname = \"x\"\n"),
        ] {
            let text = format!("job-manager.plugins = []\nworkflow-token.issuer.audience = [\"a\"]{more}");
            fs::write(dir.path().join(file), text).unwrap();
        }
        let replaced = read_files(dir.path()).unwrap().replaced;
        let keys: Vec<_> = replaced.iter().map(|replaced| &*replaced.key).collect();
        assert_eq!(keys, ["job-manager.plugins", "workflow-token.issuer.audience"]);
    }
}
