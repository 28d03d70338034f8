// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tasks of a step on this node, and waiting for their events.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use slurm::MAX_PID;

/// The longest timeout of poll(2).
const LONGEST: Duration = Duration::from_secs(86_400);

/// The tasks, as descriptors (pidfd_open(2)), because the kernel reuses pids.
pub struct Tasks {
    /// The number of tasks that have not begun yet.
    expected: u32,
    running: Vec<OwnedFd>,
}

/// The reason why a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Woken {
    /// The timeout expired.
    Time,
    /// A task has begun or ended.
    Task,
    /// All tasks have ended, or slurmstepd has.
    End,
}

impl Tasks {
    pub fn new(expected: u32) -> Self {
        Self {
            expected,
            running: Vec::new(),
        }
    }

    /// Waits until a task begins or ends, for at most `time`.
    ///
    /// # Errors
    /// From poll(2) and pidfd_open(2), which requires Linux 5.3. The plugin sent a malformed
    /// pid.
    pub fn wait(&mut self, plugin: &mut UnixStream, time: Duration) -> io::Result<Woken> {
        if self.expected == 0 && self.running.is_empty() {
            return Ok(Woken::End);
        }
        let (from_plugin, ended) = {
            let all = self.running.iter().map(AsFd::as_fd);
            let mut fds: Vec<PollFd<'_>> = std::iter::once(plugin.as_fd())
                .chain(all)
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            let timeout = Timespec::try_from(time.min(LONGEST)).map_err(io::Error::other)?;
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(Woken::Time),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => return Ok(Woken::Task),
                Err(e) => return Err(e.into()),
            }
            let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            (is_ready[0], is_ready[1..].to_vec())
        };
        let mut ended = ended.into_iter();
        self.running.retain(|_| !ended.next().unwrap_or(false));
        if from_plugin {
            match protocol::receive::<u32>(plugin, MAX_PID) {
                Ok(pid) => self.begun(pid)?,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Woken::End),
                Err(e) => return Err(e),
            }
        }
        Ok(Woken::Task)
    }

    fn begun(&mut self, pid: u32) -> io::Result<()> {
        self.expected = self.expected.saturating_sub(1);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the plugin sent an invalid pid"))?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(task) => self.running.push(task),
            // The task has ended.
            Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Sends a signal to all tasks.
    pub fn signal(&self, signal: i32) {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return;
        };
        for task in &self.running {
            // The task may have ended.
            let _ = pidfd_send_signal(task, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Child, Command, Stdio},
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// Starts a task that ends at the end of its input, or on SIGUSR1.
    fn task() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    fn announce(plugin: &mut UnixStream, child: &Child) {
        plugin.write_all(&protocol::encode(&child.id()).unwrap()).unwrap();
    }

    #[test]
    fn the_files_are_needed_until_the_last_task_has_ended() {
        let (mut plugin, mut ours) = UnixStream::pair().unwrap();
        let mut tasks = Tasks::new(2);
        assert_eq!(tasks.wait(&mut ours, Duration::ZERO).unwrap(), Woken::Time);
        let (mut first, mut second) = (task(), task());
        announce(&mut plugin, &first);
        assert_eq!(tasks.wait(&mut ours, SOON).unwrap(), Woken::Task);
        tasks.signal(10);
        first.wait().unwrap();
        // The first has ended before the second begins.
        assert_eq!(tasks.wait(&mut ours, SOON).unwrap(), Woken::Task);
        announce(&mut plugin, &second);
        assert_eq!(tasks.wait(&mut ours, SOON).unwrap(), Woken::Task);
        drop(second.stdin.take());
        assert_eq!(tasks.wait(&mut ours, SOON).unwrap(), Woken::Task);
        assert_eq!(tasks.wait(&mut ours, SOON).unwrap(), Woken::End);
        second.wait().unwrap();
    }

    #[test]
    fn the_files_are_not_needed_without_slurmstepd() {
        let (plugin, mut ours) = UnixStream::pair().unwrap();
        drop(plugin);
        assert_eq!(Tasks::new(1).wait(&mut ours, SOON).unwrap(), Woken::End);
    }

    #[test]
    fn an_invalid_pid_is_an_error() {
        for sent in [protocol::encode(&0_u32).unwrap().to_vec(), vec![0xff; 8]] {
            let (mut plugin, mut ours) = UnixStream::pair().unwrap();
            plugin.write_all(&sent).unwrap();
            assert!(Tasks::new(1).wait(&mut ours, SOON).is_err());
        }
    }
}
