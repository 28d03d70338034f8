// SPDX-License-Identifier: MIT OR Apache-2.0

//! Follows the records of a job: looks up the next one when it is due, writes it to the files, and signals the tasks.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    time::{Duration, SystemTime},
};

use ffi::{Flux, PendingFuture, Plugin, Shell, ShellLogLevel, Watcher};
use seal::{Opened, Renewal, TokenFiles};
use shell::{LOOKUP_TIMEOUT, Reader, Settings, look_up};

/// The sealed records of jobs with a workflow token.
pub(crate) static READER: Reader = Reader {
    name: c"workflow-token",
    key: seal::key::WORKFLOW_TOKEN,
    what: "workflow token",
};

/// Follows the records of one job on one node. Dropping it stops this and removes the files.
pub(crate) struct Follower {
    plugin: Plugin<'static>,
    flux: Flux<'static>,
    settings: Settings,
    files: TokenFiles,
    renewal: RefCell<Renewal>,
    next: RefCell<Option<Step>>,
}

/// The step in progress. Dropping it cancels the step.
enum Step {
    Timer(#[expect(dead_code, reason = "held until dropped")] Watcher),
    LookUp(#[expect(dead_code, reason = "held until dropped")] PendingFuture),
}

impl Follower {
    /// Writes the first record to files. If that fails, logs the error and returns None: the environment still contains
    /// the values.
    pub fn begin(
        plugin: Plugin<'static>,
        shell: &Shell<'static>,
        settings: Settings,
        opened: &Opened,
    ) -> Option<Rc<Self>> {
        if opened.renewal.files.is_empty() {
            return None;
        }
        let (flux, job) = (shell.flux()?, shell.job().ok()?);
        let created = TokenFiles::create(job.jobid, &opened.variables, &opened.renewal);
        let written = created.and_then(|files| {
            for (name, path) in files.variables(&opened.variables, &opened.renewal) {
                shell.set_env(
                    &name,
                    &std::ffi::CString::new(path.into_os_string().into_encoded_bytes())?,
                )?;
            }
            Ok(files)
        });
        let files = match written {
            Ok(files) => files,
            Err(e) => {
                let line = format!("the token of this job is not renewed, because its file could not be written: {e}");
                shell.log(READER.name, ShellLogLevel::Warn, &line);
                return None;
            }
        };
        let follower = Rc::new(Self {
            plugin,
            flux,
            settings,
            files,
            renewal: RefCell::new(opened.renewal.clone()),
            next: RefCell::default(),
        });
        follower.wait_until_due();
        Some(follower)
    }

    /// Returns the names of the variables that contain paths of files.
    pub fn variables(&self, opened: &Opened) -> Vec<String> {
        let named = self.files.variables(&opened.variables, &opened.renewal);
        named.into_iter().map(|(name, _)| name).collect()
    }

    /// Looks up the next record soon after it is due, with a random delay for each node.
    fn wait_until_due(self: &Rc<Self>) {
        let due = self.renewal.borrow().look_up_in(SystemTime::now(), fastrand::f64());
        if let Some(due) = due {
            self.wait(due);
        }
    }

    fn wait_again(self: &Rc<Self>) {
        let pause = self.renewal.borrow().look_up_again_in(SystemTime::now());
        self.wait(pause);
    }

    fn wait(self: &Rc<Self>, time: Duration) {
        let weak = Rc::downgrade(self);
        let timer = self
            .flux
            .after(time.as_secs_f64(), move || with(&weak, |me| me.look_up()));
        self.replace(timer.map(Step::Timer));
    }

    fn look_up(self: &Rc<Self>) {
        let Some(shell) = self.plugin.shell() else { return };
        let Ok(job) = shell.job() else { return };
        let weak = Rc::downgrade(self);
        let lookup = look_up(&shell, job.jobid, READER.key).and_then(|lookup| {
            lookup.then(LOOKUP_TIMEOUT, move |lookup| {
                with(&weak, |me| {
                    // Keep the future alive until the callback returns.
                    let done = me.next.take();
                    me.answered(&shell, READER.open_now(&shell, &me.settings, &lookup));
                    drop(done);
                });
            })
        });
        self.replace(lookup.map(Step::LookUp));
    }

    fn answered(self: &Rc<Self>, shell: &Shell<'_>, opened: Result<Option<Opened>, String>) {
        let log = |line: &str| shell.log(READER.name, ShellLogLevel::Warn, line);
        let is_next = |opened: &Opened| opened.renewal.generation > self.renewal.borrow().generation;
        match opened {
            Ok(Some(opened)) if is_next(&opened) => match self.files.write(&opened.variables, &opened.renewal) {
                Ok(()) => {
                    let signal = opened.renewal.signal;
                    self.renewal.replace(opened.renewal);
                    if let Some(signal) = signal {
                        shell.kill_tasks(signal);
                    }
                    return self.wait_until_due();
                }
                Err(e) => log(&format!(
                    "the new token could not be written to its file: {e}: trying again"
                )),
            },
            // The token has not been renewed yet.
            Ok(_) => {}
            Err(why) => log(&format!("{why}: trying again")),
        }
        self.wait_again();
    }

    fn replace(&self, step: std::io::Result<Step>) {
        match step {
            Ok(step) => drop(self.next.replace(Some(step))),
            Err(e) => {
                if let Some(shell) = self.plugin.shell() {
                    let line = format!("the token of this job is not renewed on this node: {e}");
                    shell.log(READER.name, ShellLogLevel::Warn, &line);
                }
            }
        }
    }
}

fn with(weak: &Weak<Follower>, f: impl FnOnce(&Rc<Follower>)) {
    if let Some(follower) = weak.upgrade() {
        f(&follower);
    }
}
