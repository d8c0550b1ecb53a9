//! The load on a TwinBFT cluster.

use anyhow::bail;
use twinbft_cli::cluster::Cluster;
use twinbft_client::{CallQueue, Client, ClientOptions, Completion, SessionKey, Stats, Target};

use super::load::{Answered, Done, Lane, Path};
use super::workload::{Operation, Workload};

/// Connections to a cluster, with one session for each place.
#[derive(Debug)]
pub struct ClusterLane {
    clients: Vec<Client>,
    queues: Vec<CallQueue>,
    /// The queue and the session of each place.
    places: Vec<(usize, SessionKey)>,
    fast_reads: bool,
    ended: Vec<Completion>,
    /// Which queue is asked first.
    turn: usize,
}

impl ClusterLane {
    /// Connects `connections` times to each replica and spreads `places` sessions over them.
    ///
    /// # Errors
    /// When the cluster keeps fewer sessions, or cannot be reached.
    pub async fn connect(
        cluster: &Cluster,
        client: u32,
        places: usize,
        connections: usize,
        fast_reads: bool,
    ) -> anyhow::Result<Self> {
        let target = Target::of(&cluster.config, &cluster.file, client)?;
        if places > target.sessions_max {
            bail!(
                "{places} clients, but the replicas keep {} sessions of one key; raise sessions_max in {} or use fewer",
                target.sessions_max,
                cluster.file.display()
            );
        }
        let mut lane = Self {
            clients: Vec::new(),
            queues: Vec::new(),
            places: Vec::new(),
            fast_reads,
            ended: Vec::new(),
            turn: 0,
        };
        for _ in 0..connections.clamp(1, places) {
            let client = Client::connect(ClientOptions::new(target.clone())).await?;
            lane.queues.push(client.queue());
            lane.clients.push(client);
        }
        for place in 0..places {
            let queue = place % lane.queues.len();
            let session = lane.queues[queue].open_session();
            lane.places.push((queue, session));
        }
        Ok(lane)
    }

    /// What the connections have sent and received, together.
    pub async fn stats(&self) -> Vec<Stats> {
        let mut stats = Vec::new();
        for client in &self.clients {
            stats.push(client.stats().await);
        }
        stats
    }
}

impl Lane for ClusterLane {
    fn submit(&mut self, place: usize, operation: &Operation, workload: &Workload) {
        let (queue, session) = self.places[place];
        let fast = self.fast_reads && matches!(operation, Operation::Read(_));
        self.queues[queue].submit(session, place as u64, workload.encode(operation), fast);
    }

    fn flush(&mut self) {
        for queue in &mut self.queues {
            queue.flush();
        }
    }

    async fn completions(&mut self, done: &mut Vec<Done>) {
        self.turn = (self.turn + 1) % self.queues.len();
        let (before, from_turn) = self.queues.split_at_mut(self.turn);
        let queues = from_turn.iter_mut().chain(before);
        CallQueue::any_completions(queues, &mut self.ended).await;
        done.extend(self.ended.drain(..).map(|completion| {
            Done {
                place: usize::try_from(completion.tag).expect("the tag is a place"),
                outcome: completion
                    .result
                    .map(|answer| Answered {
                        path: Path {
                            steps: answer.steps,
                            fast: answer.fast,
                        },
                        result: Some(answer.result),
                    })
                    .map_err(|error| error.summary().to_owned()),
            }
        }));
    }
}
