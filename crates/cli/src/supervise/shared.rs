//! What the threads of a supervisor share: one slot for each process, and a number that grows with each change.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{ProcessName, SuperviseError};

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Started and not ready yet, or waiting for its broker.
    Starting,
    /// It has said that it is ready.
    Ready,
    /// It has died and is started again after a pause.
    Restarting,
    /// It cannot be started, or has died too often before it was ready; it stays down.
    Failed,
    /// It was ended on purpose.
    Stopped,
}

impl ProcessState {
    /// For people and for files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Restarting => "restarting",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// A process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStatus {
    /// Who.
    pub name: ProcessName,
    /// How it is.
    pub state: ProcessState,
    /// While it runs.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Descriptors that it has entrusted to the supervisor.
    pub kept: usize,
    /// What it said last about itself, or how it ended.
    pub detail: Option<String>,
}

/// What is to become of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It should run.
    Running,
    /// It should stay down until it is started again.
    Down,
    /// Its keeper should end.
    Gone,
}

/// One process.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: ProcessName,
    pub(super) wanted: Wanted,
    pub(super) state: ProcessState,
    /// Invariant: `Some` only between its start and the moment that its keeper has reaped it, so a signal never
    /// goes to a stranger.
    pub(super) pid: Option<Pid>,
    pub(super) restarts: u32,
    /// Whether it was ready since it was started.
    pub(super) ready_since: Option<Instant>,
    /// Whether it was ever ready.
    pub(super) was_ready: bool,
    /// Whether its pause before the next start is over.
    pub(super) hurry: bool,
    pub(super) detail: Option<String>,
    pub(super) kept: Vec<(String, OwnedFd)>,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    version: u64,
}

/// All processes of a supervisor.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The slot of one keeper, locked.
pub(super) struct Locked<'s> {
    shared: &'s Shared,
    guard: MutexGuard<'s, State>,
    index: usize,
}

impl Shared {
    pub(super) fn new(names: impl Iterator<Item = ProcessName>) -> Self {
        let slots = names
            .map(|name| Slot {
                name,
                wanted: Wanted::Running,
                state: ProcessState::Starting,
                pid: None,
                restarts: 0,
                ready_since: None,
                was_ready: false,
                hurry: false,
                detail: None,
                kept: Vec::new(),
            })
            .collect();
        let state = State { slots, version: 1 };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no thread panics while it holds the lock")
    }

    fn touch(&self, state: &mut State) {
        state.version += 1;
        self.changed.notify_all();
    }

