//! jobtap: the plugins of the job manager.
//!
//! Of Flux: `flux-jobtap-plugins(7)`, with its order of callbacks at load, at a change of the configuration and at
//! removal. A plugin is known by the file name of its shared object, and a second one of that name is refused only
//! after its `flux_plugin_init` has run.

use std::cell::RefCell;
use std::rc::Rc;

use ffi::raw::{
    flux_jobid_t, flux_msg_handler_f, flux_msg_handler_t, flux_msg_t, flux_plugin_arg_t, flux_plugin_t, flux_t,
};
use libc::{c_char, c_int, c_void};
use serde_json::{Value, json};

use crate::c::{self, cstring, fail, set_errno};
use crate::future::Failure;
use crate::handle::Message;
use crate::instance::Instance;
use crate::job::{Job, State};
use crate::jobid::JobId;
use crate::plugin::{Home, Plugin, PluginArg, plugin};

/// Stands for the job that the current callback is about.
const CURRENT_JOB: flux_jobid_t = flux_jobid_t::MAX;

/// The plugins, in the order in which they were loaded.
#[derive(Default)]
pub struct Jobtap {
    plugins: RefCell<Vec<Rc<Plugin>>>,
    services: RefCell<Vec<Rc<Service>>>,
    /// The jobs that callbacks are about, the innermost last.
    current: RefCell<Vec<Rc<Job>>>,
}

struct Service {
    plugin: *const Plugin,
    topic: String,
    callback: unsafe extern "C" fn(*mut flux_t, *mut flux_msg_handler_t, *const flux_msg_t, *mut c_void),
    arg: *mut c_void,
}

impl Jobtap {
    /// Loads a plugin, and makes it aware of all active jobs.
    pub fn load(&self, instance: &Rc<Instance>, path: &str, conf: &Value) -> Result<String, Failure> {
        // dlopen(3) would search for a name without a slash.
        let path = if path.contains('/') {
            path.to_owned()
        } else {
            format!("./{path}")
        };
        let home = Home::Jobtap(instance.me.clone());
        let plugin = match Plugin::load(&path, conf, home, instance.handle.reactor.clone()) {
            Ok(plugin) => plugin,
            Err((plugin, failure)) => {
                plugin.into_iter().for_each(|plugin| self.unload(&plugin));
                return Err(failure);
            }
        };
        if let Err(failure) = self.accept(instance, &plugin) {
            self.unload(&plugin);
            return Err(failure);
        }
        self.plugins.borrow_mut().push(plugin.clone());
        for job in instance.active_jobs() {
            self.introduce(instance, &plugin, &job);
        }
        Ok(plugin.basename())
    }

    fn accept(&self, instance: &Rc<Instance>, plugin: &Rc<Plugin>) -> Result<(), Failure> {
        let basename = plugin.basename();
        if plugin.name().contains(['/', '.']) {
            plugin.set_name(basename.split('.').next().unwrap_or_default());
        }
        if self.find(&basename).is_some() {
            return Err(Failure::new(libc::EEXIST, format!("{basename} already loaded")));
        }
        conf_update(plugin, &instance.config())
    }

    fn introduce(&self, instance: &Rc<Instance>, plugin: &Rc<Plugin>, job: &Rc<Job>) {
        let args = match PluginArg::new(&job.args()) {
            Ok(args) => args,
            Err(error) => return instance.log(libc::LOG_ERR, format_args!("{}: jobtap: {error}", job.id)),
        };
        self.current.borrow_mut().push(job.clone());
        let _ = plugin.call("job.create", Some(&args));
        let _ = plugin.call("job.new", Some(&args));
        if job.state.get() == State::Depend {
            let _ = plugin.call("job.state.depend", Some(&args));
        }
        self.current.borrow_mut().pop();
    }

