// Houses in every state that a user may find one in.
const ago = (s) => new Date(Date.now() - 1000 * s).toISOString();

export const owner = { state: "in", over: "lan", owner: true, host: "attic", version: "0.6", boot: "b1", now: ago(0) };

const device = (n, d) => ({
  mac: `02:00:00:00:00:${String(n).padStart(2, "0")}`, addresses: [`192.168.77.${n}`, `fd77:77::${n}`], interface: "br-lan", online: true, firstSeen: ago(9e6), lastSeen: ago(20), ...d,
});

export const devices = [
  device(50, { name: "printer", nameFrom: "mdns", maker: "Brother", kind: "printer", services: ["_ipp._tcp", "_http._tcp"], exit: "direct", mesh: { name: "printer.attic.mesh.internal", addresses: ["100.64.0.9", "fd7a:115c:a1e0::9"], ports: ["tcp/80", "tcp/631"] } }),
  device(51, { name: "living-room-tv", nameFrom: "dhcp", maker: "LG Electronics", kind: "tv", exit: "cabin.mesh.internal", exitRow: 1 }),
  device(52, { name: "annas-phone", nameFrom: "lease", private: true, kind: "phone", exit: "direct" }),
  device(53, { name: "nas", nameFrom: "owner", maker: "Synology", kind: "nas", online: false, lastSeen: ago(7300), mesh: { name: "nas.attic.mesh.internal", addresses: ["100.64.0.10"], wake: true } }),
  device(54, { maker: "Espressif", exit: "direct" }),
  device(55, { name: "porch", nameFrom: "mdns", maker: "Reolink", kind: "camera", exit: "blocked", exitRow: 2 }),
  device(56, { name: "kitchen", nameFrom: "mdns", maker: "Sonos", kind: "speaker", exit: "direct" }),
];

const peer = (n, p) => ({ name: `member${n}.mesh.internal`, addresses: [`100.64.0.${n}`, `fd7a:115c:a1e0::${n}`], online: true, path: "direct", rx: 12e6, tx: 3e6, rtt: 8.4, handshake: ago(60), endpoint: "203.0.113.7:41641", ...p });

export const peers = [
  peer(2, { name: "phone.mesh.internal", os: "iOS" }),
  peer(3, { name: "laptop.mesh.internal", os: "linux", path: "relay", relay: "home", rtt: 41, reason: "its NAT is hard" }),
  peer(4, { name: "cabin.mesh.internal", os: "linux", path: "direct", routes: ["0.0.0.0/0", "::/0"] }),
  peer(5, { name: "old-tablet.mesh.internal", os: "android", online: false, path: "none" }),
];

const nodes = [{ id: 1, name: "attic.mesh.internal", self: true, addresses: ["100.64.0.1"], online: true, created: ago(9e6), routes: [] }].concat(
  peers.map((p, i) => ({ id: i + 2, name: p.name, user: "me", os: p.os, addresses: p.addresses, online: p.online, lastSeen: ago(9000), created: ago(8e6), client: "1.102.5", keyExpiry: ago(-5e6), routes: i === 2 ? [{ prefix: "0.0.0.0/0", offered: true, approved: false }] : [] })),
);

const rows = [
  { row: 1, sources: ["02:00:00:00:00:51"], exits: ["cabin"], now: "cabin", since: ago(3000) },
  { row: 2, sources: ["02:00:00:00:00:55"], exits: ["block"], now: "blocked" },
];

const snapshot = {
  version: "0.6", generation: 7, phase: "joined", control: "home", lastContact: ago(12), name: "attic.mesh.internal", domain: "mesh.internal", addresses: ["100.64.0.1", "fd7a:115c:a1e0::1"], engine: "kernel", port: 40312,
  endpoints: ["203.0.113.20:40312"], homeRelay: "home", udp: true, lans: ["br-lan"], exposed: ["100.64.0.9/32"], approved: ["100.64.0.9/32"], resolver: "dnsmasq", peers: [], exits: { offer: false, rows, there: ["cabin"] }, problems: [],
};

