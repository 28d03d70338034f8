// SPDX-License-Identifier: MIT OR Apache-2.0

//! Values that cross the C boundary: errno, strings, JSON objects and named auxiliary items.
//!
//! `Aux` imitates Flux's `aux_set(3)` family: a list in which keyed items come first, the newest at the head.

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

/// Sets errno, and returns the value by which a C function reports failure.
pub fn fail(errnum: c_int) -> c_int {
    set_errno(errnum);
    -1
}

thread_local! {
    static REACTOR_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as the owner of the handle and of all its objects.
pub fn mark_reactor_thread() {
    REACTOR_THREAD.set(true);
}

/// Ends the process if a plugin calls Flux from another thread. Flux does not detect this, but cannot survive it.
pub fn check_thread() {
    if !REACTOR_THREAD.get() {
        eprintln!("flux-sim: BUG: a plugin called Flux outside of the reactor thread");
        std::process::abort();
    }
}

/// Returns the text of strerror(3) for an error number.
pub fn strerror(errnum: c_int) -> String {
    // SAFETY: strerror returns a string that is valid until the next call in this thread; it is copied at once.
    unsafe { CStr::from_ptr(libc::strerror(errnum)) }
        .to_string_lossy()
        .into_owned()
}

/// Returns the string behind a C pointer, or None for NULL. Replaces invalid UTF-8.
///
/// # Safety
/// `s` is NULL or points to a NUL-terminated string.
pub unsafe fn string(s: *const c_char) -> Option<String> {
    // SAFETY: as promised by the caller.
    (!s.is_null()).then(|| unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned())
}

/// Converts text into a C string that ends at the first NUL byte, if any.
pub fn cstring(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    CString::new(bytes).unwrap_or_default()
}

/// Copies `text` into a string that the C caller frees with free(3).
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

/// A JSON value of jansson. C code may borrow strings from it as long as it lives.
pub struct Json(*mut c_void);

impl Json {
    /// Parses JSON text as strictly as Flux does: a string cannot contain a NUL.
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut error = [0 as c_char; 160];
        let c = CString::new(text).map_err(|_| "NUL byte in JSON text".to_string())?;
        // SAFETY: both pointers are valid, and the shim writes at most the given size, NUL included.
        let object = unsafe { sim_json_parse(c.as_ptr(), error.as_mut_ptr(), error.len()) };
        if object.is_null() {
            // SAFETY: the buffer was zeroed, and snprintf has written to it.
            return Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned());
        }
        Ok(Json(object))
    }

    /// Returns the value as compact text.
    pub fn dump(&self) -> String {
        // SAFETY: the object is valid while self lives; the result is NULL or a string from malloc(3).
        unsafe {
            let text = sim_json_dump(self.0);
            let copy = string(text).unwrap_or_default();
            libc::free(text.cast());
            copy
        }
    }

    /// Adds the members of another object to this one. Returns false if either is not an object.
    pub fn update(&self, other: &Json) -> bool {
        // SAFETY: both objects are valid.
        unsafe { sim_json_update(self.0, other.0) == 0 }
    }

    /// Returns the `json_t *`, borrowed.
    pub fn as_ptr(&self) -> *mut c_void {
        self.0
    }

    /// Returns the value as a Rust type.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.dump()).unwrap_or(Value::Null)
    }
}

impl Drop for Json {
    fn drop(&mut self) {
        // SAFETY: self owns the reference.
        unsafe { sim_json_free(self.0) }
    }
}

struct AuxItem {
    key: Option<String>,
    value: *mut c_void,
    free: flux_free_f,
}

/// Auxiliary items of a handle or a plugin, each with the destructor from its owner.
#[derive(Default)]
pub struct Aux(RefCell<Vec<AuxItem>>);

impl Aux {
    /// Returns the value under a name, or NULL with ENOENT.
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

    /// Replaces the value under a name. A NULL value removes it.
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

    /// Destroys all items, the newest first. A destructor can still see the items after its own.
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
        // SAFETY: dladdr only looks up the address. It reports whether the object that contains the destructor is
        // mapped.
        let mapped = unsafe {
            let mut info = std::mem::zeroed();
            libc::dladdr(free as *const c_void, &mut info) != 0
        };
        if !mapped {
            // Flux would crash here. A test of the simulator expects this message instead.
            eprintln!(
                "flux-sim: BUG: the destructor of aux item {:?} was unloaded before it ran",
                self.key
            );
            return;
        }
        // SAFETY: the owner of the item supplied this destructor for this value. It is called once.
        unsafe { free(self.value) }
    }
}

/// Counts the objects of one kind that C holds, to detect plugins that leak them.
pub struct Held(std::sync::atomic::AtomicI64);

/// The futures that plugins hold.
pub static FUTURES: Held = Held(std::sync::atomic::AtomicI64::new(0));
/// The watchers that plugins hold.
pub static WATCHERS: Held = Held(std::sync::atomic::AtomicI64::new(0));

impl Held {
    /// Records that an object was handed out (1) or returned (-1).
    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, std::sync::atomic::Ordering::Relaxed);
    }

    /// Returns the number of objects that C holds.
    pub fn count(&self) -> i64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}
