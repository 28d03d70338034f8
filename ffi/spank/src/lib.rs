// SPDX-License-Identifier: MIT OR Apache-2.0

//! The C API of SPANK plugins: the declarations are in [`raw`]; the rest are safe types over them. See spank(8).

pub mod raw;

use std::{
    ffi::{CStr, CString, c_char, c_int, c_long, c_uint},
    io,
    marker::PhantomData,
};

use ffi::c_line;

/// The handle that Slurm passes to each callback, for as long as the callback runs.
#[derive(Debug)]
pub struct Spank<'a> {
    raw: raw::spank_t,
    _callback: PhantomData<&'a ()>,
}

/// The program that has loaded the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// srun.
    Local,
    /// sbatch or salloc.
    Allocator,
    /// slurmstepd.
    Remote,
    /// slurmstepd before or after a job.
    JobScript,
    /// Any other program, such as slurmd.
    Other,
}

impl Context {
    /// Returns whether the program submits jobs or starts steps, and runs as the user.
    pub fn is_client(self) -> bool {
        matches!(self, Self::Local | Self::Allocator)
    }
}

/// An option that takes an argument.
#[derive(Debug, Clone, Copy)]
pub struct SpankOption {
    /// The name, without hyphens.
    pub name: &'static CStr,
    /// The name of the argument, for `--help`.
    pub argument: &'static CStr,
    /// The purpose, for `--help`.
    pub usage: &'static CStr,
    /// Called for each occurrence: environment, `#SBATCH` lines, command line. Slurm rejects the option unless it returns 0.
    pub callback: unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int,
}

/// The step id of the extern step, which has no tasks of users (slurm.h, SLURM_EXTERN_CONT).
pub const EXTERN_STEP: u32 = 0xffff_fffc;

/// The highest id of a step that srun started (slurm.h, SLURM_MAX_NORMAL_STEP_ID). Slurm's own steps, such as the batch
/// step, have higher ids.
pub const LAST_STEP: u32 = 0xffff_fff0;

/// The longest value that [`Spank::has_env`] reads, in bytes.
const MAX_VALUE: usize = 4096;

impl Spank<'_> {
    /// Borrows the handle of a callback.
    ///
    /// # Safety
    /// `raw` is the handle that Slurm passed to the callback that is running.
    pub unsafe fn borrow(raw: raw::spank_t) -> Self {
        Self {
            raw,
            _callback: PhantomData,
        }
    }

    /// Returns the uid of the job owner.
    pub fn uid(&self) -> Option<u32> {
        self.number(raw::S_JOB_UID)
    }

    /// Returns the primary group of the job owner.
    pub fn gid(&self) -> Option<u32> {
        self.number(raw::S_JOB_GID)
    }

    /// Returns the number of tasks of the step on this node.
    pub fn local_tasks(&self) -> Option<u32> {
        self.number(raw::S_JOB_LOCAL_TASK_COUNT)
    }

    /// Returns the process id of the task that the callback is for.
    pub fn task_pid(&self) -> Option<u32> {
        self.number(raw::S_TASK_PID)
    }

    /// Returns the job id.
    pub fn jobid(&self) -> Option<u32> {
        self.number(raw::S_JOB_ID)
    }

    /// Returns the step id.
    pub fn step(&self) -> Option<u32> {
        self.number(raw::S_JOB_STEPID)
    }

    /// Returns the number of the task in its step, over all nodes.
    pub fn task(&self) -> Option<u32> {
        self.number(raw::S_TASK_GLOBAL_ID)
    }

    /// Returns the number of the task on this node.
    pub fn local_task(&self) -> Option<u32> {
        // Slurm writes an `int` that is never negative.
        self.number(raw::S_TASK_ID)
    }

    /// Reads an item of type `uint32_t`, `uid_t`, `gid_t`, `pid_t` or `int`.
    fn number(&self, item: c_uint) -> Option<u32> {
        let mut number = u32::MAX;
        // SAFETY: the handle is that of the running callback, and callers name items of 32 bits.
        let code = unsafe { raw::spank_get_item(self.raw, item, &mut number as *mut u32) };
        (code == 0).then_some(number)
    }

    /// Returns whether a variable is set in the environment of the job.
    pub fn has_env(&self, name: &CStr) -> bool {
        let mut buffer = [0 as c_char; MAX_VALUE];
        // SAFETY: the handle is that of the running callback, and the buffer is as long as stated.
        let code = unsafe { raw::spank_getenv(self.raw, name.as_ptr(), buffer.as_mut_ptr(), MAX_VALUE as c_int) };
        // If the value is longer than the buffer, spank_getenv fails but fills the buffer.
        code == 0 || buffer[0] != 0
    }

    /// Registers an option. Call it in `slurm_spank_init`, in slurmstepd too: slurmstepd logs an error for each use of
    /// an option that is not registered there.
    ///
    /// # Errors
    /// Slurm rejected the option.
    pub fn register_option(&self, option: &SpankOption) -> io::Result<()> {
        let mut option = raw::spank_option {
            name: option.name.as_ptr().cast_mut(),
            arginfo: option.argument.as_ptr().cast_mut(),
            usage: option.usage.as_ptr().cast_mut(),
            has_arg: 1,
            val: 0,
            cb: Some(option.callback),
        };
        // SAFETY: the handle is that of the running callback, and Slurm copies the option and its strings.
        refusal(unsafe { raw::spank_option_register(self.raw, &mut option) })
    }

    /// Sets a variable in the environment of the prologs and epilogs of the job to be submitted. There its name begins
    /// with `SPANK_`. Users can set these variables, too.
    ///
    /// # Errors
    /// EINVAL: the name or the value contains a NUL. Slurm rejected the variable.
    pub fn set_job_control_env(&self, name: &str, value: &str) -> io::Result<()> {
        let (name, value) = (ffi::c_text(name)?, ffi::c_text(value)?);
        // SAFETY: the handle is that of the running callback, and Slurm copies both strings.
        refusal(unsafe { raw::spank_job_control_setenv(self.raw, name.as_ptr(), value.as_ptr(), 1) })
    }

    /// Removes a variable that [`Spank::set_job_control_env`] sets, if it is set.
    pub fn remove_job_control_env(&self, name: &str) {
        if let Ok(name) = ffi::c_text(name) {
            // SAFETY: the handle is that of the running callback, and the name is a C string.
            unsafe { raw::spank_job_control_unsetenv(self.raw, name.as_ptr()) };
        }
    }

    /// Sets a variable in the environment of the task.
    ///
    /// # Errors
    /// EINVAL: the name contains a NUL. Slurm rejected the variable.
    pub fn set_env(&self, name: &str, value: &CStr) -> io::Result<()> {
        let name = ffi::c_text(name)?;
        // SAFETY: the handle is that of the running callback, and Slurm copies both strings.
        refusal(unsafe { raw::spank_setenv(self.raw, name.as_ptr(), value.as_ptr(), 1) })
    }
}

