// SPDX-License-Identifier: MIT OR Apache-2.0

//! SQL statements, which both databases accept.

pub const CHECK: &str = "SELECT kind FROM records LIMIT 0";

pub const INSERT: &str = "INSERT INTO records (kind, id, owner, version, expires, sealed) VALUES ($1, $2, $3, 1, $4, $5) \
     ON CONFLICT (kind, id) DO UPDATE SET owner = excluded.owner, version = excluded.version, \
     expires = excluded.expires, sealed = excluded.sealed WHERE records.expires <= $6";

pub const GET: &str = "SELECT id, version, expires, sealed FROM records WHERE kind = $1 AND id = $2 AND expires > $3";

pub const TAKE: &str =
    "DELETE FROM records WHERE kind = $1 AND id = $2 AND expires > $3 RETURNING id, version, expires, sealed";

pub const REPLACE: &str = "UPDATE records SET version = $4, expires = $5, sealed = $6 \
     WHERE kind = $1 AND id = $2 AND version = $3 AND expires > $7";

pub const REMOVE: &str = "DELETE FROM records WHERE kind = $1 AND id = $2";

pub const REMOVE_OWNED: &str = "DELETE FROM records WHERE kind = $1 AND owner = $2";

pub const REMOVE_DIGEST: &str = "DELETE FROM records WHERE kind = $1 AND id = $2 AND owner = $3";

pub const OWNED: &str = "SELECT id, version, expires, sealed FROM records WHERE kind = $1 AND owner = $2 AND expires > $3 \
     ORDER BY expires DESC, id LIMIT $4";

pub const COUNT_OWNED: &str = "SELECT count(*) FROM records WHERE kind = $1 AND owner = $2 AND expires > $3";

pub const COUNT: &str = "SELECT count(*) FROM records WHERE kind = $1 AND expires > $2";

pub const COUNTS: &str = "SELECT kind, count(*) FROM records GROUP BY kind";

pub const SWEEP_BATCH: &str = "DELETE FROM records WHERE (kind, id) IN \
     (SELECT kind, id FROM records WHERE expires <= $1 ORDER BY expires LIMIT $2)";
