//! Values that cross the C border: errno, strings, JSON objects and named auxiliary items.
//!
//! Of Flux, `Aux` imitates the `aux_set(3)` family: a list in which keyed items come first, the newest at the head.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};

use ffi::raw::flux_free_f;
use libc::{c_char, c_int, c_void};
use serde_json::Value;

/// Sets errno.
pub fn set_errno(errnum: c_int) {
    // SAFETY: __errno_location returns a valid pointer for the calling thread.
    unsafe { *libc::__errno_location() = errnum }
}

/// Sets errno and returns what a C function returns on failure.
pub fn fail(errnum: c_int) -> c_int {
    set_errno(errnum);
    -1
}

thread_local! {
    static REACTOR_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as the one that the handle and everything of it belongs to.
pub fn mark_reactor_thread() {
    REACTOR_THREAD.set(true);
}

/// Ends the process if a plugin calls Flux in another thread, which Flux does not notice but cannot survive.
pub fn check_thread() {
    if !REACTOR_THREAD.get() {
        eprintln!("flux-sim: BUG: a plugin called Flux outside of the reactor thread");
        std::process::abort();
    }
}

/// What strerror(3) says of an error number.
pub fn strerror(errnum: c_int) -> String {
    // SAFETY: strerror returns a string that is valid until the next call in this thread; it is copied at once.
    unsafe { CStr::from_ptr(libc::strerror(errnum)) }
        .to_string_lossy()
        .into_owned()
}

/// The string behind a C pointer, or none for NULL. Invalid UTF-8 is replaced.
///
/// # Safety
/// `s` is NULL or points to a NUL-terminated string.
pub unsafe fn string(s: *const c_char) -> Option<String> {
    // SAFETY: as promised by the caller.
    (!s.is_null()).then(|| unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned())
}

/// A C string from text that may hold NUL bytes, at the first of which it ends.
pub fn cstring(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    CString::new(bytes).unwrap_or_default()
}

/// Copies `text` into a string that the C caller releases with free(3).
pub fn malloced(text: &str) -> *mut c_char {
    // SAFETY: strdup reads a valid C string.
    unsafe { libc::strdup(cstring(text).as_ptr()) }
}

unsafe extern "C" {
    fn sim_json_parse(text: *const c_char, error: *mut c_char, size: usize) -> *mut c_void;
    fn sim_json_dump(object: *const c_void) -> *mut c_char;
    fn sim_json_update(object: *mut c_void, other: *mut c_void) -> c_int;
    fn sim_json_free(object: *mut c_void);
}

/// A JSON value of jansson, which C code may borrow strings from for as long as it lives.
pub struct Json(*mut c_void);

impl Json {
    /// Parses a JSON text, as strictly as Flux does: a string cannot hold a NUL.
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut error = [0 as c_char; 160];
        let c = CString::new(text).map_err(|_| "NUL byte in JSON text".to_string())?;
        // SAFETY: both pointers are valid, and the shim writes at most the given size, NUL included.
        let object = unsafe { sim_json_parse(c.as_ptr(), error.as_mut_ptr(), error.len()) };
        if object.is_null() {
            // SAFETY: the buffer was zeroed, and written to by snprintf.
            return Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned());
        }
        Ok(Json(object))
    }

    /// The value as compact text.
    pub fn dump(&self) -> String {
        // SAFETY: the object is valid while self lives; the result is NULL or a string from malloc(3).
        unsafe {
            let text = sim_json_dump(self.0);
            let copy = string(text).unwrap_or_default();
            libc::free(text.cast());
            copy
        }
    }

    /// Adds the members of another object to this one. False if either is no object.
    pub fn update(&self, other: &Json) -> bool {
        // SAFETY: both objects are valid.
        unsafe { sim_json_update(self.0, other.0) == 0 }
    }

    /// The `json_t *`, borrowed.
    pub fn as_ptr(&self) -> *mut c_void {
        self.0
    }

    /// The value in Rust's shape.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.dump()).unwrap_or(Value::Null)
    }
}

impl Drop for Json {
    fn drop(&mut self) {
        // SAFETY: the reference is owned by self.
        unsafe { sim_json_free(self.0) }
    }
}

struct AuxItem {
    key: Option<String>,
    value: *mut c_void,
    free: flux_free_f,
}

/// Auxiliary items of a handle or a plugin, each with the destructor that its owner gave.
#[derive(Default)]
pub struct Aux(RefCell<Vec<AuxItem>>);

impl Aux {
    /// The value under a name, NULL with ENOENT if there is none.
    ///
    /// # Safety
    /// `key` is NULL or a C string.
    pub unsafe fn get(&self, key: *const c_char) -> *mut c_void {
        // SAFETY: as promised by the caller.
        let Some(key) = (unsafe { string(key) }) else {
            set_errno(libc::EINVAL);
            return std::ptr::null_mut();
        };
        let items = self.0.borrow();
        match items.iter().find(|item| item.key.as_ref() == Some(&key)) {
            Some(item) => item.value,
            None => {
                set_errno(libc::ENOENT);
                std::ptr::null_mut()
            }
        }
    }

    /// Replaces the value under a name, or removes it with a NULL value.
    ///
    /// # Safety
    /// `key` is NULL or a C string; `free` may be called with `value` once, at any later time.
    pub unsafe fn set(&self, key: *const c_char, value: *mut c_void, free: flux_free_f) -> c_int {
        // SAFETY: as promised by the caller.
        let key = unsafe { string(key) };
        if (key.is_none() && (value.is_null() || free.is_none())) || (value.is_null() && free.is_some()) {
            return fail(libc::EINVAL);
        }
        if key.is_some() {
            let old = {
                let mut items = self.0.borrow_mut();
                items.iter().position(|item| item.key == key).map(|i| items.remove(i))
            };
            old.into_iter().for_each(AuxItem::destroy);
        }
        if !value.is_null() {
            let mut items = self.0.borrow_mut();
            let at = if key.is_some() { 0 } else { items.len() };
            items.insert(at, AuxItem { key, value, free });
        }
        0
    }

    /// Destroys all items, the newest first. A destructor still sees the items that come after its own.
    pub fn destroy(&self) {
        while let Some(item) = self.pop() {
            item.destroy();
        }
    }

    fn pop(&self) -> Option<AuxItem> {
        let mut items = self.0.borrow_mut();
        (!items.is_empty()).then(|| items.remove(0))
    }
}

impl AuxItem {
    fn destroy(self) {
        let Some(free) = self.free else { return };
        // SAFETY: dladdr only looks the address up. It tells whether the object that holds the destructor is mapped.
        let mapped = unsafe {
            let mut info = std::mem::zeroed();
            libc::dladdr(free as *const c_void, &mut info) != 0
        };
        if !mapped {
            // Flux would crash here. The message is what a test of the simulator wants instead.
            eprintln!(
                "flux-sim: BUG: the destructor of aux item {:?} was unloaded before it ran",
                self.key
            );
            return;
        }
        // SAFETY: the owner of the item gave this destructor for this value, and it is called once.
        unsafe { free(self.value) }
    }
}

/// Objects of a kind that C holds, for plugins that do not give them back to be found out.
pub struct Held(std::sync::atomic::AtomicI64);

/// Futures and watchers of plugins.
pub static FUTURES: Held = Held(std::sync::atomic::AtomicI64::new(0));
/// See [`FUTURES`].
pub static WATCHERS: Held = Held(std::sync::atomic::AtomicI64::new(0));

impl Held {
    /// One more was handed out, or one was given back.
    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, std::sync::atomic::Ordering::Relaxed);
    }

    /// How many there are.
    pub fn count(&self) -> i64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}
