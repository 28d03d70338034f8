// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{collections::HashMap, fs, io::Write};

use super::*;
use journal::Record;

const INSTANCE: &str = "hpc";
const HOUR: u32 = 3600;

/// Returns lists that share no state with others of this process, like those of another process.
fn opened(path: &Path) -> StatusLists {
    StatusLists {
        path: path.to_owned(),
        state: Mutex::default(),
    }
}

fn at(seconds: u32) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.into())
}

/// Returns the token of a job, issued at 1000, with a lifetime of one hour.
fn token(jobid: u64) -> TokenToList<'static> {
    TokenToList {
        jobid,
        uid: 1000 + (jobid % 2) as u32,
        sub: if jobid.is_multiple_of(2) { "alice" } else { "bob" },
        jti: "of-a-test",
        iat: 1000,
        exp: 1000 + HOUR,
    }
}

fn add(lists: &StatusLists, jobid: u64) -> Place {
    let place = lists.give(INSTANCE, at(1000)).unwrap();
    lists.record(INSTANCE, place, &token(jobid)).unwrap();
    place
}

fn end(lists: &StatusLists, ended: &[u64]) {
    let is_over = |entry: &Entry, _: &JobOwner, _| ended.contains(&entry.jobid);
    lists.sweep(INSTANCE, at(1001), is_over).unwrap();
}

fn status(lists: &StatusLists, place: Place) -> u8 {
    let list = lists.list(INSTANCE, place.list).unwrap().unwrap();
    list.get(place.index).unwrap()
}

fn file_of(path: &Path, number: u32) -> PathBuf {
    path.join(format!("list-{number}"))
}

#[test]
fn an_entry_takes_no_more_memory_than_promised() {
    assert_eq!(size_of::<Entry>(), 32);
}

/// The process may end at any moment. Then no index is assigned twice, no token of an ended job is valid again, and no
/// entry without a known token is valid.
#[test]
fn every_end_of_the_file_is_survived() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("status");
    let lists = opened(&path);
    // After each step: the length of the file, and the entries and statuses so far.
    let mut steps = Vec::new();
    let (mut places, mut statuses) = (Vec::new(), HashMap::new());
    let number = lists.give(INSTANCE, at(1000)).unwrap().list;
    for jobid in 0..1100 {
        let place = lists.give(INSTANCE, at(1000)).unwrap();
        places.push(place);
        if jobid != 5 {
            lists.record(INSTANCE, place, &token(jobid)).unwrap();
            statuses.insert(place, 0);
        }
        if jobid % 40 == 7 {
            end(&lists, &[jobid, jobid - 3]);
            statuses.insert(place, 1);
            statuses.insert(places[jobid as usize - 3], 1);
        }
        let length = fs::metadata(file_of(&path, number)).unwrap().len();
        steps.push((length, places.len(), statuses.clone()));
    }
    drop(lists);
    let whole = fs::read(file_of(&path, number)).unwrap();
    let (head, records) = journal::read(&whole).unwrap();
    let begin = journal::begin(&head).unwrap().len();
    let reserved: Vec<Record> = records.filter(|record| matches!(record, Record::Reserved(_))).collect();
    assert_eq!(reserved, [Record::Reserved(1024), Record::Reserved(2048)]);
    // The position at which the second block was reserved. The first index has no token.
    let second = steps.iter().rfind(|(_, given, _)| *given <= 1023).unwrap().0 as usize;
    let ends = (begin..begin + 150)
        .chain(second - 10..second + 40)
        .chain((begin..whole.len()).step_by(2999));
    for length in ends {
        let copy = tempfile::tempdir().unwrap();
        let path = copy.path().join("status");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(file_of(&path, number), &whole[..length]).unwrap();
        fs::set_permissions(
            file_of(&path, number),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        let lists = opened(&path);
        let done = steps.iter().rfind(|(then, ..)| *then as usize <= length);
        let (given, promised) = done.map_or((0, HashMap::new()), |(_, given, statuses)| (*given, statuses.clone()));
        for (place, expected) in &promised {
            // The end of a job may have been written with half of the next step.
            assert!(status(&lists, *place) >= *expected, "{length} {place:?}");
        }
        let lost = places.iter().take(given).filter(|place| !promised.contains_key(place));
        for place in lost {
            assert_eq!(status(&lists, *place), 1, "{length} {place:?}");
        }
        // After a power failure, only synced records are certain to exist.
        let synced = if length >= second + 3 {
            1100
        } else {
            given.max(usize::from(length > begin + 3) * 1023)
        };
        let taken: HashSet<Place> = places[..synced.min(places.len())].iter().copied().collect();
        for jobid in 5000..5003 {
            let place = add(&lists, jobid);
            assert!(!taken.contains(&place), "{length} {place:?}");
            assert_eq!(status(&lists, place), 0, "{length}");
        }
        // Opening it again changes nothing.
        let once = lists.numbers(INSTANCE).unwrap();
        drop(lists);
        let again = opened(&path);
        assert_eq!(again.numbers(INSTANCE).unwrap(), once);
        let jobs = again.jobs(INSTANCE, at(2000)).unwrap();
        assert!([5000, 5001, 5002].iter().all(|job| jobs.contains(job)), "{length}");
    }
    // A file that is not a list is reported, and no entry is assigned.
    fs::write(file_of(&path, number), &whole[..begin - 1]).unwrap();
    assert!(
        opened(&path)
            .give(INSTANCE, at(1000))
            .unwrap_err()
            .contains(&format!("list-{number}"))
    );
}

