// SPDX-License-Identifier: MIT OR Apache-2.0

//! Two services behind nginx share one PostgreSQL server. Either can be killed without failed requests.

mod support;

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "state/server.rs"]
mod server;

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use needs::needs;
use serde_json::Value;
use support::{
    Response, Service, launch,
    login::{Browser, MORE},
    until, write_private,
};

const LIMIT: Duration = Duration::from_secs(60);

/// The number of times that a service is killed.
const ROUNDS: usize = 6;

/// A load balancer, and one of the services behind it. The other service belongs to the site.
struct Balanced {
    nginx: Child,
    others: Vec<(SocketAddr, Option<Child>)>,
    service: Service,
    log: Arc<Mutex<String>>,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    Response::receive(&mut stream).is_some_and(|response| response.status == 200)
}

impl Balanced {
    fn start(database: &str) -> Self {
        let addresses = [free(), free()];
        let state = format!("[state]\ndatabase = \"{database}\"\nkey-file = \"DIR/keys\"\n\n{MORE}");
        let mut service = Service::with_files(&format!("address = \"{}\"", addresses[0]), &state, |dir| {
            write_private(&dir.join("keys"), &format!("{}\n", "0123456789abcdef".repeat(4)));
        });
        let dir = service.dir.path().to_owned();
        for (i, address) in addresses.iter().enumerate() {
            let text = fs::read_to_string(dir.join("tokend.toml")).unwrap();
            fs::create_dir(dir.join(format!("{i}"))).unwrap();
            let text = text.replace(&addresses[0].to_string(), &address.to_string());
            fs::write(dir.join(format!("{i}/tokend.toml")), text).unwrap();
        }
        service.child.kill().unwrap();
        service.child.wait().unwrap();
        let balancer = free();
        let config = format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.log;\nevents {{}}\nhttp {{ access_log off; \
             client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; \
             scgi_temp_path {dir}/t5;\nupstream tokens {{ server {a} max_fails=0; server {b} max_fails=0; }}\n\
             server {{ listen {balancer}; location / {{ proxy_pass http://tokens; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; proxy_connect_timeout 5s; }} }} }}",
            dir = dir.display(),
            a = addresses[0],
            b = addresses[1],
        );
        fs::write(dir.join("nginx.conf"), config).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.arg("-c").arg(dir.join("nginx.conf")).arg("-p").arg(&dir);
        nginx
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        service.address = balancer;
        let mut balanced = Self {
            nginx: nginx.spawn().unwrap(),
            others: addresses.into_iter().map(|address| (address, None)).collect(),
            service,
            log: Arc::default(),
        };
        balanced.launch(0);
        balanced.launch(1);
        until("nginx serves", || TcpStream::connect(balancer).is_ok());
        balanced.service.until_ready();
        balanced
    }

    fn launch(&mut self, i: usize) {
        let dir = self.service.dir.path().join(format!("{i}"));
        let command = Command::new(env!("CARGO_BIN_EXE_workflow-tokend"));
        let (child, address) = launch(&dir, command, &self.log);
        assert_eq!(address, self.others[i].0);
        self.others[i].1 = Some(child);
    }

    /// Kills one service. If the other one is dead, restarts that first.
    fn turn(&mut self, i: usize) {
        let other = 1 - i % 2;
        if self.others[other].1.is_none() {
            self.launch(other);
            let address = self.others[other].0;
            until("the other service is ready", || is_ready(address));
        }
        let mut child = self.others[i % 2].1.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Balanced {
    fn drop(&mut self) {
        for child in self
            .others
            .iter_mut()
            .filter_map(|(_, child)| child.as_mut())
            .chain([&mut self.nginx])
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = self.log.lock().unwrap();
        assert!(std::thread::panicking() || !log.contains("canary-secret"), "{log}");
    }
}

fn answer(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

#[needs(postgresql, nginx)]
#[tokio::test(flavor = "multi_thread")]
async fn no_session_login_or_revocation_is_lost_when_a_service_is_killed() {
    let database = server::Server::start("", &[]).await;
    let mut balanced = Balanced::start(&database.url("postgres"));
    let mut cookies = Default::default();
    for round in 0..ROUNDS {
        let mut kill = (0..).map(|step| round + step);
        macro_rules! then {
            () => {
                balanced.turn(kill.next().unwrap())
            };
        }
        let begun = {
            let mut browser = Browser::new(&balanced.service);
            browser.cookies = cookies;
            let begun = (round == 0).then(|| browser.begin("/login"));
            cookies = browser.cookies;
            begun
        };
        then!();
        if let Some(state) = begun {
            let mut browser = Browser::new(&balanced.service);
            browser.cookies = cookies;
            assert_eq!(browser.finish(&state, "alice").status, 303);
            cookies = browser.cookies;
        }
        let device = answer(
            &balanced
                .service
                .post_as(None, "/device_authorization", "client_id=cli", &[]),
        );
        then!();
        {
            let mut browser = Browser::new(&balanced.service);
            browser.cookies = cookies;
            let page = browser.get(&format!("/device?user_code={}", device["user_code"].as_str().unwrap()));
            let done = browser.submit(&page, "/device", "decision=allow");
            assert!(done.body.contains("You are logged in"), "{done:?}");
            cookies = browser.cookies;
        }
        then!();
        let form = format!(
            "grant_type=urn:ietf:params:oauth:grant-type:device_code&client_id=cli&device_code={}",
            device["device_code"].as_str().unwrap()
        );
        let given = answer(&balanced.service.post_as(None, "/token", &form, &[]));
        let refresh = given["refresh_token"].as_str().unwrap().to_owned();
        then!();
        let form = format!("grant_type=refresh_token&client_id=cli&refresh_token={refresh}");
        let next = answer(&balanced.service.post_as(None, "/token", &form, &[]));
        then!();
        // The other service knows that the token was used, and that its family was revoked.
        assert_eq!(balanced.service.post_as(None, "/token", &form, &[]).status, 400);
        then!();
        let next = next["refresh_token"].as_str().unwrap();
        let form = format!("grant_type=refresh_token&client_id=cli&refresh_token={next}");
        assert_eq!(balanced.service.post_as(None, "/token", &form, &[]).status, 400);
        // The agent stores revocations.
        let token = given["access_token"].as_str().unwrap();
        assert_eq!(balanced.service.post("/revoke", &format!("token={token}")).status, 200);
        then!();
        assert_eq!(balanced.service.introspect(token)["active"], false);
    }
}
