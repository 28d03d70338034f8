//! Requests to a service that a plugin registers: flux_request_decode(3), flux_respond(3).

use std::{ffi::c_int, io, marker::PhantomData, ptr};

use crate::{Flux, borrowed, c_text, last_error, raw};

/// A request, for as long as the handler runs.
pub struct Request<'a> {
    flux: *mut raw::flux_t,
    raw: *const raw::flux_msg_t,
    _borrow: PhantomData<&'a ()>,
}

impl Request<'_> {
    /// # Safety
    /// Both live for as long as the result.
    pub(crate) unsafe fn borrow(flux: *mut raw::flux_t, raw: *const raw::flux_msg_t) -> Self {
        Self {
            flux,
            raw,
            _borrow: PhantomData,
        }
    }

    /// The handle that it came over.
    pub fn flux(&self) -> Option<Flux<'_>> {
        // SAFETY: the handle outlives the handler.
        unsafe { Flux::borrow(self.flux) }
    }

    /// The payload.
    ///
    /// # Errors
    /// EPROTO.
    pub fn payload(&self) -> io::Result<Option<String>> {
        let mut text = ptr::null();
        // SAFETY: a live message, and a place for a string that it owns, which is copied.
        unsafe {
            if raw::flux_request_decode(self.raw, ptr::null_mut(), &mut text) < 0 {
                return Err(last_error());
            }
            Ok(borrowed(text).map(|text| text.into_owned()))
        }
    }

    /// The uid of who asks, as authenticated by the broker.
    ///
    /// # Errors
    /// EPROTO.
    pub fn userid(&self) -> io::Result<u32> {
        let mut uid = u32::MAX;
        // SAFETY: a live message, and a place for the uid.
        if unsafe { raw::flux_msg_get_userid(self.raw, &mut uid) } < 0 {
            Err(last_error())
        } else {
            Ok(uid)
        }
    }

    /// Answers.
    ///
    /// # Errors
    /// From flux_respond(3).
    pub fn respond(self, payload: &str) -> io::Result<()> {
        let payload = c_text(payload);
        // SAFETY: a live handle, a live message, and a C string that the call copies.
        if unsafe { raw::flux_respond(self.flux, self.raw, payload.as_ptr()) } < 0 {
            Err(last_error())
        } else {
            Ok(())
        }
    }

    /// Answers with an error.
    ///
    /// # Errors
    /// From flux_respond_error(3).
    pub fn refuse(self, errno: c_int, text: &str) -> io::Result<()> {
        let text = c_text(text);
        // SAFETY: a live handle, a live message, and a C string that the call copies.
        let rc = unsafe { raw::flux_respond_error(self.flux, self.raw, errno, text.as_ptr()) };
        if rc < 0 { Err(last_error()) } else { Ok(()) }
    }
}
