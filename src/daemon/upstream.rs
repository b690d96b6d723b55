//! The outside's name servers, asked for guests: the host's own (`/etc/resolv.conf`, followed when it changes), or
//! those that the operator named. Retries, random ports and ids, and TCP for what does not fit a datagram are
//! hickory's; here is which server is asked, and for how long.
//!
//! Invariants:
//! - An answer is whole and to the question that was asked: any type, every section, whatever its code.
//! - A question ends within [`TOTAL`], and takes its sockets and tasks with it, also when nobody waits for it any more.
//! - A server whose address is one of our gateways' is never asked: it would ask us.
//!
//! One owner, the services thread; nothing is borrowed across a wait.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{
    DnsRequest, DnsRequestOptions, DnsResponse, Edns, Message, MessageType, ResponseCode,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::{DnsHandle as _, DnsRequestSender as _, FirstAnswer as _};
use hickory_resolver::net::{NetError, proto};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::timeout;
use tracing::warn;

/// How long a question may take, all servers and tries together. Clients give up after five seconds.
const TOTAL: Duration = Duration::from_millis(4500);
/// How often the host's configuration is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What we take in a datagram: fits any path of 1280 octets.
const UDP_MAX: u16 = 1232;
/// Datagrams that are sent to a server before the next one is asked, a third of a second apart.
const DATAGRAMS: u8 = 3;
/// Servers that are asked, at most.
const SERVERS_MAX: usize = 8;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum UpstreamError {
    /// What was to be asked is no query.
    BadQuery,
    /// There is no server to ask.
    NoServers,
    /// No server answered in time; the last one that was asked, and what came of it.
    Unanswered(SocketAddr, NetError),
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadQuery => f.write_str("not a DNS query of one question"),
            Self::NoServers => {
                f.write_str("no name server to ask: none is configured, or only our own gateways")
            }
            Self::Unanswered(server, e) => {
                write!(f, "no answer; the last name server asked was {server}: {e}")
            }
        }
    }
}

impl std::error::Error for UpstreamError {}

/// Where the servers are named.
#[derive(Debug)]
enum Source {
    Given,
    File { path: PathBuf, looked: Cell<Option<Instant>>, stamp: Cell<Option<Stamp>> },
}

/// Tells one state of a file from another.
type Stamp = (SystemTime, u64, u64);

/// The name servers of the outside.
#[derive(Debug)]
pub(crate) struct Upstream {
    source: Source,
    servers: RefCell<Vec<SocketAddr>>,
    forbidden: RefCell<Vec<IpAddr>>,
    /// The server that answered last: it is asked first.
    first: Cell<usize>,
    total: Duration,
}

impl Upstream {
    /// Asks the servers that the operator named.
    pub(crate) fn given(servers: Vec<SocketAddr>) -> Self {
        Self::new(Source::Given, servers)
    }

    /// Asks the host's name servers.
    pub(crate) fn of_host() -> Self {
        Self::of_file("/etc/resolv.conf".into())
    }

    fn of_file(path: PathBuf) -> Self {
        Self::new(Source::File { path, looked: Cell::new(None), stamp: Cell::new(None) }, Vec::new())
    }

    fn new(source: Source, servers: Vec<SocketAddr>) -> Self {
        let (servers, forbidden) = (RefCell::new(servers), RefCell::default());
        Self { source, servers, forbidden, first: Cell::new(0), total: TOTAL }
    }

    /// Sets the addresses that are never asked: those of our gateways.
    pub(crate) fn forbid(&self, addresses: Vec<IpAddr>) {
        *self.forbidden.borrow_mut() = addresses;
    }

