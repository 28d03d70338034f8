// SPDX-License-Identifier: MIT OR Apache-2.0

//! Plugins: shared objects, their handlers, and the arguments passed to them.
//!
//! Imitates `flux_plugin_create(3)` and its family, as used by jobtap and the job shell.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::rc::{Rc, Weak};

use ffi::raw::{FLUX_PLUGIN_ARG_IN, FLUX_PLUGIN_ARG_OUT, flux_free_f, flux_plugin_arg_t, flux_plugin_f, flux_plugin_t};
use libc::{c_char, c_int, c_void};
use serde_json::{Value, json};

use crate::c::{self, Aux, Json, cstring, fail};
use crate::future::Failure;
use crate::instance::Instance;
use crate::reactor::Reactor;
use crate::shell::Shell;

const FLUX_PLUGIN_ARG_REPLACE: c_int = 2;

/// The host that loaded a plugin.
pub enum Home {
    /// The job manager.
    Jobtap(Weak<Instance>),
    /// A job shell.
    Shell(Weak<Shell>),
}

/// A loaded plugin.
pub struct Plugin {
    /// The host that loaded the plugin.
    pub home: Home,
    /// Items of the plugin itself.
    pub aux: Aux,
    reactor: Rc<Reactor>,
    path: CString,
    /// Initially the path, until the plugin or the simulator sets a name.
    name: RefCell<CString>,
    conf: Option<CString>,
    handlers: RefCell<Vec<Rc<Handler>>>,
    dso: Cell<*mut c_void>,
}

struct Handler {
    topic: CString,
    callback: unsafe extern "C" fn(*mut flux_plugin_t, *const c_char, *mut flux_plugin_arg_t, *mut c_void) -> c_int,
    data: *mut c_void,
}

impl Plugin {
    /// Opens a shared object and calls its `flux_plugin_init`. If that fails after the object was opened, returns the
    /// plugin with the error, so that the caller destroys it.
    pub fn load(
        path: &str,
        conf: &Value,
        home: Home,
        reactor: Rc<Reactor>,
    ) -> Result<Rc<Plugin>, (Option<Rc<Plugin>>, Failure)> {
        let conf = match conf {
            Value::Null => None,
            Value::Object(_) => Some(cstring(conf.to_string())),
            _ => {
                return Err((
                    None,
                    Failure::new(libc::EINVAL, "jobtap: plugin conf must be a JSON object"),
                ));
            }
        };
        let plugin = Rc::new(Plugin {
            home,
            aux: Aux::default(),
            reactor,
            path: cstring(path),
            name: RefCell::new(cstring(path)),
            conf,
            handlers: RefCell::default(),
            dso: Cell::new(std::ptr::null_mut()),
        });
        match plugin.open() {
            Ok(()) => Ok(plugin),
            Err(failure) => Err((Some(plugin), failure)),
        }
    }

