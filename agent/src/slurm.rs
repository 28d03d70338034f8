// SPDX-License-Identifier: MIT OR Apache-2.0

//! The agent of a Slurm cluster.
//!
//! PrologSlurmctld passes on a job ([`controller`]). The engine delivers its sealed record, which is stored until the
//! job has ended ([`store`]). The nodes of the job request the record ([`nodes`]) and its renewals ([`renewals`]).

mod addresses;
mod controller;
mod ends;
mod facts;
mod jobs;
mod nodelist;
mod nodes;
mod questions;
mod renewals;
mod reports;
mod squeue;
mod store;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use config::{Part, Slurm};
use delivery::{Engine, Shared};
use protocol::{Answer, Ask, Configure};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};

use crate::{
    issuer::Issuer,
    listener::Listening,
    revocations,
    serve::is_allowed,
    service::{Answers, Sockets},
    slurm::store::Store,
    validity,
};

/// The pause after an error of accept(2), such as a lack of descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// The interval at which the agent removes records of jobs whose end was not reported.
const PURGE: Duration = Duration::from_secs(600);

/// The state that all connections share.
struct Site {
    path: PathBuf,
    program: PathBuf,
    shared: Arc<Shared>,
    /// Held by a reload.
    reloading: Mutex<()>,
    /// The active configuration.
    current: RwLock<Arc<Current>>,
    store: Store,
    nodes: nodes::Capacity,
    /// Limits the concurrent queries to Slurm about jobs that start or are renewed.
    asking: Semaphore,
    /// The recent answers of Slurm about the ends of jobs.
    ends: ends::Ends,
    addresses: addresses::Addresses,
    renewals: renewals::Renewals,
    sockets: Sockets,
}

/// A valid configuration, and the objects that it describes.
struct Current {
    engine: Arc<Engine>,
    config: config::Config,
    slurm: Slurm,
    munge: seal::Munge,
    revocations: revocations::Store,
    issuer: Option<Arc<Issuer>>,
}

impl Site {
    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves a cluster. Reloads the configuration on SIGHUP.
///
/// # Errors
/// The start failed.
pub async fn serve(path: &Path, passed: Option<std::os::unix::net::UnixListener>) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("the path of the program: {e}"))?;
    let shared = Arc::default();
    let current = load(path, &program, &shared)?;
    let listening = match passed {
        Some(socket) => Listening::of_systemd(socket),
        None => {
            let path = &current.slurm.socket;
            let other = || format!("{}: another agent serves it", path.display());
            Listening::bind(path)?.ok_or_else(other)?
        }
    };
    let (socket, _bound) = listening.into_parts();
    socket.set_nonblocking(true).map_err(|e| format!("the socket: {e}"))?;
    let controller = UnixListener::from_std(socket).map_err(|e| format!("the socket: {e}"))?;
    let address = current.slurm.listen;
    let nodes = TcpListener::bind(address).await;
    let nodes = nodes.map_err(|e| format!("{address}, the key listen of the table slurm: {e}"))?;
    let site = Arc::new(Site {
        path: path.to_owned(),
        program,
        shared,
        store: Store::open(&current.slurm.store)?,
        nodes: nodes::Capacity::default(),
        asking: Semaphore::new(squeue::AT_ONCE),
        ends: ends::Ends::default(),
        addresses: addresses::Addresses::default(),
        renewals: renewals::Renewals::default(),
        sockets: Sockets::default(),
        reloading: Mutex::default(),
        current: RwLock::new(Arc::new(current)),
    });
    site.serve_service()?;
    let reload = signal(SignalKind::hangup()).map_err(|e| format!("signals: {e}"))?;
    // Ignore the result: systemd logs a missing notification.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    eprintln!(
        "workflow-token-agent: serves cluster {} at {address}",
        site.current().slurm.cluster
    );
    run(&site, &controller, nodes, reload).await
}

async fn run(site: &Arc<Site>, controller: &UnixListener, nodes: TcpListener, mut reload: Signal) -> ! {
    let mut tasks = JoinSet::new();
    tasks.spawn(purge(Arc::clone(site)));
    tasks.spawn(renewals::follow_all(Arc::clone(site)));
    tasks.spawn(keep_fresh(Arc::clone(site)));
    tasks.spawn(nodes::accept(nodes, Arc::clone(site)));
    loop {
        tokio::select! {
            accepted = controller.accept() => match accepted {
                Ok((stream, _)) => {
                    if is_allowed(&stream) {
                        tasks.spawn(controller::serve(stream, Arc::clone(site)));
                    }
                }
                Err(e) => {
                    eprintln!("workflow-token-agent: a connection of the controller could not be accepted: {e}");
                    sleep(AFTER_ERROR).await;
                }
            },
            Some(_) = tasks.join_next() => {}
            _ = reload.recv() => {
                let site = Arc::clone(site);
                // The reload runs on a thread, because the name service and the file system may hang.
                tasks.spawn(async move { drop(tokio::task::spawn_blocking(move || site.reload()).await) });
            }
        }
    }
}

