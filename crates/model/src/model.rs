//! What can happen in a state.

use std::sync::Arc;

use stateright::Property;
use twinbft_core::mutants::Rule;
use twinbft_core::{CoreConfig, Input, Replica, Tuning};
use twinbft_sim::{Cast, Observer, Truth};
use twinbft_types::{
    ClientId, Digest, Domain, Epoch, HostId, KeyRing, Mac, ProcessId, ReplicaId, Request, Seq,
    Shape, SignedRequest,
};

use crate::cases::{About, Begins, Case, Schedules};
use crate::lies::Lie;
use crate::state::{Left, Node, Postbox, Reached, State};

/// A case, made ready.
#[derive(Debug)]
pub struct Model {
    pub(crate) case: Case,
    /// The rule that is taken out.
    without: Option<Rule>,
    pub(crate) shape: Shape,
    pub(crate) tuning: Tuning,
    /// Of all twins.
    pub(crate) rings: Vec<KeyRing>,
    /// Of all clients.
    pub(crate) clients: Vec<KeyRing>,
    pub(crate) requests: Vec<Request>,
}

/// Something that happens. Twins by their number in [`Shape::all_replicas`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The broker appends the first waiting post of a twin.
    Append(usize),
    /// A twin reads one entry.
    Read(usize),
    /// The time of a twin runs out.
    TimeOut(usize),
    /// The time of all twins runs out, but for those of one host.
    TimeOutBut(u8),
    /// The Byzantine twin does not post what it would have posted next.
    Withhold,
    /// It posts now what it has held back.
    PostLate,
    /// The Byzantine twin lies: the number of the lie in this state; it may take the place of what it would have posted.
    Lie(usize, bool),
    /// A message arrives, by its number in the order of sending.
    Deliver(usize),
    /// A message arrives after all others that are under way.
    Delay(usize),
    /// A message is lost.
    Lose(usize),
    /// Nothing is under way, and a moment passes.
    Moment,
    /// Messages to a host wait.
    Hold(u8),
    /// They arrive again.
    Release(u8),
}

impl Model {
    /// The model of a case, with a rule of the core taken out if one is named.
    ///
    /// # Panics
    /// When the case is none that a cluster could have, or a rule is named without the feature `mutants`.
    #[must_use]
    pub fn new(case: Case, without: Option<Rule>) -> Self {
        let shape = Shape::new(case.hosts, case.twins).expect("a cluster");
        let cast = Cast::of(shape);
        let rings = shape
            .all_replicas()
            .map(|id| cast.ring(ProcessId::Twin(id)));
        let clients = (0..u32::from(case.requests)).map(|key| cast.ring(ProcessId::Client(key)));
        let requests = (0..case.requests).map(|number| Request {
            client: ClientId {
                key: u32::from(number),
                session: 1,
            },
            seq: Seq(1),
            operation: vec![number].into(),
        });
        Self {
            case,
            without,
            shape,
            tuning: Tuning {
                batch_requests_max: 1,
                pipeline_depth: 2,
                // The clocks of twins do not meet here.
                clock_bound_us: 1 << 50,
                ..Tuning::default()
            },
            rings: rings.collect(),
            clients: clients.collect(),
            requests: requests.collect(),
        }
    }

    /// A request with its client's MACs for the twins of a host.
    fn signed(&self, number: usize, host: HostId) -> SignedRequest {
        let request = self.requests[number].clone();
        let mut ring = self.clients[number].clone();
        let macs = self.shape.all_twins().map(|twin| {
            let to = ProcessId::Twin(ReplicaId { host, twin });
            if number == 0 && !self.case.good_for.contains(&twin.0) {
                return Mac::default();
            }
            ring.mac(to, Domain::Request, request.digest())
                .expect("a client knows all twins")
        });
        SignedRequest {
            macs: macs.collect(),
            request,
            host,
        }
    }