    /// Removes plugins by name, by glob, or "all" of them.
    pub fn remove(&self, name: &str) -> Result<usize, Failure> {
        let matches = |plugin: &Rc<Plugin>| {
            let basename = plugin.basename();
            let (pattern, text) = (cstring(name), cstring(basename.clone()));
            // SAFETY: both are C strings.
            let glob = unsafe { libc::fnmatch(pattern.as_ptr(), text.as_ptr(), libc::FNM_PERIOD) == 0 };
            name == "all" || name == basename || (name.contains(['*', '?', '[']) && glob)
        };
        let plugins = std::mem::take(&mut *self.plugins.borrow_mut());
        let (gone, kept): (Vec<_>, Vec<_>) = plugins.into_iter().partition(matches);
        *self.plugins.borrow_mut() = kept;
        if gone.is_empty() && name != "all" {
            return Err(Failure::new(libc::ENOENT, "Failed to find plugin to remove"));
        }
        gone.iter().for_each(|plugin| self.unload(plugin));
        Ok(gone.len())
    }

    /// Removes all plugins.
    pub fn unload_all(&self) {
        let _ = self.remove("all");
    }

    fn unload(&self, plugin: &Rc<Plugin>) {
        self.services
            .borrow_mut()
            .retain(|service| service.plugin != Rc::as_ptr(plugin));
        plugin.destroy();
    }

    fn find(&self, basename: &str) -> Option<Rc<Plugin>> {
        self.plugins
            .borrow()
            .iter()
            .find(|plugin| plugin.basename() == basename)
            .cloned()
    }

    /// The names of the plugins.
    pub fn list(&self) -> Vec<String> {
        self.plugins.borrow().iter().map(|plugin| plugin.basename()).collect()
    }

    /// Tells all plugins of a new configuration. The first that refuses it ends that.
    pub fn conf_update_all(&self, config: &Value) -> Result<(), Failure> {
        let plugins = self.plugins.borrow().clone();
        plugins.iter().try_for_each(|plugin| conf_update(plugin, config))
    }

    /// What `flux jobtap query` shows.
    pub fn query(&self, name: &str) -> Result<Value, Failure> {
        let plugin = self
            .find(name)
            .ok_or_else(|| Failure::new(libc::EINVAL, format!("{name}: plugin not found")))?;
        let known = json!({"name": name, "path": plugin.path()});
        let args = PluginArg::output(&known).map_err(|e| Failure::new(libc::EINVAL, e))?;
        match plugin.call("plugin.query", Some(&args)) {
            Ok(_) => Ok(args.results()),
            Err(()) => Err(Failure::new(libc::EINVAL, "plugin.query failed")),
        }
    }

    /// Calls all plugins about a job.
    pub fn call(&self, instance: &Rc<Instance>, job: &Rc<Job>, topic: &str, more: Value) {
        let Some((args, result)) = self.stack_call(instance, job, topic, more) else {
            return;
        };
        if result.is_err() {
            instance.log(libc::LOG_ERR, format_args!("jobtap: {topic}: callback returned error"));
        }
        match args.results().get("priority") {
            None => (),
            Some(priority) => match priority.as_i64() {
                Some(priority) if priority >= 0 => instance.prioritize(job, priority),
                Some(_) => (),
                None => {
                    let note = "arg_unpack: priority is not an integer";
                    instance.raise(job, topic, 4, note, instance.owner);
                }
            },
        }
    }

    /// Calls all plugins about a job that any of them may refuse.
    pub fn call_early(&self, instance: &Rc<Instance>, job: &Rc<Job>, topic: &str) -> Result<(), String> {
        match self.stack_call(instance, job, topic, Value::Null) {
            Some((args, Err(()))) => Err(args
                .errmsg()
                .unwrap_or_else(|| "rejected by job-manager plugin".to_owned())),
            _ => Ok(()),
        }
    }