#[test]
fn a_damaged_list_gets_no_more_entries() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("status");
    let lists = opened(&path);
    let place = add(&lists, 1);
    drop(lists);
    let mut file = fs::File::options()
        .append(true)
        .open(file_of(&path, place.list))
        .unwrap();
    file.write_all(&[0xff; 7]).unwrap();
    let lists = opened(&path);
    let next = add(&lists, 2);
    assert_ne!(next.list, place.list);
    assert_eq!((status(&lists, place), status(&lists, next)), (0, 0));
    // The second list assigns further entries after a restart.
    drop(lists);
    assert_eq!(add(&opened(&path), 3).list, next.list);
}

#[test]
fn tokens_are_swept_once_they_are_over_and_forgotten_once_they_have_expired() {
    let directory = tempfile::tempdir().unwrap();
    let lists = opened(&directory.path().join("status"));
    let places = [1, 2, 3].map(|jobid| add(&lists, jobid));
    let mut seen = Vec::new();
    let mut sweep = |now: u32| {
        seen.clear();
        let look = |entry: &Entry, owner: &JobOwner, is_new| {
            seen.push((entry.jobid, owner.sub.clone(), owner.uid, is_new));
            entry.jobid == 2
        };
        lists.sweep(INSTANCE, at(now), look).unwrap();
        seen.clone()
    };
    let (alice, bob) = (
        |id, new| (id, "alice".to_owned(), 1000, new),
        |id, new| (id, "bob".to_owned(), 1001, new),
    );
    assert_eq!(sweep(1001), [bob(1, true), alice(2, true), bob(3, true)]);
    assert_eq!(places.map(|place| status(&lists, place)), [0, 1, 0]);
    add(&lists, 4);
    assert_eq!(sweep(1002), [bob(1, false), bob(3, false), alice(4, true)]);
    assert_eq!(lists.jobs(INSTANCE, at(1000)).unwrap(), [].into());
    assert_eq!(lists.jobs(INSTANCE, at(1001)).unwrap(), [1, 3, 4].into());
    // A verifier may accept them for another ten minutes.
    assert_eq!(sweep(1000 + HOUR + 599).len(), 3);
    assert_eq!(sweep(1000 + HOUR + 600), []);
    // A list that is not full remains.
    assert_eq!(lists.numbers(INSTANCE).unwrap(), [places[0].list]);
}

#[test]
fn a_full_list_is_followed_by_another_and_their_number_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("status");
    let lists = opened(&path);
    let mut places = Vec::new();
    for n in 0..MAX_LISTS {
        places.push(add(&lists, n as u64));
        assert_eq!(lists.numbers(INSTANCE).unwrap().len(), n + 1);
        let fill = |opened: &mut Opened| opened.lists[n].fill().map_err(|e| e.to_string());
        lists.with(INSTANCE, fill).unwrap();
    }
    let full = lists.give(INSTANCE, at(1000)).unwrap_err();
    assert!(
        full.contains("all 16 lists are full") && full.contains(path.to_str().unwrap()),
        "{full}"
    );
    assert_eq!(lists.report(&full).map(|line| line.contains(&full)), Some(true));
    assert_eq!(lists.report(&full), None);
    // The end of a job is written in a full list, too.
    end(&lists, &[3]);
    drop(lists);
    let lists = opened(&path);
    assert_eq!((status(&lists, places[3]), status(&lists, places[4])), (1, 0));
    let later = at(1000 + HOUR + 600);
    let place = lists.give(INSTANCE, later).unwrap();
    assert_eq!(lists.numbers(INSTANCE).unwrap(), [place.list]);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    assert_eq!(lists.list(INSTANCE, places[0].list).unwrap(), None);
}

#[test]
fn tokens_that_have_expired_take_no_memory_though_nobody_sweeps() {
    let directory = tempfile::tempdir().unwrap();
    let lists = opened(&directory.path().join("status"));
    for jobid in 0..3 {
        add(&lists, jobid);
    }
    end(&lists, &[1]);
    let later = at(1000 + HOUR + 600);
    for _ in 0..1024 {
        lists.give(INSTANCE, later).unwrap();
    }
    assert_eq!(lists.jobs(INSTANCE, later).unwrap(), [].into());
    // Later tokens are new.
    add(&lists, 7);
    let mut seen = Vec::new();
    let look = |entry: &Entry, _: &JobOwner, is_new| {
        seen.push((entry.jobid, is_new));
        false
    };
    lists.sweep(INSTANCE, at(1001), look).unwrap();
    assert_eq!(seen, [(7, true)]);
}

#[test]
fn a_directory_is_of_one_agent_and_one_instance() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("status");
    let lists = opened(&path);
    add(&lists, 1);
    let other = opened(&path).give(INSTANCE, at(1000)).unwrap_err();
    assert!(other.contains("another agent uses it"), "{other}");
    let other = lists.give("other", at(1000)).unwrap_err();
    assert!(other.contains("it belongs to the instance hpc"), "{other}");
    drop(lists);
    let other = opened(&path).give("other", at(1000)).unwrap_err();
    assert!(other.contains("it belongs to the instance hpc"), "{other}");
    let (one, same) = (StatusLists::of(&path), StatusLists::of(&path));
    assert!(Arc::ptr_eq(&one, &same));
}