    fn genesis(&self) -> State {
        let nodes = self.shape.all_replicas().map(|me| {
            let core = Replica::new(CoreConfig {
                shape: self.shape,
                me,
                keys: self.rings[self.index(me)].clone(),
                epoch: Epoch(1),
                config_digest: Digest::ZERO,
                quarantines: false,
                tuning: self.tuning.clone(),
            });
            Node {
                print: None,
                core: Arc::new(core),
                now_us: 1,
                read: 0,
                posts: Default::default(),
                held_back: None,
                durable: Default::default(),
                is_down: false,
            }
        });
        let hosts = self.shape.all_hosts().map(|host| Postbox {
            begin: 0,
            unread: Default::default(),
            observer: Arc::new(Observer::new(self.shape, host, &self.tuning)),
            print: None,
        });
        State {
            nodes: nodes.collect(),
            hosts: hosts.collect(),
            letters: Default::default(),
            held: 0,
            truth: Arc::new(Truth::new(self.tuning.session_window)),
            truth_print: 0,
            left: Left {
                lies: self.case.lies,
                timeouts: self.case.timeouts,
                delays: match self.case.schedules {
                    Schedules::Appends | Schedules::Deliveries => 0,
                    Schedules::Delayed(delays) => delays,
                },
                moments: self.case.moments,
            },
            is_news: true,
            reached: Reached::default(),
            violation: None,
        }
    }

    fn byzantine(&self) -> Option<usize> {
        self.case.byzantine.map(|id| self.index(id))
    }

    /// Whether the only thing that a twin can do before it reads is to read: nothing else can happen to it, so all
    /// orders of its reading and of what happens to others come to the same, and one of them is enough.
    ///
    /// What can happen to a twin is that an entry, a message or a timer reaches it. Under [`Schedules::Appends`] there
    /// are no messages, and timers only while time may still run out. Under the others reading comes first anyway.
    fn only_reads(&self, state: &State, index: usize) -> bool {
        match self.case.schedules {
            Schedules::Appends => state.left.timeouts == 0 || !self.can_time_out(index),
            Schedules::Deliveries | Schedules::Delayed(_) => true,
        }
    }

    /// With one host the last twin's time runs out, which is correct in every case, or that of the last two.
    fn can_time_out(&self, index: usize) -> bool {
        let patient = if self.case.byzantine.is_some() { 2 } else { 1 };
        index >= patient
    }

    /// Whatever can only go one way goes that way.
    fn settle(&self, state: &mut State) {
        self.settle_posts(state);
        if matches!(self.case.schedules, Schedules::Delayed(_)) {
            while state.violation.is_none() && !self.can_choose(state) && self.goes_on(state) {
                self.settle_posts(state);
            }
        }
        state.print_changed();
    }

    /// What is posted and can be read is appended and read, and timers that are due are handled.
    fn settle_posts(&self, state: &mut State) {
        let mut timers = TIMERS_MAX;
        while state.violation.is_none() {
            let reader = (0..state.nodes.len())
                .find(|index| self.can_read(state, *index) && self.only_reads(state, *index));
            if let Some(index) = reader {
                self.read(state, index);
                continue;
            }
            if self.case.schedules == Schedules::Appends {
                break;
            }
            // 2: the broker takes a correct twin's post at once, unless all orders of appends are tried.
            let poster = (0..state.nodes.len()).find(|index| self.posts_at_once(state, *index));
            if let Some(index) = poster {
                let bytes = state.nodes[index].posts.pop_front().expect("it has one");
                self.append(state, self.id(index), bytes);
                continue;
            }
            let is_due = |index: &usize| state.nodes[*index].is_timer_due();
            let due = (0..state.nodes.len()).find(is_due);
            match due.filter(|_| timers > 0 && self.waits_for_nothing()) {
                Some(index) => self.step(state, index, Input::Timer),
                None => break,
            }
            timers -= 1;
        }
        state.forget_read(usize::from(self.case.twins));
    }

    /// Whether a timer that is due is handled before the next message arrives.
    const fn waits_for_nothing(&self) -> bool {
        matches!(self.case.schedules, Schedules::Delayed(_))
    }

    /// Whether something else can happen than that the next message arrives.
    fn can_choose(&self, state: &State) -> bool {
        let left = state.left;
        let may_say = |index: usize| {
            let node = &state.nodes[index];
            let has_more = left.lies > 0 || node.held_back.is_some();
            has_more && (state.is_news || !node.posts.is_empty())
        };
        left.timeouts > 0
            || left.delays > 0
            || state.held != 0
            || self.byzantine().is_some_and(may_say)
    }

    /// The next message arrives, or a moment passes in which there is none. Answers whether that was so.
    fn goes_on(&self, state: &mut State) -> bool {
        if let Some(number) = Self::next_letter(state) {
            self.deliver(state, number);
            return true;
        }
        if state.left.moments == 0 {
            return false;
        }
        Self::pass_moment(state);
        true
    }

    fn pass_moment(state: &mut State) {
        state.left.moments -= 1;
        for node in &mut state.nodes {
            node.now_us += MOMENT_US;
        }
    }

