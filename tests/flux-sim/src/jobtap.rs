// SPDX-License-Identifier: MIT OR Apache-2.0

//! jobtap: the plugins of the job manager.
//!
//! Imitates `flux-jobtap-plugins(7)`, with its order of callbacks at load, at a change of the configuration and at
//! removal. A plugin is identified by the file name of its shared object. A second plugin of that name is rejected only
//! after its `flux_plugin_init` has run.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use ffi::raw::{
    flux_jobid_t, flux_msg_handler_f, flux_msg_handler_t, flux_msg_t, flux_plugin_arg_t, flux_plugin_t, flux_t,
};
use libc::{c_char, c_int, c_void};
use serde_json::{Map, Value, json};

use crate::c::{self, cstring, fail, set_errno};
use crate::eventlog::Entry;
use crate::future::Failure;
use crate::handle::Message;
use crate::instance::Instance;
use crate::job::{self, Job, State};
use crate::jobid::JobId;
use crate::plugin::{Home, Plugin, PluginArg, plugin};

/// Denotes the job that the current callback concerns.
const CURRENT_JOB: flux_jobid_t = flux_jobid_t::MAX;

/// The plugins, in the order in which they were loaded.
#[derive(Default)]
pub struct Jobtap {
    plugins: RefCell<Vec<Rc<Plugin>>>,
    services: RefCell<Vec<Rc<Service>>>,
    /// The jobs that callbacks concern, the innermost last.
    current: RefCell<Vec<Rc<Job>>>,
}

/// The maximum length of a callback's topic, with its NUL.
const TOPIC_MAX: usize = 64;

/// The plugins' response to the update of a key.
#[derive(Default)]
pub struct Consent {
    /// Set if the result need not be validated.
    pub validated: bool,
    /// Further updates that the plugins request.
    pub updates: Map<String, Value>,
}

/// The longest text of an error, in bytes (`flux_error_t`).
const ERROR_MAX: usize = 159;

