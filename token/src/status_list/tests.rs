// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;

/// Compresses the bytes of a list.
fn lst(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(compress_to_vec_zlib(bytes, 9))
}

/// The test vector of appendix C.1: all others are 0, of 2^20.
#[test]
fn the_test_vector_of_the_draft_is_read() {
    let lst = "eNrt3AENwCAMAEGogklACtKQPg9LugC9k_ACvreiogEAAKkeCQAAAAAAAAAAAAAAAAAAAIBylgQAAAAAAAAAAAAAAAAAAAAAAAAA\
         AAAAAAAAAAAAAAAAAAAAAAAAAAAAXG9IAAAAAAAAAPwsJAAAAAAAAAAAAAAAvhsSAAAAAAAAAAAA7KpLAAAAAAAAAAAAAAAAAAAA\
         AJsLCQAAAAAAAAAAADjelAAAAAAAAAAAKjDMAQAAAACAZC8L2AEb";
    let list = StatusList::from_lst(1, lst).unwrap();
    assert_eq!(list.entries(), 1 << 20);
    let set: Vec<u32> = (0..list.entries())
        .filter(|index| list.get(*index) == Some(1))
        .collect();
    assert_eq!(
        set,
        [
            0, 1993, 25460, 159_495, 495_669, 554_353, 645_645, 723_232, 854_545, 934_534, 1_000_345
        ]
    );
    assert_eq!(StatusList::from_lst(1, &list.to_lst()), Ok(list));
}

#[test]
fn entries_of_1_2_4_and_8_bits_are_read_from_the_lowest_bit_on() {
    for (bits, statuses) in [
        (1, vec![1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1]),
        (2, vec![1, 2, 0, 3, 0, 1, 0, 1]),
        (4, vec![9, 11, 3, 10]),
        (8, vec![0xb9, 0xff]),
    ] {
        let mut bytes = vec![0; statuses.len() * bits / 8];
        for (i, status) in statuses.iter().enumerate() {
            bytes[i * bits / 8] |= status << (i * bits % 8);
        }
        let list = StatusList::from_lst(bits as u8, &lst(&bytes)).unwrap();
        let read: Vec<u8> = (0..list.entries()).filter_map(|index| list.get(index)).collect();
        assert_eq!(read, statuses, "{bits}");
        assert_eq!(list.get(list.entries()), None);
        assert_eq!(list.get(u32::MAX), None);
    }
}

#[test]
fn a_status_is_set_where_it_belongs_and_nowhere_else() {
    for bits in [1, 2, 4, 8] {
        let mut list = StatusList::from_lst(bits, &lst(&[0xff; 4])).unwrap();
        let (entries, most) = (list.entries(), list.mask());
        for index in 0..entries {
            assert!(list.set(index, 0));
            let others = (0..entries).filter(|other| *other > index);
            assert!(
                others.into_iter().all(|other| list.get(other) == Some(most)),
                "{bits} {index}"
            );
            assert_eq!(list.get(index), Some(0));
        }
        assert!(!list.set(entries, 0));
        assert_eq!(list.set(0, 2), bits > 1);
    }
}

#[test]
fn nothing_expands_beyond_the_most_entries() {
    for bits in [1, 2, 4, 8] {
        let most = (MAX_STATUS_ENTRIES as usize) * usize::from(bits) / 8;
        let list = StatusList::from_lst(bits, &lst(&vec![0; most])).unwrap();
        assert_eq!(list.entries(), MAX_STATUS_ENTRIES);
        // A gigabyte of zeros would take a megabyte.
        for bomb in [vec![0; most + 1], vec![0; 8 << 20]] {
            assert_eq!(StatusList::from_lst(bits, &lst(&bomb)), Err(StatusListError::TooLong));
        }
    }
    let long = "A".repeat(2 << 20);
    assert_eq!(StatusList::from_lst(1, &long), Err(StatusListError::TooLong));
}

#[test]
fn what_is_no_list_is_refused() {
    let good = lst(&[0xb9, 0xa3]);
    for bits in [0, 3, 5, 16, 255] {
        assert_eq!(StatusList::from_lst(bits, &good), Err(StatusListError::Bits));
    }
    for bad in ["eNrbuRgAAhcBXQ==", "eNrbuRgAAhcBX\n", "+/", "é"] {
        assert_eq!(StatusList::from_lst(1, bad), Err(StatusListError::Base64), "{bad}");
    }
    // Cut short, with another check sum, with the header of gzip, or without any.
    let whole = URL_SAFE_NO_PAD.decode(&good).unwrap();
    let mut altered = whole.clone();
    *altered.last_mut().unwrap() ^= 1;
    for bad in [
        &whole[..whole.len() - 4],
        &whole[..2],
        &altered[..],
        &[0x1f, 0x8b, 8, 0],
        &whole[2..],
        b"",
    ] {
        let read = StatusList::from_lst(1, &URL_SAFE_NO_PAD.encode(bad));
        assert_eq!(read, Err(StatusListError::Compression), "{bad:?}");
    }
}

/// Half of a million jobs have ended, in any order: such a list does not compress.
#[test]
fn the_list_of_a_million_jobs_is_short() {
    let mut list = StatusList::new(1_000_000);
    // An xorshift generator (Marsaglia).
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for index in 0..1_000_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        list.set(index, (random & 1) as u8);
    }
    let lst = list.to_lst();
    assert_eq!(list.bytes.len(), 125_000);
    assert!(URL_SAFE_NO_PAD.decode(&lst).unwrap().len() <= 128 << 10);
    assert!(lst.len() <= 170_000, "{}", lst.len());
    assert!(StatusList::new(MAX_STATUS_ENTRIES).to_lst().len() < 400);
}
