//! The network driver against scripted replicas behind real sockets and TLS.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use support::server::{Script, Servers};
use twinbft_client::{CallError, Client, ClientOptions, ConnectError, LinkState};
use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{HostId, ReplicaId};

fn options(servers: &Servers) -> ClientOptions {
    let mut options = ClientOptions::new(servers.target.clone());
    options.retransmit_after = Duration::from_millis(60);
    options
}

async fn set_up(script: Script) -> (Servers, Client) {
    let servers = Servers::start(3, 2, script).await;
    let client = Client::connect(options(&servers)).await.unwrap();
    // Each new connection makes every session announce itself once more, so counts need all of them first.
    while client
        .stats()
        .await
        .links
        .iter()
        .any(|(_, state)| *state != LinkState::Up)
    {
        tokio::task::yield_now().await;
    }
    (servers, client)
}

fn hosts(hosts: &[u8]) -> BTreeSet<u8> {
    hosts.iter().copied().collect()
}

#[tokio::test]
async fn calls_are_answered_in_three_or_four_steps() {
    let (servers, client) = set_up(Script::default()).await;
    let session = client.session();
    for number in 0..20u8 {
        let operation = Bytes::copy_from_slice(&[number]);
        let answer = session.call(operation.clone()).await.unwrap();
        assert_eq!(answer.result, operation);
        assert_eq!(answer.slot.0, u64::from(number) + 1);
        // The first request of a session goes to all hosts, and then nobody can tell.
        assert_eq!(matches!(answer.steps, Some(3 | 4)), number > 0);
        assert!(!answer.fast);
    }
    // One to the leader alone, but for the first.
    let sent = 6 + 19;
    assert_eq!(servers.counts(), (sent, 0));
    let stats = client.stats().await;
    assert_eq!(stats.requests_sent, sent);
    assert_eq!(stats.faults.total(), 0);
}

#[tokio::test]
async fn many_sessions_share_the_streams() {
    let (servers, client) = set_up(Script::default()).await;
    let mut queue = client.queue();
    let sessions: Vec<_> = (0..32).map(|_| queue.open_session()).collect();
    // More than the window of 8: the rest waits for room.
    for session in &sessions {
        for tag in 0..20u64 {
            queue.submit(
                *session,
                tag,
                Bytes::copy_from_slice(&tag.to_le_bytes()),
                false,
            );
        }
    }
    let mut done = BTreeSet::new();
    let mut ended = Vec::new();
    while done.len() < 32 * 20 {
        queue.completions(&mut ended).await;
        for completion in ended.drain(..) {
            let answer = completion.result.unwrap();
            assert_eq!(answer.result, completion.tag.to_le_bytes()[..]);
            assert!(done.insert((completion.session, completion.tag)));
        }
    }
    let stats = client.stats().await;
    assert!(
        stats.frames_sent < stats.requests_sent / 4,
        "{} frames for {} requests",
        stats.frames_sent,
        stats.requests_sent
    );
    assert_eq!(servers.counts().1, 0);
}

#[tokio::test]
async fn one_silent_host_changes_nothing() {
    for silent in 0..3 {
        let (_servers, client) = set_up(Script {
            silent: hosts(&[silent]),
            ..Script::default()
        })
        .await;
        let answer = client
            .session()
            .call(Bytes::from_static(b"op"))
            .await
            .unwrap();
        assert_eq!(answer.result, &b"op"[..], "host {silent}");
    }
}

#[tokio::test]
async fn a_lying_host_is_outvoted() {
    let (_servers, client) = set_up(Script {
        lying: hosts(&[1]),
        ..Script::default()
    })
    .await;
    let session = client.session();
    for _ in 0..9 {
        let answer = session.call(Bytes::from_static(b"truth")).await.unwrap();
        assert_eq!(answer.result, &b"truth"[..]);
    }
    assert!(client.stats().await.faults.total() > 0);
}

#[tokio::test]
async fn lost_requests_are_sent_again() {
    let (_servers, client) = set_up(Script {
        lose_first_sends: true,
        ..Script::default()
    })
    .await;
    let answer = client
        .session()
        .call(Bytes::from_static(b"op"))
        .await
        .unwrap();
    assert_eq!(
        (answer.result, answer.steps),
        (Bytes::from_static(b"op"), None)
    );
}

