// SPDX-License-Identifier: MIT OR Apache-2.0

//! Plugins (flux_plugin_create(3)), and the operations of job manager plugins (flux-jobtap-plugins(7)).

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int, c_void},
    fmt, io,
    marker::PhantomData,
    path::PathBuf,
    rc::{Rc, Weak},
};

use serde_json::Value;

use crate::{Args, Flux, JobId, Request, borrowed, c_line, c_text, guard, inject_fault, last_error, raw, read_json};

/// The plugin that is being loaded or called. Copies are valid as long as the plugin is loaded.
#[derive(Clone, Copy)]
pub struct Plugin<'a> {
    raw: *mut raw::flux_plugin_t,
    _borrow: PhantomData<&'a ()>,
}

/// The error of a callback. The host reports the text to the party that caused the call, if it can.
#[derive(Debug)]
pub struct PluginError(pub String);

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'a> Plugin<'a> {
    /// Borrows the plugin that C passes to `flux_plugin_init` and to callbacks.
    ///
    /// # Safety
    /// `raw` is that pointer, and the plugin stays loaded for `'a`.
    pub unsafe fn borrow(raw: *mut raw::flux_plugin_t) -> Self {
        Self {
            raw,
            _borrow: PhantomData,
        }
    }

    /// Names the plugin. The name must contain neither `/` nor `.`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn set_name(self, name: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_plugin_set_name(self.raw, name.as_ptr()) })
    }

    /// Returns the file from which the plugin was loaded.
    pub fn path(self) -> Option<PathBuf> {
        // SAFETY: a live plugin. The plugin owns the string, which is copied.
        unsafe { borrowed(raw::flux_plugin_get_path(self.raw)) }.map(|path| PathBuf::from(path.as_ref()))
    }

    /// Returns the configuration given when the plugin was loaded, or null if none was given.
    ///
    /// # Errors
    /// InvalidData: the configuration cannot be parsed.
    pub fn conf(self) -> io::Result<Value> {
        // SAFETY: a live plugin. The plugin owns the string, which is copied.
        let text = unsafe { borrowed(raw::flux_plugin_get_conf(self.raw)) };
        text.map_or(Ok(Value::Null), |text| read_json(&text))
    }

    /// Keeps `state` with the plugin, and drops it when the plugin is destroyed. A jobtap plugin is destroyed when it
    /// is removed or the job manager exits, before the object is unmapped.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn keep<T: State>(self, state: T) -> io::Result<Kept<T>> {
        self.keep_with(state, |_, _| ())
    }

    /// Like [`Plugin::keep`], for state that handles further topics later: `tell` receives the reference that this
    /// requires.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn keep_with<T: State>(self, state: T, tell: impl FnOnce(&T, Kept<T>)) -> io::Result<Kept<T>> {
        let state = Rc::new(state);
        let kept = Kept {
            state: Rc::downgrade(&state),
            plugin: self.raw,
        };
        tell(&state, kept.clone());
        let data = Rc::into_raw(state);
        // SAFETY: the plugin takes over the reference, with a function that releases it.
        let rc = unsafe {
            raw::flux_plugin_aux_set(
                self.raw,
                std::ptr::null(),
                data.cast_mut().cast(),
                Some(drop_state::<T>),
            )
        };
        if rc < 0 {
            let error = last_error();
            // SAFETY: the call failed, so the reference is still ours.
            drop(unsafe { Rc::from_raw(data) });
            return Err(error);
        }
        Ok(kept)
    }

    /// Calls `f` for a topic. `state` is the result of [`Plugin::keep`].
    ///
    /// # Errors
    /// ENOMEM. EINVAL: the state belongs to another plugin, or to one that was removed.
    pub fn handle<T: State, H: Handler<T>>(self, topic: &CStr, state: &Kept<T>, _: H) -> io::Result<()> {
        let data = state.data(self)?;
        // SAFETY: a live plugin, a C string that the call copies, and an argument that lives as long as the plugin.
        check(unsafe { raw::flux_plugin_add_handler(self.raw, topic.as_ptr(), Some(called::<T, H>), data) })
    }

    /// Removes the handler of a topic. Use it to withhold consent where the host counts a handler as consent.
    ///
    /// # Errors
    /// EINVAL.
    pub fn unhandle(self, topic: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin and a C string. A null callback removes the handler.
        check(unsafe { raw::flux_plugin_add_handler(self.raw, topic.as_ptr(), None, std::ptr::null_mut()) })
    }

    /// Returns the job shell that loaded the plugin.
    pub fn shell(self) -> Option<crate::Shell<'a>> {
        // SAFETY: a live plugin. The result is null if no shell loaded the plugin.
        unsafe { crate::Shell::borrow(raw::flux_plugin_get_shell(self.raw)) }
    }

    pub(crate) fn raw(self) -> *mut raw::flux_plugin_t {
        self.raw
    }
}

