//! The status document, put together from what each thread knows.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Shared;
use crate::driver::Control;
use crate::status::{Queues, core_json, usage};

/// How long the core's thread may take to answer.
const CORE_ANSWER_MAX: Duration = Duration::from_secs(1);

/// The document of this moment.
pub(super) async fn document(shared: &Shared) -> Value {
    let mut document = match core_report(shared).await {
        Ok(core) => core,
        Err(why) => json!({ "state": shared.progress.state().name(), "core_unavailable": why }),
    };
    let usage = usage();
    let (clients, client_streams) = shared.hub.status();
    let metrics = &shared.metrics;
    let own = json!({
        "host": shared.me.host.0,
        "twin": shared.me.twin.0,
        "version": env!("CARGO_PKG_VERSION"),
        "doubles_built_in": cfg!(feature = "byzantine-doubles"),
        "cluster": shared.cluster,
        "service_name": shared.service,
        "durability": shared.durability,
        "uptime_ms": u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "rss_bytes": usage.rss_bytes,
        "cpu_ms": usage.cpu_ms,
        "peers": shared.peers.values().map(|peer| peer.report()).collect::<Vec<_>>(),
        "queues": Queues::from([
            ("peer_inputs".to_owned(), shared.inbox.peers.status()),
            ("client_inputs".to_owned(), shared.inbox.clients.status()),
            ("outbound_rounds".to_owned(), shared.egress.status()),
            ("client_streams".to_owned(), clients),
        ]),
        "network": {
            "sent": metrics.sent.snapshot(),
            "received": metrics.received.snapshot(),
            "refused": metrics.refused.snapshot(),
            "replies_without_stream": metrics.replies_without_stream.value(),
            "client_streams": client_streams,
            "client_streams_opened": metrics.client_streams_opened.value(),
            "client_streams_closed": metrics.client_streams_closed.value(),
            "peer_streams_opened": metrics.peer_streams_opened.value(),
            "peer_streams_closed": metrics.peer_streams_closed.value(),
        },
    });
    let (Some(document_map), Value::Object(own)) = (document.as_object_mut(), own) else {
        unreachable!("both are objects");
    };
    document_map.extend(own);
    document
}

async fn core_report(shared: &Shared) -> Result<Value, &'static str> {
    if !shared.progress.has_core() {
        return Err("the core has not begun yet");
    }
    let (sender, receiver) = oneshot::channel();
    if shared.inbox.control(Control::Report(sender)).is_err() {
        return Err("too many questions wait for the core; ask again");
    }
    match tokio::time::timeout(CORE_ANSWER_MAX, receiver).await {
        Ok(Ok(report)) => Ok(core_json(&report)),
        Ok(Err(_)) => Err("the core is ending"),
        Err(_) => Err("the core did not answer within a second"),
    }
}
