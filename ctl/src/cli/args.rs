//! The words of the command line, by clap.
//!
//! What stands before the verb holds for every call; a verb's flags stand after it; `--` ends them.

use super::help::{FORWARD_HELP, LEASE_HELP, NET_KEYS, NET_SET_HELP, PORT_KEYS, SET_HELP, VIF_HELP};
use crate::model::DOMID_MAX;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A userspace virtual network switch for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "weft", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 done; 1 refused or failed; 2 usage; 3 no daemon at the socket; \
    4 no such network or port.")]
pub(super) struct Cli {
    /// The daemon's ctl socket [default: $WEFT_SOCKET, /run/weft/ctl.sock, or $XDG_RUNTIME_DIR/weft/ctl.sock]
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Print one JSON value
    #[arg(long)]
    pub(super) json: bool,
    /// How long to wait for the daemon
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(super) timeout: f64,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds from 0.001 to 86400".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the switch
    Daemon(DaemonArgs),
    /// Show the switch on real traffic, in one command, without root
    Demo(DemoArgs),
    /// Show the daemon and its workers
    Status,
    /// Networks
    #[command(subcommand)]
    Net(NetVerb),
    /// Ports of networks
    #[command(subcommand)]
    Port(PortVerb),
    /// Addresses that a network has learned or was told
    #[command(subcommand)]
    Fdb(FdbVerb),
    /// DHCP leases
    #[command(subcommand)]
    Lease(LeaseVerb),
    /// Address translation
    #[command(subcommand)]
    Nat(NatVerb),
    /// Port forwards of networks that translate
    #[command(subcommand)]
    Forward(ForwardVerb),
    /// Ports described as xl describes them
    #[command(subcommand)]
    Vif(VifVerb),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// Networks and ports to start with, and to follow on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Where to make the ctl socket
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Where to keep what survives a restart
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// The CPUs of the workers, one each, such as 2-3,6
    #[arg(long, value_name = "LIST", value_parser = super::options::parse_cpus)]
    pub(super) cpus: Option<super::options::Cpus>,
    /// Sleep when there is nothing to do, or never
    #[arg(long, value_name = "HOW", value_enum, default_value = "adaptive")]
    pub(super) poll: PollArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PollArg {
    Adaptive,
    Busy,
}

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Print one JSON value
    #[arg(long)]
    pub(super) json: bool,
    /// Leave it running, and print how to attach a VM
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum NetVerb {
    /// Make a network
    #[command(after_help = NET_KEYS)]
    Add {
        /// An equal network may exist
        #[arg(long)]
        may_exist: bool,
        name: String,
        #[arg(value_name = "KEY=VALUE")]
        words: Vec<String>,
    },
    /// Change keys of a network
    #[command(after_help = NET_SET_HELP)]
    Set {
        name: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        words: Vec<String>,
    },
    /// Delete a network that has no ports
    Del {
        /// It need not exist
        #[arg(long)]
        if_exists: bool,
        name: String,
    },
    /// List the networks
    List,
    /// Show one network
    Show { name: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum PortVerb {
    /// Make a port
    #[command(after_help = PORT_KEYS)]
    Add {
        /// An equal port may exist
        #[arg(long)]
        may_exist: bool,
        network: String,
        port: String,
        #[arg(value_name = "KIND[:ARG]")]
        kind: String,
        #[arg(value_name = "KEY=VALUE")]
        words: Vec<String>,
    },
    /// Change keys of a port
    #[command(after_help = SET_HELP)]
    Set {
        port: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        words: Vec<String>,
    },
    /// Delete a port
    Del {
        /// It need not exist
        #[arg(long)]
        if_exists: bool,
        port: String,
    },
    /// List the ports
    List { network: Option<String> },
    /// Show one port
    Show { port: String },
    /// Show what ports have counted
    Stats { port: Option<String> },
}

#[derive(Debug, Subcommand)]
pub(super) enum FdbVerb {
    /// Show the addresses of a network
    Show { network: String },
    /// Tell a network an address
    Add {
        /// The same address may have been told
        #[arg(long)]
        may_exist: bool,
        network: String,
        port: String,
        mac: String,
        #[arg(value_name = "vlan=VID")]
        words: Vec<String>,
    },
    /// Forget an address
    Del {
        /// It need not exist
        #[arg(long)]
        if_exists: bool,
        network: String,
        mac: String,
        #[arg(value_name = "vlan=VID")]
        words: Vec<String>,
    },
    /// Forget every learned address
    Flush { network: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum LeaseVerb {
    /// List the leases, and the addresses that are kept for guests
    List { network: Option<String> },
    /// Keep an address for a guest
    #[command(after_help = LEASE_HELP)]
    Add {
        /// An equal reservation may exist
        #[arg(long)]
        may_exist: bool,
        network: String,
        mac: String,
        ip: String,
        hostname: Option<String>,
    },
    /// End a lease, and keep the address no longer
    Del {
        /// It need not exist
        #[arg(long)]
        if_exists: bool,
        network: String,
        #[arg(value_name = "MAC|IP")]
        which: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum NatVerb {
    /// Show the translations
    Sessions {
        network: String,
        /// How many at most, 1 to 1000000; without it 65536
        #[arg(value_name = "limit=N")]
        words: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum VifVerb {
    /// Make a port of xl's words
    #[command(after_help = VIF_HELP)]
    Attach {
        /// An equal port may exist; needs a name and an address
        #[arg(long)]
        may_exist: bool,
        /// The domain that the vif is of
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(DOMID_MAX)))]
        domid: Option<u32>,
        #[arg(value_name = "SPEC")]
        spec: String,
        #[arg(value_name = "KIND:ARG")]
        kind: Option<String>,
    },
    /// Delete a port
    Detach {
        /// It need not exist
        #[arg(long)]
        if_exists: bool,
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ForwardVerb {
    /// Make a forward
    #[command(
        after_help = FORWARD_HELP,
        override_usage = "weft forward add [OPTIONS] NETWORK PROTO LISTEN TARGET [source=keep]"
    )]
    Add {
        /// An equal forward may exist
        #[arg(long)]
        may_exist: bool,
        #[command(flatten)]
        forward: ForwardArgs,
        #[arg(value_name = "KEY=VALUE")]
        keys: Vec<String>,
    },
    /// Delete a forward
    #[command(after_help = FORWARD_HELP)]
    Del {
        /// It need not exist
        #[arg(long)]
        if_exists: bool,
        #[command(flatten)]
        forward: ForwardArgs,
    },
    /// List the forwards
    List { network: Option<String> },
}

#[derive(Debug, Args)]
pub(super) struct ForwardArgs {
    pub(super) network: String,
    /// tcp or udp
    pub(super) proto: String,
    #[arg(help = "[ADDR:]PORT")]
    pub(super) listen: String,
    #[arg(help = "ADDR[:PORT]")]
    pub(super) target: String,
}