/// State that a plugin keeps, and its reaction when one of its own handlers panics. The default reaction does nothing.
/// The caller receives an error in either case, but the job manager ignores the result of most callbacks.
pub trait State: 'static {
    /// Called when the handler of a topic has panicked.
    fn panicked(&self, _topic: &CStr, _args: &Args<'_>) {}

    /// Called when a service has panicked while handling a request with this payload.
    fn request_panicked(&self, _payload: Option<&str>) {}
}

/// A reference to state that [`Plugin::keep`] took over, for adding handlers. The plugin owns the state. Once the
/// plugin is destroyed, the reference is invalid.
pub struct Kept<T> {
    state: Weak<T>,
    plugin: *mut raw::flux_plugin_t,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self {
            state: Weak::clone(&self.state),
            plugin: self.plugin,
        }
    }
}

impl<T> Kept<T> {
    /// Returns the state as the argument for callbacks of its plugin. The plugin holds the state as long as they can be
    /// called.
    fn data(&self, plugin: Plugin<'_>) -> io::Result<*mut c_void> {
        match self.state.upgrade() {
            Some(state) if self.plugin == plugin.raw => Ok(Rc::as_ptr(&state).cast_mut().cast()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }
}

/// A function that handles a topic. A closure that captures nothing qualifies: it is identified by its type and called
/// through it.
pub trait Handler<T>: Fn(&T, Plugin<'_>, &Args<'_>) -> Result<(), PluginError> + Copy + 'static {}

impl<T, F: Fn(&T, Plugin<'_>, &Args<'_>) -> Result<(), PluginError> + Copy + 'static> Handler<T> for F {}

unsafe extern "C" fn drop_state<T>(state: *mut c_void) {
    // SAFETY: the reference that `keep` handed over, released once.
    let state = unsafe { Rc::from_raw(state.cast::<T>().cast_const()) };
    guard((), || drop(state));
}

unsafe extern "C" fn called<T: State, H: Handler<T>>(
    p: *mut raw::flux_plugin_t,
    topic: *const c_char,
    args: *mut raw::flux_plugin_arg_t,
    data: *mut c_void,
) -> c_int {
    const { assert!(size_of::<H>() == 0, "a handler must capture nothing") };
    // SAFETY: a zero-sized value of a type for which `handle` received a value.
    let handler: H = unsafe { std::mem::zeroed() };
    // SAFETY: C calls with a live plugin, its arguments, and the argument that `handle` registered.
    let (plugin, args, state) = unsafe { (Plugin::borrow(p), Args::borrow(args), &*data.cast::<T>()) };
    let topic = if topic.is_null() {
        c""
    } else {
        // SAFETY: the topic lives as long as the call.
        unsafe { CStr::from_ptr(topic) }
    };
    let done = guard(None, || {
        if cfg!(feature = "fault-injection") {
            inject_fault(&topic.to_string_lossy());
        }
        Some(handler(state, plugin, &args))
    });
    let result = done.unwrap_or_else(|| {
        guard((), || state.panicked(topic, &args));
        Err(PluginError("an internal error: please report it".to_owned()))
    });
    match result {
        Ok(()) => 0,
        Err(error) => {
            let text = serde_json::json!({ "errmsg": error.0 });
            // As flux_jobtap_error(3) does. A host without a use for the text ignores it.
            guard(false, || args.answer(&text));
            -1
        }
    }
}

/// The operations of a job manager plugin. Create it once, from the plugin that is being loaded.
#[derive(Clone, Copy)]
pub struct Jobtap<'a> {
    plugin: Plugin<'a>,
    flux: Flux<'a>,
}

impl<'a> Jobtap<'a> {
    /// Returns the operations, or None if the host is not a job manager.
    pub fn new(plugin: Plugin<'a>) -> Option<Self> {
        // SAFETY: a live plugin. The handle outlives it.
        let flux = unsafe { Flux::borrow(raw::flux_jobtap_get_flux(plugin.raw())) }?;
        Some(Self { plugin, flux })
    }

