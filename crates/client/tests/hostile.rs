//! Whatever replicas send, a session never completes a request with a result that is not supported as protocol.md
//! 4.9 and 7 ask for, and never panics.

mod support;

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use support::{CLIENT_KEY, Cluster, Said};
use twinbft_client::session::{Event, Session, SessionConfig};
use twinbft_types::wire::Reply;
use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{ClientId, Digest, Mac, Nonce, ReplicaId, Seq, TwinId};

const CLIENT: ClientId = ClientId {
    key: CLIENT_KEY,
    session: 5,
};
const REQUESTS: u64 = 3;

/// One hostile act. Each MAC in it is right or wrong; the oracle below counts the right ones on its own.
#[derive(Clone, Debug)]
struct Act {
    host: u8,
    sender: u8,
    seq: u64,
    said: Said,
    /// Per twin: absent, right, wrong, or the right one under the next twin's name.
    macs: Vec<u8>,
    kind: u8,
}

fn act(hosts: u8, twins: u8) -> impl Strategy<Value = Act> {
    let said = (
        1..3u64,
        prop_oneof![3 => Just(None), 2 => (1..3u64).prop_map(Some)],
        0..2u8,
        prop::bool::weighted(0.7),
    )
        .prop_map(|(slot, view, result, whole)| Said {
            slot,
            view,
            result: vec![result],
            whole,
        });
    (
        0..hosts + 1,
        0..twins,
        0..REQUESTS + 2,
        said,
        prop::collection::vec(
            prop_oneof![1 => Just(0u8), 8 => Just(1), 1 => Just(2), 1 => Just(3)],
            usize::from(twins),
        ),
        0..20u8,
    )
        .prop_map(|(host, sender, seq, said, macs, kind)| Act {
            host,
            sender,
            seq,
            said,
            macs,
            kind,
        })
}

/// What each twin has ever vouched for with a right MAC: (host, twin, seq, what).
type Vouched = BTreeSet<(u8, u8, u64, (u64, Option<u64>, Vec<u8>))>;

fn reply_of(cluster: &mut Cluster, act: &Act, vouched: &mut Vouched) -> Reply {
    let host = act.host.min(cluster.shape.hosts() - 1);
    let mut reply = cluster.certified(host, CLIENT, Seq(act.seq), &act.said);
    let right = reply.macs.clone();
    reply.macs.clear();
    for (twin, how) in act.macs.iter().enumerate() {
        let (id, mac) = right[twin];
        match how {
            0 => {}
            1 => {
                reply.macs.push((id, mac));
                let what = (act.said.slot, act.said.view, act.said.result.clone());
                vouched.insert((host, id.0, act.seq, what));
            }
            2 => reply.macs.push((id, Mac([7; 16]))),
            _ => reply
                .macs
                .push((TwinId((id.0 + 1) % cluster.shape.twins()), mac)),
        }
    }
    if act.host >= cluster.shape.hosts() {
        reply.host.0 = act.host;
    }
    reply
}

/// The most that any reading of 4.9 could count: hosts of which `q` twins vouched for this very outcome.
fn is_supported(cluster: &Cluster, vouched: &Vouched, seq: u64, slot: u64, result: &[u8]) -> bool {
    let views = [None, Some(1), Some(2)];
    let certified = |host, view: Option<u64>| {
        let twins = (0..cluster.shape.twins())
            .filter(|twin| vouched.contains(&(host, *twin, seq, (slot, view, result.to_vec()))))
            .count();
        twins >= cluster.shape.twin_quorum()
    };
    views.iter().any(|view| {
        (0..cluster.shape.hosts())
            .filter(|host| certified(*host, None) || certified(*host, *view))
            .count()
            >= cluster.shape.host_quorum()
    })
}

fn run(hosts: u8, twins: u8, acts: &[Act]) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::new(hosts, twins);
    let mut config = SessionConfig::new(cluster.shape, CLIENT, cluster.client.clone());
    config.window = REQUESTS;
    let mut session = Session::new(config);
    for _ in 0..REQUESTS {
        session.submit(0, Bytes::new()).unwrap();
    }
    let mut vouched = Vouched::new();
    let mut done = BTreeSet::new();
    for (now, act) in acts.iter().enumerate() {
        let from = ReplicaId::new(act.host.min(hosts - 1), act.sender);
        match act.kind {
            0 => session.handle_timeout(now as u64 * 400_000),
            1 => session.handle_refusal(now as u64, from, Seq(act.seq), RefusalReason::Busy),
            2 => while session.poll_transmit().is_some() {},
            _ => {
                let reply = reply_of(&mut cluster, act, &mut vouched);
                session.handle_reply(from, &reply);
            }
        }
        while let Some(event) = session.poll_event() {
            let Event::Completed {
                seq, slot, result, ..
            } = event
            else {
                return Err(TestCaseError::fail(format!("{event:?}")));
            };
            prop_assert!(done.insert(seq), "{seq} completed twice");
            prop_assert!(is_supported(&cluster, &vouched, seq.0, slot.0, &result));
        }
    }
    Ok(())
}

