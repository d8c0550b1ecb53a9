//! Guests: made, destroyed, asked.

use std::process::{Command, Stdio};

use twinbft_postbox::transport::xen::DomId;
use twinbft_postbox::transport::xen::xenstore::Xenstore;

use crate::{await_some, result, say};

/// What a guest is made with: the fields of `xen/e2e/KIND.cfg`.
#[derive(Default)]
pub struct Place<'a> {
    pub name: &'a str,
    pub kind: &'a str,
    pub twin: u8,
    /// Number of its loop device.
    pub disk: u8,
    /// In the network of this dom0.
    pub address: &'a str,
    /// For the kernel's command line.
    pub words: &'a str,
}

/// A guest by its name, whatever its number is.
pub struct Guest {
    pub name: String,
    pub domid: DomId,
    /// Lines that it has said so far.
    told: usize,
    ended: bool,
}

impl Guest {
    /// `xl create`.
    pub fn create(place: &Place<'_>) -> Self {
        let (name, kind) = (place.name, place.kind);
        let template =
            std::fs::read_to_string(format!("/etc/xen/{kind}.cfg")).expect("it is there");
        let config = template
            .replace("@NAME@", name)
            .replace("@TWIN@", &place.twin.to_string())
            .replace("@DISK@", &place.disk.to_string())
            .replace("@ADDRESS@", place.address)
            .replace("@WORDS@", place.words);
        let path = format!("/tmp/{name}.cfg");
        std::fs::write(&path, config).expect("there is room");
        let status = Command::new("/bin/xl")
            .args(["create", "-q", &path])
            .status();
        say(&format!("xl create {name}: {status:?}"));
        let domid = domid(name).unwrap_or(0);
        Self {
            name: name.to_owned(),
            domid,
            told: 0,
            ended: false,
        }
    }

    pub fn destroy(&self) {
        let status = Command::new("/bin/xl")
            .args(["destroy", &self.name])
            .status();
        say(&format!("xl destroy {}: {status:?}", self.name));
    }

    /// `xl save` into a file; answers whether it did.
    pub fn save(&self, path: &str) -> bool {
        let status = Command::new("/bin/timeout")
            .args(["300", "/bin/xl", "save", &self.name, path])
            .stderr(Stdio::null())
            .status();
        say(&format!("xl save {}: {status:?}", self.name));
        status.is_ok_and(|status| status.success())
    }

    /// `xl restore` of what `save` has made.
    pub fn restore(&mut self, path: &str) {
        let status = Command::new("/bin/timeout")
            .args(["300", "/bin/xl", "restore", path])
            .stderr(Stdio::null())
            .status();
        say(&format!("xl restore {}: {status:?}", self.name));
        self.domid = domid(&self.name).unwrap_or(0);
    }

    /// Waits until a guest of this name has another number.
    pub fn await_reboot(&mut self) -> bool {
        let before = self.domid;
        let new = await_some("the guest has another number", || {
            domid(&self.name).filter(|domid| *domid != before)
        });
        self.domid = new.unwrap_or(before);
        self.told = 0;
        self.ended = false;
        new.is_some()
    }

    /// Writes below the guest's own `data`.
    pub fn tell(&self, store: &mut Xenstore, name: &str, value: &str) {
        let node = self.data(name);
        store.write(&node, value.as_bytes()).expect("written");
    }

    fn data(&self, name: &str) -> String {
        format!("/local/domain/{}/data/{name}", self.domid)
    }

    /// Passes on what the guest has said since. Answers whether it has said all.
    pub fn hear(&mut self, store: &mut Xenstore) -> bool {
        while !self.ended {
            let Ok(Some(line)) = store.read(&self.data(&format!("e2e-{}", self.told))) else {
                break;
            };
            self.told += 1;
            let line = String::from_utf8_lossy(&line).into_owned();
            match line.split_once(' ') {
                Some(("PASS", text)) => result(true, &format!("{}: {text}", self.name)),
                Some(("FAIL", text)) => result(false, &format!("{}: {text}", self.name)),
                _ if line == "end" => self.ended = true,
                _ => say(&line),
            }
        }
        self.ended
    }
}

/// The number of a guest that runs.
pub fn domid(name: &str) -> Option<DomId> {
    let output = Command::new("/bin/xl")
        .args(["domid", name])
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}
