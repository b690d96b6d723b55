"""The stations of a conformance test: raw sockets on interfaces that have no IP stack of their own.

One process speaks for all of them. It reads commands, one JSON object a line, and answers each with one line:

  {"open": {"a": {"interface": "a0", "mac": "...", "addresses": [...]}, ...}, "names": {...}}
      takes up the interfaces, and forgets all that was heard. The names are there for scripts, beside the ports.
  {"play": "SCRIPT"}
      runs a script of calls to the functions below; {"value": V} if it sets V, else {}. What it defines, the next one
      knows.

A failed script is answered with {"error": "..."}: the line that failed, and the frames that went to and fro.

Stations answer questions for their addresses (ARP, neighbour discovery) by themselves. Of every frame that is heard,
all checksums have to be right, and none that is heard outside may have an address of the inside.
"""
import ipaddress
import json
import random
import select
import socket
import struct
import sys
import time
import traceback

from scapy.packet import Packet, Raw
from scapy.layers.l2 import ARP, Ether
from scapy.layers.inet import ICMP, ICMPerror, IP, IPerror, TCP, TCPerror, UDP, UDPerror, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.dhcp import BOOTP, DHCP


# How long a frame that must come may take, on a machine that does other things too.
PATIENCE = 15.0
# After what was sent is known to be through: for the last frame on its way.
GRACE = 0.15
OUTGOING = 4
NOBODY = "00:00:00:00:00:00"


class Failure(Exception):
    pass


class Port:
    """An interface, and the station on it."""

    def __init__(self, name, interface, mac, addresses):
        self.name, self.mac = name, mac
        self.addresses = [ipaddress.ip_address(a) for a in addresses]
        # A station that is silent answers no questions.
        self.silent = False
        # Whom IP packets are sent to, when a script does not say.
        self.router = NOBODY
        self.inbox = []
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((interface, 0))
        self.socket.setblocking(False)

    def __repr__(self):
        return self.name

    def write(self, frame):
        self.socket.send(bytes(frame))


ports = {}
names = {}
# What scripts have for globals: what one defines, the next one knows.
scope = {}
journal = []
faults = []


def note(text):
    journal.append(text)
    del journal[:-60]


