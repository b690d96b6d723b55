//! The name service of a network's gateway (RFC 1035): the network's own names, and a forwarder with a cache for the
//! rest. Without I/O and clock: queries come in by [`Dns::receive`], what the outside says by [`Dns::answered`], and
//! [`Dns::pop`] gives what is to be sent to guests and asked outside. One owner, the services thread.
//!
//! - `zone`: names that are answered here and never leave. `cache`: what the outside said. `limits`: what a guest
//!   may ask for. `message`: DNS messages, by hickory's codec.
//!
//! Invariants:
//! - A query gets at most one answer, with its own id and question, and it goes to where the query came from. A
//!   response gets none, nor does who asks from an address that is not one of the configured clients'.
//! - A question that several ask is asked once, and answered to them in the order in which they came. A query that is
//!   repeated while it waits is not taken twice.
//! - What waits is bounded for each port and in total. Ports take turns at the outside, one question at a time, so
//!   that one port's queue delays no other's.
//! - Above its rate a port's queries are dropped in silence, because an answer would cost as much as the service; with
//!   too many in flight they are REFUSED, so that the client may turn elsewhere.
//! - The outside learns a name, a type and two flags; it is believed only about the question that it was asked.

mod cache;
mod limits;
mod message;
mod zone;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Record;
use ipnetwork::IpNetwork;
use switch_core::{Instant, PortId};

use cache::{Cache, Key};
pub use limits::Limits;
pub use message::{QUERY_MAX, TCP_MAX, UDP_MAX};
use message::{Read, Request, Sections};
use zone::Found;
pub use zone::{BadName, GATEWAY, Lease, Zone};

/// How long a question waits for the outside, its turn included. Longer than whoever asks takes to give up.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(6);
/// From how many ports on those that are idle are looked for and forgotten.
const GUESTS_MIN: usize = 1024;

/// How a query came, and its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection, by the number that its owner gave it. Numbers are not used again.
    Tcp(u64),
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// The port that the query came in by: the guest.
    pub port: PortId,
    /// Where it came from, and its answer goes.
    pub address: SocketAddr,
    /// How it came.
    pub transport: Transport,
}

/// Names a question that the outside is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueryId(u64);

/// The outside has no answer: nobody there, or nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message to a client.
    Answer {
        /// Whom.
        to: Client,
        /// The message; over TCP without the length before it.
        message: Vec<u8>,
    },
    /// Ask the outside, and say what came of it by [`Dns::answered`].
    Ask {
        /// Names the question.
        id: QueryId,
        /// A query with id 0; who sends it gives it a random one.
        message: Vec<u8>,
    },
}

/// What became of queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages from clients.
    pub received: u64,
    /// Answered by the zone.
    pub local: u64,
    /// Answered by the cache.
    pub cached: u64,
    /// Waited for the outside.
    pub forwarded: u64,
    /// Questions that the outside was asked.
    pub asked: u64,
    /// Of those, without a usable answer in time.
    pub failed: u64,
    /// Answered with an error because they could not be read or are not served.
    pub malformed: u64,
    /// Dropped: no query, or not from a client.
    pub ignored: u64,
    /// Dropped: above the port's rate.
    pub over_rate: u64,
    /// Refused: too many in flight.
    pub over_share: u64,
    /// Refused: the outside is not asked for this client.
    pub refused: u64,
    /// Dropped: the same query was waiting already.
    pub repeated: u64,
}

/// What the service does beside its zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ask the outside. Without, only the zone's names are answered and all others REFUSED.
    pub forwarding: bool,
    /// The networks whose addresses are answered, link-local ones aside. Empty: any address; then only guests' queries
    /// must be handed in.
    pub clients: Vec<IpNetwork>,
    /// Bounds.
    pub limits: Limits,
}

#[derive(Debug)]
struct Waiter {
    client: Client,
    request: Request,
}

