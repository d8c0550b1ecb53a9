//! What the broker publishes for one guest in xenstore, below `/local/domain/0/data/twinbft/<domid>`:
//! where its ring, its event channel and its mirror are.
//!
//! `ring-ref` and `event-channel` are libxenvchan's, so the directory itself is a vchan's path. All is
//! written in one transaction; readers read it in one.

use super::gntdev::PAGES_MAX;
use super::xenstore::Xenstore;
use super::xenstore_wire::Permission;
use super::{DOM0, DomId, XenError};

/// Version of the nodes and of what they mean.
pub const VERSION: u32 = 1;
/// References in one node; with their spaces they stay below xenstore's 4096 bytes.
const REFS_A_NODE: usize = 256;
/// Longest value that is looked at.
const VALUE_BYTES_MAX: usize = 4096;

/// What a guest has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Epoch of the log.
    pub epoch: u64,
    /// See `cluster_tag`.
    pub cluster_tag: u64,
    /// The host.
    pub host: u32,
    /// The twin that the guest is.
    pub twin: u8,
    /// The vchan's shared page.
    pub ring_ref: u32,
    /// The port that the guest binds to.
    pub event_channel: u32,
    /// The pages of the mirror, in their order.
    pub mirror_refs: Vec<u32>,
}

/// Nodes that say nothing that a broker says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// A node that must be there is not.
    #[error("the node '{0}' is missing")]
    Missing(String),
    /// A node's value makes no sense.
    #[error("the node '{0}' has an impossible value")]
    Value(String),
    /// Another version.
    #[error(
        "the broker publishes version {0}, this build knows {VERSION}; install the same version on both"
    )]
    Version(u32),
    /// Not there for us yet: state, if there is one at all.
    #[error("the channel is not ready")]
    NotReady,
}

/// Where the broker publishes for a guest.
#[must_use]
pub fn path(domid: DomId) -> String {
    format!("/local/domain/{DOM0}/data/twinbft/{domid}")
}

/// The last node: `ready`, or why not.
pub const STATE: &str = "state";
/// Its value when all is there.
pub const READY: &str = "ready";

/// Writes what `Descriptor::encode` made, in one transaction, for a domain that exists; whatever stood there is gone.
///
/// # Errors
/// xenstored refuses or does not answer.
pub fn publish(
    store: &mut Xenstore,
    domid: DomId,
    nodes: &[(String, String)],
) -> Result<(), XenError> {
    let base = path(domid);
    let readable = [Permission::None(DOM0), Permission::Read(domid)];
    store.transaction(|transaction| {
        transaction.remove(&base)?;
        for (name, value) in nodes {
            let node = format!("{base}/{name}");
            transaction.write(&node, value.as_bytes())?;
            transaction.set_permissions(&node, &readable)?;
        }
        Ok(())
    })
}

/// Takes away what was published for a domain.
///
/// # Errors
/// xenstored refuses or does not answer.
pub fn withdraw(store: &mut Xenstore, domid: DomId) -> Result<(), XenError> {
    store.remove(&path(domid))
}

impl Descriptor {
    /// The nodes with their values, `state` last.
    #[must_use]
    pub fn encode(&self) -> Vec<(String, String)> {
        let mut nodes = vec![
            ("version".to_owned(), VERSION.to_string()),
            ("epoch".to_owned(), self.epoch.to_string()),
            ("cluster-tag".to_owned(), self.cluster_tag.to_string()),
            ("host".to_owned(), self.host.to_string()),
            ("twin".to_owned(), self.twin.to_string()),
            ("ring-ref".to_owned(), self.ring_ref.to_string()),
            ("event-channel".to_owned(), self.event_channel.to_string()),
            (
                "mirror-pages".to_owned(),
                self.mirror_refs.len().to_string(),
            ),
        ];
        for (chunk, refs) in self.mirror_refs.chunks(REFS_A_NODE).enumerate() {
            let refs: Vec<String> = refs.iter().map(u32::to_string).collect();
            nodes.push((format!("mirror-{chunk}"), refs.join(" ")));
        }
        nodes.push((STATE.to_owned(), READY.to_owned()));
        nodes
    }

    /// Reads the nodes back; `read` answers a node's value. An error of `read` is passed on.
    ///
    /// # Errors
    /// A node is missing or impossible.
    pub fn decode<E>(
        mut read: impl FnMut(&str) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Result<Self, DescriptorError>, E> {
        let mut nodes = Nodes {
            read: &mut read,
            failed: None,
        };
        let result = nodes.decode();
        match nodes.failed {
            Some(error) => Err(error),
            None => Ok(result),
        }
    }
}

/// Reads a node below the descriptor's path; `None` when there is none.
type ReadNode<'a, E> = &'a mut dyn FnMut(&str) -> Result<Option<Vec<u8>>, E>;

struct Nodes<'a, E> {
    read: ReadNode<'a, E>,
    failed: Option<E>,
}

