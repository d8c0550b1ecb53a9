//! Many sessions behind one queue of answers: for programs that drive hundreds of sessions from one task.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use super::call::CallResult;
use super::dispatcher::Command;
use super::mailbox::Mailbox;
use super::slot::{Operation, Owner};
use super::{Client, Shared};

/// Names a session within its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub(super) u64);

/// What became of one operation.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Of which session.
    pub session: SessionKey,
    /// The caller's name for the operation.
    pub tag: u64,
    /// The answer, or why there is none.
    pub result: CallResult,
}

/// Sessions without a task and a waker for each operation: operations go in with a tag, answers come out in the
/// order in which they arrive.
///
/// What is in flight is bounded by the caller, who knows how many operations it has submitted and not seen again.
#[derive(Debug)]
pub struct CallQueue {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox<Completion>>,
    sessions: Vec<SessionKey>,
    staged: Vec<Command>,
    timeout_us: u64,
}

impl CallQueue {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            shared: client.shared.clone(),
            mailbox: Arc::default(),
            sessions: Vec::new(),
            staged: Vec::new(),
            timeout_us: client.call_timeout_us,
        }
    }

    /// Opens a session whose answers come here.
    pub fn open_session(&mut self) -> SessionKey {
        let key = self.shared.next_key();
        self.sessions.push(key);
        self.staged.push(Command::Open {
            key,
            owner: Owner::Queue(self.mailbox.clone()),
        });
        key
    }

    /// Submits an operation; it goes out with the next [`flush`](Self::flush). `fast` asks for a fast read, which
    /// falls back to an ordered one by itself.
    pub fn submit(&mut self, session: SessionKey, tag: u64, operation: Bytes, fast: bool) {
        self.staged.push(Command::Submit {
            key: session,
            operation: Operation {
                tag,
                bytes: operation,
                fast,
                timeout_us: self.timeout_us,
            },
        });
    }

    /// Hands everything submitted to the dispatcher, with one wake-up.
    pub fn flush(&mut self) {
        self.shared.commands.append(&mut self.staged);
    }

    /// [`completions`](Self::completions) of the first of several queues that has any, all of them flushed.
    pub async fn any_completions<'a>(
        queues: impl Iterator<Item = &'a mut Self>,
        ended: &mut Vec<Completion>,
    ) {
        let mut mailboxes = Vec::new();
        for queue in queues {
            queue.flush();
            mailboxes.push(&queue.mailbox);
        }
        ended.clear();
        poll_fn(|context| {
            let mut found = mailboxes
                .iter()
                .map(|mailbox| mailbox.poll_take(context, ended));
            if found.any(|poll| poll.is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Flushes, waits until at least one operation has ended, and takes all that have. `ended` is cleared first.
    pub async fn completions(&mut self, ended: &mut Vec<Completion>) {
        self.flush();
        ended.clear();
        poll_fn(|context| self.mailbox.poll_take(context, ended)).await;
    }
}

impl Drop for CallQueue {
    fn drop(&mut self) {
        let mut close: Vec<Command> = self
            .sessions
            .iter()
            .map(|key| Command::Close { key: *key })
            .collect();
        self.shared.commands.append(&mut close);
    }
}