/// A question that is to be asked, or is.
#[derive(Debug)]
struct Pending {
    key: Key,
    /// `None` while it waits for its turn. Then it is in the queue of every port that has a waiter here.
    asked_by: Option<PortId>,
    deadline: Instant,
    waiters: Vec<Waiter>,
    /// Whom of the waiters a repeated query would be equal to.
    known: HashSet<(Client, u16)>,
}

/// What is known of a port.
#[derive(Debug, Default)]
struct Guest {
    bucket: limits::Bucket,
    in_flight: usize,
    /// Questions that wait for this port's turn; each is one of its queries in flight.
    queue: VecDeque<QueryId>,
    /// It stands in the order of turns.
    in_turn: bool,
}

/// The name service of one network.
#[derive(Debug)]
pub struct Dns {
    settings: Settings,
    zone: Zone,
    cache: Cache,
    guests: HashMap<PortId, Guest>,
    /// How many guests there may be before idle ones are looked for.
    guests_max: usize,
    pending: HashMap<QueryId, Pending>,
    by_key: HashMap<Key, QueryId>,
    deadlines: BTreeSet<(Instant, QueryId)>,
    turns: VecDeque<PortId>,
    /// Questions that the outside is being asked.
    asked: usize,
    /// Queries that wait for the outside.
    waiting: usize,
    next_id: u64,
    actions: VecDeque<Action>,
    counters: Counters,
}