    /// Calls the plugins one after the other until one fails. None if no plugin handles the topic.
    fn stack_call(
        &self,
        instance: &Rc<Instance>,
        job: &Rc<Job>,
        topic: &str,
        more: Value,
    ) -> Option<(PluginArg, Result<(), ()>)> {
        let plugins = self.plugins.borrow().clone();
        if !plugins.iter().any(|plugin| plugin.handles(topic)) {
            return None;
        }
        let mut input = job.args();
        if let (Value::Object(input), Value::Object(more)) = (&mut input, more) {
            input.extend(more);
        }
        let args = match PluginArg::new(&input) {
            Ok(args) => args,
            Err(error) => {
                instance.log(
                    libc::LOG_ERR,
                    format_args!("jobtap: {topic}: failed to create plugin args: {error}"),
                );
                return None;
            }
        };
        self.current.borrow_mut().push(job.clone());
        let result = plugins.iter().try_for_each(|plugin| {
            plugin.call(topic, Some(&args)).map(|_| ()).inspect_err(|()| {
                instance.log(
                    libc::LOG_DEBUG,
                    format_args!("jobtap: {}: {topic}: rc=-1", plugin.basename()),
                );
            })
        });
        self.current.borrow_mut().pop();
        Some((args, result))
    }

    /// Has a plugin answer a request. False if none serves the topic.
    pub fn serve(&self, instance: &Rc<Instance>, topic: &str, userid: u32, message: &Message) -> bool {
        let service = self
            .services
            .borrow()
            .iter()
            .find(|service| service.topic == topic)
            .cloned();
        let Some(service) = service else { return false };
        if userid != instance.owner {
            message.respond(Err(Failure::new(libc::EPERM, "Request requires owner credentials")));
            return true;
        }
        let mh = Rc::as_ptr(&service).cast_mut().cast();
        // SAFETY: the plugin gave this callback for this argument, and is loaded: its services go when it does.
        instance.handle.reactor.timed(topic, || unsafe {
            (service.callback)(instance.handle.as_ptr(), mh, message.as_ptr(), service.arg);
        });
        true
    }

    fn current(&self) -> Option<Rc<Job>> {
        self.current.borrow().last().cloned()
    }
}

fn conf_update(plugin: &Rc<Plugin>, config: &Value) -> Result<(), Failure> {
    let invalid = |text| Failure::new(libc::EINVAL, text);
    let args = PluginArg::input(&json!({"conf": config})).map_err(invalid)?;
    plugin.call("conf.update", Some(&args)).map(|_| ()).map_err(|()| {
        invalid(
            args.errmsg()
                .unwrap_or_else(|| format!("config rejected by {} jobtap plugin", plugin.name())),
        )
    })
}

/// The instance that a plugin is loaded in.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded.
unsafe fn instance_of(p: *mut flux_plugin_t) -> Option<Rc<Instance>> {
    // SAFETY: as promised by the caller.
    let instance = match unsafe { plugin(p) }.map(|plugin| &plugin.home) {
        Some(Home::Jobtap(instance)) => instance.upgrade(),
        _ => None,
    };
    if instance.is_none() {
        set_errno(libc::EINVAL);
    }
    instance
}

/// The instance of a plugin, and a job by its id or the current one.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded.
unsafe fn job_of(p: *mut flux_plugin_t, id: flux_jobid_t) -> Option<(Rc<Instance>, Rc<Job>)> {
    // SAFETY: as promised by the caller.
    let instance = unsafe { instance_of(p)? };
    let job = match id {
        CURRENT_JOB => instance.jobtap.current(),
        // A job that is refused at its submission is current, but may be in no list any more.
        id => instance
            .jobtap
            .current()
            .filter(|job| job.id.0 == id)
            .or_else(|| instance.job(JobId(id))),
    };
    match job {
        Some(job) => Some((instance, job)),
        None => {
            set_errno(libc::ENOENT);
            None
        }
    }
}