const traffic = {
  seconds: 60, until: ago(5), points: Array.from({ length: 60 }, (_, i) => ({ rx: Math.round(4e6 * (1 + Math.sin(i / 5)) * (i > 20 ? 1 : 0.1)), tx: Math.round(9e5 * (1 + Math.cos(i / 3))) })),
};

export const house = (status = {}, more = {}, event = {}) => ({
  boot: "b1", seq: 1, whole: true, time: ago(0), house: { status: { ...snapshot, ...status }, expose: "chosen", home: true, pending: [], ...more }, peers, devices, nodes, traffic, ...event,
});

const problem = (code, text, fix = "", since = 5400) => ({ problems: [{ code, text, fix, since: ago(since) }] });
const elsewhere = { control: "https://headscale.example", home: false };

// states are all that users.md asks to be drawn, by name.
export const states = {
  "all-well": house(),
  "not-joined": house({ phase: "down", name: "", domain: "", lastContact: undefined }, { home: false }, { peers: [], nodes: [] }),
  connecting: house({ phase: "connecting", ...elsewhere, error: "connection refused" }, { home: false }, { nodes: [] }),
  "needs-login": house({ phase: "needs-login", ...elsewhere, loginURL: "https://headscale.example/register/abc123" }, { home: false }, { nodes: [] }),
  "waits-for-approval": house({ phase: "waiting", ...elsewhere, loginURL: "https://headscale.example/register/abc123" }, { home: false }, { nodes: [] }),
  "coordinator-unreachable": house({ phase: "cached", ...elsewhere, lastContact: ago(660) }, { home: false }, { nodes: [] }),
  "somebody-at-the-door": house({}, { pending: [{ code: "7KQMFX", hostname: "annas-laptop", os: "macOS", from: "203.0.113.77", since: ago(70) }] }),
  "clock-wrong": house(problem("clock", "The clock says 1970: certificates and keys cannot be checked.", "Let the router ask a time server (NTP).")),
  "no-wan": house({ ...problem("no-wan", "No interface of this router leads to the internet: there is no default route."), endpoints: [], udp: false }),
  "relay-only": house({ udp: false }),
  "exit-blocked": house({ exits: { offer: false, there: ["cabin"], rows: [{ row: 1, sources: ["02:00:00:00:00:51"], exits: ["cabin"], now: "blocked", why: "cabin is off-line", since: ago(240) }] } }),
  "prefix-overlap": house(problem("route-overlap", "beach offers 192.168.77.0/24, which overlaps 192.168.77.0/24 of this router: not used.", "Share single devices instead: each gets an address of its own.")),
  "key-expires": house(problem("key-expiry", "This node's key expires in 6 days.", "Log in again.")),
  "firewall-missing": house(problem("firewall", "The rules of the mesh could not be put into this router's firewall.", "Install nftables.")),
  "update-available": house(problem("update", "Version 0.7 can be installed.", "opkg upgrade subnetd")),
  "storage-full": house(problem("disk", "No space is left on the device that holds the state.", "Free some space: after a restart without the coordinator this node may not know the mesh.")),
};

// crowd is a house with n things and n members.
export const crowd = (n) =>
  house({}, {}, {
    devices: Array.from({ length: n }, (_, i) => device(0, { mac: `02:00:00:00:${(i >> 8).toString(16).padStart(2, "0")}:${(i & 255).toString(16).padStart(2, "0")}`, name: `thing-${i}`, maker: "Espressif", addresses: [`10.0.${i >> 8}.${i & 255}`] })),
    peers: Array.from({ length: n }, (_, i) => peer(i, { name: `member-${i}.mesh.internal`, addresses: [`100.64.${i >> 8}.${i & 255}`] })),
    nodes: Array.from({ length: n }, (_, i) => ({ ...nodes[1], id: i + 1, name: `member-${i}.mesh.internal` })),
  });
