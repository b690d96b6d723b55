//! A message of any size, shape or slowness on the ctl socket harms nothing: after each attack, and during it, another
//! client is answered at once.

mod common;

use common::{Daemon, HUGE, PANIC, quick};
use ctl::client::Client;
use ctl::protocol::{Counters, Status};
use proptest::prelude::*;
use serde_json::json;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const STATUS: &[u8] = b"{\"method\":\"io.weft.Switch.Status\"}\0";

fn attack(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(&daemon.path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// An honest client is answered, and soon.
fn assert_alive(daemon: &Daemon) {
    let start = Instant::now();
    let mut client = Client::connect(std::slice::from_ref(&daemon.path), Duration::from_secs(5)).unwrap();
    let status: Status = client.call("Status", &json!({})).unwrap();
    assert_eq!(status.pid, 42);
    assert!(start.elapsed() < Duration::from_secs(2), "answered after {:?}", start.elapsed());
}

/// What the server says until it closes the connection, however much was left unread in it.
fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return all,
            Err(e) => panic!("the server did not close the connection: {e}"),
        }
    }
}

fn reply(stream: &mut UnixStream) -> serde_json::Value {
    let mut message = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        match byte {
            [0] => return serde_json::from_slice(&message).unwrap(),
            [b] => message.push(b),
        }
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_message_without_end() {
    let daemon = Daemon::start();
    let mut stream = attack(&daemon);
    let chunk = [b'x'; 64 << 10];
    let mut sent = 0_usize;
    let mut closed = false;
    for _ in 0..1024 {
        match stream.write(&chunk) {
            Ok(n) => sent += n,
            Err(_) => {
                closed = true;
                break;
            }
        }
    }
    assert!(closed, "the server took {sent} bytes");
    assert!(sent < 4 << 20, "the server took {sent} bytes");
    let said = read_to_end(&mut stream);
    assert!(String::from_utf8_lossy(&said).contains("longer than 1048576 bytes"));
    assert_alive(&daemon);
    daemon.stop();
}

#[test]
fn a_long_message_that_is_whole_is_answered() {
    let daemon = Daemon::start();
    let mut stream = attack(&daemon);
    let call = json!({ "method": "io.weft.Switch.NetShow", "parameters": { "name": "x".repeat(1_000_000) } });
    let mut message = serde_json::to_vec(&call).unwrap();
    message.push(0);
    stream.write_all(&message).unwrap();
    let reply = reply(&mut stream);
    assert_eq!(reply["error"], "io.weft.Switch.NotFound");
    assert!(reply["parameters"]["message"].as_str().unwrap().len() < 300, "the reply repeats the message");
    assert_alive(&daemon);
}

#[test]
fn storms_of_nul_bytes() {
    let daemon = Daemon::start();
    let mut stream = attack(&daemon);
    let _ = stream.write_all(&vec![0; 4 << 20]);
    read_to_end(&mut stream);
    assert_alive(&daemon);
}

#[test]
fn nesting_beyond_reason() {
    let daemon = Daemon::start();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = 100_000;
        let deep = open.repeat(depth) + "1" + &close.repeat(depth);
        for message in [
            deep.clone(),
            format!("{{\"method\":\"io.weft.Switch.Status\",\"parameters\":{deep}}}"),
            format!(
                "{{\"method\":\"io.weft.Switch.NetAdd\",\"parameters\":{{\"name\":\"a\",\"keys\":{deep}}}}}"
            ),
            format!("{{\"method\":\"io.weft.Switch.Status\",\"x\":{deep}}}"),
        ] {
            let mut stream = attack(&daemon);
            let _ = stream.write_all(message.as_bytes());
            let _ = stream.write_all(b"\0");
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let said = read_to_end(&mut stream);
            assert!(!String::from_utf8_lossy(&said).contains("\"pid\""), "the call was taken");
        }
    }
    assert_alive(&daemon);
}

