//! xenstore's messages as bytes: a header of four words, then at most 4096 bytes. Pure; what comes in
//! is not trusted, although it is dom0's daemon that sends it: other domains choose what stands there.

use nix::errno::Errno;

use super::DomId;

/// Length of a message's header.
pub const HEADER_BYTES: usize = 16;
/// Longest payload.
pub const PAYLOAD_BYTES_MAX: usize = 4096;
/// Longest absolute path.
pub const PATH_BYTES_MAX: usize = 3072;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The names below a path.
    Directory = 1,
    /// A node's value.
    Read = 2,
    /// To be told of changes.
    Watch = 4,
    /// No more.
    Unwatch = 5,
    /// A transaction's number.
    TransactionStart = 6,
    /// Its end, good ("T") or bad ("F").
    TransactionEnd = 7,
    /// A value for a node.
    Write = 11,
    /// Away with a node and all below it.
    Remove = 13,
    /// Who may do what with a node.
    SetPermissions = 14,
}

/// The kind of an answer that is none.
const ERROR: u32 = 16;
/// The kind of a message that nobody asked for.
const WATCH_EVENT: u32 = 15;

/// Something that is no message, or that no message can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// More than a payload may have.
    #[error("{0} bytes are too long for xenstore, {PAYLOAD_BYTES_MAX} is the most")]
    TooLong(usize),
    /// A path that xenstore does not take, or that means something else than it looks like.
    #[error("this is no path of xenstore")]
    Path,
    /// A watch event without its two strings.
    #[error("a watch event without path and token")]
    Event,
}

/// A message that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it answers; meaningless in an event.
    pub request_id: u32,
    /// Its content.
    pub content: Content,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The answer to a request.
    Answer(Vec<u8>),
    /// The request was refused.
    Refused(Errno),
    /// A watch fired.
    Event(WatchEvent),
}

/// A watch fired: something at or below `path` may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What changed, or a name with `@`.
    pub path: String,
    /// What the watch was registered with.
    pub token: String,
}

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Nothing; of the first entry: everything for its owner, nothing for who is not listed.
    None(DomId),
    /// Read.
    Read(DomId),
}