impl Answers for Site {
    async fn answer(self: &Arc<Self>, ask: Ask) -> Answer {
        questions::answer(self, ask).await
    }
}

impl Site {
    /// Serves the token service as the active configuration requires. Blocks.
    ///
    /// # Errors
    /// For the operator: the socket cannot be served.
    fn serve_service(self: &Arc<Self>) -> Result<(), String> {
        self.sockets
            .serve(0, self.current().config.agent.service.as_ref(), self)
    }

    /// Reloads the configuration. If the new one is invalid, logs the error and keeps the former one.
    fn reload(self: &Arc<Self>) {
        // One after the other, so that the last signal has the last word, even if the name service delays the one before.
        let _reloading = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e: String| eprintln!("workflow-token-agent: {e}: the former configuration stays");
        let loaded = match load(&self.path, &self.program, &self.shared) {
            Ok(loaded) => loaded,
            Err(e) => return failed(e),
        };
        let former = self.current();
        let fixed = |slurm: &Slurm| {
            (
                slurm.cluster.clone(),
                slurm.listen,
                slurm.socket.clone(),
                slurm.store.clone(),
            )
        };
        if fixed(&loaded.slurm) != fixed(&former.slurm) {
            return failed("the keys cluster, listen, socket and store of the table slurm need a restart".to_owned());
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        if let Err(e) = self.serve_service() {
            eprintln!("workflow-token-agent: {e}");
        }
        eprintln!("workflow-token-agent: the configuration was reloaded");
    }
}

fn load(path: &Path, program: &Path, shared: &Arc<Shared>) -> Result<Current, String> {
    let site = slurm::Site::read(path)?;
    let uid = nix::unistd::geteuid().as_raw();
    if site.agent_uid()? != uid {
        let expected = &site.slurm.user;
        return Err(format!(
            "the agent runs as uid {uid}, and nodes accept only records that {expected} sealed: start it as {expected}, or \
             correct the key user of the table slurm"
        ));
    }
    let configure = Configure {
        generation: 0,
        conf: site.conf.to_string(),
        overrides: "null".to_owned(),
        path: Some(path.to_owned()),
        part: Part::Tokens,
        instance: site.slurm.cluster.clone(),
    };
    let engine = Engine::new(&configure, program, shared, Box::new(|_, _| {}));
    let engine = Arc::new(engine.map_err(|e| format!("{}: {e}", path.display()))?);
    let issuer = Issuer::of(&engine)?;
    if let Some(Err(e)) = issuer.as_ref().map(|issuer| issuer.check()) {
        eprintln!("workflow-token-agent: {e}: until then, jobs that need a token of the issuer fail [source-failed]");
    }
    Ok(Current {
        munge: site.config.munge_client().map_err(|e| e.to_string())?,
        issuer,
        engine,
        revocations: match validity::open(site.config.agent.revocations.as_deref()) {
            Some(Err(e)) => return Err(e),
            revocations => revocations,
        },
        config: site.config,
        slurm: site.slurm,
    })
}

/// Keeps the facts about project members of the active configuration fresh.
async fn keep_fresh(site: Arc<Site>) {
    loop {
        let current = site.current();
        tokio::select! {
            () = current.engine.keep_fresh() => sleep(PURGE).await,
            () = replaced(&site, &current) => {}
        }
    }
}

async fn replaced(site: &Site, current: &Arc<Current>) {
    while Arc::ptr_eq(current, &site.current()) {
        sleep(Duration::from_secs(1)).await;
    }
}

/// Removes the records of jobs whose end no prolog or epilog reported.
async fn purge(site: Arc<Site>) {
    loop {
        match squeue::active_jobs().await {
            Ok(active) => {
                let site = Arc::clone(&site);
                let purge = move || site.store.purge(&active);
                let _ = tokio::task::spawn_blocking(purge).await;
            }
            Err(e) => eprintln!("workflow-token-agent: records of jobs that have ended are kept: {e}"),
        }
        sleep(PURGE).await;
    }
}