def total(data):
    data = bytes(data) + b"\0" * (len(data) % 2)
    value = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def unsound(frame):
    """What is wrong with a frame's checksums, if anything is."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        header = (frame[14] & 15) * 4
        length, piece, protocol = struct.unpack("!2xH2xHxB", frame[14:24])
        if total(frame[14 : 14 + header]) != 0xFFFF:
            return "IP header checksum"
        body = frame[14 + header : 14 + length]
        addresses = frame[26:34]
        if piece & 0x3FFF:
            return None
    elif kind == b"\x86\xdd":
        length, protocol = struct.unpack("!HB", frame[18:21])
        body, addresses = frame[54 : 54 + length], frame[22:54]
    else:
        return None
    pseudo = addresses + struct.pack("!2H", protocol, len(body))
    if protocol == 17:
        if body[6:8] == b"\0\0":
            return None if kind == b"\x08\x00" else "no UDP checksum in IPv6"
        return None if total(pseudo + body) == 0xFFFF else "UDP checksum"
    if protocol == 6:
        return None if total(pseudo + body) == 0xFFFF else "TCP checksum"
    if protocol == 1:
        return None if total(body) == 0xFFFF else "ICMP checksum"
    if protocol == 58:
        return None if total(pseudo + body) == 0xFFFF else "ICMPv6 checksum"
    return None


def inside(address):
    address = ipaddress.ip_address(address)
    return any(address in net for net in names["INSIDE"] if net.version == address.version)


def examine(port, raw):
    packet = Ether(raw)
    # What guests say to each other is passed on as it is.
    wrong = None if packet.src in [other.mac for other in ports.values()] else unsound(raw)
    if wrong:
        faults.append("%s heard a wrong %s: %s" % (port, wrong, packet.summary()))
    if port.name == "u":
        for layer in (IP, IPerror, IPv6, IPerror6):
            if layer in packet:
                for address in (packet[layer].src, packet[layer].dst):
                    if inside(address):
                        faults.append("%s of the inside was heard outside: %s" % (address, packet.summary()))
    return packet


def answer(port, packet):
    """True for a question about a neighbour: it is answered by whom it is about."""
    if ARP in packet:
        arp = packet[ARP]
        if arp.op == 1 and arp.psrc != arp.pdst:
            if ipaddress.ip_address(arp.pdst) in port.addresses and not port.silent:
                reply = ARP(op=2, hwsrc=port.mac, psrc=arp.pdst, hwdst=arp.hwsrc, pdst=arp.psrc)
                port.write(Ether(src=port.mac, dst=packet.src) / reply)
            return True
        return False
    if ICMPv6ND_NS in packet:
        target = packet[ICMPv6ND_NS].tgt
        # A question about an address that the asker wants for itself is none to answer.
        if ipaddress.ip_address(target) in port.addresses and packet[IPv6].src != "::" and not port.silent:
            advert = ICMPv6ND_NA(tgt=target, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=port.mac)
            port.write(Ether(src=port.mac, dst=packet.src) / IPv6(src=target, dst=packet[IPv6].src, hlim=255) / advert)
        return True
    return False


def pump(seconds):
    """Hears what comes within some time; True if anything did."""
    sockets = {port.socket: port for port in ports.values()}
    ready, _, _ = select.select(list(sockets), [], [], max(seconds, 0))
    for one in ready:
        port = sockets[one]
        for _ in range(256):
            try:
                raw, address = one.recvfrom(65536)
            except BlockingIOError:
                break
            if address[2] == OUTGOING:
                continue
            packet = examine(port, raw)
            note("%s < %s" % (port, packet.summary()))
            if not answer(port, packet):
                port.inbox.append(packet)
    return bool(ready)


def send(port, packet, count=1):
    """Sends a packet, or a list of them. One of IP goes to the router, one with a link header where that says."""
    for one in packet if isinstance(packet, list) else [packet]:
        if isinstance(one, (IP, IPv6)):
            one = Ether(src=port.mac, dst=port.router) / one
        raw = bytes(one)
        note("%s > %s" % (port, Ether(raw).summary()))
        for _ in range(count):
            port.write(raw)
    pump(0)
    return packet


def matches(packet, layer, where, fields):
    if layer is not None and layer not in packet:
        return False
    network = packet[IP] if IP in packet else packet[IPv6] if IPv6 in packet else None
    for name, value in fields.items():
        holder = network if name in ("src", "dst", "ttl", "hlim") else packet[layer]
        if holder is None or getattr(holder, name) != value:
            return False
    return where is None or bool(where(packet))


def want(port, layer=None, where=None, within=PATIENCE, **fields):
    """Waits for a frame, and takes it out of what was heard. `fields` are the layer's, or IP's src, dst, ttl, hlim."""
    deadline = time.monotonic() + within
    while True:
        for index, packet in enumerate(port.inbox):
            if matches(packet, layer, where, fields):
                return port.inbox.pop(index)
        left = deadline - time.monotonic()
        if left <= 0:
            raise Failure("%s did not hear %s %s" % (port, layer and layer.__name__, fields or ""))
        pump(min(left, 0.5))


def settle(*of):
    """Returns when all that these ports (or all ports) sent before is through: an echo request has been answered."""
    for port in of or ports.values():
        mark = random.getrandbits(16)
        to, source = (names["X"], names["NH"]) if port.name == "u" else (names["G"], str(port.addresses[0]))
        send(port, IP(src=source, dst=to) / ICMP(id=mark, seq=7) / b"settled?")
        want(port, ICMP, type=0, id=mark, seq=7)
    deadline = time.monotonic() + GRACE
    while (left := deadline - time.monotonic()) > 0:
        pump(left)


def heard(port, layer=None, where=None, **fields):
    """All frames of this kind that were heard, when everything is through; they are taken out of what was heard."""
    settle()
    found = [packet for packet in port.inbox if matches(packet, layer, where, fields)]
    port.inbox = [packet for packet in port.inbox if packet not in found]
    return found


def none(port, layer=None, where=None, **fields):
    """Nothing of this kind comes, when everything that was sent is through."""
    found = heard(port, layer, where, **fields)
    if found:
        raise Failure("%s heard what must not come: %s" % (port, [packet.summary() for packet in found]))


def silence():
    """No station hears anything, but for what neighbours and routers say of themselves."""
    chatter = (ARP, ICMPv6ND_NA, ICMPv6ND_RA)
    settle()
    for port in ports.values():
        rest = [packet for packet in port.inbox if not any(layer in packet for layer in chatter)]
        if rest:
            raise Failure("%s heard what must not come: %s" % (port, [packet.summary() for packet in rest]))


def same(got, wanted):
    if got != wanted:
        raise Failure("%r, and not %r" % (got, wanted))


def true(what, told=""):
    if not what:
        raise Failure("not so: %s" % (told,))


def ask(port, address):
    """Who has an address: the MAC address, asked for by ARP or neighbour discovery."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if ":" in address:
            own = next(str(a) for a in port.addresses if a.version == 6)
            group = "ff02::1:ff%02x:%02x%02x" % tuple(ipaddress.ip_address(address).packed[-3:])
            to = "33:33:ff:%02x:%02x:%02x" % tuple(ipaddress.ip_address(address).packed[-3:])
            question = IPv6(src=own, dst=group, hlim=255) / ICMPv6ND_NS(tgt=address)
            port.write(Ether(src=port.mac, dst=to) / question / ICMPv6NDOptSrcLLAddr(lladdr=port.mac))
            wanted, field = ICMPv6ND_NA, {"tgt": address}
        else:
            own = next(str(a) for a in port.addresses if a.version == 4)
            port.write(Ether(src=port.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=port.mac, psrc=own, pdst=address))
            wanted, field = ARP, {"op": 2, "psrc": address}
        try:
            reply = want(port, wanted, within=1.0, **field)
            return reply.src
        except Failure:
            continue
    raise Failure("nobody says to %s who has %s" % (port, address))