struct Service {
    plugin: *const Plugin,
    topic: String,
    callback: unsafe extern "C" fn(*mut flux_t, *mut flux_msg_handler_t, *const flux_msg_t, *mut c_void),
    arg: *mut c_void,
    /// Requests passed to the plugin. It may keep them, and answer later.
    given: RefCell<Vec<Weak<Message>>>,
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
                plugin.into_iter().for_each(|plugin| self.unload(instance, &plugin));
                return Err(failure);
            }
        };
        if let Err(failure) = self.accept(instance, &plugin) {
            self.unload(instance, &plugin);
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

    /// Removes plugins by name or glob, or "all" of them.
    pub fn remove(&self, instance: &Rc<Instance>, name: &str) -> Result<usize, Failure> {
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
        gone.iter().for_each(|plugin| self.unload(instance, plugin));
        Ok(gone.len())
    }

    /// Removes all plugins.
    pub fn unload_all(&self, instance: &Rc<Instance>) {
        let _ = self.remove(instance, "all");
    }

    fn unload(&self, instance: &Rc<Instance>, plugin: &Rc<Plugin>) {
        let services = self.services.take();
        let (gone, kept): (Vec<_>, Vec<_>) = services
            .into_iter()
            .partition(|service| service.plugin == Rc::as_ptr(plugin));
        *self.services.borrow_mut() = kept;
        instance.unsubscribe(plugin);
        plugin.destroy();
        // In Flux, the requester would wait for ever. Here it receives an error, so that no test hangs.
        for message in gone.iter().flat_map(|service| service.given.take()) {
            if let Some(message) = message.upgrade() {
                let text = format!("{}: the plugin was removed before it responded", message.topic());
                message.respond(Err(Failure::new(libc::ENOSYS, text)));
            }
        }
    }

    fn find(&self, basename: &str) -> Option<Rc<Plugin>> {
        self.plugins
            .borrow()
            .iter()
            .find(|plugin| plugin.basename() == basename)
            .cloned()
    }

    /// Returns the names of the plugins.
    pub fn list(&self) -> Vec<String> {
        self.plugins.borrow().iter().map(|plugin| plugin.basename()).collect()
    }

    /// Notifies all plugins of a new configuration. Stops at the first that rejects it.
    pub fn conf_update_all(&self, config: &Value) -> Result<(), Failure> {
        let plugins = self.plugins.borrow().clone();
        plugins.iter().try_for_each(|plugin| conf_update(plugin, config))
    }

    /// Returns the output of `flux jobtap query`.
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

    /// Calls all plugins about a job that any of them may reject.
    pub fn call_early(&self, instance: &Rc<Instance>, job: &Rc<Job>, topic: &str, more: Value) -> Result<(), String> {
        match self.stack_call(instance, job, topic, more) {
            Some((args, Err(()))) => Err(error_of(&args, "rejected by job-manager plugin")),
            _ => Ok(()),
        }
    }

    /// Requests the consent of all plugins to an update of a key. Returns None if no plugin handles it.
    pub fn call_update(
        &self,
        instance: &Rc<Instance>,
        job: &Rc<Job>,
        key: &str,
        value: &Value,
        userid: u32,
    ) -> Result<Option<Consent>, String> {
        // FLUX_ROLE_OWNER, FLUX_ROLE_USER
        let rolemask = if userid == instance.owner { 1 } else { 2 };
        let cred = json!({"userid": userid, "rolemask": rolemask});
        let more = json!({"cred": cred, "key": key, "value": value});
        match self.stack_call(instance, job, &format!("job.update.{key}"), more) {
            None => Ok(None),
            Some((args, Err(()))) => Err(error_of(&args, "update rejected by job-manager plugin")),
            Some((args, Ok(()))) => {
                let results = args.results();
                Ok(Some(Consent {
                    validated: results["validated"].as_i64().is_some_and(|validated| validated != 0),
                    updates: results["updates"].as_object().cloned().unwrap_or_default(),
                }))
            }
        }
    }

    /// Calls the plugins one after the other until one fails. Returns None if no plugin handles the topic.
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
        self.call_each(instance, &plugins, job, topic, more)
    }

    /// Notifies the plugins that subscribed of an event, once for each subscription. The job has already changed.
    pub fn notify_subscribers(&self, instance: &Rc<Instance>, job: &Rc<Job>, entry: &Entry) {
        let subscribers = job.subscribers.borrow().clone();
        if subscribers.is_empty() {
            return;
        }
        let (name, topic) = (&entry.name, format!("job.event.{}", entry.name));
        let called = (topic.len() < TOPIC_MAX)
            .then(|| self.call_each(instance, &subscribers, job, &topic, json!({"entry": entry.object()})))
            .flatten();
        if !matches!(called, Some((_, Ok(())))) {
            let id = job.id;
            instance.log(
                libc::LOG_ERR,
                format_args!("jobtap: event.{name} callback failed for job {id}"),
            );
        }
    }

    fn call_each(
        &self,
        instance: &Rc<Instance>,
        plugins: &[Rc<Plugin>],
        job: &Rc<Job>,
        topic: &str,
        more: Value,
    ) -> Option<(PluginArg, Result<(), ()>)> {
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

    /// Returns whether a plugin serves a topic.
    pub fn serves(&self, topic: &str) -> bool {
        self.service(topic).is_some()
    }

    fn service(&self, topic: &str) -> Option<Rc<Service>> {
        let services = self.services.borrow();
        services.iter().find(|service| service.topic == topic).cloned()
    }

    /// Passes a request to the plugin that serves its topic. The plugin answers now or later.
    pub fn serve(&self, instance: &Rc<Instance>, topic: &str, userid: u32, message: &Rc<Message>) {
        let Some(service) = self.service(topic) else { return };
        if userid != instance.owner {
            message.respond(Err(Failure::new(libc::EPERM, "Request requires owner credentials")));
            return;
        }
        service.given.borrow_mut().retain(|given| given.strong_count() > 0);
        service.given.borrow_mut().push(Rc::downgrade(message));
        let mh = Rc::as_ptr(&service).cast_mut().cast();
        // SAFETY: the plugin supplied this callback for this argument and is still loaded: its services are removed
        // with it.
        instance.handle.reactor.timed(topic, || unsafe {
            (service.callback)(instance.handle.as_ptr(), mh, Rc::as_ptr(message).cast(), service.arg);
        });
    }

    fn current(&self) -> Option<Rc<Job>> {
        self.current.borrow().last().cloned()
    }
}

