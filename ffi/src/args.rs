// SPDX-License-Identifier: MIT OR Apache-2.0

//! Arguments of a plugin's callback: flux_plugin_arg_create(3), flux-jobtap-plugins(7).
//!
//! These types unpack single values and do not parse the whole: a jobspec can be megabytes long.

use std::{
    ffi::{c_char, c_int, c_void},
    io,
    marker::PhantomData,
    ptr,
};

use serde_json::Value;

use crate::{JobId, borrowed, c_text, last_error, raw, read_json, taken};

/// The arguments of the callback that is running.
pub struct Args<'a> {
    raw: *mut raw::flux_plugin_arg_t,
    owned: bool,
    _borrow: PhantomData<&'a ()>,
}

/// The states of a job that matter to a delivery, RFC 21.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// NEW: it is being submitted.
    New,
    /// NEW: the job is being submitted.
    Depend,
    /// PRIORITY or SCHED.
    Pending,
    /// RUN: resources are assigned; prologs run in this state.
    Run,
    /// CLEANUP: the job has ended or received a fatal exception.
    Cleanup,
    /// INACTIVE.
    Inactive,
}

fn state_of(state: c_int) -> JobState {
    match state {
        raw::FLUX_JOB_STATE_NEW => JobState::New,
        raw::FLUX_JOB_STATE_DEPEND => JobState::Depend,
        raw::FLUX_JOB_STATE_RUN => JobState::Run,
        raw::FLUX_JOB_STATE_CLEANUP => JobState::Cleanup,
        raw::FLUX_JOB_STATE_INACTIVE => JobState::Inactive,
        _ => JobState::Pending,
    }
}

/// jansson's `json_type` for null. The type is the first word of a json_t.
const JSON_NULL: c_int = 7;

/// Returns whether a json_t is JSON's null. A json_t starts with its type (jansson.h, part of its ABI since 2.0).
///
/// # Safety
/// `value` is a live json_t.
pub(crate) unsafe fn is_null(value: *const c_void) -> bool {
    // SAFETY: guaranteed by the caller.
    unsafe { *value.cast::<c_int>() == JSON_NULL }
}

/// The maximum number of keys in the path of an unpacked value.
const DEPTH: usize = 8;

/// The path of a value in an object, as json_unpack(3) takes it: a format, the keys, and the destination. A C-variadic
/// function ignores arguments that its format does not use, so one call serves every depth.
pub(crate) struct At {
    /// `{s?` or `{s:` for each key, the kind, `}` for each key, and NUL.
    format: [u8; 4 * DEPTH + 2],
    /// The keys, each with its NUL. `begins` holds the offset of each.
    keys: Vec<u8>,
    begins: [usize; DEPTH],
    depth: usize,
    out: *mut c_void,
}

impl At {
    /// Returns the path of a value below `present`, keys that must exist, and then `path`, keys that may be absent.
    /// Returns None if `path` is empty, if there are more than [`DEPTH`] keys, or if a key contains a NUL.
    pub(crate) fn new(present: &[&str], path: &[&str], kind: u8, out: *mut c_void) -> Option<Self> {
        let depth = present.len() + path.len();
        if path.is_empty() || depth > DEPTH {
            return None;
        }
        let mut at = Self {
            format: [0; 4 * DEPTH + 2],
            keys: Vec::with_capacity(128),
            begins: [0; DEPTH],
            depth,
            out,
        };
        for (index, key) in present.iter().chain(path).enumerate() {
            if key.as_bytes().contains(&0) {
                return None;
            }
            at.begins[index] = at.keys.len();
            at.keys.extend_from_slice(key.as_bytes());
            at.keys.push(0);
            let optional = if index < present.len() { b':' } else { b'?' };
            at.format[3 * index..][..3].copy_from_slice(&[b'{', b's', optional]);
        }
        at.format[3 * depth] = kind;
        at.format[3 * depth + 1..][..depth].fill(b'}');
        Some(at)
    }

    pub(crate) fn format(&self) -> *const c_char {
        self.format.as_ptr().cast()
    }

    /// Returns the keys, then the destination, then nulls.
    pub(crate) fn arguments(&self) -> [*const c_void; DEPTH + 1] {
        let mut arguments = [ptr::null(); DEPTH + 1];
        for (argument, begin) in arguments.iter_mut().zip(&self.begins[..self.depth]) {
            *argument = self.keys[*begin..].as_ptr().cast();
        }
        arguments[self.depth] = self.out;
        arguments
    }
}

