// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bench-inline.so`: the simplest plugin that could deliver, for comparison only. It calls munge_encode(3) in
//! `job.state.run`, on the thread of the job manager, which stands still as long as munged does.
//!
//! Its `conf` has `socket`, that of munged, and `path`, the file with the token. Without a socket it seals nothing, and
//! commits what is in the file: below what this takes, nothing can be that keeps something in the KVS for each job.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::CStr,
    fs, io,
    path::Path,
    rc::Rc,
    time::Instant,
};

use ffi::{
    Args, JobId, Jobtap, LogLevel, PendingFuture, Plugin, PluginError, State, Transaction, guard, raw::flux_plugin_t,
};
use seal::{Munge, Owner, Record, Secret, Variables};
use serde_json::json;

/// The key of the records, in the KVS directory of the job.
const KEY: &CStr = c"workflow-token";

const PROLOG: &CStr = c"workflow-token";

struct Inline {
    jobtap: Jobtap<'static>,
    munge: Option<Munge>,
    path: String,
    commits: Rc<RefCell<HashMap<JobId, PendingFuture>>>,
    longest: Cell<u64>,
}

// A benchmark that panics has failed.
impl State for Inline {}

impl Inline {
    fn run(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let began = Instant::now();
        if let Some((job, uid, _)) = args.job_owner_state()
            && args.has(&["jobspec", "attributes", "system", "workflow"])
            && let Err(e) = self.deliver(job, uid)
        {
            self.jobtap.flux().log(LogLevel::Err, &format!("bench-inline: {e}"));
        }
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest.set(self.longest.get().max(took));
        Ok(())
    }

    fn deliver(&self, job: JobId, uid: u32) -> io::Result<()> {
        self.jobtap.prolog_start(PROLOG)?;
        let value = fs::read_to_string(&self.path)?;
        let value = match &self.munge {
            Some(munge) => seal(munge, Owner { jobid: job.0, uid }, value)?,
            None => value,
        };
        let mut transaction = Transaction::new()?;
        transaction.put(&job.kvs_key(KEY)?, &value)?;
        let (jobtap, commits) = (self.jobtap, self.commits.clone());
        let commit = self.jobtap.flux().commit(transaction)?.then(60.0, move |future| {
            let status = i32::from(future.get().is_err());
            // What fails is left in its prolog, and the benchmark ends by its own time limit.
            let _ = jobtap.prolog_finish(job, PROLOG, status);
            let done = commits.borrow_mut().remove(&job);
            drop(done);
        })?;
        self.commits.borrow_mut().insert(job, commit);
        Ok(())
    }
}

fn seal(munge: &Munge, owner: Owner, token: String) -> io::Result<String> {
    let mut variables = Variables::new();
    let token = Secret::from(token);
    variables.insert("DW_WORKFLOW_TOKEN", token).map_err(io::Error::other)?;
    let record = Record::seal(munge, owner, 0, &variables, &Default::default()).map_err(io::Error::other)?;
    Ok(record.to_json())
}

/// What the job manager calls when it has loaded the object, flux-jobtap-plugins(7).
///
/// # Safety
/// `p` is the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    guard(-1, || {
        // SAFETY: the plugin lives until its object is unmapped, and everything that keeps it is destroyed before.
        let plugin = unsafe { Plugin::borrow(p) };
        load(plugin).map_or(-1, |()| 0)
    })
}

fn load(plugin: Plugin<'static>) -> io::Result<()> {
    plugin.set_name(c"bench-inline")?;
    let jobtap = Jobtap::new(plugin).ok_or_else(|| io::Error::other("it is a plugin for the job manager"))?;
    let conf = plugin.conf()?;
    let munge = conf["socket"].as_str().map(|path| Munge::new(Some(Path::new(path))));
    let inline = plugin.keep(Inline {
        jobtap,
        munge: munge.transpose().map_err(io::Error::other)?,
        path: conf["path"].as_str().unwrap_or_default().to_owned(),
        commits: Rc::default(),
        longest: Cell::new(0),
    })?;
    plugin.handle(c"job.state.run", &inline, |p: &Inline, _, args| p.run(args))?;
    plugin.handle(c"plugin.query", &inline, |p: &Inline, _, args| {
        args.answer(&json!({ "callback-max": p.longest.get() }));
        Ok(())
    })
}
