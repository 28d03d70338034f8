// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests to a service that a plugin registers: flux_request_decode(3), flux_respond(3).

use std::{
    cell::Cell,
    ffi::{CStr, c_int},
    io, ptr,
};

use crate::{Flux, c_line, c_text, last_error, raw};

/// A request, valid while the handler runs.
pub struct Request<'a> {
    flux: *mut raw::flux_t,
    raw: *const raw::flux_msg_t,
    /// Set once the request is answered or kept. The owner of a kept request must answer it.
    taken: &'a Cell<bool>,
}

impl<'a> Request<'a> {
    /// # Safety
    /// Both live as long as the result.
    pub(crate) unsafe fn borrow(flux: *mut raw::flux_t, raw: *const raw::flux_msg_t, taken: &'a Cell<bool>) -> Self {
        Self { flux, raw, taken }
    }

    /// Returns the handle on which the request arrived.
    pub fn flux(&self) -> Option<Flux<'_>> {
        // SAFETY: the handle outlives the handler.
        unsafe { Flux::borrow(self.flux) }
    }

    /// Returns the payload. It is borrowed, not copied, because it may contain a secret.
    ///
    /// # Errors
    /// EPROTO.
    pub fn payload(&self) -> io::Result<Option<&str>> {
        let mut text = ptr::null();
        // SAFETY: a live message, and the address of a pointer to a string that the message owns.
        unsafe {
            if raw::flux_request_decode(self.raw, ptr::null_mut(), &mut text) < 0 {
                return Err(last_error());
            }
            if text.is_null() {
                return Ok(None);
            }
            let text = CStr::from_ptr(text).to_str();
            text.map(Some).map_err(|_| io::Error::from_raw_os_error(libc::EPROTO))
        }
    }

    /// Returns the uid of the requester, as authenticated by the broker.
    ///
    /// # Errors
    /// EPROTO.
    pub fn userid(&self) -> io::Result<u32> {
        let mut uid = u32::MAX;
        // SAFETY: a live message, and the address of the uid.
        if unsafe { raw::flux_msg_get_userid(self.raw, &mut uid) } < 0 {
            Err(last_error())
        } else {
            Ok(uid)
        }
    }

    /// Keeps the request, so that it can be answered after the handler has returned.
    pub fn keep(&self) -> KeptRequest {
        self.taken.set(true);
        // SAFETY: a live message, whose reference count is increased.
        unsafe { raw::flux_msg_incref(self.raw) };
        KeptRequest {
            flux: self.flux,
            raw: self.raw,
        }
    }

    /// Sends a successful response.
    ///
    /// # Errors
    /// From flux_respond(3).
    pub fn respond(self, payload: Option<&str>) -> io::Result<()> {
        self.taken.set(true);
        // SAFETY: a live handle and a live message.
        unsafe { respond(self.flux, self.raw, payload) }
    }

    /// Sends an error response.
    ///
    /// # Errors
    /// From flux_respond_error(3).
    pub fn refuse(self, errno: c_int, text: &str) -> io::Result<()> {
        self.taken.set(true);
        // SAFETY: a live handle and a live message.
        unsafe { refuse(self.flux, self.raw, errno, text) }
    }
}

/// A request that is answered later. Its handle must still live then: the job manager's handle outlives each plugin.
pub struct KeptRequest {
    flux: *mut raw::flux_t,
    raw: *const raw::flux_msg_t,
}

impl KeptRequest {
    /// Sends a successful response.
    ///
    /// # Errors
    /// From flux_respond(3).
    pub fn respond(self, payload: Option<&str>) -> io::Result<()> {
        // SAFETY: the handle outlives the plugin, and this value holds a reference to the message.
        unsafe { respond(self.flux, self.raw, payload) }
    }

    /// Sends an error response.
    ///
    /// # Errors
    /// From flux_respond_error(3).
    pub fn refuse(self, errno: c_int, text: &str) -> io::Result<()> {
        // SAFETY: the handle outlives the plugin, and this value holds a reference to the message.
        unsafe { refuse(self.flux, self.raw, errno, text) }
    }
}

impl Drop for KeptRequest {
    fn drop(&mut self) {
        // SAFETY: releases, once, the reference that `keep` took.
        unsafe { raw::flux_msg_decref(self.raw) }
    }
}

/// # Safety
/// A live handle and a live message.
unsafe fn respond(flux: *mut raw::flux_t, msg: *const raw::flux_msg_t, payload: Option<&str>) -> io::Result<()> {
    let payload = payload.map(c_text).transpose()?;
    let text = payload.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: guaranteed by the caller; the text is null or a C string that the call copies.
    let rc = unsafe { raw::flux_respond(flux, msg, text) };
    if rc < 0 { Err(last_error()) } else { Ok(()) }
}

/// # Safety
/// A live handle and a live message.
unsafe fn refuse(flux: *mut raw::flux_t, msg: *const raw::flux_msg_t, errno: c_int, text: &str) -> io::Result<()> {
    let text = c_line(text);
    // SAFETY: guaranteed by the caller; the call copies the C string.
    let rc = unsafe { raw::flux_respond_error(flux, msg, errno, text.as_ptr()) };
    if rc < 0 { Err(last_error()) } else { Ok(()) }
}
