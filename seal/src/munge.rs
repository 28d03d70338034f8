// SPDX-License-Identifier: MIT OR Apache-2.0

//! MUNGE. This is the only module that calls libmunge (munge(3), munge_ctx(3)). It uses the declarations of crate
//! `munge-sys`.

mod options;

use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int, c_void},
    fmt,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
    time::{Duration, SystemTime},
};

use munge_sys as sys;
use zeroize::{Zeroize, Zeroizing};

use crate::socket::{Guard, MungeUser, Refused};

pub use options::{Cipher, Mac, Ttl};

/// A client of munged, with the options of credentials. It is cheap to clone, and any thread may use it.
#[derive(Debug, Clone, Default)]
pub struct Munge {
    socket: Option<CString>,
    guard: Guard,
    cipher: Cipher,
    mac: Mac,
    ttl: Ttl,
    /// The scheduler instance whose records are sealed and opened, if its records name one.
    instance: Option<String>,
}

/// An authentic payload, with MUNGE's information about it.
pub(crate) struct Decoded {
    pub payload: Zeroizing<Vec<u8>>,
    pub uid: u32,
    pub restricted_to: Option<u32>,
    pub encrypted: bool,
    pub encoded_at: SystemTime,
    pub code: sys::munge_err_t,
}

/// The reason why MUNGE rejected a request or could not be reached. The text is MUNGE's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MungeError {
    code: sys::munge_err_t,
    text: String,
    what: &'static str,
}

impl MungeError {
    /// Returns whether a retry may help: the daemon was absent, or did not respond in time.
    pub fn is_retryable(&self) -> bool {
        matches!(self.code, sys::munge_err_EMUNGE_SOCKET | sys::munge_err_EMUNGE_TIMEOUT)
    }

    /// Returns whether the credential is restricted to another uid.
    pub fn is_unauthorized(&self) -> bool {
        self.code == sys::munge_err_EMUNGE_CRED_UNAUTHORIZED
    }
}

impl fmt::Display for MungeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, text, .. } = self;
        write!(f, "{what}: {text}")?;
        if self.is_retryable() {
            f.write_str(" (is munged running on this node, and is munge-socket right?)")?;
        }
        Ok(())
    }
}

impl std::error::Error for MungeError {}

impl Munge {
    /// Returns a client of the munged at `socket`, or at libmunge's default socket.
    ///
    /// # Errors
    /// The path contains a NUL.
    pub fn new(socket: Option<&Path>) -> Result<Self, MungeError> {
        let socket = match socket {
            None => None,
            Some(path) => Some(CString::new(path.as_os_str().as_bytes()).map_err(|_| MungeError {
                code: sys::munge_err_EMUNGE_BAD_ARG,
                text: "the socket's path contains a NUL".to_owned(),
                what: "MUNGE cannot be used",
            })?),
        };
        Ok(Self {
            socket,
            ..Self::default()
        })
    }

    /// Sets another user that munged may run as, besides root and the instance owner.
    pub fn user(self, user: MungeUser) -> Self {
        Self {
            guard: Guard::new(user),
            ..self
        }
    }

    /// Sets the cipher.
    pub fn cipher(self, cipher: Cipher) -> Self {
        Self { cipher, ..self }
    }

    /// Sets the message authentication code.
    pub fn mac(self, mac: Mac) -> Self {
        Self { mac, ..self }
    }

    /// Sets the time to live.
    pub fn ttl(self, ttl: Ttl) -> Self {
        Self { ttl, ..self }
    }

    /// Sets the name of the scheduler instance. Records contain it, and records of another instance are rejected.
    /// Clusters that share a key have jobs with the same ids.
    pub fn instance(self, name: impl Into<String>) -> Self {
        let instance = Some(name.into());
        Self { instance, ..self }
    }

