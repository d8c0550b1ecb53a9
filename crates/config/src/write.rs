//! The file as `twinbft init` writes it, with an explanation above everything that an operator may edit.

use std::fmt::Write as _;

use crate::model::{Admin, Client, ClusterConfig, Host};
use crate::numbers::{self, Number};

const HEAD: &str = "\
# A TwinBFT cluster. Every process of it reads this file; copies on several machines must be equal in
# [cluster], [protocol], [service] and the keys. `twinbft check FILE` finds all mistakes at once.
# What is left out has the default that is shown here.
";

impl ClusterConfig {
    /// The whole file with comments. [`ClusterConfig::parse`] gives the same model again.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut file = File(String::from(HEAD));
        file.section("cluster", "");
        file.comment("Part of every key and TLS name; never the same for two clusters.");
        file.value("id", &quoted(&self.cluster.id));
        file.comment("Grows by one whenever keys in this file are changed.");
        file.value("key_epoch", &self.cluster.key_epoch);

        file.section(
            "protocol",
            "The same on all replicas; a change needs a restart of all of them.",
        );
        file.comment("\"committed\": nothing that was executed is ever undone.");
        file.comment(
            "\"tentative\": one step less with five hosts and more, but a view change may undo.",
        );
        file.value("execution", &quoted(self.protocol.execution.name()));
        file.numbers(numbers::PROTOCOL, &self.protocol);

        file.section("storage", "What a replica has promised is");
        file.comment("\"memory\": in its host's postbox alone; a replica that restarts fetches its state from others.");
        file.comment("\"group\": with the kernel before anybody hears of it, and on the disk a little later.");
        file.comment("\"sync\": on the disk before anybody hears of it.");
        file.value("durability", &quoted(self.storage.durability.name()));
        file.numbers(numbers::STORAGE, &self.storage);

        self.write_service(&mut file);

        file.section(
            "postbox",
            "The trusted log of each host, which its broker keeps.",
        );
        file.comment("How twins reach it. \"local\": twins are processes of one kernel, and isolated in name only.");
        file.comment("\"xen\": twins are guests, the broker is in dom0, and each twin of a host has a guest = \"NAME\".");
        file.value("transport", &quoted(self.postbox.transport.name()));
        file.numbers(numbers::POSTBOX, &self.postbox);
        match &self.postbox.record_dir {
            Some(dir) => {
                file.comment("Brokers record their logs here, for `twinbft audit`.");
                file.value("record_dir", &quoted(&dir.to_string_lossy()));
            }
            None => file.comment(
                "record_dir = \"record\"   # brokers record their logs there, for `twinbft audit`",
            ),
        }

        file.section("evidence", "When the hosts agree that a twin is wrong:");
        file.comment("\"alert\": it is an event, for `twinbft evidence`, and no more.");
        file.comment("\"quarantine\": its siblings stop listening to it until `twinbft readmit`; with three twins or more.");
        file.comment("\"restart\": `twinbft up` restarts it, or runs restart_command.");
        file.value("on_culprit", &quoted(self.evidence.on_culprit.name()));
        match &self.evidence.restart_command {
            Some(command) => {
                file.comment("Run by a shell, with TWINBFT_HOST and TWINBFT_TWIN.");
                file.value("restart_command", &quoted(command));
            }
            None => {
                file.comment("restart_command = \"xl reboot twin-$TWINBFT_HOST-$TWINBFT_TWIN\"")
            }
        }

        file.section(
            "tls",
            "Certificates are signed by this authority; the path is relative to this file.",
        );
        file.value("ca", &quoted(&self.tls.ca.to_string_lossy()));

        for host in &self.hosts {
            file.host(host);
        }
        for client in &self.clients {
            file.client(client);
        }
        for admin in &self.admins {
            file.admin(admin);
        }
        file.0
    }

    fn write_service(&self, file: &mut File) {
        file.section(
            "service",
            "What the cluster replicates: \"kv\", a key-value store, or",
        );
        file.comment("\"null\", which does nothing and measures everything else.");
        file.value("name", &quoted(&self.service.name));
        if self.service.name == "kv" || self.service.kv != crate::KvOptions::default() {
            file.section("service.kv", "");
            file.numbers(numbers::KV, &self.service.kv);
            file.numbers(numbers::KV_LOCAL, &self.service.kv);
        }
        if self.service.name == "null" || self.service.null != crate::NullOptions::default() {
            file.section("service.null", "");
            file.numbers(numbers::NULL, &self.service.null);
        }
    }
}

struct File(String);

impl File {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn comment(&mut self, comment: &str) {
        self.line(&format!("# {comment}"));
    }

    fn section(&mut self, name: &str, comment: &str) {
        self.line(&format!("\n[{name}]"));
        if !comment.is_empty() {
            self.comment(comment);
        }
    }

    fn value(&mut self, name: &str, value: &dyn std::fmt::Display) {
        self.line(&format!("{name} = {value}"));
    }

    fn numbers<T>(&mut self, numbers: &[Number<T>], table: &T) {
        for number in numbers {
            self.comment(number.explain);
            self.value(number.name, &grouped((number.read)(table)));
        }
    }

    fn host(&mut self, host: &Host) {
        self.line("\n[[host]]");
        self.value("id", &host.id);
        self.value("name", &quoted(&host.name));
        if host.cpu.is_empty() {
            self.comment("cpu = [0, 1]   # where this host runs under `twinbft up`; default: a share of the CPUs");
        } else {
            let cpus: Vec<String> = host.cpu.iter().map(ToString::to_string).collect();
            self.value("cpu", &format!("[{}]", cpus.join(", ")));
        }
        for twin in &host.twins {
            self.line("\n[[host.twin]]");
            self.value("id", &twin.id);
            self.value("listen", &quoted(&twin.listen.to_string()));
            self.value("public_key", &quoted(&twin.public_key));
            if let Some(uid) = twin.uid {
                self.comment("The user that the broker lets in on this twin's socket.");
                self.value("uid", &uid);
            }
            if let Some(guest) = &twin.guest {
                self.comment("The Xen guest that this twin is: its name or UUID.");
                self.value("guest", &quoted(guest));
            }
        }
    }

    fn client(&mut self, client: &Client) {
        self.line("\n[[client]]");
        self.comment("May send requests.");
        self.value("id", &client.id);
        self.value("name", &quoted(&client.name));
        self.value("public_key", &quoted(&client.public_key));
    }

    fn admin(&mut self, admin: &Admin) {
        self.line("\n[[admin]]");
        self.comment("May ask for the state of the cluster.");
        self.value("id", &admin.id);
        self.value("name", &quoted(&admin.name));
        self.value("public_key", &quoted(&admin.public_key));
    }
}

/// `1048576` as `1_048_576`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                write!(quoted, "\\u{:04X}", u32::from(c))
                    .expect("writing to a string does not fail");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