    /// Asks one question. The answer has the query's id.
    pub(crate) async fn resolve(&self, query: Vec<u8>) -> Result<Vec<u8>, UpstreamError> {
        let query = Message::from_vec(&query).map_err(|_| UpstreamError::BadQuery)?;
        if query.queries.len() != 1 || query.metadata.message_type != MessageType::Query {
            return Err(UpstreamError::BadQuery);
        }
        let deadline = Instant::now() + self.total;
        let servers = self.servers();
        let first = self.first.get();
        let mut outcome = Err(UpstreamError::NoServers);
        for turn in 0..servers.len() {
            let index = (first + turn) % servers.len();
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(&server) = servers.get(index).filter(|_| !left.is_zero()) else {
                break;
            };
            // What is left is shared by those who are left; who is asked last has it all.
            let patience = left / u32::try_from(servers.len() - turn).unwrap_or(u32::MAX);
            match timeout(patience, ask(server, &query, patience)).await.unwrap_or(Err(NetError::Timeout)) {
                Ok(answer) => {
                    let code = answer.metadata.response_code;
                    let bytes = with_id(answer, query.metadata.id);
                    if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
                        self.first.set(index);
                        return Ok(bytes);
                    }
                    // Perhaps another one can; else this is the answer.
                    outcome = Ok(bytes);
                }
                Err(e) if outcome.is_err() => outcome = Err(UpstreamError::Unanswered(server, e)),
                Err(_) => {}
            }
        }
        outcome
    }

    /// The servers to ask, in the order in which they were named.
    fn servers(&self) -> Vec<SocketAddr> {
        self.look();
        let forbidden = self.forbidden.borrow();
        let is_ours = |server: &SocketAddr| {
            let ip = server.ip().to_canonical();
            ip.is_unspecified() || forbidden.iter().any(|address| address.to_canonical() == ip)
        };
        self.servers.borrow().iter().filter(|server| !is_ours(server)).take(SERVERS_MAX).copied().collect()
    }

    /// Reads the host's configuration again if it has changed.
    fn look(&self) {
        let Source::File { path, looked, stamp } = &self.source else {
            return;
        };
        if looked.get().is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        looked.set(Some(Instant::now()));
        let found = fs::metadata(path).and_then(|m| Ok((m.modified()?, m.ino(), m.len()))).ok();
        // A file that is away for a moment is being replaced: what it said still holds.
        if found.is_none() || found == stamp.get() {
            return;
        }
        stamp.set(found);
        let read = fs::read(path).map_err(NetError::from).and_then(parse_resolv_conf);
        match read {
            Ok((config, _)) => {
                // A link-local server has no meaning without its interface, which the parser does not give.
                let usable = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
                let servers = config.name_servers().iter().map(|server| server.ip).filter(usable);
                *self.servers.borrow_mut() = servers.map(|ip| SocketAddr::new(ip, 53)).collect();
                self.first.set(0);
            }
            Err(e) => warn!(file = %path.display(), "the host's name servers are not known anew: {e}"),
        }
    }
}

/// Asks one server: by UDP, and by TCP what UDP could not say.
async fn ask(server: SocketAddr, query: &Message, patience: Duration) -> Result<DnsResponse, NetError> {
    let mut request = request(query, true);
    let mut answer = by_udp(server, request.clone(), patience).await;
    let old = |a: &DnsResponse| {
        matches!(a.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp) && a.edns.is_none()
    };
    if answer.as_ref().is_ok_and(old) {
        // A server that does not know EDNS says so in these ways (RFC 6891, section 7).
        request = self::request(query, false);
        answer = by_udp(server, request.clone(), patience).await;
    }
    match answer {
        Ok(answer) if !answer.metadata.truncation => Ok(answer),
        // Silence and refusal are the same on any transport; a datagram that cannot be read may be a cut one.
        Err(e @ (NetError::Timeout | NetError::Io(_))) => Err(e),
        _ => by_tcp(server, request, patience).await,
    }
}