    /// Returns the name of the scheduler instance in records.
    pub(crate) fn instance_name(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    /// Decodes a message that a process encoded for the user of this process, and returns it with the uid of the
    /// encoder. Blocks on munged, see [`Munge::encode`].
    ///
    /// # Errors
    /// [`MungeError`], also for messages that are expired, from the future, or already decoded on this node.
    pub fn receive(&self, credential: &str) -> Result<(Zeroizing<Vec<u8>>, u32), MungeError> {
        let what = "MUNGE refused a message";
        let own = nix::unistd::geteuid().as_raw();
        let decoded = self.decode(credential, own)?;
        let refused = |code, text: &str| MungeError {
            code,
            text: text.to_owned(),
            what,
        };
        match decoded.code {
            sys::munge_err_EMUNGE_SUCCESS => {}
            sys::munge_err_EMUNGE_CRED_EXPIRED => {
                return Err(refused(decoded.code, "it has expired: compare the clocks"));
            }
            sys::munge_err_EMUNGE_CRED_REWOUND => {
                return Err(refused(decoded.code, "it is from the future: compare the clocks"));
            }
            code => return Err(refused(code, "it was received before")),
        }
        if decoded.restricted_to != Some(own) {
            let code = sys::munge_err_EMUNGE_CRED_UNAUTHORIZED;
            return Err(refused(code, "it is not restricted to the user of this process"));
        }
        Ok((decoded.payload, decoded.uid))
    }

    /// Encodes a payload that only the user of this process can decode, with [`Munge::unwrap`]. Blocks, see
    /// [`Munge::encode`].
    ///
    /// # Errors
    /// [`MungeError`].
    pub fn wrap(&self, payload: &[u8]) -> Result<String, MungeError> {
        self.encode(payload, nix::unistd::geteuid().as_raw())
    }

    /// Decodes a credential of [`Munge::wrap`], regardless of its age. Blocks, see [`Munge::encode`].
    ///
    /// # Errors
    /// [`MungeError`], also for a credential that another user encoded or everybody can read.
    pub fn unwrap(&self, credential: &str) -> Result<Zeroizing<Vec<u8>>, MungeError> {
        let own = nix::unistd::geteuid().as_raw();
        let decoded = self.decode(credential, own)?;
        if decoded.uid != own || decoded.restricted_to != Some(own) || !decoded.encrypted {
            return Err(MungeError {
                code: sys::munge_err_EMUNGE_CRED_UNAUTHORIZED,
                text: "it was not sealed by this user for this user, or is not encrypted".to_owned(),
                what: "MUNGE refused a sealed file",
            });
        }
        Ok(decoded.payload)
    }

    /// Encodes a payload into a credential that only `uid` can decode. Blocks: libmunge waits up to 2 s for a response
    /// and tries 5 times (munged may be stopped).
    ///
    /// # Errors
    /// [`MungeError`], retryable if munged did not respond.
    pub fn encode(&self, payload: &[u8], uid: u32) -> Result<String, MungeError> {
        let what = "MUNGE could not seal";
        let len = c_int::try_from(payload.len()).map_err(|_| MungeError {
            code: sys::munge_err_EMUNGE_BAD_LENGTH,
            text: "the payload is too large".to_owned(),
            what,
        })?;
        if uid as c_int == sys::munge_uid_MUNGE_UID_ANY {
            // To MUNGE this uid means everybody.
            return Err(MungeError {
                code: sys::munge_err_EMUNGE_BAD_ARG,
                text: format!("no user can have uid {uid}"),
                what,
            });
        }
        let ctx = Context::new(self, what)?;
        ctx.check_socket(|path| self.guard.check_listener(path))?;
        ctx.set_int(sys::munge_opt_MUNGE_OPT_CIPHER_TYPE, self.cipher.code())?;
        ctx.set_int(sys::munge_opt_MUNGE_OPT_MAC_TYPE, self.mac.code())?;
        // Tokens do not compress, and the length of data that is compressed before encryption reveals its content.
        ctx.set_int(
            sys::munge_opt_MUNGE_OPT_ZIP_TYPE,
            sys::munge_zip_MUNGE_ZIP_NONE as c_int,
        )?;
        ctx.set_int(sys::munge_opt_MUNGE_OPT_TTL, self.ttl.code())?;
        ctx.set_int(sys::munge_opt_MUNGE_OPT_UID_RESTRICTION, uid as c_int)?;
        let mut cred = ptr::null_mut();
        // SAFETY: `ctx` is a live context, the buffer is `len` bytes long, and `cred` receives a string that the caller
        // frees.
        let code = unsafe { sys::munge_encode(&mut cred, ctx.raw, payload.as_ptr().cast::<c_void>(), len) };
        if code != sys::munge_err_EMUNGE_SUCCESS {
            return Err(ctx.error(code));
        }
        // SAFETY: on success `cred` is a NUL-terminated string allocated by libmunge, and it is freed once.
        let text = unsafe {
            let text = CStr::from_ptr(cred).to_str().map(str::to_owned);
            libc::free(cred.cast());
            text
        };
        text.map_err(|_| MungeError {
            code: sys::munge_err_EMUNGE_BAD_CRED,
            text: "the credential is not text".to_owned(),
            what,
        })
    }

    /// Decodes a credential as the uid of this process. Returns expired, rewound and replayed credentials with their
    /// code: MUNGE checks these three properties last, so the credentials are authentic and authorized. munged may run
    /// as `instance_owner`.
    pub(crate) fn decode(&self, credential: &str, instance_owner: u32) -> Result<Decoded, MungeError> {
        let what = "MUNGE could not open the sealed record";
        let ctx = Context::new(self, what)?;
        ctx.check_socket(|path| self.guard.check(path, instance_owner))?;
        let credential = CString::new(credential).map_err(|_| MungeError {
            code: sys::munge_err_EMUNGE_BAD_CRED,
            text: "the credential contains a NUL".to_owned(),
            what,
        })?;
        let (mut buffer, mut len, mut uid, mut gid) = (ptr::null_mut(), 0, u32::MAX, u32::MAX);
        // SAFETY: `ctx` is live, the credential is a C string, and the out-parameters are ours.
        let code =
            unsafe { sys::munge_decode(credential.as_ptr(), ctx.raw, &mut buffer, &mut len, &mut uid, &mut gid) };
        let payload = Zeroizing::new(if buffer.is_null() {
            Vec::new()
        } else {
            let len = usize::try_from(len).unwrap_or(0);
            // SAFETY: libmunge allocated `len` bytes (and one for a NUL) at `buffer`. They are wiped, and freed once.
            unsafe {
                let bytes = std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len);
                let copy = bytes.to_vec();
                bytes.zeroize();
                libc::free(buffer);
                copy
            }
        });
        match code {
            sys::munge_err_EMUNGE_SUCCESS
            | sys::munge_err_EMUNGE_CRED_EXPIRED
            | sys::munge_err_EMUNGE_CRED_REWOUND
            | sys::munge_err_EMUNGE_CRED_REPLAYED => {}
            code => return Err(ctx.error(code)),
        }
        let restricted_to = match ctx.int(sys::munge_opt_MUNGE_OPT_UID_RESTRICTION)? {
            sys::munge_uid_MUNGE_UID_ANY => None,
            uid => Some(uid as u32),
        };
        let encrypted = ctx.int(sys::munge_opt_MUNGE_OPT_CIPHER_TYPE)? != sys::munge_cipher_MUNGE_CIPHER_NONE as c_int;
        Ok(Decoded {
            payload,
            uid,
            restricted_to,
            encrypted,
            encoded_at: ctx.encode_time()?,
            code,
        })
    }
}