    /// Locks the slot of `name`, which exists.
    pub(super) fn slot(&self, name: ProcessName) -> Locked<'_> {
        let guard = self.lock();
        let index = guard.slots.iter().position(|slot| slot.name == name);
        let index = index.expect("keepers are made for slots");
        Locked {
            shared: self,
            guard,
            index,
        }
    }

    /// Changes the slot of `name`.
    pub(super) fn with<T>(
        &self,
        name: ProcessName,
        change: impl FnOnce(&mut Slot) -> T,
    ) -> Result<T, SuperviseError> {
        let mut state = self.lock();
        let slot = state.slots.iter_mut().find(|slot| slot.name == name);
        let answer = change(slot.ok_or(SuperviseError::NoProcess(name))?);
        self.touch(&mut state);
        Ok(answer)
    }

    /// Changes the slot number `index`.
    pub(super) fn with_index(&self, index: usize, change: impl FnOnce(&mut Slot)) {
        let mut state = self.lock();
        change(&mut state.slots[index]);
        self.touch(&mut state);
    }

    pub(super) fn kill(&self, name: ProcessName, signal: Signal) -> Result<(), SuperviseError> {
        let ends = matches!(
            signal,
            Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGABRT
        );
        self.with(name, |slot| {
            let pid = slot.pid.ok_or(SuperviseError::NotRunning(name))?;
            kill(pid, signal).map_err(|cause| SuperviseError::Signal {
                signal,
                name,
                cause,
            })?;
            if ends && slot.wanted == Wanted::Running {
                slot.wanted = Wanted::Down;
            }
            Ok(())
        })?
    }

    pub(super) fn restart(&self, name: ProcessName) -> Result<(), SuperviseError> {
        self.with(name, |slot| {
            let was_wanted = slot.wanted == Wanted::Running;
            if slot.wanted != Wanted::Gone {
                slot.wanted = Wanted::Running;
                slot.hurry = true;
                // Whoever waits from now on waits for the new start and not for the old end.
                slot.state = ProcessState::Restarting;
            }
            match slot.pid {
                Some(pid) if was_wanted => {
                    kill(pid, Signal::SIGTERM).map_err(|cause| SuperviseError::Signal {
                        signal: Signal::SIGTERM,
                        name,
                        cause,
                    })
                }
                // It is ending already.
                Some(_) | None => Ok(()),
            }
        })?
    }

    /// Sends a signal to all processes of a kind.
    pub(super) fn signal_all(
        &self,
        kind: impl Fn(ProcessName) -> bool,
        signal: Signal,
        wanted: Wanted,
    ) {
        let mut state = self.lock();
        for slot in state.slots.iter_mut().filter(|slot| kind(slot.name)) {
            slot.wanted = wanted;
            if let Some(pid) = slot.pid {
                // It fails only for a process that is gone already, which is what it is for.
                let _sent = kill(pid, signal);
            }
        }
        self.touch(&mut state);
    }

    /// Waits until no process of a kind runs, and answers those that still do at the deadline.
    pub(super) fn wait_gone(
        &self,
        kind: impl Fn(ProcessName) -> bool,
        deadline: Instant,
    ) -> Vec<ProcessName> {
        let mut state = self.lock();
        loop {
            let running = state
                .slots
                .iter()
                .filter(|slot| kind(slot.name) && slot.pid.is_some());
            let left: Vec<ProcessName> = running.map(|slot| slot.name).collect();
            let now = Instant::now();
            if left.is_empty() || now >= deadline {
                return left;
            }
            let waited = self.changed.wait_timeout(state, deadline - now);
            state = waited.expect("no thread panics while it holds the lock").0;
        }
    }

    /// See `Supervisor::wait_change`.
    pub(super) fn wait_change(&self, version: u64, deadline: Instant) -> (u64, Vec<ProcessStatus>) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.version != version || now >= deadline {
                return (
                    state.version,
                    state.slots.iter().map(Slot::status).collect(),
                );
            }
            let waited = self.changed.wait_timeout(state, deadline - now);
            state = waited.expect("no thread panics while it holds the lock").0;
        }
    }
}

impl Shared {
    /// See `Supervisor::wake`.
    pub(super) fn wake(&self) {
        self.touch(&mut self.lock());
    }
}

impl Slot {
    fn status(&self) -> ProcessStatus {
        ProcessStatus {
            name: self.name,
            state: self.state,
            pid: self.pid.map(Pid::as_raw),
            restarts: self.restarts,
            kept: self.kept.len(),
            detail: self.detail.clone(),
        }
    }
}

impl Locked<'_> {
    pub(super) fn get(&mut self) -> &mut Slot {
        &mut self.guard.slots[self.index]
    }

    /// Whether this process may start: a replica waits until its host's broker was ready once.
    pub(super) fn may_start(&self) -> bool {
        let name = self.guard.slots[self.index].name;
        match name {
            ProcessName::Broker(_) => true,
            ProcessName::Replica(host, _) => {
                let mut brokers = self.guard.slots.iter();
                brokers.any(|slot| slot.name == ProcessName::Broker(host) && slot.was_ready)
            }
        }
    }

    /// Makes others see what was changed.
    pub(super) fn publish(&mut self) {
        self.shared.touch(&mut self.guard);
    }

    /// Waits for a change by others, until the deadline if there is one.
    pub(super) fn wait(self, deadline: Option<Instant>) -> Self {
        let Self {
            shared,
            guard,
            index,
        } = self;
        let poisoned = "no thread panics while it holds the lock";
        let guard = match deadline {
            None => shared.changed.wait(guard).expect(poisoned),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                shared.changed.wait_timeout(guard, left).expect(poisoned).0
            }
        };
        Self {
            shared,
            guard,
            index,
        }
    }
}