/// Our own question in the client's stead.
fn request(query: &Message, edns: bool) -> DnsRequest {
    // With an id of its own, by the codec's random numbers.
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    message.queries.clone_from(&query.queries);
    if edns {
        let dnssec_ok = query.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
        let mut ours = Edns::new();
        ours.set_max_payload(UDP_MAX).set_dnssec_ok(dnssec_ok);
        message.set_edns(ours);
    }
    DnsRequest::new(message, DnsRequestOptions::default())
}

async fn by_udp(
    server: SocketAddr,
    request: DnsRequest,
    patience: Duration,
) -> Result<DnsResponse, NetError> {
    UdpClientStream::builder(server, TokioRuntimeProvider::new())
        .with_timeout(Some(patience))
        .with_max_retries(DATAGRAMS)
        .build()
        .send_message(request)
        .first_answer()
        .await
}

async fn by_tcp(
    server: SocketAddr,
    request: DnsRequest,
    patience: Duration,
) -> Result<DnsResponse, NetError> {
    let asked = request.queries.clone();
    // The connection's task ends with its provider.
    let provider = TokioRuntimeProvider::new();
    let exchange = TcpClientStream::exchange(server, None, patience, None, provider.clone()).await?;
    let answer = exchange.send(request).first_answer().await?;
    if answer.queries == asked {
        Ok(answer)
    } else {
        Err(proto::ProtoError::from("an answer to another question").into())
    }
}