/// A `munge_ctx_t` that is destroyed when dropped.
struct Context {
    raw: sys::munge_ctx_t,
    what: &'static str,
}

impl Context {
    fn new(munge: &Munge, what: &'static str) -> Result<Self, MungeError> {
        // SAFETY: no arguments; a null result is checked below.
        let raw = unsafe { sys::munge_ctx_create() };
        if raw.is_null() {
            return Err(MungeError {
                code: sys::munge_err_EMUNGE_NO_MEMORY,
                text: "out of memory".to_owned(),
                what,
            });
        }
        let ctx = Self { raw, what };
        if let Some(socket) = &munge.socket {
            // SAFETY: MUNGE_OPT_SOCKET takes a C string, which libmunge copies.
            let code =
                unsafe { sys::munge_ctx_set(ctx.raw, sys::munge_opt_MUNGE_OPT_SOCKET as c_int, socket.as_ptr()) };
            ctx.check(code)?;
        }
        Ok(ctx)
    }

    /// Checks the socket to which the context will connect.
    fn check_socket(&self, check: impl Fn(&Path) -> Result<(), Refused>) -> Result<(), MungeError> {
        let mut path: *const c_char = ptr::null();
        // SAFETY: munge_ctx_get stores a pointer to a string that the context owns (munge_ctx(3), MUNGE_OPT_SOCKET).
        let code = unsafe {
            sys::munge_ctx_get(
                self.raw,
                sys::munge_opt_MUNGE_OPT_SOCKET as c_int,
                &mut path as *mut *const c_char,
            )
        };
        self.check(code)?;
        if path.is_null() {
            return Ok(());
        }
        // SAFETY: libmunge set it to a C string, which lives as long as the context.
        let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
        check(path).map_err(|refused| {
            let (code, text) = match refused {
                Refused::Absent(e) => (sys::munge_err_EMUNGE_SOCKET, e.to_string()),
                Refused::Untrusted(why) => (sys::munge_err_EMUNGE_BAD_ARG, format!("the socket is not safe: {why}")),
            };
            MungeError {
                code,
                text: format!("{}: {text}", path.display()),
                what: self.what,
            }
        })
    }