#[test]
fn what_is_not_a_call() {
    let daemon = Daemon::start();
    for message in [
        &b"\xff\xfe\xfd\0"[..],
        b"{\"method\":\"\xff\"}\0",
        b"{}\0",
        b"[]\0",
        b"null\0",
        b"\"io.weft.Switch.Status\"\0",
        b"{\"method\":7}\0",
        b"{\"method\":\"io.weft.Switch.Status\"\0",
        b"GET / HTTP/1.1\r\n\r\n\0",
        b" \0",
    ] {
        let mut stream = attack(&daemon);
        stream.write_all(message).unwrap();
        let said = read_to_end(&mut stream);
        assert!(String::from_utf8_lossy(&said).contains("not a Varlink call"), "{message:?}");
    }
    assert_alive(&daemon);
}

#[test]
fn calls_of_the_wrong_shape_are_answered_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let mut stream = attack(&daemon);
    for (message, error) in [
        (r#"{"method":"io.weft.Switch.NetShow"}"#, "org.varlink.service.InvalidParameter"),
        (
            r#"{"method":"io.weft.Switch.NetShow","parameters":{"name":[]}}"#,
            "org.varlink.service.InvalidParameter",
        ),
        (
            r#"{"method":"io.weft.Switch.NetAdd","parameters":{"name":"a","keys":{"mtu":1500}}}"#,
            "org.varlink.service.InvalidParameter",
        ),
        (
            r#"{"method":"io.weft.Switch.FdbAdd","parameters":{"network":"a","port":"b","mac":"c","vlan":-1}}"#,
            "org.varlink.service.InvalidParameter",
        ),
        (r#"{"method":"io.weft.Switch.Nonsense"}"#, "org.varlink.service.MethodNotFound"),
        (r#"{"method":"io.weft.Other.Status"}"#, "org.varlink.service.MethodNotFound"),
        (r#"{"method":"io.weft.Switch.Status","upgrade":true}"#, "org.varlink.service.InvalidParameter"),
        (r#"{"method":"io.weft.Switch.NetAdd","parameters":{"name":"../etc"}}"#, "io.weft.Switch.Refused"),
        (
            r#"{"method":"io.weft.Switch.PortAdd","parameters":{"network":"a","name":"b","kind":"tap:a/b"}}"#,
            "io.weft.Switch.Refused",
        ),
        (
            r#"{"method":"io.weft.Switch.FdbDel","parameters":{"network":"a","mac":"02:00:00:00:00:01","vlan":70000}}"#,
            "io.weft.Switch.Refused",
        ),
        (r#"{"method":"io.weft.Switch.NetShow","parameters":{"name":"none"}}"#, "io.weft.Switch.NotFound"),
        (
            r#"{"method":"io.weft.Switch.LeaseAdd","parameters":{"network":"a","mac":"x","ip":"10.0.0.1"}}"#,
            "io.weft.Switch.Refused",
        ),
        (
            r#"{"method":"io.weft.Switch.LeaseDel","parameters":{"network":"a"}}"#,
            "org.varlink.service.InvalidParameter",
        ),
        (
            r#"{"method":"io.weft.Switch.LeaseDel","parameters":{"network":"none","which":"10.0.0.1"}}"#,
            "io.weft.Switch.NotFound",
        ),
        (
            r#"{"method":"io.weft.Switch.NatSessions","parameters":{"network":"a","limit":-1}}"#,
            "org.varlink.service.InvalidParameter",
        ),
        (
            r#"{"method":"io.weft.Switch.NatSessions","parameters":{"network":"none","limit":18446744073709551615}}"#,
            "io.weft.Switch.NotFound",
        ),
        (
            r#"{"method":"io.weft.Switch.ForwardAdd","parameters":{"network":"a","proto":"tcp","listen":"1-","target":"10.0.0.1"}}"#,
            "io.weft.Switch.Refused",
        ),
    ] {
        stream.write_all(message.as_bytes()).unwrap();
        stream.write_all(b"\0").unwrap();
        assert_eq!(reply(&mut stream)["error"], error, "{message}");
    }
    // Nothing answers a call that wants no answer: the next reply is that of the next call.
    stream.write_all(b"{\"method\":\"io.weft.Switch.NetShow\",\"parameters\":{},\"oneway\":true}\0").unwrap();
    stream.write_all(b"{\"method\":\"io.weft.Switch.NetList\",\"oneway\":true}\0").unwrap();
    stream.write_all(STATUS).unwrap();
    assert_eq!(reply(&mut stream)["parameters"]["pid"], 42);
}

#[test]
fn half_a_message_and_then_silence() {
    let daemon = Daemon::with_limits(quick());
    let start = Instant::now();
    let mut half: Vec<_> = (0..20).map(|_| attack(&daemon)).collect();
    for stream in &mut half {
        stream.write_all(&STATUS[..10]).unwrap();
    }
    assert_alive(&daemon);
    for stream in &mut half {
        assert_eq!(read_to_end(stream), b"");
    }
    assert!(start.elapsed() >= Duration::from_millis(300), "closed after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5));

    // A byte now and then does not buy more time.
    let mut drip = attack(&daemon);
    let start = Instant::now();
    while drip.write_all(b" ").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5), "the server goes on waiting");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_alive(&daemon);
}

#[test]
fn an_idle_client_may_stay() {
    let daemon = Daemon::with_limits(quick());
    let mut stream = attack(&daemon);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(500));
        stream.write_all(STATUS).unwrap();
        assert_eq!(reply(&mut stream)["parameters"]["pid"], 42);
    }
}

#[test]
fn two_hundred_connections() {
    let daemon = Daemon::start();
    let mut flood: Vec<_> = (0..200).map(|_| attack(&daemon)).collect();
    assert_alive(&daemon);
    for (n, stream) in flood.iter_mut().enumerate() {
        // The quietest were closed to make room.
        let _ = stream.write_all(&STATUS[..n % STATUS.len()]);
    }
    assert_alive(&daemon);
    let open = flood.iter().filter(|stream| {
        let mut stream: &UnixStream = stream;
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
    });
    assert!(open.count() <= 64);
    drop(flood);
    assert_alive(&daemon);
    daemon.stop();
}

/// Set for the process that floods, to where it connects.
const FLOODED: &str = "WEFT_TEST_FLOODED_SOCKET";

fn flood(path: &Path) {
    let start = Instant::now();
    let mut held = VecDeque::new();
    while start.elapsed() < Duration::from_secs(2) {
        held.push_back(UnixStream::connect(path).unwrap());
        if held.len() > 300 {
            held.pop_front();
        }
    }
}

#[test]
fn an_operator_gets_in_while_connections_come_and_go() {
    if let Some(path) = std::env::var_os(FLOODED) {
        return flood(Path::new(&path));
    }
    let daemon = Daemon::start();
    let mut flood = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_operator_gets_in_while_connections_come_and_go"])
        .env(FLOODED, &daemon.path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..20 {
        assert_alive(&daemon);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(flood.wait().unwrap().success());
}

#[test]
fn clients_that_never_read() {
    let daemon = Daemon::with_limits(quick());
    let mut operator = Client::connect(std::slice::from_ref(&daemon.path), Duration::from_secs(30)).unwrap();
    let _: serde_json::Value = operator.call("NetAdd", &json!({ "name": HUGE.0 })).unwrap();
    let ask =
        format!("{{\"method\":\"io.weft.Switch.FdbShow\",\"parameters\":{{\"network\":\"{}\"}}}}\0", HUGE.0);
    // A reply of some 15 MB, asked for and not read, a hundred times on one connection.
    let mut deaf = attack(&daemon);
    for _ in 0..100 {
        deaf.write_all(ask.as_bytes()).unwrap();
    }
    assert_alive(&daemon);
    std::thread::sleep(Duration::from_millis(100));
    let before = resident_kib();
    assert_alive(&daemon);
    std::thread::sleep(Duration::from_millis(1500));
    assert_alive(&daemon);
    assert!(resident_kib() < before + (64 << 10), "replies heap up: {before} to {} KiB", resident_kib());
    // It was closed: what the socket held is all there is.
    let said = read_to_end(&mut deaf);
    assert!(said.len() < 4 << 20, "{} bytes", said.len());

    // One that reads gets all of it.
    let reply: ctl::protocol::FdbEntries = operator.call("FdbShow", &json!({ "network": HUGE.0 })).unwrap();
    assert_eq!(reply.entries.len() as u64, HUGE.1);
}

#[test]
fn a_thousand_calls_in_one_write_take_turns_with_others() {
    let daemon = Daemon::start();
    let mut stream = attack(&daemon);
    let flood = b"{\"method\":\"io.weft.Switch.Status\",\"oneway\":true}\0".repeat(10_000);
    let writer = std::thread::spawn(move || {
        for _ in 0..10 {
            stream.write_all(&flood).unwrap();
        }
        stream.write_all(STATUS).unwrap();
        reply(&mut stream)
    });
    for _ in 0..5 {
        assert_alive(&daemon);
    }
    assert_eq!(writer.join().unwrap()["parameters"]["pid"], 42);
}

#[test]
fn watching_ends_with_the_client() {
    let daemon = Daemon::start();
    let mut stream = attack(&daemon);
    let watch = b"{\"method\":\"io.weft.Switch.Monitor\",\"parameters\":{\"interval_ms\":1},\"more\":true}\0";
    stream.write_all(watch).unwrap();
    for _ in 0..3 {
        let reply = reply(&mut stream);
        assert_eq!(reply["continues"], true);
        serde_json::from_value::<Counters>(reply["parameters"].clone()).unwrap();
    }
    // Calls that come meanwhile wait, within the limit of a message.
    let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
    let _ = stream.write_all(&vec![b' '; 4 << 20]);
    assert_alive(&daemon);
    drop(stream);
    assert_alive(&daemon);

    // Without 'more' there is one; of a port that is not there, an error.
    let mut stream = attack(&daemon);
    stream.write_all(b"{\"method\":\"io.weft.Switch.Monitor\"}\0").unwrap();
    assert_eq!(reply(&mut stream)["continues"], false);
    stream
        .write_all(
            b"{\"method\":\"io.weft.Switch.Monitor\",\"parameters\":{\"name\":\"none\"},\"more\":true}\0",
        )
        .unwrap();
    assert_eq!(reply(&mut stream)["error"], "io.weft.Switch.NotFound");
    stream.write_all(STATUS).unwrap();
    assert_eq!(reply(&mut stream)["parameters"]["pid"], 42);
}

#[test]
fn a_call_that_panics_ends_its_connection_and_no_other() {
    let daemon = Daemon::start();
    let mut bystander = attack(&daemon);
    let mut client = Client::connect(std::slice::from_ref(&daemon.path), Duration::from_secs(5)).unwrap();
    let answer = client.call::<serde_json::Value>("NetShow", &json!({ "name": PANIC }));
    assert!(answer.unwrap_err().to_string().contains("closed the connection"));
    bystander.write_all(STATUS).unwrap();
    assert_eq!(reply(&mut bystander)["parameters"]["pid"], 42);
    assert_alive(&daemon);
    daemon.stop();
}

#[test]
fn any_bytes_at_all() {
    let daemon = Daemon::start();
    proptest!(ProptestConfig::with_cases(64), |(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        words in "(\\{|\\}|\\[|\\]|:|,|\"method\"|\"parameters\"|\"more\"|\"oneway\"|\"io.weft.Switch.(Status|NetAdd|Monitor)\"|true|null|1|\u{0}){0,60}",
    )| {
        let mut stream = attack(&daemon);
        let _ = stream.write_all(words.as_bytes());
        let _ = stream.write_all(&bytes);
        drop(stream);
    });
    assert_alive(&daemon);
    daemon.stop();
}

#[test]
fn file_descriptors_that_are_sent_are_not_taken() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    let daemon = Daemon::start();
    let mut stream = attack(&daemon);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fds = [theirs.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&stream, &[IoSlice::new(STATUS)], &mut control, SendFlags::empty()).unwrap();
    drop(theirs);
    assert_eq!(reply(&mut stream)["parameters"]["pid"], 42);
    // The other end is closed as soon as nobody holds it: the server does not.
    let mut ours = ours;
    ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}
