// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts the hosts of a job: the hostlists of its resources (RFC 20, RFC 29), as libhostlist expands them.

/// The most hosts in a range. As in libhostlist, a larger range is invalid.
const LONGEST: u64 = 1 << 20;

/// Returns the number of hosts in a `nodelist`, the text of a JSON array of hostlists. A host that occurs twice counts
/// twice: test instances name their brokers in this way.
///
/// # Errors
/// The error in the `nodelist`.
pub(super) fn count(nodelist: &str) -> Result<u64, String> {
    let lists: Vec<String> = serde_json::from_str(nodelist).map_err(|e| format!("not an array of strings: {e}"))?;
    let counts = lists.iter().map(|list| {
        let hosts = hosts(list);
        hosts.ok_or_else(|| format!("{} is not a hostlist", list.escape_debug()))
    });
    counts.sum::<Result<u64, _>>()
}

/// Counts the hosts of one hostlist: names, or names with one set of ranges in brackets, separated by commas or blanks.
fn hosts(list: &str) -> Option<u64> {
    let is_separator = |c: char| matches!(c, ',' | ' ' | '\t');
    let mut total: u64 = 0;
    let mut rest = list.trim_start_matches(is_separator);
    while !rest.is_empty() {
        let mut inside = false;
        let end = rest.find(|c| {
            match c {
                '[' => inside = true,
                ']' => inside = false,
                _ => {}
            }
            !inside && is_separator(c)
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        total = total.saturating_add(match word.split_once('[') {
            // The text after the first closing bracket belongs to the names.
            Some((_, ranges)) => sizes(ranges.split_once(']')?.0)?,
            None if word.contains(']') => return None,
            None => 1,
        });
        rest = after.trim_start_matches(is_separator);
    }
    Some(total)
}

/// Counts the numbers in ranges such as `0-3,007`.
fn sizes(ranges: &str) -> Option<u64> {
    let number = |digits: &str| -> Option<u64> {
        let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        all.then(|| digits.parse().ok())?
    };
    ranges.split(',').try_fold(0_u64, |total, range| {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let size = number(high)?.checked_sub(number(low)?)?.checked_add(1)?;
        (size <= LONGEST).then(|| total.saturating_add(size))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_counted() {
        for (nodelist, hosts) in [
            (r#"[]"#, 0),
            (r#"[""]"#, 0),
            (r#"["node1"]"#, 1),
            (r#"["node[1]"]"#, 1),
            (r#"["host,host"]"#, 2),
            (r#"["host", "host"]"#, 2),
            (r#"["node[0-1]"]"#, 2),
            (r#"["node[0-3,7,09-11]"]"#, 8),
            (r#"["node[0-3,7]-ib,login1,gpu[1,2]"]"#, 8),
            (r#"["a, b\tc,,d,"]"#, 4),
            // The second set of ranges is part of the names.
            (r#"["rack[0-1]node[0-3]"]"#, 2),
            (r#"["node[1-1048576]"]"#, 1_048_576),
        ] {
            assert_eq!(count(nodelist), Ok(hosts), "{nodelist}");
        }
    }

    #[test]
    fn what_is_no_nodelist_is_refused() {
        for bad in [
            "",
            "null",
            "{}",
            "[1]",
            r#"["node["]"#,
            r#"["node[0-1"]"#,
            r#"["node]"]"#,
            r#"["a],b"]"#,
            r#"["node[]"]"#,
            r#"["node[1,]"]"#,
            r#"["node[3-1]"]"#,
            r#"["node[-1]"]"#,
            r#"["node[1-2-3]"]"#,
            r#"["node[a-b]"]"#,
            r#"["node[+1]"]"#,
            r#"["node[0[1]]"]"#,
            r#"["node[1-1048577]"]"#,
            r#"["node[0-99999999999999999999]"]"#,
        ] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }
}