impl Args<'_> {
    /// # Safety
    /// `raw` is the argument object of a callback that runs for at least as long as the result is used.
    pub(crate) unsafe fn borrow(raw: *mut raw::flux_plugin_arg_t) -> Self {
        Self {
            raw,
            owned: false,
            _borrow: PhantomData,
        }
    }

    /// # Safety
    /// `raw` is an argument object that nothing else destroys.
    pub(crate) unsafe fn own(raw: *mut raw::flux_plugin_arg_t) -> Args<'static> {
        Args {
            raw,
            owned: true,
            _borrow: PhantomData,
        }
    }

    /// Returns the job that the callback concerns.
    pub fn job(&self) -> Option<JobId> {
        let mut id: i64 = 0;
        // SAFETY: the format takes a key and the address of a json_int_t, which is 64 bits.
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

    /// Returns the job, the uid of its owner, and its state.
    pub fn job_owner_state(&self) -> Option<(JobId, u32, JobState)> {
        let (mut id, mut uid, mut state): (i64, i64, c_int) = (0, 0, 0);
        // SAFETY: the format takes keys and addresses: of two json_int_t, which are 64 bits, and of an int.
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
        (rc == 0).then_some((JobId(id as u64), uid as u32, state_of(state)))
    }

    /// Returns the job's previous state, in a callback for a change of state.
    pub fn previous_state(&self) -> Option<JobState> {
        let state = c_int::try_from(self.integer(&["prev_state"])?).ok()?;
        Some(state_of(state))
    }

    /// Returns whether a value other than null exists at a path of 1 to 8 keys. Returns false for other lengths.
    pub fn has(&self, path: &[&str]) -> bool {
        !self.value(path).is_null()
    }

    /// Returns the JSON text of a value other than null, at a path of 1 to 8 keys.
    pub fn json(&self, path: &[&str]) -> Option<String> {
        let value = self.value(path);
        if value.is_null() {
            return None;
        }
        // SAFETY: the json_t is live and belongs to the arguments. The text is ours to free.
        unsafe { taken(raw::json_dumps(value.cast(), raw::JSON_COMPACT | raw::JSON_ENCODE_ANY)) }
    }

    /// Returns the string at a path of 1 to 8 keys, if one exists.
    pub fn string(&self, path: &[&str]) -> Option<String> {
        self.string_bounded(path, usize::MAX)
    }

    /// Like [`Args::string`], but returns None for a string longer than `max` bytes, and does not read past them.
    pub fn string_bounded(&self, path: &[&str], max: usize) -> Option<String> {
        let mut text: *const c_char = ptr::null();
        let out: *mut *const c_char = &mut text;
        // SAFETY: `s` takes the address of a pointer to a string. The string belongs to the arguments and is copied
        // here.
        unsafe {
            if !self.unpack(path, b's', out.cast()) || text.is_null() {
                return None;
            }
            if libc::strnlen(text, max.saturating_add(1)) > max {
                return None;
            }
            borrowed(text).map(|text| text.into_owned())
        }
    }

    /// Returns the integer at a path of 1 to 8 keys, if one exists.
    pub fn integer(&self, path: &[&str]) -> Option<i64> {
        // A sentinel that no caller expects as a value: `?` leaves `value` unchanged if a key is absent.
        let mut value = i64::MIN;
        let out: *mut i64 = &mut value;
        // SAFETY: `I` takes the address of a json_int_t, which is 64 bits.
        let found = unsafe { self.unpack(path, b'I', out.cast()) };
        (found && value != i64::MIN).then_some(value)
    }

    /// Returns the number at a path of 1 to 8 keys, if one exists.
    pub fn number(&self, path: &[&str]) -> Option<f64> {
        // JSON has no NaN, so it marks an absent value: `?` leaves `value` unchanged.
        let mut value = f64::NAN;
        let out: *mut f64 = &mut value;
        // SAFETY: `F` takes the address of a double, and converts integers.
        let found = unsafe { self.unpack(path, b'F', out.cast()) };
        (found && !value.is_nan()).then_some(value)
    }

    /// Returns the json_t at a path. It belongs to the arguments. Returns null if the value is absent or JSON's null.
    fn value(&self, path: &[&str]) -> *const c_void {
        let mut value: *mut c_void = ptr::null_mut();
        let out: *mut *mut c_void = &mut value;
        // SAFETY: `o` takes the address of a pointer to a borrowed json_t, which lives as long as the arguments.
        unsafe {
            if !self.unpack(path, b'o', out.cast()) || value.is_null() || is_null(value) {
                return ptr::null();
            }
        }
        value
    }

    /// Unpacks the value at a path of 1 to 8 keys, each optional. Leaves `out` unchanged if the value is absent.
    ///
    /// # Safety
    /// `out` points to a value of the type that the format `kind` unpacks.
    unsafe fn unpack(&self, path: &[&str], kind: u8, out: *mut c_void) -> bool {
        let Some(at) = At::new(&[], path, kind, out) else {
            return false;
        };
        let a = at.arguments();
        // SAFETY: the format takes as many keys as the path has, and then `out`. It ignores the arguments that follow.
        let rc = unsafe {
            raw::flux_plugin_arg_unpack(
                self.raw,
                raw::FLUX_PLUGIN_ARG_IN,
                at.format(),
                a[0],
                a[1],
                a[2],
                a[3],
                a[4],
                a[5],
                a[6],
                a[7],
                a[8],
            )
        };
        rc == 0
    }

    /// Returns all arguments. It prints and parses them, so do not call it on hot paths.
    ///
    /// # Errors
    /// From flux_plugin_arg_get(3). InvalidData: the arguments cannot be parsed.
    pub fn all(&self) -> io::Result<Value> {
        let mut json = ptr::null_mut();
        // SAFETY: on success `json` receives a string that the caller frees.
        let rc = unsafe { raw::flux_plugin_arg_get(self.raw, raw::FLUX_PLUGIN_ARG_IN, &mut json) };
        if rc < 0 {
            return Err(last_error());
        }
        // SAFETY: allocated by the call above.
        read_json(&unsafe { taken(json) }.unwrap_or_default())
    }

    /// Adds `results`, an object, to the results of the callback.
    pub fn answer(&self, results: &Value) -> bool {
        if self.raw.is_null() {
            // Callbacks of the shell have no arguments.
            return false;
        }
        let Ok(text) = c_text(&results.to_string()) else {
            return false;
        };
        // SAFETY: a C string that contains JSON.
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
