//! The tables `issuer` and `trust.NAME`, and the keys of rules that have to do with them.

use std::time::Duration;

use serde_json::Value;

use super::{Error, Reader, parsed};
use crate::{
    Check, Discovery, Issuer, KeyPath, Trust, TrustedKeys, check_issuer_url, check_label,
    issuer::{DISCOVERY_KEYS, ISSUER_KEYS, LEEWAY, MARGIN, MAX_LEEWAY, MAX_LIFETIME, TRUST_KEYS, check_workspace},
};

impl Reader<'_> {
    /// The table `issuer`, if it is there.
    pub(super) fn issuer(&self) -> Result<Option<Issuer>, Error> {
        let Some(table) = self.subtable("issuer")? else {
            return Ok(None);
        };
        let reader = Reader {
            prefix: format!("{}.issuer", self.prefix),
            table: &table,
        };
        reader.known(ISSUER_KEYS)?;
        let issuer = Issuer {
            keys: reader.needed("keys", reader.key_path("keys")?)?,
            name: reader.needed("name", reader.nonempty("name")?)?,
            audience: reader.audience()?.unwrap_or_default(),
            margin: reader.duration("margin")?.unwrap_or(MARGIN),
            max_lifetime: reader.duration("max-lifetime")?.unwrap_or(MAX_LIFETIME),
            instance: reader.nonempty("instance")?,
            workspace: None,
        };
        if issuer.max_lifetime < Duration::from_secs(1) {
            return Err(reader.wrong("max-lifetime", "must be 1s at least: no token could be used"));
        }
        Ok(Some(issuer))
    }

    /// How the tokens of this rule are minted.
    pub(super) fn minted(&self, issuer: Option<&Issuer>) -> Result<Issuer, Error> {
        let Some(issuer) = issuer else {
            return Err(self.wrong("source", "`issuer` needs the table [workflow-token.issuer]"));
        };
        let mut issuer = issuer.clone();
        if let Some(audience) = self.audience()? {
            issuer.audience = audience;
        }
        if issuer.audience.is_empty() {
            return Err(self.wrong(
                "audience",
                "is missing here and in [workflow-token.issuer]: say whom its tokens are for",
            ));
        }
        if let Some(text) = self.string("workspace")? {
            let workspace = self.template("workspace", text)?;
            check_workspace(&workspace).map_err(|e| self.wrong("workspace", e))?;
            issuer.workspace = Some(workspace);
        }
        Ok(issuer)
    }

    /// All tables `trust.NAME`, by name.
    pub(super) fn trusts(&self) -> Result<Vec<Trust>, Error> {
        let Some(tables) = self.subtable("trust")? else {
            return Ok(Vec::new());
        };
        let prefix = format!("{}.trust", self.prefix);
        let mut all = Vec::with_capacity(tables.len());
        for (name, table) in &tables {
            let reader = Reader {
                prefix: prefix.clone(),
                table: &tables,
            };
            check_label(name).map_err(|wrong| reader.wrong(&name.escape_debug().to_string(), wrong))?;
            let Value::Object(table) = table else {
                return Err(reader.wrong(name, format!("must be a table: write [workflow-token.trust.{name}]")));
            };
            let prefix = format!("{prefix}.{name}");
            all.push(Reader { prefix, table }.trust(name)?);
        }
        Ok(all)
    }

    fn trust(&self, name: &str) -> Result<Trust, Error> {
        self.known(TRUST_KEYS)?;
        let keys = match (self.key_path("keys")?, self.key_path("secret")?) {
            (Some(_), Some(_)) => {
                return Err(self.wrong(
                    "secret",
                    "is for tokens of HS256, keys for all others: give one of them",
                ));
            }
            (Some(path), None) => TrustedKeys::Path(path),
            (None, Some(path)) => TrustedKeys::Secret(path),
            (None, None) => TrustedKeys::Discovered(self.discovery()?),
        };
        if !matches!(keys, TrustedKeys::Discovered(_)) {
            for key in DISCOVERY_KEYS {
                self.unused(
                    key,
                    "is for keys that are fetched from the issuer, and these are in a file",
                )?;
            }
        }
        let types = self.strings("typ")?.unwrap_or_default();
        let leeway = self.duration("leeway")?.unwrap_or(LEEWAY);
        if leeway > MAX_LEEWAY {
            return Err(self.wrong("leeway", "must be 10m at most: clocks do not differ more, so set them"));
        }
        Ok(Trust {
            name: name.to_owned(),
            issuer: self.needed("issuer", self.nonempty("issuer")?)?,
            keys,
            audience: self.needed("audience", self.audience()?)?,
            types,
            leeway,
        })
    }

    /// How the keys of an issuer are found by its URL.
    fn discovery(&self) -> Result<Discovery, Error> {
        if let Some(issuer) = self.string("issuer")? {
            check_issuer_url(issuer).map_err(|e| {
                let what = format!("{e}, since its keys are asked for there; or give the key keys, a file with them");
                self.wrong("issuer", what)
            })?;
        }
        self.network()
    }

    /// How the tokens of this rule are checked.
    pub(super) fn check(&self, trusts: &[Trust]) -> Result<Check, Error> {
        let check = match self.string("check")? {
            None | Some("shape") => Check::Shape,
            Some("none") => Check::None,
            Some("verify") => {
                let name = self.needed("trust", self.string("trust")?)?;
                let found = trusts.iter().position(|trust| trust.name == name);
                return match found {
                    Some(index) => Ok(Check::Verify(index)),
                    None => Err(self.wrong(
                        "trust",
                        format!("there is no table [workflow-token.trust.{}]", name.escape_debug()),
                    )),
                };
            }
            Some(other) => {
                return Err(self.wrong(
                    "check",
                    format!("`{}` is not a check: use shape, verify or none", other.escape_debug()),
                ));
            }
        };
        self.unused("trust", "is for check = \"verify\"")?;
        Ok(check)
    }

    /// The key `audience`: a string, or several.
    pub(super) fn audience(&self) -> Result<Option<Vec<String>>, Error> {
        self.strings("audience")
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let wrong = || self.wrong(key, "must be a string, or an array of strings, none of them empty");
        let all = match self.table.get(key) {
            None => return Ok(None),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => {
                let strings = many.iter().map(|one| one.as_str().map(str::to_owned));
                strings.collect::<Option<Vec<_>>>().ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        if all.is_empty() || all.iter().any(String::is_empty) {
            return Err(wrong());
        }
        Ok(Some(all))
    }

    /// A path of keys.
    pub(super) fn key_path(&self, key: &str) -> Result<Option<KeyPath>, Error> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        KeyPath::parse(text).map(Some).map_err(|e| self.wrong(key, e))
    }

    pub(super) fn needed<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn subtable(&self, key: &str) -> Result<Option<serde_json::Map<String, Value>>, Error> {
        match self.table.get(key).map(parsed) {
            None => Ok(None),
            Some(Value::Object(table)) => Ok(Some(table)),
            Some(_) => Err(self.wrong(key, format!("must be a table: write [workflow-token.{key}]"))),
        }
    }
}
