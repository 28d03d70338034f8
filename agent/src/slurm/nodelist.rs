// SPDX-License-Identifier: MIT OR Apache-2.0

//! Node lists in Slurm's notation: `n1,n[2-4,007-010],c[0-1]n[0-3]` (slurm.conf(5), NodeName).

/// The most bracketed ranges in one element.
const MAX_DIMENSIONS: usize = 8;

/// The most digits of a number in a node name.
const MAX_DIGITS: usize = 20;

/// The longest node name, in bytes.
const MAX_NAME: usize = 255;

/// Returns whether a list contains a node. The list is not expanded, because it may contain ten thousand nodes.
pub fn contains(list: &str, node: &str) -> bool {
    node.len() <= MAX_NAME && elements(list).any(|element| matches(element, node, MAX_DIMENSIONS))
}

/// Returns the elements of a list. Commas within brackets do not separate them.
fn elements(list: &str) -> impl Iterator<Item = &str> {
    let mut is_within = false;
    list.split(move |c| {
        match c {
            '[' => is_within = true,
            ']' => is_within = false,
            _ => {}
        }
        c == ',' && !is_within
    })
}

fn matches(element: &str, node: &str, dimensions: usize) -> bool {
    let Some((prefix, rest)) = element.split_once('[') else {
        return element == node;
    };
    let (Some((ranges, element)), Some(node)) = (rest.split_once(']'), node.strip_prefix(prefix)) else {
        return false;
    };
    let Some(dimensions) = dimensions.checked_sub(1) else {
        return false;
    };
    let digits = node.bytes().take_while(u8::is_ascii_digit).count().min(MAX_DIGITS);
    // The text after the brackets may also begin with digits.
    (1..=digits).any(|count| {
        let (number, node) = node.split_at(count);
        ranges.split(',').any(|range| is_in(range, number)) && matches(element, node, dimensions)
    })
}

/// Returns whether a number is in a range such as `7`, `007` or `007-010`. Its width must match.
fn is_in(range: &str, number: &str) -> bool {
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let parse = |text: &str| text.parse::<u64>().ok();
    let (Some(from), Some(to), Some(value)) = (parse(low), parse(high), parse(number)) else {
        return false;
    };
    let is_padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let has_width = match is_padded(low) {
        true => number.len() == low.len().max(value.to_string().len()),
        false => !is_padded(number),
    };
    has_width && (from..=to).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_as_slurm_writes_them() {
        for (list, nodes, others) in [
            ("n1", &["n1"][..], &["n", "n11", "N1", ""][..]),
            ("n1,m2", &["n1", "m2"], &["n2", "n1,m2", ","]),
            (
                "n[1-3,7]",
                &["n1", "n2", "n3", "n7"],
                &["n0", "n4", "n01", "n", "n1-3", "n[1-3,7]"],
            ),
            ("n[08-11]", &["n08", "n09", "n10", "n11"], &["n8", "n008", "n12"]),
            ("n[098-101]", &["n098", "n100", "n101"], &["n98", "n0100"]),
            ("c[0-1]n[0-3],x", &["c0n0", "c1n3", "x"], &["c2n0", "c0n4", "c0n", "c0"]),
            ("n[1-2]-ib", &["n1-ib"], &["n1", "n1-ibx"]),
            ("n[1-2]0", &["n10", "n20"], &["n1", "n30"]),
            ("", &[], &["n1"]),
            ("n[1-", &[], &["n1", "n[1-"]),
            ("n[]", &[], &["n", "n1"]),
            ("n[a-b]", &[], &["na"]),
            ("n[5-3]", &[], &["n4"]),
            ("n[1-99999999999999999999]", &[], &["n1"]),
        ] {
            for node in nodes {
                assert!(contains(list, node), "{list} {node}");
            }
            for node in others.iter().filter(|node| !node.is_empty() || !list.is_empty()) {
                assert!(!contains(list, node), "{list} {node}");
            }
        }
    }

    #[test]
    fn long_lists_and_names_take_no_time_to_speak_of() {
        let list = format!(
            "n[{}]",
            (0..40_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
        );
        assert!(contains(&list, "n39999") && !contains(&list, "n40000"));
        let many = "[0-9]".repeat(1000);
        assert!(!contains(&format!("n{many}"), &format!("n{}", "1".repeat(1000))));
    }
}
