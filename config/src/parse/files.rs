//! Configuration in files.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{Error, wrong};

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
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<PathBuf>, _>>()
            .map_err(|e| at(path, &e))?;
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
