// SPDX-License-Identifier: MIT OR Apache-2.0

//! FUSE file systems: the server is a user's program, and it chooses the owners and modes that the file
//! system reports.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::fd::AsFd,
    path::Path,
};

use rustix::fs::{Stat, fstatfs, major, minor};

use crate::{owners::Owners, refusal::Refusal};

/// FUSE_SUPER_MAGIC, which `fuseblk` also uses (linux/magic.h).
const FUSE: u32 = 0x6573_5546;

/// The longest line of mountinfo that [`mounter_of`] reads, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Rejects a FUSE file system unless one of `owners` mounted it.
pub(crate) fn check(fd: impl AsFd, stat: &Stat, path: &Path, owners: Owners) -> Result<(), Refusal> {
    if fstatfs(fd)?.f_type as u32 != FUSE {
        return Ok(());
    }
    let who = match mounter_of(stat)? {
        Some(uid) if owners.has(uid) => return Ok(()),
        Some(uid) => format!("uid {uid}"),
        None => "an unknown user".to_owned(),
    };
    Err(Refusal::Untrusted(format!(
        "{} is in a FUSE file system that {who} mounted, so its owners prove nothing: use another file system",
        path.display()
    )))
}

/// Returns the user who mounted the file system with this device number.
fn mounter_of(stat: &Stat) -> Result<Option<u32>, Refusal> {
    let device = format!("{}:{}", major(stat.st_dev), minor(stat.st_dev));
    let mut mounts = BufReader::new(fs::File::open("/proc/self/mountinfo")?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if mounts.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&line);
        if text.split(' ').nth(2) == Some(&device) {
            return Ok(mounter(&text));
        }
    }
}

/// Returns the option `user_id` of the super block, in the last field of a line of mountinfo
/// (proc_pid_mountinfo(5)).
fn mounter(line: &str) -> Option<u32> {
    let (_, filesystem) = line.split_once(" - ")?;
    let options = filesystem.split_ascii_whitespace().nth(2)?;
    let mut options = options.split(',').filter_map(|option| option.strip_prefix("user_id="));
    options.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounter_is_in_the_options_of_the_super_block() {
        for (line, uid) in [
            (
                "53 28 0:46 / /mnt/a rw,nosuid shared:9 - fuse.sshfs host:/ rw,user_id=1000,group_id=1000,allow_other",
                Some(1000),
            ),
            ("53 28 0:46 / /mnt/a rw - fuse x rw,user_id=0,group_id=0\n", Some(0)),
            // A source may have any name, with spaces escaped.
            ("53 28 0:46 / /mnt/user_id=0 rw - fuse user_id=0 rw,user_id=7", Some(7)),
            ("53 28 0:46 / /mnt/a rw - fuse x rw", None),
            ("53 28 0:46", None),
        ] {
            assert_eq!(mounter(line), uid, "{line}");
        }
    }
}