fn refusal(code: raw::spank_err_t) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::other(format!("Slurm refused it with error {code}"))),
    }
}

/// Returns the program that has loaded the plugin.
pub fn context() -> Context {
    // SAFETY: the function takes nothing and only reads.
    match unsafe { raw::spank_context() } {
        raw::S_CTX_LOCAL => Context::Local,
        raw::S_CTX_ALLOCATOR => Context::Allocator,
        raw::S_CTX_REMOTE => Context::Remote,
        raw::S_CTX_JOB_SCRIPT => Context::JobScript,
        _ => Context::Other,
    }
}

/// Returns the release of the Slurm that has loaded the plugin, in the form that `plugin_version` requires (slurm.h,
/// `SLURM_VERSION_NUMBER`). Returns 0 before 21.08.
pub fn release() -> u32 {
    // SAFETY: the function takes nothing and returns a constant.
    release_of_api(unsafe { raw::slurm_api_version() })
}

/// Returns the release for a version of libslurm. Each release increments the major version: 21.08 has 37, and 23.11
/// has 40. Since 23.11 two releases appear each year, in May and November.
fn release_of_api(version: c_long) -> u32 {
    let Ok(major) = u32::try_from(version >> 16) else {
        return 0;
    };
    let (year, month) = match major {
        ..=36 => return 0,
        37 => (21, 8),
        38 => (22, 5),
        39 => (23, 2),
        40..=200 => (23 + (major - 39) / 2, if major % 2 == 0 { 11 } else { 5 }),
        _ => return 0,
    };
    year << 16 | month << 8
}

/// Prints a line for the user.
pub fn print(line: &str) {
    let line = c_line(line);
    // SAFETY: the format takes one string.
    unsafe { raw::slurm_spank_log(c"%s".as_ptr(), line.as_ptr()) }
}

/// Logs an error for the operator. On a node, it appears in slurmd.log.
pub fn log_error(line: &str) {
    let line = c_line(line);
    // SAFETY: the format takes one string.
    unsafe { raw::slurm_error(c"%s".as_ptr(), line.as_ptr()) }
}

/// Returns the arguments of the plugin in plugstack.conf.
///
/// # Safety
/// `argv` holds `argc` C strings, as Slurm passes them to callbacks.
pub unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<String> {
    let count = usize::try_from(argc).unwrap_or(0);
    let argument = |index| {
        // SAFETY: guaranteed by the caller.
        let text = unsafe { ffi::borrowed(*argv.add(index)) };
        text.unwrap_or_default().into_owned()
    };
    (0..count).map(argument).collect()
}

/// Removes a variable from the environment of this process. Call it while the process has one thread.
pub fn remove_own_env(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: the plugin is called before srun, sbatch or salloc start threads, and the name is a C string.
        unsafe { libc::unsetenv(name.as_ptr()) };
    }
}

/// Ends this process at once, without the exit handlers of the program that it was forked from.
pub fn exit_now(status: c_int) -> ! {
    // SAFETY: _exit(2) does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_follow_from_versions_of_the_library() {
        for (api, release) in [
            (36, "0.0"),
            (37, "21.8"),
            (38, "22.5"),
            (39, "23.2"),
            (40, "23.11"),
            (41, "24.5"),
            (42, "24.11"),
            (45, "26.5"),
            (9999, "0.0"),
        ] {
            let number = release_of_api(api << 16);
            assert_eq!(format!("{}.{}", number >> 16, number >> 8 & 0xff), release);
        }
        assert_eq!(release_of_api(-1), 0);
    }
}