    fn open(self: &Rc<Self>) -> Result<(), Failure> {
        let path = self.path.to_string_lossy();
        nix::unistd::access(self.path.as_c_str(), nix::unistd::AccessFlags::R_OK)
            .map_err(|e| Failure::new(e as c_int, format!("{path}: {}", e.desc())))?;
        // SAFETY: the path is a C string. Whoever configured the object is responsible for its effects when loaded.
        let dso = unsafe { libc::dlopen(self.path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if dso.is_null() {
            // SAFETY: dlerror returns a string after a failure.
            let error = unsafe { c::string(libc::dlerror()) }.unwrap_or_default();
            return Err(Failure::new(libc::EINVAL, format!("dlopen: {error}")));
        }
        self.dso.set(dso);
        // SAFETY: the handle is valid, and the name a C string.
        let symbol = unsafe { libc::dlsym(dso, c"flux_plugin_init".as_ptr()) };
        if symbol.is_null() {
            return Ok(());
        }
        // SAFETY: a symbol of this name is the entry point of a Flux plugin, with this signature.
        let rc = self.reactor.timed("flux_plugin_init", || unsafe {
            let init: unsafe extern "C" fn(*mut flux_plugin_t) -> c_int = std::mem::transmute(symbol);
            init(self.as_ptr())
        });
        if rc < 0 {
            return Err(Failure::new(libc::EINVAL, format!("{path}: flux_plugin_init failed")));
        }
        Ok(())
    }

    /// Runs the destructors of the plugin's items, then unloads the shared object.
    pub fn destroy(&self) {
        self.handlers.take();
        self.reactor.timed("plugin destroy", || self.aux.destroy());
        let dso = self.dso.replace(std::ptr::null_mut());
        if !dso.is_null() {
            // SAFETY: the handle came from dlopen. Nothing calls into the object any more: its handlers were removed,
            // and its destructors have run.
            self.reactor.timed("dlclose", || unsafe { libc::dlclose(dso) });
        }
    }

    /// Returns the file name of the shared object, by which jobtap identifies a plugin.
    pub fn basename(&self) -> String {
        let path = self.path.to_string_lossy().into_owned();
        Path::new(&path)
            .file_name()
            .map_or(path.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// Returns the path from which it was loaded.
    pub fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Returns the name, which is the path if neither the plugin nor the simulator has set one.
    pub fn name(&self) -> String {
        self.name.borrow().to_string_lossy().into_owned()
    }

    /// Sets the name.
    pub fn set_name(&self, name: &str) {
        *self.name.borrow_mut() = cstring(name);
    }

    /// Returns whether a call with this topic would find a handler.
    pub fn handles(&self, topic: &str) -> bool {
        self.handler(&cstring(topic)).is_some()
    }

    fn handler(&self, topic: &CStr) -> Option<Rc<Handler>> {
        let handlers = self.handlers.borrow();
        // SAFETY: both are C strings.
        handlers
            .iter()
            .find(|handler| unsafe { libc::fnmatch(handler.topic.as_ptr(), topic.as_ptr(), 0) == 0 })
            .cloned()
    }

    /// Calls the first handler that matches the topic. Returns false if none matches, and an error if it failed.
    pub fn call(self: &Rc<Self>, topic: &str, args: Option<&PluginArg>) -> Result<bool, ()> {
        let c_topic = cstring(topic);
        let Some(handler) = self.handler(&c_topic) else {
            return Ok(false);
        };
        let args = args.map_or(std::ptr::null_mut(), PluginArg::as_ptr);
        // SAFETY: the plugin supplied this callback for this data. Plugin, topic and arguments are valid for the
        // call.
        let rc = self.reactor.timed(topic, || unsafe {
            (handler.callback)(self.as_ptr(), c_topic.as_ptr(), args, handler.data)
        });
        if rc < 0 { Err(()) } else { Ok(true) }
    }

    /// Returns the plugin as a C pointer, borrowed.
    pub fn as_ptr(self: &Rc<Self>) -> *mut flux_plugin_t {
        Rc::as_ptr(self).cast_mut().cast()
    }
}

/// Returns the plugin behind a C pointer.
///
/// # Safety
/// `p` is NULL or a plugin that is loaded.
pub unsafe fn plugin<'a>(p: *mut flux_plugin_t) -> Option<&'a Plugin> {
    c::check_thread();
    // SAFETY: as promised by the caller; a flux_plugin_t is only ever made from an Rc<Plugin>.
    unsafe { p.cast::<Plugin>().cast_const().as_ref() }
}

/// The arguments of a call: a JSON object in, and one out.
#[derive(Default)]
pub struct PluginArg {
    json: [RefCell<Option<Json>>; 2],
    error: RefCell<CString>,
}

impl PluginArg {
    /// Creates arguments with this input, and an empty object for the results.
    pub fn new(input: &Value) -> Result<PluginArg, String> {
        let args = PluginArg::default();
        args.set(FLUX_PLUGIN_ARG_IN, Json::parse(&input.to_string())?);
        args.set(FLUX_PLUGIN_ARG_OUT, Json::parse("{}")?);
        Ok(args)
    }

    /// Creates arguments with this input, and no results yet.
    pub fn input(input: &Value) -> Result<PluginArg, String> {
        let args = PluginArg::default();
        args.set(FLUX_PLUGIN_ARG_IN, Json::parse(&input.to_string())?);
        Ok(args)
    }

    /// Creates arguments for results only, with these initial results.
    pub fn output(output: &Value) -> Result<PluginArg, String> {
        let args = PluginArg::default();
        args.set(FLUX_PLUGIN_ARG_OUT, Json::parse(&output.to_string())?);
        Ok(args)
    }

    fn slot(&self, flags: c_int) -> &RefCell<Option<Json>> {
        &self.json[usize::from(flags & FLUX_PLUGIN_ARG_OUT != 0)]
    }

    /// Adds to the existing object, unless the flags request a replacement.
    fn set(&self, flags: c_int, object: Json) -> bool {
        let mut slot = self.slot(flags).borrow_mut();
        match slot.as_ref() {
            Some(current) if flags & FLUX_PLUGIN_ARG_REPLACE == 0 => current.update(&object),
            _ => {
                *slot = Some(object);
                true
            }
        }
    }

    /// Returns the results.
    pub fn results(&self) -> Value {
        self.slot(FLUX_PLUGIN_ARG_OUT)
            .borrow()
            .as_ref()
            .map_or(Value::Null, Json::value)
    }

    /// Returns the plugin's error text, if any.
    pub fn errmsg(&self) -> Option<String> {
        self.results().get("errmsg").and_then(Value::as_str).map(str::to_owned)
    }

    /// Returns the arguments as a C pointer, borrowed.
    pub fn as_ptr(&self) -> *mut flux_plugin_arg_t {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// Passes the arguments to C, which releases them with flux_plugin_arg_destroy(3).
    pub fn into_raw(self) -> *mut flux_plugin_arg_t {
        Box::into_raw(Box::new(self)).cast()
    }

    fn set_error(&self, text: &str) {
        *self.error.borrow_mut() = cstring(text);
    }
}

/// Returns the arguments behind a C pointer.
///
/// # Safety
/// `args` is NULL or valid.
unsafe fn arguments<'a>(args: *mut flux_plugin_arg_t) -> Option<&'a PluginArg> {
    c::check_thread();
    // SAFETY: as promised by the caller; a flux_plugin_arg_t is only ever a PluginArg.
    unsafe { args.cast::<PluginArg>().cast_const().as_ref() }
}

/// flux_plugin_set_name(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_set_name(p: *mut flux_plugin_t, name: *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(plugin), Some(name)) = (plugin(p), c::string(name)) else {
            return fail(libc::EINVAL);
        };
        plugin.set_name(&name);
    }
    0
}

/// flux_plugin_get_path(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_get_path(p: *mut flux_plugin_t) -> *const c_char {
    // SAFETY: the caller passes NULL or a valid plugin.
    unsafe { plugin(p) }.map_or(std::ptr::null(), |plugin| plugin.path.as_ptr())
}

/// flux_plugin_get_conf(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_get_conf(p: *mut flux_plugin_t) -> *const c_char {
    // SAFETY: the caller passes NULL or a valid plugin.
    let Some(plugin) = (unsafe { plugin(p) }) else {
        c::set_errno(libc::EINVAL);
        return std::ptr::null();
    };
    match &plugin.conf {
        Some(conf) => conf.as_ptr(),
        None => {
            c::set_errno(libc::ENOENT);
            std::ptr::null()
        }
    }
}

