//! Plugins: flux_plugin_create(3); and what a plugin of the job manager may do: flux-jobtap-plugins(7).

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

/// The plugin that is being loaded, or called. Copies of it are valid for as long as the plugin is loaded.
#[derive(Clone, Copy)]
pub struct Plugin<'a> {
    raw: *mut raw::flux_plugin_t,
    _borrow: PhantomData<&'a ()>,
}

/// A callback failed; the text is given to whoever caused the call, where the host has a way to do so.
#[derive(Debug)]
pub struct PluginError(pub String);

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'a> Plugin<'a> {
    /// The plugin that C hands to `flux_plugin_init` and to callbacks.
    ///
    /// # Safety
    /// `raw` is that pointer, and the plugin stays loaded for `'a`.
    pub unsafe fn borrow(raw: *mut raw::flux_plugin_t) -> Self {
        Self {
            raw,
            _borrow: PhantomData,
        }
    }

    /// Names the plugin. The name must have neither `/` nor `.`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn set_name(self, name: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_plugin_set_name(self.raw, name.as_ptr()) })
    }

    /// The file that it was loaded from.
    pub fn path(self) -> Option<PathBuf> {
        // SAFETY: a live plugin; the string is the plugin's and is copied.
        unsafe { borrowed(raw::flux_plugin_get_path(self.raw)) }.map(|path| PathBuf::from(path.as_ref()))
    }

    /// The configuration that was given when it was loaded; null where there was none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn conf(self) -> io::Result<Value> {
        // SAFETY: a live plugin; the string is the plugin's and is copied.
        let text = unsafe { borrowed(raw::flux_plugin_get_conf(self.raw)) };
        text.map_or(Ok(Value::Null), |text| read_json(&text))
    }

    /// Keeps `state` with the plugin, and drops it when the plugin is destroyed: for jobtap, when it is removed or the
    /// job manager ends, before the object is unmapped.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn keep<T: State>(self, state: T) -> io::Result<Kept<T>> {
        self.keep_with(state, |_, _| ())
    }

    /// The same, for state that handles more topics later on, for which it is told how callbacks are given it.
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
        // SAFETY: the reference is handed over with a function that gives it up.
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
            // SAFETY: not handed over after all.
            drop(unsafe { Rc::from_raw(data) });
            return Err(error);
        }
        Ok(kept)
    }

    /// Calls `f` for a topic. `state` is what [`Plugin::keep`] gave.
    ///
    /// # Errors
    /// ENOMEM, or EINVAL where the state is that of another plugin, or of one that is gone.
    pub fn handle<T: State, H: Handler<T>>(self, topic: &CStr, state: &Kept<T>, _: H) -> io::Result<()> {
        let data = state.data(self)?;
        // SAFETY: a live plugin, a C string that is copied, and an argument that lives as long as the plugin.
        check(unsafe { raw::flux_plugin_add_handler(self.raw, topic.as_ptr(), Some(called::<T, H>), data) })
    }

    /// Has a topic not handled any more. Where handlers count as consent, this is how to give none.
    ///
    /// # Errors
    /// EINVAL.
    pub fn unhandle(self, topic: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin and a C string; no callback stands for removal.
        check(unsafe { raw::flux_plugin_add_handler(self.raw, topic.as_ptr(), None, std::ptr::null_mut()) })
    }

    /// The job shell that loaded the plugin.
    pub fn shell(self) -> Option<crate::Shell<'a>> {
        // SAFETY: a live plugin; null where it was not loaded by a shell.
        unsafe { crate::Shell::borrow(raw::flux_plugin_get_shell(self.raw)) }
    }

    pub(crate) fn raw(self) -> *mut raw::flux_plugin_t {
        self.raw
    }
}

/// What a plugin keeps, and what it does when one of its own handlers has panicked: nothing, unless it says otherwise. The
/// caller is told of an error in either case, but of most callbacks the job manager does not mind the result.
pub trait State: 'static {
    /// The handler of a topic has panicked.
    fn panicked(&self, _topic: &CStr, _args: &Args<'_>) {}

    /// A service has panicked, over a request with this payload.
    fn request_panicked(&self, _payload: Option<&str>) {}
}