    fn deliver(&self, state: &mut State, number: usize) {
        let letter = state.letters.remove(number).expect("it is under way");
        let input = Input::Peer {
            from: letter.from,
            message: Arc::unwrap_or_clone(letter.message),
        };
        self.step(state, self.index(letter.to), input);
    }

    /// The time of all hosts but one runs out, and that of the clients.
    fn time_out_but(&self, state: &mut State, patient: HostId) {
        state.left.timeouts -= 1;
        for id in self.shape.receivers(patient) {
            self.time_out(state, self.index(id));
        }
        if self.case.asked_again {
            let later = usize::from(self.case.later);
            for number in 0..self.requests.len() {
                let is_new = number >= self.requests.len() - later;
                self.ask(state, number, !is_new, self.shape.all_replicas());
            }
        }
    }

    /// A client sends its request.
    fn ask(
        &self,
        state: &mut State,
        number: usize,
        retransmission: bool,
        to: impl Iterator<Item = ReplicaId>,
    ) {
        for id in to {
            let input = Input::Request {
                request: self.signed(number, id.host),
                retransmission,
                leader_alone: false,
            };
            self.step(state, self.index(id), input);
        }
    }

    fn posts_at_once(&self, state: &State, index: usize) -> bool {
        let may_lie = self.is_byzantine(index) && state.left.lies > 0;
        !state.nodes[index].posts.is_empty() && !may_lie
    }

    /// The first message that can arrive.
    fn next_letter(state: &State) -> Option<usize> {
        let arrives = |to: ReplicaId| state.held >> to.host.0 & 1 == 0;
        state.letters.iter().position(|letter| arrives(letter.to))
    }

    /// [`Begins::TimeIsOut`]: nothing can be chosen before.
    fn prepare(&self, state: &mut State, messages: usize, deaf: Option<u8>) {
        let left = state.left;
        state.left = Left::default();
        let hears = |state: &mut State| {
            self.settle_posts(state);
            state
                .letters
                .retain(|letter| Some(letter.to.host.0) != deaf);
        };
        hears(state);
        for _ in 0..messages {
            if !self.goes_on(state) {
                break;
            }
            hears(state);
        }
        state.left = left;
        let patient = self
            .case
            .patient
            .expect("a case that names the patient host");
        self.time_out_but(state, HostId(patient));
    }

    fn schedule_appends(&self, state: &State, actions: &mut Vec<Action>) {
        for index in 0..state.nodes.len() {
            if self.can_read(state, index) {
                actions.push(Action::Read(index));
            }
            if !state.nodes[index].posts.is_empty() {
                actions.push(Action::Append(index));
            }
            if state.left.timeouts > 0 && self.can_time_out(index) {
                actions.push(Action::TimeOut(index));
            }
        }
    }

    fn schedule_messages(&self, state: &State, actions: &mut Vec<Action>) {
        let posts = |index: &usize| !state.nodes[*index].posts.is_empty();
        if let Some(index) = self.byzantine().filter(posts) {
            actions.push(Action::Append(index));
        } else if self.case.schedules == Schedules::Deliveries {
            // One that never arrives is lost.
            actions.extend((0..state.letters.len()).map(Action::Deliver));
        } else if let Some(letter) = Self::next_letter(state) {
            actions.push(Action::Deliver(letter));
            if state.left.delays > 0 {
                actions.extend([Action::Delay(letter), Action::Lose(letter)]);
            }
        } else if state.left.moments > 0 && state.left.timeouts == 0 {
            actions.push(Action::Moment);
        }
        for host in 0..self.case.hosts {
            let is_held = state.held >> host & 1 == 1;
            if is_held {
                actions.push(Action::Release(host));
            } else if state.left.delays > 0 {
                actions.push(Action::Hold(host));
            }
            if state.left.timeouts > 0 && self.case.patient.is_none_or(|patient| patient == host) {
                actions.push(Action::TimeOutBut(host));
            }
        }
    }
}

/// Timers that are handled at one time at most; a deadline that stays in the past is the simulator's to find.
const TIMERS_MAX: u32 = 64;

/// A moment: longer than whatever is said or asked for again for the first time waits, and than two WISHes lie apart.
const MOMENT_US: u64 = 50_000;