/// The answer's octets as they came, with another id.
fn with_id(answer: DnsResponse, id: u16) -> Vec<u8> {
    let mut bytes = answer.into_buffer();
    if let Some(place) = bytes.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    //! Against name servers of our own on the loopback interface.

    use std::io::Write as _;
    use std::rc::Rc;

    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::rdata::{NULL, TXT};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    /// What a server says by UDP (`false`) or TCP (`true`) to a question; `None` is silence.
    type Say = fn(bool, &Message) -> Option<Vec<u8>>;

    /// A name server on one port, for as long as the runtime.
    async fn serve(say: Say) -> SocketAddr {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = udp.local_addr().expect("an address");
        let tcp = TcpListener::bind(address).await.expect("a socket");
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..len]).expect("a question");
                if let Some(answer) = say(false, &question) {
                    udp.send_to(&answer, from).await.expect("sent");
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let len = stream.read_u16().await.expect("a length");
                let mut buffer = vec![0; len.into()];
                stream.read_exact(&mut buffer).await.expect("a question");
                let question = Message::from_vec(&buffer).expect("a question");
                if let Some(answer) = say(true, &question) {
                    let len = u16::try_from(answer.len()).expect("a length");
                    stream.write_all(&[&len.to_be_bytes(), &answer[..]].concat()).await.expect("sent");
                }
                // Held until the client leaves.
                stream.read_u8().await.expect_err("nothing more");
            }
        });
        address
    }

    fn query(kind: RecordType) -> Message {
        let mut message = Message::new(0x4321, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii("x.example.com.").expect("a name"), kind));
        message
    }

    fn reply(question: &Message, code: ResponseCode) -> Message {
        let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.queries.clone_from(&question.queries);
        message.edns.clone_from(&question.edns);
        message
    }

    fn bytes(message: &Message) -> Option<Vec<u8>> {
        Some(message.to_vec().expect("a message"))
    }

    fn silence(_: bool, _: &Message) -> Option<Vec<u8>> {
        None
    }

    fn refusal(_: bool, question: &Message) -> Option<Vec<u8>> {
        bytes(&reply(question, ResponseCode::Refused))
    }

    fn nothing(_: bool, question: &Message) -> Option<Vec<u8>> {
        bytes(&reply(question, ResponseCode::NXDomain))
    }

    /// 2,000 octets by TCP, and by UDP that it is too much.
    fn large(tcp: bool, question: &Message) -> Option<Vec<u8>> {
        let mut message = reply(question, ResponseCode::NoError);
        message.metadata.truncation = !tcp;
        let name = question.queries[0].name().clone();
        if tcp {
            let text = RData::TXT(TXT::new(vec!["x".repeat(250); 8]));
            message.add_answer(Record::from_rdata(name, 60, text));
        }
        bytes(&message)
    }

    fn quick(servers: Vec<SocketAddr>) -> Upstream {
        Upstream { total: Duration::from_millis(600), ..Upstream::given(servers) }
    }

    async fn ask(upstream: &Upstream, query: &Message) -> Result<Message, UpstreamError> {
        let answer = upstream.resolve(query.to_vec().expect("a query")).await?;
        Ok(Message::from_vec(&answer).expect("an answer can be read"))
    }

    #[tokio::test]
    async fn any_type_comes_back_as_it_is() {
        fn say(_: bool, question: &Message) -> Option<Vec<u8>> {
            assert!(question.metadata.recursion_desired && question.metadata.checking_disabled);
            assert_ne!(question.metadata.id, 0x4321, "an id of our own");
            let edns = question.edns.as_ref().expect("EDNS");
            assert!(edns.flags().dnssec_ok);
            assert_eq!(edns.options().as_ref().len(), 0);
            let name = question.queries[0].name().clone();
            let data = RData::Unknown { code: RecordType::Unknown(65_400), rdata: NULL::with(vec![1, 2, 3]) };
            let mut message = reply(question, ResponseCode::NoError);
            message.add_answer(Record::from_rdata(name.clone(), 60, data.clone()));
            message.add_authority(Record::from_rdata(name, 61, data));
            bytes(&message)
        }
        let upstream = quick(vec![serve(say).await]);
        let mut query = query(RecordType::Unknown(65_400));
        query.metadata.checking_disabled = true;
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true);
        query.set_edns(edns);
        let answer = ask(&upstream, &query).await.expect("an answer");
        assert_eq!(answer.metadata.id, 0x4321);
        assert_eq!((answer.answers[0].ttl, answer.authorities[0].ttl), (60, 61));
        assert_eq!(answer.answers[0].record_type(), RecordType::Unknown(65_400));
    }

    /// As the daemon asks: several at a time, on tasks of a current-thread runtime.
    #[test]
    fn what_does_not_fit_a_datagram_comes_by_tcp() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let upstream = Rc::new(quick(vec![serve(large).await]));
            let asked = (0..4).map(|_| {
                let upstream = Rc::clone(&upstream);
                tokio::task::spawn_local(async move { ask(&upstream, &query(RecordType::TXT)).await })
            });
            for task in asked.collect::<Vec<_>>() {
                let answer = task.await.expect("no panic").expect("an answer");
                assert!(!answer.metadata.truncation);
                assert_eq!((answer.metadata.id, answer.answers.len()), (0x4321, 1));
            }
        });
    }

    #[tokio::test]
    async fn who_answers_is_asked_first_from_then_on() {
        let (silent, good) = (serve(silence).await, serve(nothing).await);
        let upstream = quick(vec![silent, good]);
        let began = Instant::now();
        let answer = ask(&upstream, &query(RecordType::A)).await.expect("an answer");
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert!((Duration::from_millis(250)..Duration::from_millis(600)).contains(&began.elapsed()));
        let began = Instant::now();
        ask(&upstream, &query(RecordType::A)).await.expect("an answer");
        assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer_if_there_is_no_better() {
        let refuses = serve(refusal).await;
        let answer = ask(&quick(vec![refuses, serve(nothing).await]), &query(RecordType::A)).await;
        assert_eq!(answer.expect("an answer").metadata.response_code, ResponseCode::NXDomain);
        let answer = ask(&quick(vec![refuses, serve(silence).await]), &query(RecordType::A)).await;
        assert_eq!(answer.expect("an answer").metadata.response_code, ResponseCode::Refused);
    }

    #[tokio::test]
    async fn silence_ends_in_time() {
        let server = serve(silence).await;
        let began = Instant::now();
        let e = ask(&quick(vec![server]), &query(RecordType::A)).await.expect_err("no answer");
        assert!(matches!(e, UpstreamError::Unanswered(asked, NetError::Timeout) if asked == server), "{e}");
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        assert!(e.to_string().contains(&server.to_string()));
    }

    #[tokio::test]
    async fn a_server_without_edns_is_asked_without() {
        fn say(_: bool, question: &Message) -> Option<Vec<u8>> {
            let code = if question.edns.is_some() { ResponseCode::FormErr } else { ResponseCode::NXDomain };
            let mut message = reply(question, code);
            message.edns = None;
            bytes(&message)
        }
        let answer = ask(&quick(vec![serve(say).await]), &query(RecordType::A)).await.expect("an answer");
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_none() {
        fn say(tcp: bool, question: &Message) -> Option<Vec<u8>> {
            let mut message = reply(question, ResponseCode::NoError);
            message.metadata.truncation = !tcp;
            if tcp {
                message.queries[0].set_query_type(RecordType::MX);
            }
            bytes(&message)
        }
        let e = ask(&quick(vec![serve(say).await]), &query(RecordType::A)).await.expect_err("no answer");
        assert!(matches!(e, UpstreamError::Unanswered(_, NetError::Proto(_))), "{e}");
    }

    #[tokio::test]
    async fn our_own_gateways_are_never_asked() {
        let upstream =
            quick(vec![serve(nothing).await, "[::ffff:127.0.0.1]:53".parse().expect("an address")]);
        upstream.forbid(vec!["127.0.0.1".parse().expect("an address")]);
        let e = ask(&upstream, &query(RecordType::A)).await.expect_err("no server");
        assert!(matches!(e, UpstreamError::NoServers), "{e}");
        upstream.forbid(vec!["127.0.0.2".parse().expect("an address")]);
        assert!(ask(&upstream, &query(RecordType::A)).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_no_query_is_not_asked() {
        let upstream = quick(vec![serve(nothing).await]);
        let mut two = query(RecordType::A);
        two.add_query(two.queries[0].clone());
        let answer = reply(&query(RecordType::A), ResponseCode::NoError);
        for message in
            [Vec::new(), vec![0; 12], bytes(&two).expect("octets"), bytes(&answer).expect("octets")]
        {
            assert!(matches!(upstream.resolve(message).await, Err(UpstreamError::BadQuery)));
        }
    }

    #[test]
    fn the_hosts_servers_are_followed() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let upstream = Upstream::of_file(file.path().into());
        let Source::File { looked, .. } = &upstream.source else { panic!("a file") };
        let servers = || upstream.servers().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let later = || looked.set(Instant::now().checked_sub(LOOK_EVERY));
        writeln!(file, "# by hand\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1")
            .expect("written");
        assert_eq!(servers(), "192.0.2.1:53 [2001:db8::1]:53");
        writeln!(file, "nameserver 192.0.2.2\noptions timeout:1").expect("written");
        assert_eq!(servers(), "192.0.2.1:53 [2001:db8::1]:53", "not looked at again so soon");
        later();
        assert_eq!(servers(), "192.0.2.1:53 [2001:db8::1]:53 192.0.2.2:53");
        upstream.forbid(vec!["192.0.2.1".parse().expect("an address")]);
        assert_eq!(servers(), "[2001:db8::1]:53 192.0.2.2:53");
        // A file that is away, or says nothing, changes nothing.
        file.as_file().set_len(0).expect("emptied");
        later();
        assert_eq!(servers(), "[2001:db8::1]:53 192.0.2.2:53");
        file.close().expect("removed");
        later();
        assert_eq!(servers(), "[2001:db8::1]:53 192.0.2.2:53");
        assert_eq!(Upstream::of_host().source_path(), "/etc/resolv.conf");
    }

    impl Upstream {
        fn source_path(&self) -> &str {
            match &self.source {
                Source::File { path, .. } => path.to_str().expect("text"),
                Source::Given => "",
            }
        }
    }
}
