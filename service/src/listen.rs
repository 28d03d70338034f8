// SPDX-License-Identifier: MIT OR Apache-2.0

//! The sockets of the service, passed by systemd or its own.

use std::{
    fs::{self, Permissions},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
};

use listenfd::ListenFd;

use crate::settings::{Listen, Settings};

/// A listening socket.
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix(UnixListener),
}

/// The paths that a socket serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The public paths, for the listener with this position in the settings.
    Public(usize),
    /// The metrics.
    Internal,
}

/// A socket, and the paths that it serves.
pub struct Listener {
    /// The socket.
    pub socket: Socket,
    /// The paths that it serves.
    pub served: Served,
}

impl Listener {
    /// Binds all sockets of the settings. If systemd passes sockets (sd_listen_fds(3)), they replace those of the
    /// tables `listen`, in the same order.
    ///
    /// # Errors
    /// A message for the operator if a socket cannot be used.
    pub fn bind_all(settings: &Settings) -> Result<Vec<Self>, String> {
        let mut passed = ListenFd::from_env();
        let expected = settings.listen.len();
        if passed.len() > 0 && passed.len() != expected {
            return Err(format!(
                "systemd passed {} sockets, and the file has {expected} tables [[listen]]: correct ListenStream= in the socket unit",
                passed.len()
            ));
        }
        let listeners = settings.listen.iter().enumerate().map(|(i, listen)| {
            let failed = |e: io::Error| format!("listen[{i}]: {}: {e}", name(listen));
            let socket = match (listen, passed.len() > 0) {
                (Listen::Tcp(_), true) => passed.take_tcp_listener(i).map(|socket| socket.map(Socket::Tcp)),
                (Listen::Unix(_), true) => passed.take_unix_listener(i).map(|socket| socket.map(Socket::Unix)),
                (Listen::Tcp(tcp), false) => bind_tcp(tcp.address).map(Some),
                (Listen::Unix(path), false) => bind_unix(path).map(Some),
            };
            let socket = socket
                .map_err(failed)?
                .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            // systemd passes blocking sockets.
            let is_set = match &socket {
                Socket::Tcp(socket) => socket.set_nonblocking(true),
                Socket::Unix(socket) => socket.set_nonblocking(true),
            };
            is_set.map_err(failed)?;
            check_address(listen, &socket).map_err(|e| format!("listen[{i}].certificate: {e}"))?;
            Ok(Self {
                socket,
                served: Served::Public(i),
            })
        });
        let mut listeners = listeners.collect::<Result<Vec<_>, String>>()?;
        if let Some(address) = settings.metrics {
            let socket = bind_tcp(address).map_err(|e| format!("metrics.address: {address}: {e}"))?;
            listeners.push(Self {
                socket,
                served: Served::Internal,
            });
        }
        Ok(listeners)
    }
}

impl Listener {
    /// Returns the address, for the log.
    pub fn address(&self) -> String {
        let address = match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().map(|address| address.to_string()),
            Socket::Unix(socket) => socket.local_addr().map(|address| {
                let path = address.as_pathname().map(|path| path.display().to_string());
                path.unwrap_or_else(|| "a Unix socket".to_owned())
            }),
        };
        let what = if self.served == Served::Internal {
            " (metrics)"
        } else {
            ""
        };
        address.unwrap_or_default() + what
    }
}

/// Checks the address of a socket, which may come from systemd.
fn check_address(listen: &Listen, socket: &Socket) -> Result<(), String> {
    match (listen, socket) {
        (Listen::Tcp(tcp), Socket::Tcp(socket)) => {
            let address = socket.local_addr().map_err(|e| e.to_string())?;
            tcp.check_address(address).map_err(|e| format!("{address}: {e}"))
        }
        _ => Ok(()),
    }
}

fn name(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(tcp) => tcp.address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(Socket::Tcp(socket))
}

/// Binds a Unix socket to which every user can connect: the kernel reports the uid of a client.
fn bind_unix(path: &Path) -> io::Result<Socket> {
    // A killed service leaves its socket, on which nobody listens.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    socket.set_nonblocking(true)?;
    Ok(Socket::Unix(socket))
}
