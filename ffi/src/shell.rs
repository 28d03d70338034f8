// SPDX-License-Identifier: MIT OR Apache-2.0

//! The job shell: flux-shell-plugins(7), flux_shell_get_info(3), flux_shell_setenvf(3), flux_shell_killall(3),
//! flux_shell_log(3).

use std::{
    ffi::{CStr, c_int, c_void},
    io,
    marker::PhantomData,
    ptr,
};

use serde_json::Value;

use crate::{Flux, args::At, c_line, c_text, last_error, raw, read_json, taken};

/// The job shell that loaded the plugin.
#[derive(Clone, Copy)]
pub struct Shell<'a> {
    raw: *mut raw::flux_shell_t,
    _borrow: PhantomData<&'a ()>,
}

/// Severities of the shell's log, flux_shell_log(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum ShellLogLevel {
    /// Something failed.
    Error = raw::FLUX_SHELL_ERROR,
    /// Misconfigured, or degraded.
    Warn = raw::FLUX_SHELL_WARN,
    /// Details, shown with `-o verbose`.
    Debug = raw::FLUX_SHELL_DEBUG,
}

/// The shell's information about its job, without the jobspec.
#[derive(Debug, Clone, Copy)]
pub struct JobFacts {
    /// The job id.
    pub jobid: u64,
    /// The uid that the instance runs as.
    pub instance_owner: u32,
    /// The rank of this shell in the job.
    pub rank: i32,
    /// The number of shells of the job.
    pub size: i32,
}

impl<'a> Shell<'a> {
    /// # Safety
    /// `raw` is null or a shell that lives as long as the result.
    pub(crate) unsafe fn borrow(raw: *mut raw::flux_shell_t) -> Option<Self> {
        (!raw.is_null()).then_some(Self {
            raw,
            _borrow: PhantomData,
        })
    }

    /// Returns the handle of the shell.
    pub fn flux(&self) -> Option<Flux<'a>> {
        // SAFETY: a live shell. The handle lives as long.
        unsafe { Flux::borrow(raw::flux_shell_get_flux(self.raw)) }
    }

    /// Returns the shell's information about its job.
    ///
    /// # Errors
    /// From flux_shell_info_unpack(3).
    pub fn job(&self) -> io::Result<JobFacts> {
        let (mut jobid, mut instance_owner, mut rank, mut size): (i64, c_int, c_int, c_int) = (0, 0, 0, 0);
        // SAFETY: the format takes keys and addresses: of a json_int_t, which is 64 bits, and of three ints.
        let rc = unsafe {
            raw::flux_shell_info_unpack(
                self.raw,
                c"{s:I s:i s:i s:i}".as_ptr(),
                c"jobid".as_ptr(),
                &mut jobid as *mut i64,
                c"instance_owner".as_ptr(),
                &mut instance_owner as *mut c_int,
                c"rank".as_ptr(),
                &mut rank as *mut c_int,
                c"size".as_ptr(),
                &mut size as *mut c_int,
            )
        };
        if rc < 0 {
            return Err(last_error());
        }
        Ok(JobFacts {
            jobid: jobid as u64,
            instance_owner: instance_owner as u32,
            rank,
            size,
        })
    }

    /// Returns whether the jobspec, as submitted, has an attribute at a path of 1 to 6 keys below `attributes`.
    pub fn has_attribute(&self, path: &[String]) -> bool {
        let mut value: *mut c_void = ptr::null_mut();
        let out: *mut *mut c_void = &mut value;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some(at) = At::new(&["jobspec", "attributes"], &path, b'o', out.cast()) else {
            return false;
        };
        let a = at.arguments();
        // SAFETY: the format takes as many keys as the path has, and then the address of a pointer to a borrowed
        // json_t. It ignores the arguments that follow. A json_t starts with its type, and lives as long as the
        // shell's info.
        unsafe {
            let rc = raw::flux_shell_info_unpack(
                self.raw,
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
            );
            rc == 0 && !value.is_null() && !crate::args::is_null(value)
        }
    }

    /// Returns the shell option `-o NAME=VALUE`, if given.
    ///
    /// # Errors
    /// From flux_shell_getopt(3). InvalidData: the value cannot be parsed.
    pub fn option(&self, name: &CStr) -> io::Result<Option<Value>> {
        let mut json = ptr::null_mut();
        // SAFETY: a live shell, a C string, and the address of a pointer to a string that the caller frees.
        let text = unsafe {
            match raw::flux_shell_getopt(self.raw, name.as_ptr(), &mut json) {
                0 => None,
                1 => taken(json),
                _ => return Err(last_error()),
            }
        };
        text.as_deref().map(read_json).transpose()
    }

    /// Sets a shell option, as `-o NAME=VALUE` does, for plugins that are loaded later.
    ///
    /// # Errors
    /// From flux_shell_setopt(3).
    pub fn set_option(&self, name: &CStr, value: &CStr) -> io::Result<()> {
        // SAFETY: a live shell, a C string, and a C string with JSON that the call copies.
        let rc = unsafe { raw::flux_shell_setopt(self.raw, name.as_ptr(), value.as_ptr()) };
        if rc < 0 { Err(last_error()) } else { Ok(()) }
    }

    /// Sets a variable in the environment of the job's tasks, and replaces any earlier value.
    ///
    /// # Errors
    /// From flux_shell_setenvf(3).
    pub fn set_env(&self, name: &str, value: &CStr) -> io::Result<()> {
        let name = c_text(name)?;
        // SAFETY: a live shell, C strings that the call copies, and a format that takes one.
        let rc = unsafe { raw::flux_shell_setenvf(self.raw, 1, name.as_ptr(), c"%s".as_ptr(), value.as_ptr()) };
        if rc < 0 { Err(last_error()) } else { Ok(()) }
    }

    /// Sends a signal to the tasks of this shell, flux_shell_killall(3).
    pub fn kill_tasks(&self, signal: i32) {
        // SAFETY: a live shell.
        unsafe { raw::flux_shell_killall(self.raw, signal) }
    }

    /// Writes a line to the log of the shell, which goes to the job's standard error.
    pub fn log(&self, component: &CStr, level: ShellLogLevel, line: &str) {
        let line = c_line(line);
        // SAFETY: C strings, and a format that takes one.
        unsafe {
            raw::flux_shell_log(
                component.as_ptr(),
                level as c_int,
                c"".as_ptr(),
                0,
                c"%s".as_ptr(),
                line.as_ptr(),
            );
        }
    }

    /// Ends the job with a fatal exception, and this process with exit code 1. Does not return.
    pub fn fatal(&self, component: &CStr, text: &str) -> ! {
        let text = c_line(text);
        // SAFETY: C strings, and a format that takes one.
        unsafe {
            raw::flux_shell_fatal(component.as_ptr(), c"".as_ptr(), 0, 0, 1, c"%s".as_ptr(), text.as_ptr());
        }
        // flux_shell_fatal(3) exits. If it returned, no part of the job might start.
        std::process::exit(1)
    }
}
