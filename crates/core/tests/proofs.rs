//! What hosts have certified of checkpoints outlives a loss of the host's log (protocol.md 5, 8): it is in the write-ahead log, and
//! verified when it comes back from there.

mod common;

use std::sync::Arc;

use common::Host;
use twinbft_core::{Checkpoint, PeerFault, Record, Recovered, SessionImage, Tuning};
use twinbft_types::wire::{CheckpointOffer, PeerMessage};
use twinbft_types::{
    Certificate, Digest, Entry, Epoch, HelloState, HostId, Incarnation, ProcessId, ReplicaId, Slot,
    Statement, View, canonical, from_canonical,
};

const SLOT: Slot = Slot(128);
const HISTORY: Digest = Digest([4; 32]);

/// Twin 1 of host 1 starts again in a new epoch, at a checkpoint and with these records; its sibling remembers the same, and the host
/// takes part.
fn started(records: Vec<Record>) -> (Host, Vec<PeerFault>) {
    let tuning = Tuning::default();
    let mut host = Host::new(1, 3, 2, &tuning);
    let checkpoint = Checkpoint {
        slot: SLOT,
        history: HISTORY,
        timestamp_us: 7,
        sessions: SessionImage::default(),
    };
    let mut all = vec![Record::Joined { epoch: Epoch(1) }];
    all.extend(records);
    let recovered = Recovered {
        records: all,
        checkpoint: Some((checkpoint, Digest([5; 32]))),
        is_new_epoch: true,
        ..Recovered::default()
    };
    host.start_again(1, 2, recovered);
    let faults = host.twins[1].core.take_start_faults();
    let state = HelloState {
        leave: View(0),
        last_normal: View(0),
        accepted: SLOT,
        history: HISTORY,
        incarnations: vec![Incarnation(0); 3],
    };
    host.post_as(0, &Entry::Hello { state });
    host.pass(10_000);
    assert_eq!(host.accepted(1), SLOT.0, "the host goes on");
    (host, faults)
}

/// What it answers to one of host 2 that lags.
fn offer(host: &mut Host) -> CheckpointOffer {
    host.done(1).sends.clear();
    let from = ReplicaId::new(2, 1);
    host.peer(1, from, PeerMessage::FetchCheckpoint { above: Slot(0) });
    let sends: Vec<(ReplicaId, Arc<PeerMessage>)> = std::mem::take(&mut host.done(1).sends);
    let offers = sends.iter().find_map(|(to, message)| match &**message {
        PeerMessage::Checkpoint(offer) if *to == from => Some((**offer).clone()),
        _ => None,
    });
    offers.expect("it has that state")
}

/// What is certified of the checkpoint that all this is about.
fn statement() -> Statement {
    let (mut host, _) = started(Vec::new());
    let digest = offer(&mut host).parts.digest();
    Statement::Checkpoint { slot: SLOT, digest }
}

fn hosts_of(offer: &CheckpointOffer) -> Vec<u8> {
    let certificates = offer.certificates.iter();
    certificates.map(|c| c.signed.host.0).collect()
}

#[test]
fn what_others_had_certified_is_offered_after_the_log_was_lost() {
    let statement = statement();
    let keys = Host::new(1, 3, 2, &Tuning::default()).keys;
    let of = |host: u8| keys.certificate(host, &[0, 1], statement.clone());
    let (mut host, faults) = started(vec![Record::Proof(of(0)), Record::Proof(of(1))]);
    assert_eq!(faults, []);
    let offer = offer(&mut host);
    assert_eq!(hosts_of(&offer), [1, 0], "nobody has said it again yet");
    // Whoever lags can verify it all.
    let ring = keys.ring(ProcessId::Twin(ReplicaId::new(2, 1)));
    for certificate in &offer.certificates {
        assert_eq!(ring.count_valid(host.shape, certificate), 2);
    }
}