impl stateright::Model for Model {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        crate::mutation::take_out(self.without);
        let mut state = self.genesis();
        let later = usize::from(self.case.later);
        for number in 0..self.requests.len() - later {
            let retransmission = self.case.retransmitted && number == 0;
            let to = self.shape.all_replicas();
            let to = to.filter(|id| id.host == HostId(0) || retransmission);
            self.ask(&mut state, number, retransmission, to);
        }
        if let Begins::TimeIsOut { messages, deaf } = self.case.begins {
            self.prepare(&mut state, messages, deaf);
        }
        self.settle(&mut state);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        match self.case.schedules {
            Schedules::Appends => self.schedule_appends(state, actions),
            Schedules::Deliveries | Schedules::Delayed(_) => {
                self.schedule_messages(state, actions);
            }
        }
        let Some(index) = self.byzantine() else {
            return;
        };
        // What it could say before something happened elsewhere, it could say as well then.
        let ordered = matches!(self.case.schedules, Schedules::Delayed(_));
        if ordered && !state.is_news && state.nodes[index].posts.is_empty() {
            return;
        }
        if state.nodes[index].held_back.is_some() {
            actions.push(Action::PostLate);
        }
        if state.left.lies > 0 {
            let has_posts = !state.nodes[index].posts.is_empty();
            if has_posts {
                actions.push(Action::Withhold);
            }
            for number in 0..self.lies(state, index).len() {
                actions.push(Action::Lie(number, false));
                if has_posts {
                    actions.push(Action::Lie(number, true));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        crate::mutation::take_out(self.without);
        let mut state = last.clone();
        state.is_news = false;
        match action {
            Action::Append(index) => {
                let bytes = state.nodes[index].posts.pop_front()?;
                self.append(&mut state, self.id(index), bytes);
            }
            Action::Read(index) => self.read(&mut state, index),
            Action::TimeOut(index) => {
                state.left.timeouts -= 1;
                self.time_out(&mut state, index);
            }
            Action::TimeOutBut(host) => self.time_out_but(&mut state, HostId(host)),
            Action::Withhold => {
                state.left.lies -= 1;
                let node = &mut state.nodes[self.byzantine()?];
                let bytes = node.posts.pop_front()?;
                if self.case.about == About::Views {
                    node.held_back.get_or_insert(bytes);
                }
            }
            Action::PostLate => {
                let index = self.byzantine()?;
                let bytes = state.nodes[index].held_back.take()?;
                self.append(&mut state, self.id(index), bytes);
            }
            Action::Lie(number, instead) => {
                let index = self.byzantine()?;
                let lie = self.lies(&state, index).into_iter().nth(number)?;
                state.left.lies -= 1;
                if instead {
                    state.nodes[index].posts.pop_front()?;
                }
                match lie {
                    Lie::Post(entry) => {
                        let bytes = twinbft_types::canonical(&entry).into();
                        self.append(&mut state, self.id(index), bytes);
                    }
                    Lie::Send(to, message) => self.send(&mut state, index, to, message),
                    Lie::SendToAll(message) => {
                        for to in self.shape.receivers(self.id(index).host) {
                            self.send(&mut state, index, to, message.clone());
                        }
                    }
                }
                // A lie that changes nothing is none: what may happen then may happen without it.
                self.settle_posts(&mut state);
                state.print_changed();
                if state.cluster_print() == last.cluster_print() {
                    return None;
                }
            }
            Action::Deliver(number) => self.deliver(&mut state, number),
            Action::Moment => Self::pass_moment(&mut state),
            Action::Delay(number) => {
                state.left.delays -= 1;
                let letter = state.letters.remove(number)?;
                state.letters.push_back(letter);
            }
            Action::Lose(number) => {
                state.left.delays -= 1;
                state.letters.remove(number)?;
            }
            Action::Hold(host) => {
                state.left.delays -= 1;
                state.held |= 1 << host;
            }
            Action::Release(host) => state.held &= !(1 << host),
        }
        self.settle(&mut state);
        Some(state)
    }

    fn format_action(&self, action: &Action) -> String {
        match *action {
            Action::Append(index) => format!("{} appends", self.id(index)),
            Action::Read(index) => format!("{} reads", self.id(index)),
            Action::TimeOut(index) => format!("{}'s time is out", self.id(index)),
            _ => format!("{action:?}"),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("invariants 1 to 4, 6 and 7", |_, state: &State| {
                state.violation.is_none()
            }),
            Property::sometimes("all requests are answered", |model: &Self, state| {
                u32::from(model.case.requests) == state.reached.replies.count_ones()
            }),
        ];
        if self.case.changes_view {
            properties.push(Property::sometimes(
                "a view is changed",
                |_, state: &State| state.reached.view_changed,
            ));
        }
        properties
    }
}
