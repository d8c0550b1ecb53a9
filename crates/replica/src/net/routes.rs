//! On which streams a client was last seen, so that its replies find it. Bounded: clients that were not heard of for
//! longest are forgotten, and ask again.

use std::collections::HashMap;

use twinbft_types::ClientId;

/// Names a stream for the life of the process.
pub(crate) type StreamId = u64;

/// Most streams that replies of one client go to; the most recent ones.
const STREAMS_PER_CLIENT: usize = 4;

type Streams = [StreamId; STREAMS_PER_CLIENT];
/// Stream numbers begin at 1.
const NONE: StreamId = 0;

/// A map with two generations: what was not used while the younger one filled up goes with the older one. It forgets
/// like a least-recently-used list, without its bookkeeping on every request.
pub(crate) struct Routes {
    young: HashMap<ClientId, Streams>,
    old: HashMap<ClientId, Streams>,
    generation_max: usize,
}

impl Routes {
    /// Remembers at least `clients_max / 2` and at most `clients_max` clients.
    pub(crate) fn new(clients_max: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            generation_max: (clients_max / 2).max(1),
        }
    }

    /// `client` was heard of on `stream`.
    pub(crate) fn note(&mut self, client: ClientId, stream: StreamId) {
        assert_ne!(stream, NONE, "stream numbers begin at 1");
        if let Some(streams) = self.young.get_mut(&client) {
            put_first(streams, stream);
            return;
        }
        let mut streams = self
            .old
            .remove(&client)
            .unwrap_or([NONE; STREAMS_PER_CLIENT]);
        put_first(&mut streams, stream);
        if self.young.len() >= self.generation_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(client, streams);
    }

    /// The streams of a client, the most recent one first.
    pub(crate) fn streams(&self, client: ClientId) -> impl Iterator<Item = StreamId> + use<> {
        self.young
            .get(&client)
            .or_else(|| self.old.get(&client))
            .copied()
            .unwrap_or([NONE; STREAMS_PER_CLIENT])
            .into_iter()
            .take_while(|stream| *stream != NONE)
    }

    /// Clients that are remembered.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// Moves `stream` to the front; the last one falls off when it is new.
fn put_first(streams: &mut Streams, stream: StreamId) {
    if streams[0] == stream {
        return;
    }
    let at = streams
        .iter()
        .position(|known| *known == stream)
        .unwrap_or(STREAMS_PER_CLIENT - 1);
    streams.copy_within(..at, 1);
    streams[0] = stream;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(session: u64) -> ClientId {
        ClientId { key: 1, session }
    }

    fn streams(routes: &Routes, session: u64) -> Vec<StreamId> {
        routes.streams(client(session)).collect()
    }

    #[test]
    fn the_most_recent_streams_are_kept() {
        let mut routes = Routes::new(10);
        for stream in [1, 2, 3, 2, 4, 5] {
            routes.note(client(1), stream);
        }
        assert_eq!(streams(&routes, 1), [5, 4, 2, 3]);
        assert_eq!(streams(&routes, 2), [0u64; 0]);
    }

    #[test]
    fn it_stays_bounded_and_forgets_the_silent_first() {
        let mut routes = Routes::new(8);
        routes.note(client(0), 7);
        for session in 1..1000 {
            routes.note(client(session), 1);
            routes.note(client(0), 7);
            assert!(routes.len() <= 8);
        }
        assert_eq!(streams(&routes, 0), [7]);
        assert_eq!(streams(&routes, 1), [0u64; 0]);
        assert_eq!(streams(&routes, 999), [1]);
    }
}