impl<E> Nodes<'_, E> {
    fn decode(&mut self) -> Result<Descriptor, DescriptorError> {
        match self.text(STATE) {
            Ok(state) if state == READY => {}
            Ok(_) | Err(DescriptorError::Missing(_)) => return Err(DescriptorError::NotReady),
            Err(error) => return Err(error),
        }
        let version = self.number("version")?;
        if version != VERSION {
            return Err(DescriptorError::Version(version));
        }
        let mut descriptor = Descriptor {
            epoch: self.number("epoch")?,
            cluster_tag: self.number("cluster-tag")?,
            host: self.number("host")?,
            twin: self.number("twin")?,
            ring_ref: self.number("ring-ref")?,
            event_channel: self.number("event-channel")?,
            mirror_refs: Vec::new(),
        };
        let pages: usize = self.number("mirror-pages")?;
        if !(1..=PAGES_MAX).contains(&pages) {
            return Err(DescriptorError::Value("mirror-pages".to_owned()));
        }
        for chunk in 0..pages.div_ceil(REFS_A_NODE) {
            let name = format!("mirror-{chunk}");
            let text = self.text(&name)?;
            let refs: Option<Vec<u32>> = text.split(' ').map(|gref| gref.parse().ok()).collect();
            let want = REFS_A_NODE.min(pages - descriptor.mirror_refs.len());
            match refs.filter(|refs| refs.len() == want) {
                Some(refs) => descriptor.mirror_refs.extend(refs),
                None => return Err(DescriptorError::Value(name)),
            }
        }
        Ok(descriptor)
    }

    fn text(&mut self, name: &str) -> Result<String, DescriptorError> {
        let missing = || DescriptorError::Missing(name.to_owned());
        let value = match (self.read)(name) {
            Ok(value) => value.ok_or_else(missing)?,
            Err(error) => {
                self.failed = Some(error);
                return Err(missing());
            }
        };
        let short = value.len() <= VALUE_BYTES_MAX;
        String::from_utf8(value)
            .ok()
            .filter(|_| short)
            .ok_or_else(|| DescriptorError::Value(name.to_owned()))
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<T, DescriptorError> {
        let text = self.text(name)?;
        text.parse()
            .map_err(|_| DescriptorError::Value(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;
    use proptest::prelude::*;

    fn descriptor(pages: usize) -> Descriptor {
        Descriptor {
            epoch: 3,
            cluster_tag: u64::MAX,
            host: 1,
            twin: 1,
            ring_ref: 9,
            event_channel: 17,
            mirror_refs: (0..).take(pages).map(|n| 70_000 - n).collect(),
        }
    }

    fn decode(nodes: &BTreeMap<String, Vec<u8>>) -> Result<Descriptor, DescriptorError> {
        let Ok(result) = Descriptor::decode(|name| Ok::<_, Infallible>(nodes.get(name).cloned()));
        result
    }

    fn nodes(descriptor: &Descriptor) -> BTreeMap<String, Vec<u8>> {
        let nodes = descriptor.encode().into_iter();
        nodes
            .map(|(name, value)| (name, value.into_bytes()))
            .collect()
    }

    #[test]
    fn what_is_published_is_read_back_and_fits_xenstore() {
        for pages in [1, 255, 256, 257, 20_000] {
            let descriptor = descriptor(pages);
            for (name, value) in descriptor.encode() {
                let whole = path(u16::MAX).len() + 1 + name.len() + 1 + value.len();
                assert!(whole <= 4096, "{name} has {whole} bytes");
            }
            assert_eq!(decode(&nodes(&descriptor)), Ok(descriptor));
        }
    }

    #[test]
    fn state_is_last_and_libxenvchans_paths_fit_its_buffer() {
        let last = descriptor(2).encode().pop();
        assert_eq!(last, Some((STATE.to_owned(), READY.to_owned())));
        assert!(path(u16::MAX).len() + "/event-channel".len() < 64);
    }

    #[test]
    fn without_state_nothing_else_is_looked_at() {
        let mut nodes = nodes(&descriptor(2));
        nodes.remove(STATE);
        nodes.insert("version".to_owned(), b"nonsense".to_vec());
        assert_eq!(decode(&nodes), Err(DescriptorError::NotReady));
    }

    #[test]
    fn another_version_is_named() {
        let mut nodes = nodes(&descriptor(2));
        nodes.insert("version".to_owned(), b"2".to_vec());
        assert_eq!(decode(&nodes), Err(DescriptorError::Version(2)));
    }

    proptest! {
        /// Whatever stands in a node, it is read as what was published or named as wrong.
        #[test]
        fn a_bent_node_is_named(which in 0usize..12, value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let descriptor = descriptor(600);
            let mut nodes = nodes(&descriptor);
            let name = nodes.keys().nth(which).expect("twelve nodes").clone();
            nodes.insert(name.clone(), value);
            match decode(&nodes) {
                Ok(_) | Err(DescriptorError::NotReady | DescriptorError::Version(_)) => {}
                Err(DescriptorError::Value(wrong) | DescriptorError::Missing(wrong)) => {
                    // A wrong number of pages shows at the chunks.
                    prop_assert!(wrong == name || name == "mirror-pages", "{} for {}", wrong, name);
                }
            }
        }
    }
}