impl Dns {
    /// A service with nothing in its cache.
    pub fn new(settings: Settings, zone: Zone) -> Self {
        Self {
            settings,
            zone,
            cache: Cache::default(),
            guests: HashMap::new(),
            guests_max: GUESTS_MIN,
            pending: HashMap::new(),
            by_key: HashMap::new(),
            deadlines: BTreeSet::new(),
            turns: VecDeque::new(),
            asked: 0,
            waiting: 0,
            next_id: 0,
            actions: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// The network's names, to be changed. A change holds for the next query.
    pub fn zone_mut(&mut self) -> &mut Zone {
        &mut self.zone
    }

    /// What became of queries so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a message of a client in: a datagram, or what stood behind a length on a connection.
    pub fn receive(&mut self, now: Instant, client: Client, message: &[u8]) {
        self.counters.received += 1;
        if !self.is_client(client.address) {
            self.counters.ignored += 1;
            return;
        }
        if !self.admit(now, client.port) {
            self.counters.over_rate += 1;
            return;
        }
        let request = match message::read(message) {
            Read::Silence => {
                self.counters.ignored += 1;
                return;
            }
            Read::Error(answer) => {
                self.counters.malformed += 1;
                self.actions.push_back(Action::Answer { to: client, message: answer });
                return;
            }
            Read::Query(request) => request,
        };
        match self.zone.find(&request.name, request.kind) {
            Found::Elsewhere => self.forward(now, client, request),
            Found::Records(data) => {
                self.counters.local += 1;
                let record = |data| Record::from_rdata(request.name.clone(), zone::LOCAL_TTL, data);
                let sections =
                    Sections { answers: data.into_iter().map(record).collect(), ..Sections::default() };
                self.answer(client, &request, ResponseCode::NoError, true, sections);
            }
            Found::Nothing { soa, exists } => {
                self.counters.local += 1;
                let code = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
                let sections = Sections { authorities: vec![*soa], ..Sections::default() };
                self.answer(client, &request, code, true, sections);
            }
        }
    }

    /// Takes in what the outside answered to a question; what is not asked any more is forgotten.
    pub fn answered(&mut self, now: Instant, id: QueryId, result: Result<Vec<u8>, Unanswered>) {
        let Some(pending) = self.pending.get(&id) else {
            return;
        };
        let Some(owner) = pending.asked_by else {
            return;
        };
        let key = pending.key.clone();
        let answer = result.ok().and_then(|bytes| message::read_answer(&bytes, &key.name, key.kind));
        let answer = match answer {
            Some(answer) => answer,
            None => {
                self.counters.failed += 1;
                failure()
            }
        };
        self.cache.put(now, &key, &answer, owner, &self.settings.limits);
        self.finish(id, &answer);
        self.ask_next();
    }

    /// Does what is due: questions that waited too long fail.
    pub fn poll(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.counters.failed += 1;
            self.finish(id, &failure());
        }
        self.ask_next();
    }

    /// When [`Dns::poll`] next has something to do.
    pub fn poll_at(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The next thing to be done. To be called until there is none, after each of the other calls.
    pub fn pop(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Forgets a port that is gone: what it waits for is not answered.
    pub fn forget(&mut self, port: PortId) {
        let mut alone = Vec::new();
        for (id, pending) in &mut self.pending {
            let before = pending.waiters.len();
            pending.waiters.retain(|waiter| waiter.client.port != port);
            pending.known.retain(|(client, _)| client.port != port);
            self.waiting -= before - pending.waiters.len();
            // What is asked already is worth remembering.
            if pending.waiters.is_empty() && pending.asked_by.is_none() {
                alone.push(*id);
            }
        }
        self.guests.remove(&port);
        self.turns.retain(|turn| *turn != port);
        for id in alone {
            self.drop_pending(id);
        }
    }

    /// Whether an answer to this address can reach a guest, and nobody else.
    fn is_client(&self, from: SocketAddr) -> bool {
        let ip = from.ip();
        let (link_local, broadcast) = match ip {
            IpAddr::V4(v4) => (false, v4.is_broadcast()),
            IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
        };
        let station = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !broadcast;
        let clients = &self.settings.clients;
        station
            && from.port() != 0
            && (clients.is_empty() || link_local || clients.iter().any(|net| net.contains(ip)))
    }

    /// Whether a port's rate allows one more query.
    fn admit(&mut self, now: Instant, port: PortId) -> bool {
        if self.guests.len() >= self.guests_max && !self.guests.contains_key(&port) {
            self.guests.retain(|_, guest| guest.in_flight > 0 || guest.in_turn || !guest.bucket.is_full(now));
            // Ports that live are a bounded number; what is done for each of them here is bounded by doubling.
            self.guests_max = GUESTS_MIN.max(self.guests.len() * 2);
        }
        self.guests.entry(port).or_default().bucket.take(now, &self.settings.limits)
    }

    /// Answers from the cache, or has the outside asked.
    fn forward(&mut self, now: Instant, client: Client, request: Request) {
        if !self.settings.forwarding {
            self.counters.refused += 1;
            return self.answer(client, &request, ResponseCode::Refused, false, Sections::default());
        }
        let key = Key {
            name: request.name.clone(),
            kind: request.kind,
            dnssec_ok: request.dnssec_ok,
            checking_disabled: request.checking_disabled,
        };
        if let Some(answer) = self.cache.get(now, &key) {
            self.counters.cached += 1;
            return self.pass_on(client, &request, &answer);
        }
        if !request.recursion {
            self.counters.refused += 1;
            return self.answer(client, &request, ResponseCode::Refused, false, Sections::default());
        }
        let known = self.by_key.get(&key).copied();
        if let Some(pending) = known.and_then(|id| self.pending.get(&id))
            && pending.known.contains(&(client, request.id))
        {
            self.counters.repeated += 1;
            return;
        }
        let share = self.settings.limits.share(self.waiting);
        let in_flight = self.guests.get(&client.port).map_or(0, |guest| guest.in_flight);
        if in_flight >= share {
            self.counters.over_share += 1;
            return self.answer(client, &request, ResponseCode::Refused, false, Sections::default());
        }
        self.counters.forwarded += 1;
        let id = known.unwrap_or_else(|| self.begin(now, key));
        let Some(pending) = self.pending.get_mut(&id) else {
            return;
        };
        pending.known.insert((client, request.id));
        pending.waiters.push(Waiter { client, request });
        self.waiting += 1;
        let guest = self.guests.entry(client.port).or_default();
        guest.in_flight += 1;
        if pending.asked_by.is_none() {
            guest.queue.push_back(id);
            if !guest.in_turn {
                guest.in_turn = true;
                self.turns.push_back(client.port);
            }
        }
        self.ask_next();
    }

    /// Makes a question that nobody waits for yet.
    fn begin(&mut self, now: Instant, key: Key) -> QueryId {
        let id = QueryId(self.next_id);
        self.next_id += 1;
        let deadline = now + ASK_TIMEOUT;
        self.by_key.insert(key.clone(), id);
        self.deadlines.insert((deadline, id));
        let pending = Pending { key, asked_by: None, deadline, waiters: Vec::new(), known: HashSet::new() };
        self.pending.insert(id, pending);
        id
    }

    /// Asks the outside what waits, as far as it may be asked at a time: one question of each port in turn.
    fn ask_next(&mut self) {
        while self.asked < self.settings.limits.asked.max(1) {
            let Some(port) = self.turns.pop_front() else {
                return;
            };
            let Some(guest) = self.guests.get_mut(&port) else {
                continue;
            };
            // Another port that waited for the same question may have been first.
            let waits = |id| self.pending.get(&id).is_some_and(|pending| pending.asked_by.is_none());
            let next = std::iter::from_fn(|| guest.queue.pop_front()).find(|id| waits(*id));
            guest.in_turn = !guest.queue.is_empty();
            if guest.in_turn {
                self.turns.push_back(port);
            }
            let Some((id, pending)) = next.and_then(|id| Some((id, self.pending.get_mut(&id)?))) else {
                continue;
            };
            let Key { name, kind, dnssec_ok, checking_disabled } = &pending.key;
            pending.asked_by = Some(port);
            self.asked += 1;
            self.counters.asked += 1;
            match message::question(name, *kind, *dnssec_ok, *checking_disabled) {
                Some(message) => self.actions.push_back(Action::Ask { id, message }),
                None => {
                    self.counters.failed += 1;
                    self.finish(id, &failure());
                }
            }
        }
    }

    /// Answers all who wait for a question.
    fn finish(&mut self, id: QueryId, answer: &Message) {
        for waiter in self.drop_pending(id) {
            self.pass_on(waiter.client, &waiter.request, answer);
        }
    }

    /// Takes a question out of everything that names it; whoever waited for it is not waiting any more.
    fn drop_pending(&mut self, id: QueryId) -> Vec<Waiter> {
        let Some(pending) = self.pending.remove(&id) else {
            return Vec::new();
        };
        self.by_key.remove(&pending.key);
        self.deadlines.remove(&(pending.deadline, id));
        self.waiting -= pending.waiters.len();
        if pending.asked_by.is_some() {
            self.asked -= 1;
        }
        for waiter in &pending.waiters {
            if let Some(guest) = self.guests.get_mut(&waiter.client.port) {
                guest.in_flight -= 1;
                guest.queue.retain(|queued| *queued != id);
            }
        }
        pending.waiters
    }

    /// Gives a client what the outside answered.
    fn pass_on(&mut self, client: Client, request: &Request, answer: &Message) {
        let sections = Sections {
            answers: answer.answers.clone(),
            authorities: answer.authorities.clone(),
            additionals: answer.additionals.clone(),
        };
        let (code, truncated) = (answer.metadata.response_code, answer.metadata.truncation);
        self.send(client, request, code, false, truncated, sections);
    }

    fn answer(&mut self, to: Client, request: &Request, code: ResponseCode, ours: bool, sections: Sections) {
        self.send(to, request, code, ours, false, sections);
    }

    fn send(
        &mut self,
        to: Client,
        request: &Request,
        code: ResponseCode,
        ours: bool,
        truncated: bool,
        sections: Sections,
    ) {
        let limit = match to.transport {
            Transport::Udp => request.udp_max,
            Transport::Tcp(_) => TCP_MAX,
        };
        if let Some(message) = message::write(request, code, ours, truncated, sections, limit) {
            self.actions.push_back(Action::Answer { to, message });
        }
    }
}

/// What is answered when the outside has no answer.
fn failure() -> Message {
    Message::error_msg(0, hickory_proto::op::OpCode::Query, ResponseCode::ServFail)
}