/// One answer to a fast read: host, twin, version, result, and whether its MAC is right.
type ReadAct = (u8, u8, u64, u8, bool);

fn read_acts(hosts: u8, twins: u8) -> impl Strategy<Value = Vec<ReadAct>> {
    let right = prop::bool::weighted(0.9);
    prop::collection::vec((0..hosts, 0..twins, 1..3u64, 0..2u8, right), 0..40)
}

fn run_reads(hosts: u8, twins: u8, acts: &[ReadAct]) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::new(hosts, twins);
    let mut session = Session::new(SessionConfig::new(
        cluster.shape,
        CLIENT,
        cluster.client.clone(),
    ));
    let nonce = session.query(0, Bytes::new()).unwrap();
    let mut first: std::collections::BTreeMap<(u8, u8), (u64, u8)> = Default::default();
    for (host, twin, version, result, right) in acts {
        let replica = ReplicaId::new(*host, *twin);
        let (answer, bytes, mut mac) =
            cluster.answer(replica, CLIENT, Nonce(1), *version, &[*result]);
        if *right {
            first.entry((*host, *twin)).or_insert((*version, *result));
        } else {
            mac.0[0] ^= 1;
        }
        session.handle_answer(replica, &answer, &bytes, &mac);
        let hosts_with = |what: (u64, u8), or_silent: bool| {
            (0..hosts)
                .filter(|host| {
                    let twins = (0..twins).filter(|twin| match first.get(&(*host, *twin)) {
                        Some(said) => *said == what,
                        None => or_silent,
                    });
                    twins.count() >= cluster.shape.twin_quorum()
                })
                .count()
        };
        match session.poll_event() {
            None => {}
            Some(Event::QueryCompleted {
                nonce: of,
                version,
                result,
            }) => {
                prop_assert_eq!(of, nonce);
                let agreed = hosts_with((version, result[0]), false);
                prop_assert!(agreed >= cluster.shape.host_quorum());
                return Ok(());
            }
            Some(Event::QueryFallBack { .. }) => {
                // 99 is a version that nobody has named.
                for version in [1, 2, 99] {
                    for result in [0, 1] {
                        let possible = hosts_with((version, result), true);
                        prop_assert!(possible < cluster.shape.host_quorum());
                    }
                }
                return Ok(());
            }
            Some(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn three_hosts_of_two_twins_never_complete_unsupported(acts in prop::collection::vec(act(3, 2), 0..60)) {
        run(3, 2, &acts)?;
    }

    #[test]
    fn three_hosts_of_three_twins_never_complete_unsupported(acts in prop::collection::vec(act(3, 3), 0..60)) {
        run(3, 3, &acts)?;
    }

    #[test]
    fn five_hosts_of_four_twins_never_complete_unsupported(acts in prop::collection::vec(act(5, 4), 0..90)) {
        run(5, 4, &acts)?;
    }

    #[test]
    fn fast_reads_end_only_as_they_must(acts in read_acts(3, 2), more in read_acts(3, 3)) {
        run_reads(3, 2, &acts)?;
        run_reads(3, 3, &more)?;
    }

    /// Bytes from outside: what the wire decoders make of them goes into a session, or is refused by name.
    #[test]
    fn random_frames_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), mangled in any::<prop::sample::Index>(), bit in 0..8u8) {
        use prost::Message as _;
        use twinbft_types::wire::{answer_from_wire, answer_to_wire, pb};
        let mut cluster = Cluster::new(3, 2);
        let mut session = Session::new(SessionConfig::new(cluster.shape, CLIENT, cluster.client.clone()));
        session.submit(0, Bytes::new()).unwrap();
        let nonce = session.query(0, Bytes::new()).unwrap();
        let (answer, result, mac) = cluster.answer(ReplicaId::new(0, 0), CLIENT, nonce, 3, b"x");
        let honest = pb::ReplicaFrame {
            replies: (0..3).map(|host| cluster.certified(host, CLIENT, Seq(1), &Said::committed(2, b"ok")).into()).collect(),
            answers: vec![answer_to_wire(&answer, result, mac)],
            refusals: vec![],
            view_hint: 0,
        };
        let mut near = honest.encode_to_vec();
        let at = mangled.index(near.len());
        near[at] ^= 1 << bit;
        for bytes in [bytes, near] {
            let Ok(frame) = pb::ReplicaFrame::decode(Bytes::from(bytes)) else { continue };
            for reply in frame.replies {
                if let Ok(reply) = Reply::try_from(reply) {
                    let from = ReplicaId { host: reply.host, twin: TwinId(0) };
                    session.handle_reply(from, &reply);
                }
            }
            for answer in frame.answers {
                if let Ok((answer, result, mac)) = answer_from_wire(answer, CLIENT_KEY) {
                    session.handle_answer(answer.replica, &answer, &result, &mac);
                }
            }
            while let Some(event) = session.poll_event() {
                match event {
                    Event::Completed { result, .. } => prop_assert_eq!(Digest::of(&result), Digest::of(b"ok")),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
