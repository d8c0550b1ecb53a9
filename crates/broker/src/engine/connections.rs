//! The part of the loop that is about sockets: who knocks, who is let in, and who only wants the status document.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use twinbft_postbox::cluster_tag;
use twinbft_postbox::transport::local::server::BrokerChannel;
use twinbft_postbox::transport::local::wire::{PROTOCOL_VERSION, Rejection, Welcome};

use super::token::Token;
use super::{Broker, Sockets};
use crate::greeting::{Peer, Pending, Progress, judge};
use crate::status::StatusConnection;
use crate::twin::CloseReason;

/// Accepted connections in one turn of the loop, so that a knocking process starves nobody.
const ACCEPTS_MAX: usize = 8;
impl Broker {
    pub(super) fn accept_twins(&mut self, twin: u8) {
        for _ in 0..ACCEPTS_MAX {
            let Some(stream) = self.accept(|sockets| &sockets.twins[usize::from(twin)].0) else {
                return;
            };
            let Ok(peer) = Peer::of(&stream) else {
                continue;
            };
            let pending = Pending::new(stream, twin, peer, Instant::now());
            let uid = self.sockets.twins[usize::from(twin)].1;
            if peer.uid != uid {
                self.reject(pending, Rejection::User);
                continue;
            }
            let Some(slot) = self.pending.iter().position(Option::is_none) else {
                self.reject(pending, Rejection::Resources);
                continue;
            };
            let token = Token::Pending(u8::try_from(slot).expect("a few slots"));
            let event =
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, token.encode());
            if self.epoll.add(&pending.stream, event).is_ok() {
                self.pending[slot] = Some(pending);
                self.advance_pending(slot);
            }
        }
    }

    fn accept(&mut self, listener: impl Fn(&Sockets) -> &UnixListener) -> Option<UnixStream> {
        match listener(&self.sockets).accept() {
            Ok((stream, _)) => stream.set_nonblocking(true).is_ok().then_some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                self.journal.event(
                    "accept",
                    format!("cannot accept a connection: {error}; is a limit too low?"),
                );
                None
            }
        }
    }

    pub(super) fn advance_pending(&mut self, slot: usize) {
        let Some(pending) = &mut self.pending[slot] else {
            return;
        };
        let progress = pending.advance();
        if matches!(progress, Progress::Waiting) {
            return;
        }
        let pending = self.pending[slot].take().expect("looked at just now");
        // It stays open when it becomes a channel, so closing does not take it off the set.
        self.epoll
            .delete(&pending.stream)
            .expect("it was added when it was accepted");
        match progress {
            Progress::Greeted(greeting) => match judge(&greeting, &self.welcome(pending.twin)) {
                None => self.open_channel(pending),
                Some(rejection) => self.reject(pending, rejection),
            },
            Progress::Rejected(rejection) => self.reject(pending, rejection),
            Progress::Gone | Progress::Waiting => {}
        }
    }

    pub(super) fn reject(&mut self, pending: Pending, rejection: Rejection) {
        let (twin, peer) = (pending.twin, pending.peer);
        self.twins[usize::from(twin)]
            .counters
            .rejections
            .add(rejection.name());
        let who = format!("process {} of user {}", peer.pid, peer.uid);
        self.journal.event(
            "rejected",
            format!(
                "twin {twin}: connection of {who} rejected: {}",
                rejection.name()
            ),
        );
        pending.reject(rejection, &self.welcome(twin));
    }

    fn welcome(&self, twin: u8) -> Welcome {
        let info = self.log.writer.info();
        Welcome {
            version: PROTOCOL_VERSION,
            rejection: None,
            cluster_tag: cluster_tag(&self.options.cluster_id),
            host: self.options.host,
            twin,
            twins: info.limits.twins,
            ring_order: self.options.ring_order,
            epoch: info.epoch,
            next_number: self.log.writer.ledger().next_number(twin),
        }
    }

    fn open_channel(&mut self, pending: Pending) {
        let (twin, peer) = (pending.twin, pending.peer);
        let index = usize::from(twin);
        self.drain_and_close(index, CloseReason::Replaced);
        let limits = self.log.writer.info().limits.clone();
        let channel =
            BrokerChannel::open(pending.stream, &self.welcome(twin), self.log.fd(), &limits);
        let registered = channel.and_then(|channel| {
            let bell = EpollEvent::new(
                EpollFlags::EPOLLIN | EpollFlags::EPOLLET,
                Token::Bell.encode(),
            );
            self.epoll.add(channel.bell(), bell)?;
            let input = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            self.epoll.add(
                channel.stream(),
                EpollEvent::new(input, Token::Stream(twin).encode()),
            )?;
            Ok(channel)
        });
        match registered {
            Ok(channel) => {
                self.twins[index].connect(channel, peer);
                self.journal.event(
                    "channel",
                    format!(
                        "twin {twin}: connected: process {} of user {}",
                        peer.pid, peer.uid
                    ),
                );
                self.notify_status();
            }
            Err(error) => {
                self.twins[index]
                    .counters
                    .rejections
                    .add(Rejection::Resources.name());
                self.journal.event(
                    "rejected",
                    format!("twin {twin}: cannot open a channel: {error}"),
                );
            }
        }
    }

    pub(super) fn accept_status(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let Some(stream) = self.accept(|sockets| &sockets.status) else {
                return;
            };
            let Some(slot) = self.status.iter().position(Option::is_none) else {
                continue;
            };
            let mut connection = StatusConnection::new(stream, self.document(), Instant::now());
            if connection.advance() {
                continue;
            }
            let token = Token::Status(u8::try_from(slot).expect("a few slots"));
            if self
                .epoll
                .add(
                    &connection,
                    EpollEvent::new(EpollFlags::EPOLLOUT, token.encode()),
                )
                .is_ok()
            {
                self.status[slot] = Some(connection);
            }
        }
    }
}