/// Like `job_of`, of an active job only.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded.
unsafe fn active_job_of(p: *mut flux_plugin_t, id: flux_jobid_t) -> Option<(Rc<Instance>, Rc<Job>)> {
    // SAFETY: as promised by the caller.
    let found = unsafe { job_of(p, id)? };
    if found.1.state.get() == State::Inactive {
        set_errno(libc::ENOENT);
        return None;
    }
    Some(found)
}

/// flux_jobtap_get_flux(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_get_flux(p: *mut flux_plugin_t) -> *mut flux_t {
    // SAFETY: the caller passes NULL or a loaded plugin.
    unsafe { instance_of(p) }.map_or(std::ptr::null_mut(), |instance| instance.handle.as_ptr())
}

/// flux_jobtap_service_register(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_service_register(
    p: *mut flux_plugin_t,
    method: *const c_char,
    cb: flux_msg_handler_f,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(instance), Some(plugin), Some(callback)) = (instance_of(p), plugin(p), cb) else {
            return fail(libc::EINVAL);
        };
        let name = plugin.name();
        if name.contains('/') {
            return fail(libc::EINVAL);
        }
        let name = name.strip_prefix('.').unwrap_or(&name);
        let topic = match c::string(method) {
            Some(method) => format!("job-manager.{name}.{method}"),
            None => format!("job-manager.{name}"),
        };
        instance.log(
            libc::LOG_DEBUG,
            format_args!("jobtap plugin {} registered method {topic}", plugin.basename()),
        );
        let service = Service {
            plugin: std::ptr::from_ref(plugin),
            topic,
            callback,
            arg,
        };
        instance.jobtap.services.borrow_mut().push(Rc::new(service));
    }
    0
}

/// flux_jobtap_prolog_start(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_prolog_start(p: *mut flux_plugin_t, description: *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(description), Some(instance)) = (c::string(description), instance_of(p)) else {
            return fail(libc::EINVAL);
        };
        let Some(job) = instance.jobtap.current() else {
            return fail(libc::EINVAL);
        };
        if job.start_pending.get() || job.state.get() == State::Cleanup {
            return fail(libc::EINVAL);
        }
        posted(instance.post(&job, "prolog-start", json!({"description": description})))
    }
}

/// flux_jobtap_prolog_finish(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_prolog_finish(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    description: *const c_char,
    status: c_int,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let Some((instance, job)) = active_job_of(p, id) else {
            return -1;
        };
        let Some(description) = c::string(description) else {
            return fail(libc::EINVAL);
        };
        if job.start_pending.get() {
            return fail(libc::EINVAL);
        }
        let context = json!({"description": description, "status": status});
        posted(instance.post(&job, "prolog-finish", context))
    }
}

fn posted(posted: bool) -> c_int {
    if posted { 0 } else { fail(libc::EINVAL) }
}

/// The tail of flux_jobtap_raise_exception(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn host_jobtap_raise(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    kind: *const c_char,
    severity: c_int,
    note: *const c_char,
) -> c_int {
    // SAFETY: the shim passes on what its caller gave, and a string of its own.
    unsafe {
        let Some((instance, job)) = active_job_of(p, id) else {
            return -1;
        };
        let (kind, note) = (c::string(kind).unwrap_or_default(), c::string(note).unwrap_or_default());
        posted(instance.raise(&job, &kind, i64::from(severity), &note, instance.owner))
    }
}

/// flux_jobtap_job_lookup(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_job_lookup(p: *mut flux_plugin_t, id: flux_jobid_t) -> *mut flux_plugin_arg_t {
    // SAFETY: the caller passes NULL or a loaded plugin.
    let args = unsafe { job_of(p, id) }.map(|(_, job)| PluginArg::new(&job.args()));
    match args {
        Some(Ok(args)) => args.into_raw(),
        Some(Err(_)) => {
            set_errno(libc::EINVAL);
            std::ptr::null_mut()
        }
        None => std::ptr::null_mut(),
    }
}
