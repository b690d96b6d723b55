//! The ctl socket speaks Varlink: an independent client (zlink's) finds the interface described, and calls it.

mod common;

use common::Daemon;
use ctl::protocol::{INTERFACE, Status};
use serde::{Deserialize, Serialize};
use zlink::varlink_service::Proxy as _;

/// The interface as an outsider declares it.
#[zlink::proxy("io.weft.Switch")]
trait Switch {
    async fn status(&mut self) -> zlink::Result<Result<Status, Error>>;
    async fn net_show(&mut self, name: &str) -> zlink::Result<Result<Shown, Error>>;
}

#[derive(Debug, Serialize, Deserialize)]
struct Shown {
    network: serde_json::Value,
}

#[derive(Debug, zlink::ReplyError)]
#[zlink(interface = "io.weft.Switch")]
enum Error {
    NotFound { message: String },
    Refused { message: String },
}

#[tokio::test]
async fn described_and_called_by_a_client_of_another_make() {
    let daemon = Daemon::start();
    let mut connection = zlink::tokio::unix::connect(&daemon.path).await.unwrap();

    let info = connection.get_info().await.unwrap().unwrap();
    assert_eq!(info.product, "weft");
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    let interfaces: Vec<_> = info.interfaces.iter().map(ToString::to_string).collect();
    assert_eq!(interfaces, [INTERFACE, "org.varlink.service"]);

    let description =
        connection.get_interface_description(INTERFACE.try_into().unwrap()).await.unwrap().unwrap();
    let text = description.as_raw().unwrap().to_owned();
    assert_eq!(description.parse().unwrap().name(), INTERFACE);
    for method in [
        "Status",
        "NetAdd",
        "NetSet",
        "NetDel",
        "NetList",
        "NetShow",
        "PortAdd",
        "PortSet",
        "PortDel",
        "PortList",
        "PortShow",
        "PortStats",
        "Monitor",
        "FdbShow",
        "FdbAdd",
        "FdbDel",
        "FdbFlush",
        "LeaseList",
        "LeaseAdd",
        "LeaseDel",
        "NatSessions",
        "ForwardAdd",
        "ForwardDel",
        "ForwardList",
    ] {
        assert!(text.contains(&format!("method {method}(")), "{method} is missing:\n{text}");
    }
    for word in [
        "error NotFound (",
        "error Refused (",
        "drops: [string]int",
        "static: bool",
        "keys: [string]string",
        "resolved: ?Resolved",
        "sessions: []NatSession",
        "[Supports 'more' flag]",
    ] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }

    let status = connection.status().await.unwrap().unwrap();
    assert_eq!(status.pid, 42);
    match connection.net_show("none").await.unwrap() {
        Err(Error::NotFound { message }) => {
            assert!(message.contains("there is no network 'none'"), "{message}")
        }
        other => panic!("{other:?}"),
    }
}
