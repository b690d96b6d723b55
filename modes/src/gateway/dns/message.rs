//! DNS messages (RFC 1035, EDNS of RFC 6891) as the service reads and writes them. The codec is hickory's.
//!
//! - A message without a whole header, or that is a response, is nobody's: two name servers that answer each other's
//!   errors would never end.
//! - What is answered fits what the client said it takes: its EDNS size, never more than [`UDP_MAX`] over UDP, so that
//!   no answer is fragmented. What does not fit goes out empty with TC set, and the client comes again by TCP.
//! - Nothing of a client's EDNS options goes to the outside, and nothing of the outside's comes back.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

/// The largest answer over UDP, in octets: fits any path of 1280 octets (the DNS flag day of 2020).
pub const UDP_MAX: usize = 1232;
/// The largest answer over TCP, in octets: what the length before it can say.
pub const TCP_MAX: usize = 65_535;
/// The largest query that is read, in octets: a name, a type and some options. Padded ones have a few hundred.
pub const QUERY_MAX: usize = 4096;
const HEADER_LEN: usize = 12;

/// A query that can be answered: one question of class IN.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: u16,
    pub(super) name: Name,
    pub(super) kind: RecordType,
    /// RD: the client wants the outside asked.
    pub(super) recursion: bool,
    /// CD: the client validates itself.
    pub(super) checking_disabled: bool,
    /// The client speaks EDNS.
    pub(super) edns: bool,
    /// DO: the client wants signatures.
    pub(super) dnssec_ok: bool,
    /// What the client takes over UDP, in octets: 512 to [`UDP_MAX`].
    pub(super) udp_max: usize,
}

/// What a client's message is.
#[derive(Debug)]
pub(super) enum Read {
    /// Nothing that is answered.
    Silence,
    /// An error, and the answer that says so.
    Error(Vec<u8>),
    /// A query.
    Query(Request),
}

/// Reads a client's message.
pub(super) fn read(message: &[u8]) -> Read {
    let Some(&[id0, id1, flags, _, qd0, qd1, an0, an1, ns0, ns1, _, _]) = message.first_chunk::<HEADER_LEN>()
    else {
        return Read::Silence;
    };
    if flags & 0x80 != 0 {
        return Read::Silence;
    }
    let id = u16::from_be_bytes([id0, id1]);
    let op = OpCode::from_u8(flags >> 3 & 0xf);
    let error = |code| Message::error_msg(id, op, code).to_vec().map_or(Read::Silence, Read::Error);
    if op != OpCode::Query {
        return error(ResponseCode::NotImp);
    }
    // The counts are checked here because the codec makes room for as many questions as the header claims.
    let counts = [[qd0, qd1], [an0, an1], [ns0, ns1]].map(u16::from_be_bytes);
    if counts != [1, 0, 0] || message.len() > QUERY_MAX {
        return error(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(message) else {
        return error(ResponseCode::FormErr);
    };
    let [question] = message.queries.as_slice() else {
        return error(ResponseCode::FormErr);
    };
    let edns = message.edns.as_ref();
    let request = Request {
        id,
        name: question.name().clone(),
        kind: question.query_type(),
        recursion: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns: edns.is_some(),
        dnssec_ok: edns.is_some_and(|e| e.flags().dnssec_ok),
        udp_max: usize::from(message.max_payload()).clamp(512, UDP_MAX),
    };
    if edns.is_some_and(|e| e.version() > 0) {
        return plain(&request, ResponseCode::BADVERS).map_or(Read::Silence, Read::Error);
    }
    let refused = match request.kind {
        // Meta types that have no place in a question.
        RecordType::OPT | RecordType::ZERO => Some(ResponseCode::FormErr),
        RecordType::TSIG | RecordType::Unknown(249) => Some(ResponseCode::FormErr),
        // Nobody transfers zones or mailboxes from here (251 to 254).
        RecordType::AXFR | RecordType::IXFR | RecordType::Unknown(253 | 254) => Some(ResponseCode::Refused),
        _ if question.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
        _ => None,
    };
    match refused {
        Some(code) => plain(&request, code).map_or(Read::Silence, Read::Error),
        None => Read::Query(request),
    }
}

/// The records of an answer.
#[derive(Debug, Default)]
pub(super) struct Sections {
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

/// Writes the answer to `request`, at most `limit` octets. `None` if it cannot be written at all.
pub(super) fn write(
    request: &Request,
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    sections: Sections,
    limit: usize,
) -> Option<Vec<u8>> {
    let mut message = Message::new(request.id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.metadata.authoritative = authoritative;
    message.metadata.truncation = truncated;
    message.metadata.recursion_desired = request.recursion;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = request.checking_disabled;
    message.add_query(Query::query(request.name.clone(), request.kind));
    if request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX as u16).set_dnssec_ok(request.dnssec_ok);
        message.set_edns(edns);
    }
    message.answers = sections.answers;
    message.authorities = sections.authorities;
    message.additionals = sections.additionals;
    // Clients that vary the case of their letters look for them in the answer too.
    for record in &mut message.answers {
        if record.name == request.name {
            record.name.clone_from(&request.name);
        }
    }
    if let Some(bytes) = encode(&message, limit) {
        return Some(bytes);
    }
    if !message.additionals.is_empty() {
        message.additionals.clear();
        if let Some(bytes) = encode(&message, limit) {
            return Some(bytes);
        }
    }
    // Part of a set of records is worse than none (RFC 2181, section 9).
    encode(&message.truncate(), limit)
}

/// An answer of nothing but a code.
pub(super) fn plain(request: &Request, code: ResponseCode) -> Option<Vec<u8>> {
    write(request, code, false, false, Sections::default(), request.udp_max)
}

/// The message's octets, if they are at most `limit` and nothing had to be left out.
fn encode(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    // The codec leaves records out that would not fit a message of any size, and sets TC then.
    let cut = bytes.get(2).is_none_or(|flags| flags & 0x02 != 0) && !message.metadata.truncation;
    (bytes.len() <= limit && !cut).then_some(bytes)
}

/// The query that the outside is asked: one question, recursion wanted, nothing of the client's but what changes the
/// answer. Whoever sends it gives it an id of its own.
pub(super) fn question(
    name: &Name,
    kind: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
) -> Option<Vec<u8>> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(Query::query(name.to_lowercase(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MAX as u16).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// What the outside answered to the question for `name` and `kind`; `None` if it is not an answer to that.
pub(super) fn read_answer(message: &[u8], name: &Name, kind: RecordType) -> Option<Message> {
    let flags = *message.get(2)?;
    let questions = message.get(4..6)?;
    if flags & 0xf8 != 0x80 || questions != [0, 1] || message.len() > TCP_MAX {
        return None;
    }
    let mut message = Message::from_vec(message).ok()?;
    let [question] = message.queries.as_slice() else {
        return None;
    };
    if question.name() != name || question.query_type() != kind || question.query_class() != DNSClass::IN {
        return None;
    }
    for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
        section.retain(|record| record.dns_class == DNSClass::IN);
        for record in section {
            // A TTL with its highest bit set is zero (RFC 2181, section 8).
            record.ttl = if record.ttl > i32::MAX as u32 { 0 } else { record.ttl.min(TTL_MAX) };
        }
    }
    message.edns = None;
    message.signature = None;
    if message.metadata.response_code.high() != 0 {
        // It is about EDNS between us and the outside.
        message.metadata.response_code = ResponseCode::ServFail;
    }
    Some(message)
}

/// A day: nothing is remembered for longer, whatever its TTL.
pub(super) const TTL_MAX: u32 = 86_400;
