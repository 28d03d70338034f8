// SPDX-License-Identifier: MIT OR Apache-2.0

//! The processes that a command has started, including orphaned ones.
//!
//! The supervisor is a child subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)): orphaned processes become its children. So
//! all processes are its descendants, regardless of their session, process group and uid.

use std::{fs, io, os::fd::OwnedFd, thread, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, pidfd_open, pidfd_send_signal,
        set_child_subreaper, wait,
    },
};

/// The interval of checks on processes that cannot be killed.
const PAUSE: Duration = Duration::from_millis(250);

/// A command and all processes that it has started.
pub(super) struct Descendants {
    command: Pid,
    /// The exit status of the command, once it has ended.
    pub status: Option<WaitStatus>,
}

/// Makes this process a child subreaper. Call it before the command starts.
pub(super) fn adopt() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

impl Descendants {
    /// Returns the descendants of a child that leads its own process group.
    pub fn of(command: Pid) -> Self {
        Self { command, status: None }
    }

    /// Kills the remaining processes in the process group of the command, which has ended, and reaps the command.
    pub fn command_ended(&mut self) -> io::Result<()> {
        // The command is not reaped yet, so its process id cannot have been reused.
        let _ = kill_process_group(self.command, Signal::KILL);
        self.reap(WaitOptions::NOHANG)?;
        Ok(())
    }

    /// Kills all descendants. Returns the number of those that had not ended before. Killing may take several calls,
    /// and some processes cannot be killed.
    pub fn kill(&mut self) -> io::Result<usize> {
        if self.status.is_none() {
            let _ = kill_process_group(self.command, Signal::KILL);
        }
        let mut running = 0;
        let mut parents = vec![getpid()];
        while let Some(parent) = parents.pop() {
            for pid in children(parent) {
                parents.push(pid);
                match pidfd_open(pid, PidfdFlags::empty()) {
                    // The process id may have been reused before the pidfd was opened, but not afterwards.
                    Ok(pidfd) if is_child(pid, parent) => {
                        if !has_ended(&pidfd)? {
                            running += 1;
                            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                        }
                    }
                    // Its children have another parent now. The next call finds them.
                    _ => running += 1,
                }
            }
        }
        while self.reap(WaitOptions::NOHANG)? {}
        Ok(running.max(usize::from(self.status.is_none())))
    }

    /// Waits without a timeout until all descendants have ended, and kills new ones.
    pub fn outlive(&mut self) -> io::Result<()> {
        while self.kill()? > 0 {
            // Only children of this process could be waited for with wait(2).
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Reaps a child. Returns whether one had ended.
    fn reap(&mut self, options: WaitOptions) -> io::Result<bool> {
        loop {
            return match wait(options) {
                Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(false),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => Err(e.into()),
                Ok(Some((pid, status))) => {
                    if pid == self.command {
                        self.status = Some(status);
                    }
                    Ok(true)
                }
            };
        }
    }
}

/// Returns the children of all threads of a process (proc_tid_children(5)).
fn children(parent: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())) else {
        return Vec::new();
    };
    let mut pids = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => pids.extend(list.split_ascii_whitespace().filter_map(pid)),
            // The thread has ended, or the kernel does not provide these files (CONFIG_PROC_CHILDREN).
            Err(_) if thread.path().join("stat").exists() => return children_among_all(parent),
            Err(_) => (),
        }
    }
    pids
}

/// Returns the children of a process by examining every process.
fn children_among_all(parent: Pid) -> Vec<Pid> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = names.filter_map(|entry| pid(entry.file_name().to_str()?));
    pids.filter(|pid| is_child(*pid, parent)).collect()
}

fn pid(number: &str) -> Option<Pid> {
    Pid::from_raw(number.parse().ok()?)
}

/// Returns whether a process is still the child of this parent (proc_pid_stat(5)).
fn is_child(pid: Pid, parent: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The name of the program, in parentheses, may contain any character.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    fields.nth(1) == Some(parent.as_raw_nonzero().to_string().as_str())
}

fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_are_found_in_both_ways() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        for found in [children(getpid()), children_among_all(getpid())] {
            assert!(found.contains(&pid), "{found:?}");
            assert!(!found.contains(&getpid()), "{found:?}");
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!children_among_all(getpid()).contains(&pid));
    }
}