/// State that [`Plugin::keep`] took over: to be named when a handler is added. The state itself belongs to the plugin, and
/// goes with it; then this is of no use any more.
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
    /// The state as an argument of the callbacks of its plugin, which holds it for as long as they can be called.
    fn data(&self, plugin: Plugin<'_>) -> io::Result<*mut c_void> {
        match self.state.upgrade() {
            Some(state) if self.plugin == plugin.raw => Ok(Rc::as_ptr(&state).cast_mut().cast()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }
}

/// A function that handles a topic. A closure that captures nothing is one: it is known by its type, and called through
/// it.
pub trait Handler<T>: Fn(&T, Plugin<'_>, &Args<'_>) -> Result<(), PluginError> + Copy + 'static {}

impl<T, F: Fn(&T, Plugin<'_>, &Args<'_>) -> Result<(), PluginError> + Copy + 'static> Handler<T> for F {}

unsafe extern "C" fn drop_state<T>(state: *mut c_void) {
    // SAFETY: the reference that `keep` handed over, given up once.
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
    // SAFETY: a zero-sized value of a type of which there was one, in `handle`.
    let handler: H = unsafe { std::mem::zeroed() };
    // SAFETY: C calls with a live plugin, its arguments, and the argument that `handle` gave.
    let (plugin, args, state) = unsafe { (Plugin::borrow(p), Args::borrow(args), &*data.cast::<T>()) };
    let topic = if topic.is_null() {
        c""
    } else {
        // SAFETY: the topic of the call, which lives as long.
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
            // As flux_jobtap_error(3) does it; a host that has no use for it ignores it.
            guard(false, || args.answer(&text));
            -1
        }
    }
}

/// What a plugin of the job manager may do. To be made once, from the plugin that is being loaded.
#[derive(Clone, Copy)]
pub struct Jobtap<'a> {
    plugin: Plugin<'a>,
    flux: Flux<'a>,
}

impl<'a> Jobtap<'a> {
    /// The job manager that loads the plugin.
    pub fn new(plugin: Plugin<'a>) -> Option<Self> {
        // SAFETY: a live plugin; the handle outlives it.
        let flux = unsafe { Flux::borrow(raw::flux_jobtap_get_flux(plugin.raw())) }?;
        Some(Self { plugin, flux })
    }