    /// Returns the handle of the job manager.
    pub fn flux(self) -> Flux<'a> {
        self.flux
    }

    /// Starts a prolog of the job that the running callback concerns. The job does not start before the prolog
    /// finishes.
    ///
    /// # Errors
    /// EINVAL outside of a callback, or when the job has started or is being cleaned up.
    pub fn prolog_start(self, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_prolog_start(self.plugin.raw(), description.as_ptr()) })
    }

    /// Finishes a prolog. The status is informational: a failure also needs an exception.
    ///
    /// # Errors
    /// ENOENT: the job no longer exists. EINVAL: the job has started.
    pub fn prolog_finish(self, job: JobId, description: &CStr, status: c_int) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_prolog_finish(self.plugin.raw(), job.0, description.as_ptr(), status) })
    }

    /// Raises an exception. Severity 0 ends the job.
    ///
    /// # Errors
    /// ENOENT: the job no longer exists.
    pub fn raise(self, job: JobId, kind: &CStr, severity: c_int, text: &str) -> io::Result<()> {
        let text = c_line(text);
        // SAFETY: a live plugin, C strings that the call copies, and a format that takes one.
        check(unsafe {
            raw::flux_jobtap_raise_exception(
                self.plugin.raw(),
                job.0,
                kind.as_ptr(),
                severity,
                c"%s".as_ptr(),
                text.as_ptr(),
            )
        })
    }

    /// Starts an epilog of the job that the running callback concerns. The job holds its resources until the epilog
    /// finishes.
    ///
    /// # Errors
    /// EINVAL outside a callback, or if the job is not being cleaned up.
    pub fn epilog_start(self, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_epilog_start(self.plugin.raw(), description.as_ptr()) })
    }

    /// Finishes an epilog. The status is informational.
    ///
    /// # Errors
    /// ENOENT: the job no longer exists.
    pub fn epilog_finish(self, job: JobId, description: &CStr, status: c_int) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_epilog_finish(self.plugin.raw(), job.0, description.as_ptr(), status) })
    }

    /// Adds a dependency: the job stays in DEPEND until it is removed. A dependency that the job still has from before
    /// a restart is not added twice. Call it from `job.state.depend` only.
    ///
    /// # Errors
    /// EINVAL: the job is past DEPEND.
    pub fn dependency_add(self, job: JobId, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_dependency_add(self.plugin.raw(), job.0, description.as_ptr()) })
    }

    /// Removes a dependency.
    ///
    /// # Errors
    /// ENOENT: the job no longer exists. EINVAL: it is past DEPEND.
    pub fn dependency_remove(self, job: JobId, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_dependency_remove(self.plugin.raw(), job.0, description.as_ptr()) })
    }

    /// Subscribes the plugin to `job.event.*` of this job. A plugin that subscribes twice receives each event twice.
    ///
    /// # Errors
    /// ENOENT: the job no longer exists.
    pub fn subscribe(self, job: JobId) -> io::Result<()> {
        // SAFETY: a live plugin.
        check(unsafe { raw::flux_jobtap_job_subscribe(self.plugin.raw(), job.0) })
    }

    /// Returns whether an event of this name was posted to the eventlog of the job.
    pub fn was_posted(self, job: JobId, event: &CStr) -> bool {
        // SAFETY: a live plugin, and a C string.
        unsafe { raw::flux_jobtap_job_event_posted(self.plugin.raw(), job.0, event.as_ptr()) > 0 }
    }

    /// Posts an event to the eventlog of the job. The eventlog keeps its context for ever, and the job owner can read
    /// it.
    ///
    /// # Errors
    /// ENOENT: the job no longer exists. EINVAL: the context is not an object.
    pub fn post(self, job: JobId, event: &CStr, context: &Value) -> io::Result<()> {
        let context = to_jansson(context)?;
        // SAFETY: a live plugin, C strings that the call copies, and a format that takes one json_t and the reference
        // to it.
        check(unsafe {
            raw::flux_jobtap_event_post_pack(self.plugin.raw(), job.0, event.as_ptr(), c"o".as_ptr(), context)
        })
    }

    /// Updates the jobspec of a job that is not running. The keys of the object are paths in the jobspec, with
    /// components separated by dots. The job must not be the one that the running callback concerns.
    ///
    /// # Errors
    /// EINVAL: the job cannot be updated now, or the update is invalid.
    pub fn update_jobspec(self, job: JobId, updates: &Value) -> io::Result<()> {
        let updates = to_jansson(updates)?;
        // SAFETY: a live plugin, and a format that takes one json_t and the reference to it.
        check(unsafe { raw::flux_jobtap_jobspec_update_id_pack(self.plugin.raw(), job.0, c"o".as_ptr(), updates) })
    }

    /// Returns the job manager's record of a job that is active or became inactive recently.
    pub fn lookup(self, job: JobId) -> Option<Args<'static>> {
        // SAFETY: a live plugin. The result is ours to destroy, or null.
        unsafe {
            let args = raw::flux_jobtap_job_lookup(self.plugin.raw(), job.0);
            (!args.is_null()).then(|| Args::own(args))
        }
    }

    /// Serves `job-manager.<plugin name>.<method>` to the instance owner, until the plugin is removed.
    ///
    /// # Errors
    /// From flux_jobtap_service_register(3). EINVAL as for [`Plugin::handle`].
    pub fn serve<T: State, S: Service<T>>(self, method: &CStr, state: &Kept<T>, _: S) -> io::Result<()> {
        let data = state.data(self.plugin)?;
        // SAFETY: a live plugin, a C string that the call copies, and an argument that lives as long as the plugin.
        check(unsafe {
            raw::flux_jobtap_service_register(self.plugin.raw(), method.as_ptr(), Some(requested::<T, S>), data)
        })
    }
}

