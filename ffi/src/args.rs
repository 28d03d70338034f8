//! Arguments of a plugin's callback: flux_plugin_arg_create(3), flux-jobtap-plugins(7).
//!
//! Single values are unpacked rather than parsed out of the whole: a jobspec may have megabytes.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    marker::PhantomData,
    ptr,
};

use serde_json::Value;

use crate::{JobId, borrowed, raw, taken};

/// The arguments of the callback that is running.
pub struct Args<'a> {
    raw: *mut raw::flux_plugin_arg_t,
    owned: bool,
    _borrow: PhantomData<&'a ()>,
}

/// The states of a job that matter to a delivery, RFC 21.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// NEW, DEPEND, PRIORITY or SCHED.
    Pending,
    /// RUN: resources are assigned; prologs run in this state.
    Run,
    /// CLEANUP: the job has ended, or got a fatal exception.
    Cleanup,
    /// INACTIVE.
    Inactive,
}

/// `{s:{s:…{s?o}…}}`: the value at a path of 1 to 8 keys, each optional.
const OPTIONAL: [&std::ffi::CStr; 8] = [
    c"{s?o}",
    c"{s?{s?o}}",
    c"{s?{s?{s?o}}}",
    c"{s?{s?{s?{s?o}}}}",
    c"{s?{s?{s?{s?{s?o}}}}}",
    c"{s?{s?{s?{s?{s?{s?o}}}}}}",
    c"{s?{s?{s?{s?{s?{s?{s?o}}}}}}}",
    c"{s?{s?{s?{s?{s?{s?{s?{s?o}}}}}}}}",
];

/// The same, for a string.
const STRING: [&std::ffi::CStr; 4] = [c"{s?s}", c"{s?{s?s}}", c"{s?{s?{s?s}}}", c"{s?{s?{s?{s?s}}}}"];

/// `json_type` of jansson for null: the first word of a json_t.
const JSON_NULL: c_int = 7;

/// Whether a json_t is JSON's null: it starts with its type (jansson.h, part of its ABI since 2.0).
///
/// # Safety
/// `value` is a live json_t.
pub(crate) unsafe fn is_null(value: *const c_void) -> bool {
    // SAFETY: the caller says so.
    unsafe { *value.cast::<c_int>() == JSON_NULL }
}

