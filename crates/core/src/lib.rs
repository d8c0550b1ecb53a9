//! The TwinBFT protocol as sans-IO state machines.
