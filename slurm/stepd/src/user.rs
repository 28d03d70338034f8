//! The two users that this process acts as: root, and the job owner.

use std::io;

use nix::unistd::{Gid, Uid, getuid, setegid, seteuid, setgroups};

/// The job owner. The real user stays root.
pub struct JobOwner {
    uid: Uid,
}

impl JobOwner {
    /// Acts as the job owner from here on. In a cluster of one user, as tests have it, this process already does.
    ///
    /// # Errors
    /// This process is neither root nor the job owner; setgroups(2), setegid(2), seteuid(2).
    pub fn become_one(uid: u32, gid: u32) -> io::Result<Self> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        if getuid() != uid {
            setgroups(&[gid])?;
            setegid(gid)?;
            seteuid(uid)?;
        }
        Ok(Self { uid })
    }

    /// Calls `f` as the user that started this process.
    ///
    /// # Errors
    /// seteuid(2). The caller must end: it may act as the wrong user.
    pub fn step_out<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        seteuid(getuid())?;
        let done = f();
        seteuid(self.uid)?;
        Ok(done)
    }
}