impl Args<'_> {
    /// # Safety
    /// `raw` is the argument object of a callback that runs for as long as the result is used.
    pub(crate) unsafe fn borrow(raw: *mut raw::flux_plugin_arg_t) -> Self {
        Self {
            raw,
            owned: false,
            _borrow: PhantomData,
        }
    }

    /// # Safety
    /// `raw` is an argument object that nobody else destroys.
    pub(crate) unsafe fn own(raw: *mut raw::flux_plugin_arg_t) -> Args<'static> {
        Args {
            raw,
            owned: true,
            _borrow: PhantomData,
        }
    }

    /// The job that the callback is about.
    pub fn job(&self) -> Option<JobId> {
        let mut id: i64 = 0;
        // SAFETY: the format takes a key and a place for a json_int_t, which is 64 bits.
        let rc = unsafe {
            raw::flux_plugin_arg_unpack(
                self.raw,
                raw::FLUX_PLUGIN_ARG_IN,
                c"{s:I}".as_ptr(),
                c"id".as_ptr(),
                &mut id as *mut i64,
            )
        };
        (rc == 0).then_some(JobId(id as u64))
    }

    /// The job, the uid of its owner, and its state.
    pub fn job_owner_state(&self) -> Option<(JobId, u32, JobState)> {
        let (mut id, mut uid, mut state): (i64, i64, c_int) = (0, 0, 0);
        // SAFETY: the format takes keys and places: two json_int_t, which are 64 bits, and an int.
        let rc = unsafe {
            raw::flux_plugin_arg_unpack(
                self.raw,
                raw::FLUX_PLUGIN_ARG_IN,
                c"{s:I s:I s:i}".as_ptr(),
                c"id".as_ptr(),
                &mut id as *mut i64,
                c"userid".as_ptr(),
                &mut uid as *mut i64,
                c"state".as_ptr(),
                &mut state as *mut c_int,
            )
        };
        let state = match state {
            raw::FLUX_JOB_STATE_RUN => JobState::Run,
            raw::FLUX_JOB_STATE_CLEANUP => JobState::Cleanup,
            raw::FLUX_JOB_STATE_INACTIVE => JobState::Inactive,
            _ => JobState::Pending,
        };
        (rc == 0).then_some((JobId(id as u64), uid as u32, state))
    }

    /// Whether there is a value, other than null, at a path of 1 to 8 keys. Other lengths are never there.
    pub fn has(&self, path: &[&str]) -> bool {
        let Some(format) = path.len().checked_sub(1).and_then(|n| OPTIONAL.get(n)) else {
            return false;
        };
        let mut value: *mut c_void = ptr::null_mut();
        let out: *mut *mut c_void = &mut value;
        let keys: Vec<CString> = path.iter().map(|key| crate::c_text(key)).collect();
        let key = |n: usize| -> *const c_char { keys[n].as_ptr() };
        let (args, flags, fmt) = (self.raw, raw::FLUX_PLUGIN_ARG_IN, format.as_ptr());
        // SAFETY: each format takes as many keys as it has levels, and a place for a borrowed json_t.
        let rc = unsafe {
            match path.len() {
                1 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), out),
                2 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), out),
                3 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), key(2), out),
                4 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), key(2), key(3), out),
                5 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), key(2), key(3), key(4), out),
                6 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), key(2), key(3), key(4), key(5), out),
                7 => raw::flux_plugin_arg_unpack(
                    args,
                    flags,
                    fmt,
                    key(0),
                    key(1),
                    key(2),
                    key(3),
                    key(4),
                    key(5),
                    key(6),
                    out,
                ),
                _ => raw::flux_plugin_arg_unpack(
                    args,
                    flags,
                    fmt,
                    key(0),
                    key(1),
                    key(2),
                    key(3),
                    key(4),
                    key(5),
                    key(6),
                    key(7),
                    out,
                ),
            }
        };
        // SAFETY: the json_t lives as long as the arguments.
        rc == 0 && !value.is_null() && unsafe { !is_null(value) }
    }

    /// The string at a path of 1 to 4 keys, where there is one.
    pub fn string(&self, path: &[&str]) -> Option<String> {
        let format = STRING.get(path.len().checked_sub(1)?)?;
        let mut text: *const c_char = ptr::null();
        let out: *mut *const c_char = &mut text;
        let keys: Vec<CString> = path.iter().map(|key| crate::c_text(key)).collect();
        let key = |n: usize| -> *const c_char { keys[n].as_ptr() };
        let (args, flags, fmt) = (self.raw, raw::FLUX_PLUGIN_ARG_IN, format.as_ptr());
        // SAFETY: each format takes as many keys as it has levels, and a place for a borrowed string.
        let rc = unsafe {
            match path.len() {
                1 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), out),
                2 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), out),
                3 => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), key(2), out),
                _ => raw::flux_plugin_arg_unpack(args, flags, fmt, key(0), key(1), key(2), key(3), out),
            }
        };
        if rc != 0 {
            return None;
        }
        // SAFETY: the string lives as long as the arguments, and is copied here.
        unsafe { borrowed(text) }.map(|text| text.into_owned())
    }

    /// All of the arguments. Not for hot paths: they are printed and parsed.
    pub fn all(&self) -> Option<Value> {
        let mut json = ptr::null_mut();
        // SAFETY: on success `json` receives a string that is to be freed.
        let rc = unsafe { raw::flux_plugin_arg_get(self.raw, raw::FLUX_PLUGIN_ARG_IN, &mut json) };
        if rc < 0 {
            return None;
        }
        // SAFETY: allocated by the call above.
        serde_json::from_str(&unsafe { taken(json) }?).ok()
    }

    /// Adds results, an object, to what the callback answers.
    pub fn answer(&self, results: &Value) -> bool {
        if self.raw.is_null() {
            // Callbacks of the shell have no arguments.
            return false;
        }
        let text = crate::c_text(&results.to_string());
        // SAFETY: a C string with JSON.
        unsafe { raw::flux_plugin_arg_set(self.raw, raw::FLUX_PLUGIN_ARG_OUT, text.as_ptr()) == 0 }
    }
}

impl Drop for Args<'_> {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: owned, and destroyed once.
            unsafe { raw::flux_plugin_arg_destroy(self.raw) }
        }
    }
}