/// flux_plugin_add_handler(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_add_handler(
    p: *mut flux_plugin_t,
    topic: *const c_char,
    cb: flux_plugin_f,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(plugin), false) = (plugin(p), topic.is_null()) else {
            return fail(libc::EINVAL);
        };
        let topic = CStr::from_ptr(topic).to_owned();
        let mut handlers = plugin.handlers.borrow_mut();
        match cb {
            Some(callback) => handlers.push(Rc::new(Handler {
                topic,
                callback,
                data: arg,
            })),
            None => {
                if let Some(at) = handlers.iter().position(|handler| handler.topic == topic) {
                    handlers.remove(at);
                }
            }
        }
    }
    0
}

/// flux_plugin_aux_set(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_aux_set(
    p: *mut flux_plugin_t,
    key: *const c_char,
    val: *mut c_void,
    free_fn: flux_free_f,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers, and a destructor for the item.
    unsafe { plugin(p).map_or_else(|| fail(libc::EINVAL), |plugin| plugin.aux.set(key, val, free_fn)) }
}

/// flux_plugin_aux_get(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_aux_get(p: *mut flux_plugin_t, key: *const c_char) -> *mut c_void {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        match plugin(p) {
            Some(plugin) => plugin.aux.get(key),
            None => {
                c::set_errno(libc::EINVAL);
                std::ptr::null_mut()
            }
        }
    }
}

