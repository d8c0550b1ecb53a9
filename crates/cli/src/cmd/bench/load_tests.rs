use super::super::workload::{Kind, Shape};
use super::*;

/// Answers everything after a fixed time, at most `at_once` operations at a time.
struct Fixed {
    takes: Duration,
    at_once: usize,
    waiting: VecDeque<usize>,
    running: VecDeque<(Instant, usize)>,
    fail_every: Option<usize>,
    count: usize,
}

impl Fixed {
    fn new(takes: Duration, at_once: usize) -> Self {
        Self {
            takes,
            at_once,
            waiting: VecDeque::new(),
            running: VecDeque::new(),
            fail_every: None,
            count: 0,
        }
    }

    fn start(&mut self) {
        while self.running.len() < self.at_once {
            let Some(place) = self.waiting.pop_front() else {
                return;
            };
            self.running.push_back((Instant::now() + self.takes, place));
        }
    }
}

impl Lane for Fixed {
    fn submit(&mut self, place: usize, _: &Operation, _: &Workload) {
        self.waiting.push_back(place);
    }

    fn flush(&mut self) {}

    async fn completions(&mut self, done: &mut Vec<Done>) {
        self.start();
        let Some((at, place)) = self.running.front().copied() else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(at).await;
        self.running.pop_front();
        self.count += 1;
        let fails = self
            .fail_every
            .is_some_and(|every| self.count.is_multiple_of(every));
        done.push(Done {
            place,
            outcome: if fails {
                Err("told to".to_owned())
            } else {
                Ok(Answered {
                    path: Path {
                        steps: Some(3),
                        fast: false,
                    },
                    result: None,
                })
            },
        });
    }
}

fn workload() -> Workload {
    Workload::new(Shape {
        kind: Kind::Null,
        request_bytes: 0,
        reply_bytes: 0,
        read_percent: 0,
        keys: 1,
    })
}

fn plan(clients: usize) -> Plan {
    Plan {
        clients,
        rate: None,
        duration: Duration::from_millis(300),
        requests: None,
        warmup: Duration::from_millis(20),
    }
}

struct Nobody;

impl Watch for Nobody {
    fn begin(&mut self) {}
    fn progress(&mut self, _: f64) {}
}

async fn measure(plan: Plan, mut lane: Fixed) -> Measured {
    run(plan, &mut workload(), &mut lane, &mut Nobody)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_number_of_requests_is_answered_exactly_so_often() {
    let plan = Plan {
        requests: Some(50),
        duration: Duration::from_secs(60),
        ..plan(4)
    };
    let measured = measure(plan, Fixed::new(Duration::from_millis(1), 4)).await;
    assert_eq!(measured.answered, 50);
    assert_eq!(measured.latency_ns.len(), 50);
    assert_eq!(measured.steps, [(Some(3), 50)].into());
    assert!(measured.seconds > 0.0 && measured.cut_short.is_none());
}

#[tokio::test]
async fn errors_are_no_successes() {
    let plan = Plan {
        requests: Some(40),
        duration: Duration::from_secs(60),
        ..plan(2)
    };
    let mut lane = Fixed::new(Duration::from_millis(1), 2);
    lane.fail_every = Some(2);
    let measured = measure(plan, lane).await;
    assert_eq!(measured.answered + measured.error_count(), 40);
    assert!(measured.error_count() >= 19);
    assert_eq!(measured.latency_ns.len(), measured.answered);
}

/// The target takes 10 ms for each of two a time: 200 a second. At 400 a second the last ones wait for a time that
/// grows with the run, and a load that waits for answers before it goes on would not see that.
#[tokio::test]
async fn the_open_loop_counts_from_when_an_operation_was_due() {
    let plan = Plan {
        rate: Some(400.0),
        ..plan(2)
    };
    let measured = measure(plan, Fixed::new(Duration::from_millis(10), 2)).await;
    assert!(measured.answered >= 110, "{} of 120", measured.answered);
    assert!(
        measured.latency_ns.max() >= 200_000_000,
        "{}",
        measured.latency_ns.max()
    );
    assert!(measured.throughput() < 250.0);
}

#[test]
fn arrivals_keep_their_distance_however_late_they_are_looked_at() {
    let start = Instant::now();
    let mut arrivals = Arrivals::new(1000.0, start);
    arrivals.advance(start + Duration::from_millis(5));
    let due: Vec<_> = arrivals
        .overdue
        .iter()
        .map(|at| (*at - start).as_millis())
        .collect();
    assert_eq!(due, [0, 1, 2, 3, 4, 5]);
}