    /// The handle of the job manager.
    pub fn flux(self) -> Flux<'a> {
        self.flux
    }

    /// Starts a prolog of the job that the running callback is about: it does not start before the prolog is finished.
    ///
    /// # Errors
    /// EINVAL outside of a callback, or when the job has started or is being cleaned up.
    pub fn prolog_start(self, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_prolog_start(self.plugin.raw(), description.as_ptr()) })
    }

    /// Finishes a prolog. The status is for information: a failure needs an exception as well.
    ///
    /// # Errors
    /// ENOENT where the job is gone, EINVAL where it has started.
    pub fn prolog_finish(self, job: JobId, description: &CStr, status: c_int) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_prolog_finish(self.plugin.raw(), job.0, description.as_ptr(), status) })
    }

    /// Raises an exception. Severity 0 ends the job.
    ///
    /// # Errors
    /// ENOENT where the job is gone.
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

    /// Starts an epilog of the job that the running callback is about: its resources are held until it is finished.
    ///
    /// # Errors
    /// EINVAL outside of a callback, or where the job is not being cleaned up.
    pub fn epilog_start(self, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_epilog_start(self.plugin.raw(), description.as_ptr()) })
    }

    /// Finishes an epilog. The status is for information.
    ///
    /// # Errors
    /// ENOENT where the job is gone.
    pub fn epilog_finish(self, job: JobId, description: &CStr, status: c_int) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_epilog_finish(self.plugin.raw(), job.0, description.as_ptr(), status) })
    }

    /// Adds a dependency: the job stays in DEPEND until it is removed. One that the job has already, from before a
    /// restart, is not added again. From within `job.state.depend` only.
    ///
    /// # Errors
    /// EINVAL where the job is past DEPEND.
    pub fn dependency_add(self, job: JobId, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_dependency_add(self.plugin.raw(), job.0, description.as_ptr()) })
    }

    /// Removes a dependency.
    ///
    /// # Errors
    /// ENOENT where the job is gone, EINVAL where it is past DEPEND.
    pub fn dependency_remove(self, job: JobId, description: &CStr) -> io::Result<()> {
        // SAFETY: a live plugin, and a C string that the call copies.
        check(unsafe { raw::flux_jobtap_dependency_remove(self.plugin.raw(), job.0, description.as_ptr()) })
    }

    /// Has the handlers of `job.event.*` called for this job. A plugin that asks twice is called twice.
    ///
    /// # Errors
    /// ENOENT where the job is gone.
    pub fn subscribe(self, job: JobId) -> io::Result<()> {
        // SAFETY: a live plugin.
        check(unsafe { raw::flux_jobtap_job_subscribe(self.plugin.raw(), job.0) })
    }

    /// Whether an event of this name was posted to the eventlog of the job.
    pub fn was_posted(self, job: JobId, event: &CStr) -> bool {
        // SAFETY: a live plugin, and a C string.
        unsafe { raw::flux_jobtap_job_event_posted(self.plugin.raw(), job.0, event.as_ptr()) > 0 }
    }

    /// Posts an event to the eventlog of the job. Its context is kept there for ever, readable by the job owner.
    ///
    /// # Errors
    /// ENOENT where the job is gone, EINVAL where the context is not an object.
    pub fn post(self, job: JobId, event: &CStr, context: &Value) -> io::Result<()> {
        let context = to_jansson(context)?;
        // SAFETY: a live plugin, C strings that are copied, and a format that takes one json_t and the reference to it.
        check(unsafe {
            raw::flux_jobtap_event_post_pack(self.plugin.raw(), job.0, event.as_ptr(), c"o".as_ptr(), context)
        })
    }

    /// Updates the jobspec of a job that is not running: an object with the path of each value in the jobspec, its
    /// components separated by dots, as its key. Not for the job that the running callback is about.
    ///
    /// # Errors
    /// EINVAL where that cannot be done now, or such an update cannot be.
    pub fn update_jobspec(self, job: JobId, updates: &Value) -> io::Result<()> {
        let updates = to_jansson(updates)?;
        // SAFETY: a live plugin, and a format that takes one json_t and the reference to it.
        check(unsafe { raw::flux_jobtap_jobspec_update_id_pack(self.plugin.raw(), job.0, c"o".as_ptr(), updates) })
    }

    /// What the job manager knows of a job that is active, or was not long ago.
    pub fn lookup(self, job: JobId) -> Option<Args<'static>> {
        // SAFETY: a live plugin; the result is ours, or null.
        unsafe {
            let args = raw::flux_jobtap_job_lookup(self.plugin.raw(), job.0);
            (!args.is_null()).then(|| Args::own(args))
        }
    }

    /// Serves `job-manager.<plugin name>.<method>` to the instance owner, until the plugin is removed.
    ///
    /// # Errors
    /// From flux_jobtap_service_register(3), or EINVAL as for [`Plugin::handle`].
    pub fn serve<T: State, S: Service<T>>(self, method: &CStr, state: &Kept<T>, _: S) -> io::Result<()> {
        let data = state.data(self.plugin)?;
        // SAFETY: a live plugin, a C string that is copied, and an argument that lives as long as the plugin.
        check(unsafe {
            raw::flux_jobtap_service_register(self.plugin.raw(), method.as_ptr(), Some(requested::<T, S>), data)
        })
    }
}

/// A function that serves requests; as [`Handler`], it captures nothing.
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
    // SAFETY: as in `called`; the message outlives this call.
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
        // Nobody else would be told. What goes wrong here cannot be mended.
        let _ = request.refuse(libc::EPROTO, "an internal error: please report it");
    }
}

/// A new json_t, whose one reference is the caller's.
fn to_jansson(value: &Value) -> io::Result<*mut raw::json_t> {
    let text = c_text(&value.to_string())?;
    // SAFETY: a C string; nobody asks for the error's text.
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
