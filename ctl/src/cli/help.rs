//! The reference that `--help` prints below a verb's usage: every key, its unit and its default.
//!
//! No line is longer than 80 columns, so that no terminal folds them.

/// The keys of networks.
pub(super) const NET_KEYS: &str = "\
Keys of every mode, with their units and [defaults]:
  mode=bridge            a learning switch [bridge]
       routed            each guest by itself behind a router
       nat               a private subnet behind address translation; needs
                         subnet=
       internal          guests reach each other, and nothing else
  mtu=BYTES              68 to 65535; at least 1280 with subnet6= [1500]
Keys of bridge, nat and internal:
  ageing=SECONDS         15 to 3600: when a silent address is forgotten [300]
  fdb-max=N              1 to 1000000: how many addresses are learned [8192]
Keys of bridge and routed:
  uplink=IFNAME          the interface that joins the network [none]
  host-if=on|off         the host has an interface of the network's name on it
                         [bridge: off, on with host-address=move;
                         routed: on, off with uplink=]
Keys of bridge:
  host-address=keep      the uplink's addresses stay on it [keep]
               move      they and their routes move to the host interface, and
                         back when the network goes
Keys of routed, nat and internal:
  subnet=CIDR            the guests' IPv4 subnet, /8 to /30 [none]
  subnet6=CIDR           the guests' IPv6 subnet, /64; up to /126 for guests
                         that do not configure themselves [none]
  gateway=ADDR           the switch's own IPv4 address there; its IPv6 address
                         is the first of subnet6= [the first of subnet=;
                         internal: only if dhcp= or dns= needs it]
  dhcp=START-END|off     what is given by DHCP, at most 65536 addresses
                         [nat: all of subnet=; routed, internal: off]
  dns=on|off             the gateway answers DNS; internal: local names only
                         [nat: on; routed, internal: off]
  domain=NAME            the domain of the guests' names [none]
  lease-time=SECONDS     120 to 2592000: how long a lease lasts [3600]
Keys of routed and nat:
  dns-servers=ADDR[,...] at most 4 that the gateway asks; with dns=off, that
                         guests are told to ask [the host's]
  static-routes=CIDR@ADDR[,...]
                         at most 16 routes that guests are told by DHCP [none]
  boot-file=NAME         what guests boot from the network [none]
  boot-server=ADDR       where the boot file is [none]
  address=CIDR           our own address on the uplink, with the length of its
                         prefix [nat: by DHCP; routed: none]
  next-hop=ADDR          the router behind the uplink; needs address=
                         [nat: by DHCP; routed: none]
  address6=CIDR          the same for IPv6 [none]
  next-hop6=ADDR         the same for IPv6; needs address6= [none]
  ip-forward=on|off      the daemon may switch the host's forwarding on
                         [nat with egress=host: on; routed: off]
Keys of nat:
  egress=user            the host's own sockets, without privileges [user]
         host            the host translates, by nftables
         uplink:IFNAME   the switch translates, on this interface
  outbound=RULE[,RULE...]
                         what guests reach, with egress=user: at most 64 rules
                         allow:TARGET[:PORTS] or deny:TARGET[:PORTS], of which
                         the first that matches holds; TARGET is *, ADDR, CIDR,
                         NAME or *.NAME, an IPv6 one before PORTS in brackets;
                         PORTS a port or FIRST-LAST [allow:*]
  host-loopback=on|off   the gateway's addresses are the host's loopback, with
                         egress=user [off]
  filtering=WHICH        who may answer a guest, unless with egress=host:
                         endpoint-independent, address-dependent or
                         address-and-port-dependent [address-dependent]
  quota=N                16 to 1000000: sessions of one guest, unless with
                         egress=host [16384]";

/// The keys of ports.
pub(super) const PORT_KEYS: &str = "\
Kinds:
  vhost-user:PATH        a VM's virtio-net
  tap:IFNAME             the host's IP stack; without :IFNAME, named as the port
  netdev:IFNAME          an interface that exists
  stream:PATH            QEMU's -netdev stream, or who else sends each frame
                         after its length in 4 bytes
  dgram:PATH             QEMU's -netdev dgram, or who else sends frames as
                         datagrams; PATH is ours, and needs remote=
Keys, with their units and [defaults]:
  role=server|client     vhost-user, stream: we listen, or connect [server]
  remote=PATH            dgram: the peer's socket
  queues=N               vhost-user, tap: 1 to 16 [1]
  mac=ADDR               the guest's address [none]
  ip=ADDR[,ADDR...]      the guest's addresses, of both families; within the
                         subnets of a nat or internal network [none]
  routes=CIDR[,CIDR...]  prefixes behind the guest; routed networks only [none]
  mtu=BYTES              68 to 65535 [the network's]
  vlan=VID               an access port of this VLAN, 1 to 4094; bridge and
                         internal networks only [none]
  isolated=on|off        does not reach other isolated ports [off]
  antispoof=on|off       sends only as its mac= and ip= [off]
  rate=RATE              a limit on what the guest sends, such as 10Mb/s or
                         1MB/s@20ms [none]";

/// How keys are set back.
pub(super) const SET_HELP: &str = "An empty value (key=) sets a key back to its default.";

/// Which keys of a network can be set.
pub(super) const NET_SET_HELP: &str = "\
Keys that can be set: mtu, ageing, fdb-max; of a bridge also uplink and host-if;
of other networks also domain, lease-time, dns-servers, static-routes,
boot-file and boot-server; with egress=user also outbound and host-loopback.
For any other key, delete the network and add it again. An empty value (key=)
sets a key back to its default.";

/// The words of forwards.
pub(super) const FORWARD_HELP: &str = "\
PORT is a port, a range 8000-8010, or a list 80,443 of both. The target has as
many ports as are listened on; when those are more than one it may leave its own
out: they are the same then. An IPv6 address before a port stands in brackets:
[fd00::2]:80.
With egress=user the host's sockets listen, 1024 for a network at most. Ports
below 1024 need CAP_NET_BIND_SERVICE, or a lower
net.ipv4.ip_unprivileged_port_start. A guest sees the gateway as the client,
unless the client's address is to be kept:
  source=keep            with egress=user the guest sees the client's address,
                         but for one of the guests' subnets, of one link alone
                         or of the host's loopback: then the gateway, and
                         source_replaced in weft net show counts it. With
                         other egresses it always sees the client's [gateway]";

/// The words of leases.
pub(super) const LEASE_HELP: &str = "\
IP is in a subnet of the network, and need not be in its dhcp= range. A guest
may have one IPv4 and one IPv6 address. HOSTNAME is a name without a domain.";

/// The words of vifs.
pub(super) const VIF_HELP: &str = "\
SPEC is a vif of a domain's configuration as it stands
(xl-network-configuration(5)):
  mac=ADDR               the guest's address [a random one of 00:16:3e]
  bridge=NETWORK         the network [xenbr0]
  vifname=NAME           the port [vif<domid>.<devid>]
  devid=N                which of the domain's vifs it is [0]
  ip=ADDR[ ADDR...]      the guest's addresses; it sends from no others
                         (antispoof=on) [none]
  rate=RATE              a limit on what the guest sends, such as 10Mb/s or
                         1MB/s@20ms [none]
  mtu=BYTES              68 to 65535 [the network's]
  type, model, script, backend, gatewaydev
                         have no meaning here: taken and not used, with a note
                         on standard error
KIND:ARG is what is at the other end, as of weft port add
[netdev:NAME, the vif's interface in the host].
Without --domid and vifname=, KIND:ARG must be said, and the domid is the first
that no port's name has. What the port was made of is printed.";
