//! What the recorder says of itself, to the loop that writes events and answers operators.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::RecordOptions;
use crate::json::Object;

/// Events that wait for the loop; more are dropped, the newest first, and the counters still tell.
const EVENTS_MAX: usize = 16;

/// Counters and events of the recorder.
pub struct Report {
    dir: String,
    bytes_max: u64,
    state: Mutex<State>,
}

/// The numbers of this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Segment files.
    pub segments: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The position after the last recorded entry.
    pub end: u64,
    /// Entries that this process has recorded, those that a new segment repeats too.
    pub entries: u64,
    /// Gaps that this process has left.
    pub gaps: u64,
    /// Writes that failed.
    pub errors: u64,
    /// Segments that went to make room.
    pub dropped: u64,
    /// Why it does not record now.
    pub problem: Option<String>,
}

struct State {
    numbers: Numbers,
    events: VecDeque<String>,
    bell: UnixStream,
}

impl Report {
    pub(super) fn new(options: &RecordOptions, bell: UnixStream) -> Self {
        let state = State {
            numbers: Numbers::default(),
            events: VecDeque::new(),
            bell,
        };
        Self {
            dir: options.dir.display().to_string(),
            bytes_max: options.bytes_max,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers and texts are whole whatever a thread that panicked was about to do.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Numbers)) {
        change(&mut self.state().numbers);
    }

    pub(super) fn event(&self, text: String) {
        let mut state = self.state();
        if state.events.len() < EVENTS_MAX {
            state.events.push_back(text);
        }
        // A bell that is full rings already.
        let _full = state.bell.write(&[1]);
    }

    /// The numbers of this moment.
    pub fn numbers(&self) -> Numbers {
        self.state().numbers.clone()
    }

    /// Events since the last call.
    pub fn take_events(&self) -> Vec<String> {
        self.state().events.drain(..).collect()
    }

    /// Its part of the status document.
    pub fn json(&self) -> String {
        let numbers = self.numbers();
        let object = Object::new()
            .string("dir", &self.dir)
            .raw("recording", numbers.problem.is_none())
            .raw("segments", numbers.segments)
            .raw("bytes", numbers.bytes)
            .raw("bytes_max", self.bytes_max)
            .raw("end", numbers.end)
            .raw("entries", numbers.entries)
            .raw("gaps", numbers.gaps)
            .raw("errors", numbers.errors)
            .raw("dropped_segments", numbers.dropped);
        match &numbers.problem {
            Some(problem) => object.string("problem", problem),
            None => object.raw("problem", "null"),
        }
        .end()
    }
}