/// A disk may hold anything: what does not verify is named and not used, and the rest is.
#[test]
fn what_does_not_verify_is_named_and_not_used() {
    let statement = statement();
    let keys = Host::new(1, 3, 2, &Tuning::default()).keys;
    let of = |host: u8| keys.certificate(host, &[0, 1], statement.clone());
    let other = Statement::Checkpoint {
        slot: SLOT,
        digest: Digest([8; 32]),
    };
    let forged = |mut certificate: Certificate| {
        certificate.signed.statement = statement.clone();
        Record::Proof(certificate)
    };
    let mut lone = of(2);
    lone.authenticators.truncate(1);
    let mut of_nobody = of(0);
    of_nobody.signed.host = HostId(9);
    let records = vec![
        forged(keys.certificate(2, &[0, 1], other.clone())),
        forged(keys.certificate(1, &[0, 1], other)),
        Record::Proof(lone),
        Record::Proof(keys.certificate(1, &[1], statement.clone())),
        Record::Proof(of_nobody),
        Record::Proof(keys.certificate(
            0,
            &[0, 1],
            Statement::Committed {
                slot: SLOT,
                history: HISTORY,
            },
        )),
        Record::Proof(of(0)),
    ];
    let (mut host, faults) = started(records);
    let void = |host| PeerFault::VoidProof { host: HostId(host) };
    let named = [void(2), void(1), void(2), void(1), void(9), void(0)];
    assert_eq!(faults, named);
    assert_eq!(hosts_of(&offer(&mut host)), [0]);
}

/// What comes in is written ahead once; so is what this host certifies.
#[test]
fn what_is_certified_is_written_ahead_once() {
    let statement = statement();
    let keys = Host::new(1, 3, 2, &Tuning::default()).keys;
    let proofs = |host: &mut Host| {
        let records = std::mem::take(&mut host.done(1).records).into_iter();
        let proofs = records.filter_map(|record| match record {
            Record::Proof(certificate) => Some(certificate),
            _ => None,
        });
        proofs.collect::<Vec<_>>()
    };
    let (mut host, _) = started(Vec::new());
    assert_eq!(proofs(&mut host), []);
    let Statement::Checkpoint { slot, digest } = statement else {
        unreachable!("it is one");
    };
    host.post_as(0, &Entry::Checkpoint { slot, digest });
    let of_own = keys.certificate(1, &[1, 0], statement.clone());
    let authenticator = of_own.authenticators[1].clone();
    let sign = Entry::Sign {
        statement: statement.clone(),
        authenticator,
    };
    host.post_as(0, &sign);
    host.pass(10_000);
    assert_eq!(proofs(&mut host), [of_own]);
    let of_other = keys.certificate(0, &[0, 1], statement);
    for _ in 0..3 {
        let message = PeerMessage::Certificate(of_other.clone());
        host.peer(1, ReplicaId::new(0, 1), message);
    }
    assert_eq!(proofs(&mut host), [of_other]);
}

/// A write-ahead log of before is read as it was: new kinds of records have tags of their own, behind the others.
#[test]
fn tags_of_records_stay_what_they_were() {
    let stable = Record::Stable {
        slot: Slot(0x0102),
        digest: Digest([3; 32]),
    };
    let mut bytes = vec![2, 2, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend([3; 32]);
    assert_eq!(canonical(&stable), bytes);
    assert_eq!(from_canonical::<Record>(&bytes).unwrap(), stable);
    let forgotten = Record::Forgotten { epoch: Epoch(1) };
    assert_eq!(canonical(&forgotten), [5, 1, 0, 0, 0, 0, 0, 0, 0]);
    let keys = Host::new(1, 3, 2, &Tuning::default()).keys;
    let certificate = keys.certificate(0, &[0, 1], statement());
    let mut bytes = vec![6];
    bytes.extend(canonical(&certificate));
    let proof = Record::Proof(certificate);
    assert_eq!(canonical(&proof), bytes);
    assert_eq!(from_canonical::<Record>(&bytes).unwrap(), proof);
    bytes.push(0);
    assert!(from_canonical::<Record>(&bytes).is_err());
}
