//! The part of the configuration that all replicas must share.

use std::fmt::Write as _;

use crate::model::ClusterConfig;
use crate::numbers::{self, Number};

impl ClusterConfig {
    /// A canonical text of all that every replica of the cluster must share: its digest goes into each
    /// checkpoint, so that replicas with different configurations are noticed and never agree by accident.
    ///
    /// Equal for files that differ in order, comments, spelling of numbers, names, addresses, or anything that a
    /// host decides for itself (storage, postbox, caches, CPUs, users). Clients and administrators are left
    /// out too: what a replica does not know of them only makes it refuse a request, never execute it otherwise,
    /// and so they can be added by restarting one replica after the other.
    #[must_use]
    pub fn agreed_bytes(&self) -> Vec<u8> {
        let mut text = String::from("twinbft configuration 1\n");
        line(&mut text, "cluster.id", &self.cluster.id);
        line(&mut text, "cluster.key_epoch", &self.cluster.key_epoch);
        line(
            &mut text,
            "protocol.execution",
            &self.protocol.execution.name(),
        );
        numbers(&mut text, "protocol", numbers::PROTOCOL, &self.protocol);
        line(&mut text, "service.name", &self.service.name);
        match self.service.name.as_str() {
            "kv" => numbers(&mut text, "service.kv", numbers::KV, &self.service.kv),
            _ => numbers(&mut text, "service.null", numbers::NULL, &self.service.null),
        }
        for host in &self.hosts {
            for twin in &host.twins {
                let name = format!("host.{}.twin.{}.public_key", host.id, twin.id);
                line(&mut text, &name, &twin.public_key);
            }
        }
        text.into_bytes()
    }
}

fn numbers<T>(text: &mut String, section: &str, numbers: &[Number<T>], table: &T) {
    for number in numbers.iter().filter(|number| number.agreed) {
        line(
            text,
            &format!("{section}.{}", number.name),
            &(number.read)(table),
        );
    }
}

fn line(text: &mut String, name: &str, value: &dyn std::fmt::Display) {
    writeln!(text, "{name}={value}").expect("writing to a string does not fail");
}