    fn set_int(&self, option: sys::munge_opt_t, value: c_int) -> Result<(), MungeError> {
        // SAFETY: callers name options that take an int (munge_ctx(3); uid_t has the size of int).
        self.check(unsafe { sys::munge_ctx_set(self.raw, option as c_int, value) })
    }

    fn int(&self, option: sys::munge_opt_t) -> Result<c_int, MungeError> {
        let mut value: c_int = 0;
        // SAFETY: callers name options that write an int (munge_ctx(3); uid_t has the size of int).
        self.check(unsafe { sys::munge_ctx_get(self.raw, option as c_int, &mut value as *mut c_int) })?;
        Ok(value)
    }

    fn encode_time(&self) -> Result<SystemTime, MungeError> {
        let mut time: libc::time_t = 0;
        // SAFETY: MUNGE_OPT_ENCODE_TIME writes a time_t (munge_ctx(3)).
        self.check(unsafe {
            sys::munge_ctx_get(
                self.raw,
                sys::munge_opt_MUNGE_OPT_ENCODE_TIME as c_int,
                &mut time as *mut libc::time_t,
            )
        })?;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time).unwrap_or(0)))
    }

    fn check(&self, code: sys::munge_err_t) -> Result<(), MungeError> {
        if code == sys::munge_err_EMUNGE_SUCCESS {
            Ok(())
        } else {
            Err(self.error(code))
        }
    }

    fn error(&self, code: sys::munge_err_t) -> MungeError {
        // SAFETY: both functions return a static or context-owned string, or (the first) null.
        let text = unsafe {
            let own = sys::munge_ctx_strerror(self.raw);
            let text = if own.is_null() { sys::munge_strerror(code) } else { own };
            CStr::from_ptr(text)
                .to_string_lossy()
                .replace(" (Did you start munged?)", "")
        };
        MungeError {
            code,
            text,
            what: self.what,
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: created by `munge_ctx_create` and destroyed once.
        unsafe { sys::munge_ctx_destroy(self.raw) }
    }
}
