// SPDX-License-Identifier: MIT OR Apache-2.0

//! The order in which the entries of a list are assigned: a secret permutation, so that an index does not reveal when a
//! job started.

use aws_lc_rs::digest::{SHA256, digest};
use token::MAX_STATUS_ENTRIES;

/// Half of the bits of an index, and the number of their values.
const HALF: u32 = MAX_STATUS_ENTRIES.trailing_zeros() / 2;
const VALUES: usize = 1 << HALF;

/// The rounds of the Feistel network. Four suffice against an observer who cannot choose inputs.
const ROUNDS: usize = 6;

/// A permutation of all indices.
pub(super) struct Order(Box<[[u16; VALUES]; ROUNDS]>);

impl Order {
    /// Returns the permutation of a key.
    pub fn new(key: &[u8; 16]) -> Self {
        let mut tables = Box::new([[0; VALUES]; ROUNDS]);
        for (round, table) in tables.iter_mut().enumerate() {
            for (value, random) in table.iter_mut().enumerate() {
                let mut input = key.to_vec();
                input.extend_from_slice(&((round * VALUES + value) as u64).to_le_bytes());
                let digest = digest(&SHA256, &input);
                let bytes = digest.as_ref();
                *random = u16::from_le_bytes([bytes[0], bytes[1]]) & (VALUES - 1) as u16;
            }
        }
        Self(tables)
    }

    /// Returns the index that is assigned at this position, which must be below [`MAX_STATUS_ENTRIES`].
    pub fn index(&self, position: u32) -> u32 {
        let mask = (1 << HALF) - 1;
        let (left, right) = self
            .0
            .iter()
            .fold((position >> HALF & mask, position & mask), |halves, table| {
                (halves.1, halves.0 ^ u32::from(table[halves.1 as usize]))
            });
        left << HALF | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_index_is_given_out_once_and_in_no_order() {
        let order = Order::new(b"0123456789abcdef");
        let mut seen = vec![false; MAX_STATUS_ENTRIES as usize];
        let mut ascending = 0;
        let mut former = 0;
        for position in 0..MAX_STATUS_ENTRIES {
            let index = order.index(position);
            assert!(!std::mem::replace(&mut seen[index as usize], true), "{index} twice");
            ascending += u32::from(index > former);
            former = index;
        }
        // About half of all neighbors ascend, within ten standard deviations.
        assert!(ascending.abs_diff(MAX_STATUS_ENTRIES / 2) < 6_000, "{ascending}");
        assert_ne!(order.index(0), Order::new(b"0123456789abcdeg").index(0));
    }
}