/// A function that serves requests. Like [`Handler`], it captures nothing.
pub trait Service<T>: Fn(&T, Request<'_>) + Copy + 'static {}

impl<T, F: Fn(&T, Request<'_>) + Copy + 'static> Service<T> for F {}

unsafe extern "C" fn requested<T: State, S: Service<T>>(
    h: *mut raw::flux_t,
    _: *mut raw::flux_msg_handler_t,
    msg: *const raw::flux_msg_t,
    arg: *mut c_void,
) {
    const { assert!(size_of::<S>() == 0, "a service must capture nothing") };
    let taken = Cell::new(false);
    // SAFETY: as in `called`. The message outlives this call.
    let (service, state, request): (S, &T, _) =
        unsafe { (std::mem::zeroed(), &*arg.cast::<T>(), Request::borrow(h, msg, &taken)) };
    let done = guard(false, || {
        service(state, request);
        true
    });
    if done {
        return;
    }
    // SAFETY: as above.
    let request = unsafe { Request::borrow(h, msg, &taken) };
    guard((), || state.request_panicked(request.payload().ok().flatten()));
    if !taken.get() {
        // The requester would otherwise never receive a response. Nothing can be done if the response fails.
        let _ = request.refuse(libc::EPROTO, "an internal error: please report it");
    }
}

/// Returns a new json_t. The caller owns its only reference.
fn to_jansson(value: &Value) -> io::Result<*mut raw::json_t> {
    let text = c_text(&value.to_string())?;
    // SAFETY: a C string. A null error pointer is allowed.
    let json = unsafe { raw::json_loads(text.as_ptr(), 0, std::ptr::null_mut()) };
    if json.is_null() {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    } else {
        Ok(json)
    }
}

fn check(rc: c_int) -> io::Result<()> {
    if rc < 0 { Err(last_error()) } else { Ok(()) }
}