#[tokio::test]
async fn a_time_out_says_who_answered_and_who_did_not() {
    let (_servers, client) = set_up(Script {
        silent: hosts(&[0, 2]),
        ..Script::default()
    })
    .await;
    let session = client.session().with_timeout(Duration::from_millis(200));
    let error = session.call(Bytes::from_static(b"op")).await.unwrap_err();
    assert!(!error.is_without_effect());
    let CallError::TimedOut(unanswered) = error else {
        panic!("{error}")
    };
    assert_eq!(unanswered.answered, [HostId(1)]);
    assert_eq!(unanswered.silent, [HostId(0), HostId(2)]);
    assert!(unanswered.sent && unanswered.unreachable.is_empty());
    let text = unanswered.to_string();
    assert!(text.contains("answered: h1; silent: h0, h2"), "{text}");
}

#[tokio::test]
async fn a_refusal_of_all_ends_the_call() {
    let (_servers, client) = set_up(Script {
        refuse: Some(RefusalReason::UnknownClient),
        ..Script::default()
    })
    .await;
    let error = client.session().call(Bytes::new()).await.unwrap_err();
    assert!(
        matches!(error, CallError::Refused(RefusalReason::UnknownClient)),
        "{error}"
    );
}

#[tokio::test]
async fn a_forgotten_session_is_replaced() {
    let (servers, client) = set_up(Script {
        refuse: Some(RefusalReason::SessionExpired),
        ..Script::default()
    })
    .await;
    let session = client.session();
    let error = session.call(Bytes::new()).await.unwrap_err();
    assert!(matches!(error, CallError::SessionEnded(_)), "{error}");
    servers.set_script(Script::default());
    let answer = session.call(Bytes::from_static(b"again")).await.unwrap();
    assert_eq!(answer.result, &b"again"[..]);
}

#[tokio::test]
async fn a_broken_stream_is_opened_again() {
    let (_servers, client) = set_up(Script {
        hang_up_once: true,
        ..Script::default()
    })
    .await;
    let session = client.session();
    for _ in 0..3 {
        let answer = session.call(Bytes::from_static(b"op")).await.unwrap();
        assert_eq!(answer.result, &b"op"[..]);
    }
}

#[tokio::test]
async fn fast_reads_agree_or_fall_back() {
    let (servers, client) = set_up(Script::default()).await;
    let session = client.session();
    let answer = session.query(Bytes::from_static(b"x")).await.unwrap();
    assert!(answer.fast && answer.slot.0 == 1 && answer.result == b"x"[..]);
    servers.set_script(Script {
        versions: [(0, 1), (1, 2), (2, 3)].into(),
        ..Script::default()
    });
    let answer = session.query(Bytes::from_static(b"x")).await.unwrap();
    assert!(!answer.fast && answer.result == b"x"[..]);
}

#[tokio::test]
async fn nobody_there_is_said_with_the_reason() {
    let mut servers = Servers::start(3, 2, Script::default()).await;
    for address in &mut servers.target.replicas {
        // Port 1 of the loopback interface: nobody listens there.
        address.uri = "https://127.0.0.1:1".to_owned();
    }
    let error = Client::connect(options(&servers)).await.unwrap_err();
    let ConnectError::NobodyThere(replicas) = &error else {
        panic!("{error}")
    };
    assert_eq!(replicas.len(), 6);
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_replica_under_another_ones_name_is_not_talked_to() {
    let mut servers = Servers::start(3, 2, Script::default()).await;
    let name = servers.target.replicas[1].tls_name.clone();
    servers.target.replicas[0].tls_name = name;
    let client = Client::connect(options(&servers)).await.unwrap();
    client
        .session()
        .call(Bytes::from_static(b"op"))
        .await
        .unwrap();
    let stats = client.stats().await;
    let (replica, state) = &stats.links[0];
    assert_eq!(*replica, ReplicaId::new(0, 0));
    assert!(
        matches!(state, LinkState::Down(why) if why.contains("certificate")),
        "{state:?}"
    );
}

#[tokio::test]
async fn too_large_operations_are_refused_before_they_are_sent() {
    let (servers, client) = set_up(Script::default()).await;
    let operation = Bytes::from(vec![0; 1024 * 1024 + 1]);
    let error = client.session().call(operation).await.unwrap_err();
    assert!(error.is_without_effect(), "{error}");
    assert_eq!(client.stats().await.requests_sent, 0);
    let operation = Bytes::from(vec![7; 1024 * 1024]);
    let answer = client.session().call(operation.clone()).await.unwrap();
    assert_eq!(answer.result, operation);
    assert_eq!(servers.counts().1, 0);
}