/// Returns the plugin's error text, truncated as in Flux.
fn error_of(args: &PluginArg, default: &str) -> String {
    let mut text = args.errmsg().unwrap_or_else(|| default.to_owned());
    if text.len() > ERROR_MAX {
        let mut end = ERROR_MAX - 1;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('+');
    }
    text
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

/// Returns the instance in which a plugin is loaded.
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

/// Returns the instance of a plugin, and a job by its id or the current one.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded.
unsafe fn job_of(p: *mut flux_plugin_t, id: flux_jobid_t) -> Option<(Rc<Instance>, Rc<Job>)> {
    // SAFETY: as promised by the caller.
    let instance = unsafe { instance_of(p)? };
    let job = match id {
        CURRENT_JOB => instance.jobtap.current(),
        // A job that is rejected at submission is current, but may be in no list any more.
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

/// Like `job_of`, for active jobs only.
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
            given: RefCell::default(),
        };
        instance.jobtap.services.borrow_mut().push(Rc::new(service));
    }
    0
}

/// Returns the result of a C function that posts an event.
fn posted(posted: Result<(), c_int>) -> c_int {
    match posted {
        Ok(()) => 0,
        Err(errnum) => fail(errnum),
    }
}

/// Starts a prolog or an epilog of the current job.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded, `description` NULL or a C string.
unsafe fn perilog_start(p: *mut flux_plugin_t, description: *const c_char, prolog: bool) -> c_int {
    // SAFETY: as promised by the caller.
    let (instance, description) = unsafe { (instance_of(p), c::string(description)) };
    let Some((instance, description)) = instance.zip(description) else {
        return fail(libc::EINVAL);
    };
    let Some(job) = instance.jobtap.current() else {
        return fail(libc::EINVAL);
    };
    let cleanup = job.state.get() == State::Cleanup;
    let (event, possible) = match prolog {
        true => ("prolog-start", !cleanup && !job.start_pending.get()),
        false => ("epilog-start", cleanup),
    };
    match possible {
        true => posted(instance.try_post(&job, event, json!({"description": description}))),
        false => fail(libc::EINVAL),
    }
}

/// Finishes a prolog or an epilog of an active job.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded, `description` NULL or a C string.
unsafe fn perilog_finish(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    description: *const c_char,
    status: c_int,
    prolog: bool,
) -> c_int {
    // SAFETY: as promised by the caller.
    let (found, description) = unsafe { (active_job_of(p, id), c::string(description)) };
    let Some((instance, job)) = found else {
        return -1;
    };
    let (event, possible) = match prolog {
        true => ("prolog-finish", !job.start_pending.get()),
        false => ("epilog-finish", job.state.get() == State::Cleanup),
    };
    match description.filter(|_| possible) {
        Some(description) => {
            let context = json!({"description": description, "status": status});
            posted(instance.try_post(&job, event, context))
        }
        None => fail(libc::EINVAL),
    }
}

/// flux_jobtap_prolog_start(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_prolog_start(p: *mut flux_plugin_t, description: *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { perilog_start(p, description, true) }
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
    unsafe { perilog_finish(p, id, description, status, true) }
}

/// flux_jobtap_epilog_start(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_epilog_start(p: *mut flux_plugin_t, description: *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { perilog_start(p, description, false) }
}

/// flux_jobtap_epilog_finish(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_epilog_finish(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    description: *const c_char,
    status: c_int,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { perilog_finish(p, id, description, status, false) }
}

/// Posts an event of a dependency. Unlike elsewhere, `FLUX_JOBTAP_CURRENT_JOB` is not accepted here.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded, `description` NULL or a C string.
unsafe fn dependency(p: *mut flux_plugin_t, id: flux_jobid_t, description: *const c_char, add: bool) -> c_int {
    // SAFETY: as promised by the caller.
    let (instance, description) = unsafe { (instance_of(p), c::string(description)) };
    let Some(instance) = instance else {
        return fail(libc::EINVAL);
    };
    let current = instance.jobtap.current().filter(|job| job.id.0 == id);
    let active = || instance.job(JobId(id)).filter(|job| job.state.get() != State::Inactive);
    let Some(job) = current.or_else(active) else {
        return fail(libc::ENOENT);
    };
    let Some(description) = description.filter(|_| matches!(job.state.get(), State::New | State::Depend)) else {
        return fail(libc::EINVAL);
    };
    if add && job.dependencies.borrow().contains(&description) {
        return 0;
    }
    let event = if add { "dependency-add" } else { "dependency-remove" };
    posted(instance.try_post(&job, event, json!({"description": description})))
}

/// flux_jobtap_dependency_add(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_dependency_add(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    description: *const c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { dependency(p, id, description, true) }
}

/// flux_jobtap_dependency_remove(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_dependency_remove(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    description: *const c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { dependency(p, id, description, false) }
}