/// flux_plugin_arg_get(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_arg_get(
    args: *mut flux_plugin_arg_t,
    flags: c_int,
    json_str: *mut *mut c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(args), false) = (arguments(args), json_str.is_null()) else {
            return fail(libc::EINVAL);
        };
        match args.slot(flags).borrow().as_ref() {
            Some(object) => *json_str = c::malloced(&object.dump()),
            None => {
                args.set_error("No args currently set");
                return fail(libc::ENOENT);
            }
        }
    }
    0
}

/// flux_plugin_arg_set(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_arg_set(
    args: *mut flux_plugin_arg_t,
    flags: c_int,
    json_str: *const c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let Some(args) = arguments(args) else {
            return fail(libc::EINVAL);
        };
        let Some(text) = c::string(json_str) else {
            *args.slot(flags).borrow_mut() = None;
            return 0;
        };
        // Unlike the parser behind it, Flux accepts only an object or an array here.
        match Json::parse(&text) {
            Ok(object) if text.trim_start().starts_with(['{', '[']) => {
                if args.set(flags, object) {
                    0
                } else {
                    fail(libc::EINVAL)
                }
            }
            Ok(_) => {
                args.set_error("'[' or '{' expected");
                fail(libc::EINVAL)
            }
            Err(error) => {
                args.set_error(&error);
                fail(libc::EINVAL)
            }
        }
    }
}

/// flux_plugin_arg_strerror(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_arg_strerror(args: *mut flux_plugin_arg_t) -> *const c_char {
    // SAFETY: the caller passes NULL or valid arguments; strerror and __errno_location are always safe to call.
    unsafe {
        match arguments(args) {
            Some(args) => args.error.borrow().as_ptr(),
            None => libc::strerror(*libc::__errno_location()),
        }
    }
}

/// flux_plugin_arg_destroy(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_arg_destroy(args: *mut flux_plugin_arg_t) {
    if !args.is_null() {
        // SAFETY: the caller releases the arguments that flux_jobtap_job_lookup returned.
        drop(unsafe { Box::from_raw(args.cast::<PluginArg>()) });
    }
}

/// Returns the object that flux_plugin_arg_unpack(3) reads, borrowed.
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_arg_json(args: *mut flux_plugin_arg_t, flags: c_int) -> *mut c_void {
    // SAFETY: the shim passes on the arguments of its caller.
    unsafe { arguments(args) }
        .and_then(|args| args.slot(flags).borrow().as_ref().map(Json::as_ptr))
        .unwrap_or(std::ptr::null_mut())
}

/// Keeps the error text of flux_plugin_arg_unpack(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_arg_error(args: *mut flux_plugin_arg_t, text: *const c_char) {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    unsafe {
        if let (Some(args), Some(text)) = (arguments(args), c::string(text)) {
            args.set_error(&text);
        }
    }
}

/// The second part of flux_jobtap_error(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_arg_errmsg(args: *mut flux_plugin_arg_t, text: *const c_char) {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    unsafe {
        let (Some(args), Some(text)) = (arguments(args), c::string(text)) else {
            return;
        };
        if let Ok(object) = Json::parse(&json!({"errmsg": text}).to_string()) {
            args.set(FLUX_PLUGIN_ARG_OUT, object);
        }
    }
}