/// The bytes of a request, whose parts are written one after the other.
///
/// # Errors
/// Too long.
pub fn encode(
    request: Request,
    request_id: u32,
    transaction: u32,
    parts: &[&[u8]],
) -> Result<Vec<u8>, WireError> {
    let length = parts.iter().map(|part| part.len()).sum();
    if length > PAYLOAD_BYTES_MAX {
        return Err(WireError::TooLong(length));
    }
    let words = [
        request as u32,
        request_id,
        transaction,
        u32::try_from(length).expect("just compared"),
    ];
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    for word in words {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// Checks a path that we are about to use: absolute, in xenstore's alphabet, no empty element.
///
/// # Errors
/// It is none.
pub fn check_path(path: &str) -> Result<(), WireError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    let fine = path.len() <= PATH_BYTES_MAX
        && path.bytes().all(good)
        && !path.contains("//")
        && (path.starts_with('/') || !path.is_empty())
        && !path.ends_with('/');
    if fine { Ok(()) } else { Err(WireError::Path) }
}

/// The payload that sets a node's permissions; the first entry is the owner's.
#[must_use]
pub fn permissions(entries: &[Permission]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let text = match entry {
            Permission::None(domid) => format!("n{domid}\0"),
            Permission::Read(domid) => format!("r{domid}\0"),
        };
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// The names in an answer to `Directory`. What is no UTF-8 is left out: we never look for it.
#[must_use]
pub fn names(payload: &[u8]) -> Vec<String> {
    payload
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Puts messages together from the pieces that they come in. Holds at most one message and one read.
#[derive(Debug, Default)]
pub struct Decoder(Vec<u8>);

impl Decoder {
    /// Takes bytes in. Call `poll` until it answers `None` before the next time.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// What follows cannot be told from noise any more: the connection must be closed.
    pub fn poll(&mut self) -> Result<Option<Message>, WireError> {
        let Some(header) = self.0.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let word = |n: usize| {
            u32::from_ne_bytes(*header[4 * n..].first_chunk().expect("inside the header"))
        };
        let (kind, request_id, length) = (word(0), word(1), word(3) as usize);
        if length > PAYLOAD_BYTES_MAX {
            return Err(WireError::TooLong(length));
        }
        let Some(payload) = self.0.get(HEADER_BYTES..HEADER_BYTES + length) else {
            return Ok(None);
        };
        let content = match kind {
            ERROR => Content::Refused(errno(payload)),
            WATCH_EVENT => Content::Event(event(payload)?),
            _ => Content::Answer(payload.to_vec()),
        };
        self.0.drain(..HEADER_BYTES + length);
        Ok(Some(Message {
            request_id,
            content,
        }))
    }
}

fn event(payload: &[u8]) -> Result<WatchEvent, WireError> {
    let mut strings = payload.split(|byte| *byte == 0);
    let mut next = || {
        let bytes = strings.next().ok_or(WireError::Event)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| WireError::Event)
    };
    Ok(WatchEvent {
        path: next()?,
        token: next()?,
    })
}

/// xenstored names errors by their names.
fn errno(payload: &[u8]) -> Errno {
    let name = payload.split(|byte| *byte == 0).next().unwrap_or_default();
    let known: [(&[u8], Errno); 14] = [
        (b"EINVAL", Errno::EINVAL),
        (b"EACCES", Errno::EACCES),
        (b"EEXIST", Errno::EEXIST),
        (b"EISDIR", Errno::EISDIR),
        (b"ENOENT", Errno::ENOENT),
        (b"ENOMEM", Errno::ENOMEM),
        (b"ENOSPC", Errno::ENOSPC),
        (b"EIO", Errno::EIO),
        (b"ENOTEMPTY", Errno::ENOTEMPTY),
        (b"ENOSYS", Errno::ENOSYS),
        (b"EROFS", Errno::EROFS),
        (b"EBUSY", Errno::EBUSY),
        (b"EAGAIN", Errno::EAGAIN),
        (b"E2BIG", Errno::E2BIG),
    ];
    let found = known.into_iter().find(|(known, _)| *known == name);
    found.map_or(Errno::EPROTO, |(_, errno)| errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u32, request_id: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = encode(Request::Read, request_id, 0, &[payload]).expect("short");
        bytes[0..4].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_request_has_xenstores_layout() {
        let bytes = encode(Request::Write, 3, 7, &[b"a/b\0", b"v"]).expect("short");
        assert_eq!(
            bytes,
            b"\x0b\0\0\0\x03\0\0\0\x07\0\0\0\x05\0\0\0a/b\0v".to_vec()
        );
        let long = vec![0; PAYLOAD_BYTES_MAX + 1];
        let error = encode(Request::Write, 3, 7, &[&long]);
        assert_eq!(error, Err(WireError::TooLong(4097)));
        let payload = permissions(&[Permission::None(0), Permission::Read(12)]);
        assert_eq!(payload, b"n0\0r12\0".to_vec());
    }

    #[test]
    fn errors_have_names_and_unknown_ones_are_protocol_errors() {
        for (payload, expected) in [
            (&b"EAGAIN\0"[..], Errno::EAGAIN),
            (b"ENOENT", Errno::ENOENT),
            (b"EWHATEVER\0", Errno::EPROTO),
            (b"", Errno::EPROTO),
        ] {
            assert_eq!(errno(payload), expected);
        }
    }

    #[test]
    fn an_event_is_told_from_answers() {
        let mut decoder = Decoder::default();
        decoder.feed(&message(15, 0, b"@releaseDomain\0gone\0"));
        decoder.feed(&message(2, 9, b"value"));
        let event = WatchEvent {
            path: "@releaseDomain".to_owned(),
            token: "gone".to_owned(),
        };
        let first = decoder.poll().expect("well-formed").expect("whole");
        assert_eq!(first.content, Content::Event(event));
        let second = decoder.poll().expect("well-formed").expect("whole");
        assert_eq!(second.content, Content::Answer(b"value".to_vec()));
        assert_eq!(second.request_id, 9);
        assert_eq!(decoder.poll(), Ok(None));
        decoder.feed(&message(15, 0, b"no-token"));
        assert_eq!(decoder.poll(), Err(WireError::Event));
    }

    #[test]
    fn a_length_that_no_message_has_is_an_error_and_not_waited_for() {
        for length in [4097, u32::MAX] {
            let mut bytes = message(2, 1, b"");
            bytes[12..16].copy_from_slice(&length.to_ne_bytes());
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            assert_eq!(decoder.poll(), Err(WireError::TooLong(length as usize)));
        }
    }

    #[test]
    fn paths_that_mean_something_else_are_refused() {
        for path in ["", "/a//b", "/a/", "/a b", "/a\0b", "/ä", "/a/../b."] {
            assert_eq!(check_path(path), Err(WireError::Path), "{path:?}");
        }
        for path in ["/local/domain/3/data", "@introduceDomain", "domid"] {
            assert_eq!(check_path(path), Ok(()), "{path:?}");
        }
    }

    proptest! {
        /// Random bytes are messages or errors, never a panic, and never more is held than one
        /// message and what was fed last.
        #[test]
        fn random_bytes_never_panic(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let mut decoder = Decoder::default();
            'feeding: for chunk in chunks {
                decoder.feed(&chunk);
                loop {
                    match decoder.poll() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'feeding,
                    }
                }
                prop_assert!(decoder.0.len() < HEADER_BYTES + PAYLOAD_BYTES_MAX);
            }
        }

        /// Noise behind a plausible header reaches the parsers of events and errors.
        #[test]
        fn plausible_noise_never_panics(kind in 0u32..20, payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut decoder = Decoder::default();
            decoder.feed(&message(kind, 1, &payload));
            match decoder.poll() {
                Ok(message) => prop_assert!(message.is_some()),
                Err(error) => prop_assert_eq!((error, kind), (WireError::Event, 15)),
            }
            let _ = names(&payload);
        }

        /// However the stream is cut, the same messages come out.
        #[test]
        fn pieces_make_the_same_messages(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6), cut in 1usize..64) {
            let mut stream = Vec::new();
            for (id, payload) in (0..).zip(&payloads) {
                stream.extend(message(2, id, payload));
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.feed(piece);
                while let Some(message) = decoder.poll().expect("well-formed") {
                    prop_assert_eq!(message.request_id as usize, seen.len());
                    let Content::Answer(payload) = message.content else {
                        return Err(TestCaseError::fail("no answer"));
                    };
                    seen.push(payload);
                }
            }
            prop_assert_eq!(seen, payloads);
        }
    }
}
