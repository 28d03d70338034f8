// SPDX-License-Identifier: MIT OR Apache-2.0

//! The two users that this process acts as: root, and the job owner.

use std::io;

use nix::{
    sys::prctl::set_dumpable,
    unistd::{Gid, Uid, getuid, setegid, seteuid, setgroups, setresuid},
};

/// The job owner. The real user stays root.
pub struct JobOwner {
    uid: Uid,
}

impl JobOwner {
    /// Acts as the job owner from now on. In a cluster with a single user, as in tests, this process already does.
    ///
    /// # Errors
    /// This process is neither root nor the job owner. From setgroups(2), setegid(2) and seteuid(2).
    pub fn become_one(uid: u32, gid: u32) -> io::Result<Self> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        if getuid() != uid {
            setgroups(&[gid])?;
            setegid(gid)?;
            seteuid(uid)?;
        }
        // A change of users resets this flag, prctl(2).
        set_dumpable(false)?;
        Ok(Self { uid })
    }

    /// Calls `f` as the user that started this process.
    ///
    /// # Errors
    /// From seteuid(2). The caller must exit, because the process may act as the wrong user.
    pub fn step_out<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        seteuid(getuid())?;
        let done = f();
        seteuid(self.uid)?;
        set_dumpable(false)?;
        Ok(done)
    }

    /// Calls `f` with the job owner as the real user, too, because kill(2) checks it. Meanwhile the job owner can
    /// signal this process.
    ///
    /// # Errors
    /// From setresuid(2). The caller must exit, because the process may act as the wrong user.
    pub fn step_down<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let real = getuid();
        setresuid(self.uid, self.uid, real)?;
        let done = f();
        setresuid(real, self.uid, real)?;
        set_dumpable(false)?;
        Ok(done)
    }
}