def error4(packet, kind=3, code=1, mtu=0, keep=28, src=None):
    """An ICMP error of a router outside about a packet that it heard, with the packet's first bytes."""
    quote = bytes(packet[IP])[:keep]
    head = IP(src=src or names["HOP"], dst=packet[IP].src) / ICMP(type=kind, code=code, nexthopmtu=mtu)
    return head / Raw(quote)


def quoted(packet):
    """The bytes that an ICMP error quotes, from the IP header on."""
    layer = IPerror if IPerror in packet else IPerror6
    return bytes(packet[layer])


def payload(packet):
    return bytes(packet[Raw].load) if Raw in packet else b""


def joined(packets):
    """The IP payload of a packet's fragments."""
    found = bytearray()
    for piece in packets:
        body = bytes(piece[IP].payload)[: piece[IP].len - piece[IP].ihl * 4]
        at = piece[IP].frag * 8
        if len(found) < at + len(body):
            found.extend(b"\0" * (at + len(body) - len(found)))
        found[at : at + len(body)] = body
    return bytes(found)


def take_up(wanted, given):
    for port in ports.values():
        port.socket.close()
    ports.clear()
    names.clear()
    journal.clear()
    faults.clear()
    for name, one in wanted.items():
        ports[name] = Port(name, one["interface"], one["mac"], one["addresses"])
    names.update(given)
    names["INSIDE"] = [ipaddress.ip_network(net) for net in given["INSIDE"]]
    for name, port in ports.items():
        port.router = ask(port, given["X"] if name == "u" else given["G"])
        port.inbox.clear()
    scope.clear()
    scope.update(globals())
    scope.update(names)
    scope.update(ports)


def play(script):
    scope.pop("V", None)
    try:
        exec(compile(script, "script", "exec"), scope)
        pump(0)
    except Exception as error:
        lines = script.splitlines()
        at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "script"]
        where = lines[at[-1] - 1].strip() if at and at[-1] <= len(lines) else ""
        if not isinstance(error, Failure):
            error = "%s: %s" % (type(error).__name__, error)
        return {"error": "%s\n  in: %s\n  %s" % (error, where, "\n  ".join(journal))}
    if faults:
        told = {"error": "%s\n  %s" % ("\n".join(faults), "\n  ".join(journal))}
        faults.clear()
        return told
    return {"value": scope["V"]} if "V" in scope else {}


for line in sys.stdin:
    command = json.loads(line)
    try:
        if "open" in command:
            take_up(command["open"], command["names"])
            result = {}
        else:
            result = play(command["play"])
    except Exception as error:
        result = {"error": "%s: %s\n  %s" % (type(error).__name__, error, "\n  ".join(journal))}
    print(json.dumps(result), flush=True)
