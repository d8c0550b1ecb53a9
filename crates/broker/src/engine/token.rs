//! What the loop's epoll set is about.

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Signal,
    StatusListener,
    TwinListener(u8),
    Bell,
    Stream(u8),
    Pending(u8),
    Status(u8),
    Recorder,
    Guest(u8),
    Keeper,
}

impl Token {
    pub(super) fn encode(self) -> u64 {
        let (kind, index) = match self {
            Self::Signal => (0, 0),
            Self::StatusListener => (1, 0),
            Self::TwinListener(twin) => (2, twin),
            Self::Bell => (3, 0),
            Self::Stream(twin) => (4, twin),
            Self::Pending(slot) => (5, slot),
            Self::Status(slot) => (6, slot),
            Self::Recorder => (7, 0),
            Self::Guest(twin) => (8, twin),
            Self::Keeper => (9, 0),
        };
        kind << 8 | u64::from(index)
    }

    pub(super) fn decode(data: u64) -> Self {
        let index = data.to_le_bytes()[0];
        match data >> 8 {
            0 => Self::Signal,
            1 => Self::StatusListener,
            2 => Self::TwinListener(index),
            3 => Self::Bell,
            4 => Self::Stream(index),
            5 => Self::Pending(index),
            6 => Self::Status(index),
            7 => Self::Recorder,
            8 => Self::Guest(index),
            9 => Self::Keeper,
            kind => unreachable!("we never register kind {kind}"),
        }
    }
}