/// flux_jobtap_job_subscribe(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_job_subscribe(p: *mut flux_plugin_t, id: flux_jobid_t) -> c_int {
    // SAFETY: the caller passes NULL or a loaded plugin.
    let Some((_, job)) = (unsafe { active_job_of(p, id) }) else {
        return -1;
    };
    let p = p.cast::<Plugin>().cast_const();
    // SAFETY: the plugin is loaded, because it was found with a job. A flux_plugin_t is only ever made from an
    // Rc<Plugin>.
    let plugin = unsafe {
        Rc::increment_strong_count(p);
        Rc::from_raw(p)
    };
    job.subscribers.borrow_mut().push(plugin);
    0
}

/// flux_jobtap_job_event_posted(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_jobtap_job_event_posted(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    name: *const c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    let (name, found) = unsafe { (c::string(name), job_of(p, id)) };
    let Some(name) = name else {
        return fail(libc::EINVAL);
    };
    let Some((instance, job)) = found else {
        return -1;
    };
    instance
        .was_posted(&job, &name)
        .map_or_else(|| fail(libc::EINVAL), c_int::from)
}

/// Returns whether flux_jobtap_event_post_pack(3) knows the job, before it examines the context.
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_jobtap_is_active(p: *mut flux_plugin_t, id: flux_jobid_t) -> c_int {
    // SAFETY: the shim passes on the arguments of its caller.
    unsafe { active_job_of(p, id) }.map_or(-1, |_| 0)
}

/// The second part of flux_jobtap_event_post_pack(3). The context is JSON text, or NULL for none.
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_jobtap_post(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    name: *const c_char,
    context: *const c_char,
) -> c_int {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    let (found, name, context) = unsafe { (active_job_of(p, id), c::string(name), c::string(context)) };
    let Some((instance, job)) = found else {
        return -1;
    };
    let context = match context {
        // The context of an event is an object or absent.
        Some(text) => Some(serde_json::from_str(&text).unwrap_or(Value::Null)).filter(Value::is_object),
        None => Some(Value::Null),
    };
    match context.zip(name) {
        Some((context, name)) => posted(instance.try_post(&job, &name, context)),
        None => fail(libc::EINVAL),
    }
}

/// Returns the job that flux_jobtap_jobspec_update_id_pack(3) may update: one that does not run yet, and that no
/// callback concerns.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded.
unsafe fn updatable(p: *mut flux_plugin_t, id: flux_jobid_t) -> Option<(Rc<Instance>, Rc<Job>)> {
    // SAFETY: as promised by the caller.
    let found = unsafe { active_job_of(p, id) }.filter(|(instance, job)| {
        let current = instance.jobtap.current();
        let current = current.is_some_and(|current| Rc::ptr_eq(&current, job));
        !current && !matches!(job.state.get(), State::Run | State::Cleanup)
    });
    if found.is_none() {
        // Also for a job that does not exist.
        set_errno(libc::EINVAL);
    }
    found
}

/// Returns whether flux_jobtap_jobspec_update_id_pack(3) may update the job, before it examines the updates.
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_jobtap_may_update(p: *mut flux_plugin_t, id: flux_jobid_t) -> c_int {
    // SAFETY: the shim passes on the arguments of its caller.
    unsafe { updatable(p, id) }.map_or(-1, |_| 0)
}

/// The second part of flux_jobtap_jobspec_update_id_pack(3). The updates are JSON text.
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_jobtap_update(p: *mut flux_plugin_t, id: flux_jobid_t, updates: *const c_char) -> c_int {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    let (found, updates) = unsafe { (updatable(p, id), c::string(updates)) };
    let Some((instance, job)) = found else {
        return -1;
    };
    let updates = updates.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    match updates.filter(|updates| updates.is_object() && job::may_update(updates)) {
        Some(updates) => posted(instance.try_post(&job, "jobspec-update", updates)),
        None => fail(libc::EINVAL),
    }
}

/// The second part of flux_jobtap_raise_exception(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_jobtap_raise(
    p: *mut flux_plugin_t,
    id: flux_jobid_t,
    kind: *const c_char,
    severity: c_int,
    note: *const c_char,
) -> c_int {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    unsafe {
        let Some((instance, job)) = active_job_of(p, id) else {
            return -1;
        };
        let (kind, note) = (c::string(kind).unwrap_or_default(), c::string(note).unwrap_or_default());
        posted(instance.try_raise(&job, &kind, i64::from(severity), &note, instance.owner))
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
