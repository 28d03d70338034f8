// SPDX-License-Identifier: MIT OR Apache-2.0

//! Users, groups and projects: an instance with a name service that a test controls.

use std::{fs, io::Write, path::PathBuf, process::Command};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

use super::{
    plugins::{Site, jwt, me, until},
    simulator::{Instance, flux_sim, plugin},
};

/// The dependency that holds a job whose owner is unknown.
pub const HELD: &str = "workflow-token-project";

/// A user that need not exist.
pub const BOB: u32 = 4_000_001;

/// A site with its own name service, in which the user who runs the test is alice.
pub struct Place {
    pub site: Site,
    preload: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let site = Site::new();
        let preload = plugin(&site.at(""), "names.c");
        let place = Place { site, preload };
        place.names(&[]);
        place
    }

    /// Sets the groups, each with its gid and members. The primary group of alice is `users`, and that of bob is
    /// `staff`.
    pub fn names(&self, groups: &[(&str, u32, &[&str])]) {
        let mut text = format!(
            "user alice {} 100\nuser bob {BOB} 200\ngroup users 100\ngroup staff 200\n",
            me()
        );
        for (name, gid, members) in groups {
            text += &format!("group {name} {gid} {}\n", members.join(" "));
        }
        self.are(text);
    }

    /// Sets all users and groups, in the format of names.c.
    pub fn are(&self, text: impl AsRef<[u8]>) {
        // Replaces the file atomically, because it may be read at any moment.
        let path = self.site.write("names.new", 0o644, text);
        fs::rename(path, self.site.at("names")).expect("the names are replaced");
    }

    /// Makes every lookup of a user hang.
    pub fn hang(&self) {
        mkfifo(&self.site.at("names.hang"), Mode::S_IRWXU).expect("a FIFO");
    }

    /// Waits until a lookup of a user hangs.
    pub fn is_asked(&self, uid: u32) {
        let line = uid.to_string();
        until(&format!("uid {uid} is asked for"), || {
            let asked = fs::read_to_string(self.site.at("names.asked")).unwrap_or_default();
            asked.lines().any(|asked| asked == line)
        });
    }

    /// Releases the hanging lookups.
    pub fn answer(&self) {
        let path = self.site.at("names.hang");
        let mut fifo = fs::File::options().write(true).open(&path).expect("the FIFO");
        fs::remove_file(&path).expect("the FIFO is removed");
        // Nobody reads the line. The lookups wait for the end of the file.
        let _ = fifo.write_all(b"\n");
    }

    /// Forgets the recorded lookups.
    pub fn forget(&self) {
        let _ = fs::remove_file(self.site.at("names.asked"));
    }

    pub fn instance(&self, table: Value) -> Instance {
        self.site.configure(table);
        self.start()
    }

    pub fn start(&self) -> Instance {
        let conf = json!({"munge-socket": self.site.munged.socket()});
        Instance::of(
            Command::new(flux_sim())
                .arg("instance")
                .arg("--statedir")
                .arg(self.site.statedir())
                .args(["--config", &self.site.path("flux.toml")])
                .args(["--shell-plugin", &self.site.path("shell/workflow-token.so")])
                .args(["--shell-conf", &conf.to_string()])
                .env("LD_PRELOAD", &self.preload)
                .env("TEST_NAMES", self.site.at("names")),
        )
    }

    pub fn reload(&self, instance: &mut Instance, table: Value) {
        let path = self.site.configure(table);
        instance.ok("config-reload", json!({"path": path}));
    }

    /// Returns a rule for all jobs in a project, which receive the token of that project, and the tokens.
    pub fn token_of_project(&self) -> (Value, [String; 2]) {
        let tokens = ["hydro", "fusion"].map(|name| {
            let token = jwt(json!({}));
            self.site.write(&format!("{name}.jwt"), 0o600, &token);
            token
        });
        let rule = json!({"attribute": "system.token", "source": "file", "path": self.site.path("{project}.jwt")});
        (rule, tokens)
    }
}

/// Returns two projects, each for a group of the same name.
pub fn projects() -> Value {
    json!([{"name": "hydro", "groups": ["hydro"]}, {"name": "fusion", "groups": ["fusion"]}])
}

/// Returns a job that requests a token, and optionally a project.
pub fn job(project: Option<&str>) -> Value {
    let mut more = json!({"attributes": {"system": {"token": 1}}});
    if let Some(name) = project {
        more["attributes"]["system"]["project"] = json!(name);
    }
    more
}

/// Like [`job`], for a user, and held by its urgency.
pub fn held_job(userid: u32, project: Option<&str>) -> Value {
    let mut more = job(project);
    more["userid"] = json!(userid);
    more["urgency"] = json!(0);
    more["command"] = json!(["true"]);
    more
}

/// Operations on jobs of users that the plugin may not know yet.
pub trait Asking {
    fn learn(&mut self, userid: u32);
    fn dependencies(&mut self, job: &str) -> Value;
    fn fatal(&mut self, job: &str) -> String;
    fn cancel(&mut self, job: &str);
    fn release(&mut self, job: &str);
    fn submit_held(&mut self, userid: u32, project: Option<&str>) -> String;
    fn update(&mut self, job: &str, userid: u32, updates: Value) -> Result<(), String>;
}

impl Asking for Instance {
    /// Makes the plugin look up a user through a job, unless it knows the user already.
    fn learn(&mut self, userid: u32) {
        let request = self.send("submit", held_job(userid, Some("hydro")));
        let response = self.response(request);
        if let Some(job) = response["jobid"].as_str() {
            until("the job is not held any more", || {
                let state = self.ok("state", json!({"jobid": job}));
                state["state"] != "NEW" && state["state"] != "DEPEND"
            });
            self.cancel(job);
        }
    }

    fn dependencies(&mut self, job: &str) -> Value {
        self.ok("state", json!({"jobid": job}))["dependencies"].clone()
    }

    /// Returns the note for the user of a job that was not admitted to its project. The job has not run.
    fn fatal(&mut self, job: &str) -> String {
        self.wait(job, "clean");
        assert!(!self.events(job).contains(&"start".to_owned()));
        let exceptions = self.contexts(job, "exception");
        assert_eq!(exceptions.len(), 1, "{exceptions:?}");
        assert_eq!(exceptions[0]["type"], "workflow-token");
        assert_eq!(exceptions[0]["severity"], 0);
        exceptions[0]["note"].as_str().unwrap().to_owned()
    }

    fn cancel(&mut self, job: &str) {
        let state = self.ok("state", json!({"jobid": job}))["state"].clone();
        if state != "INACTIVE" && state != "CLEANUP" {
            self.ok("cancel", json!({"jobid": job}));
        }
        self.wait(job, "clean");
    }

    /// Releases a job that is held by its urgency.
    fn release(&mut self, job: &str) {
        let context = json!({"urgency": 16, "userid": me()});
        self.ok("post", json!({"jobid": job, "name": "urgency", "context": context}));
    }

    fn submit_held(&mut self, userid: u32, project: Option<&str>) -> String {
        self.ok("submit", held_job(userid, project))["jobid"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn update(&mut self, job: &str, userid: u32, updates: Value) -> Result<(), String> {
        let request = self.send("update", json!({"jobid": job, "userid": userid, "updates": updates}));
        let response = self.response(request);
        match response["ok"] == true {
            true => Ok(()),
            false => Err(response["error"].as_str().unwrap().to_owned()),
        }
    }
}
