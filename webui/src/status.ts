// Made of the Go packages that the daemon answers with, by `make webui`: not to be edited.
// Certificates is what this home has to do with certificates.
export interface Certificates {
  // of the root
  name: string;
  // below which its names are
  domain: string;
  // of the root, SHA-256
  fingerprint: string;
  // the root is good
  until: string;
  // where a device at home or in the mesh gets the root
  url: string;
  // for ACME clients there
  directory: string;
  // and still good, the newest first
  issued: Certificate[] | null;
}
// Certificate is one that was given away.
export interface Certificate {
  names: string[] | null;
  // a client got it by itself; else the owner asked for it
  acme?: boolean;
  since: string;
  until: string;
  revoked?: string;
}
// CertificateRequest asks for a certificate.
export interface CertificateRequest {
  // of a member, or of a device that is exposed under a name
  name: string;
}
// CertificatePair is a certificate with its key, which is kept nowhere else.
export interface CertificatePair {
  // fully qualified, without a dot at its end
  name: string;
  // PEM, PKCS #8
  key: string;
  // PEM
  chain: string;
  until: string;
}
// Device is a thing at home.
export interface Device {
  // its identity, in lower case with colons; "": spoken of by address only
  mac: string;
  // a made-up MAC (RFC 9542, 2.1.1): it may come back under another
  private?: boolean;
  // the best known
  name?: string;
  // owner | lease | dhcp | mdns
  nameFrom?: string;
  // by the first half of the MAC
  maker?: string;
  // printer | tv | phone | computer | nas | camera | speaker | console | network
  kind?: string;
  // types of DNS-SD, such as _ipp._tcp
  services?: string[];
  // now, v4 first
  addresses: string[] | null;
  interface?: string;
  online: boolean;
  firstSeen?: string;
  lastSeen?: string;
  // nil: the mesh cannot reach it
  mesh?: DeviceMesh;
  // where its internet leaves now: an exit's name, "direct" or "blocked"; "": not known
  exit?: string;
  // the row that decides, from 1; 0: none
  exitRow?: number;
}
// DeviceMesh is a device as members of the mesh reach it.
export interface DeviceMesh {
  // fully qualified, without a dot at its end
  name?: string;
  addresses?: string[];
  // "tcp/80", "udp/5000-5010"; none: all
  ports?: string[];
  // a packet of the mesh for it wakes it
  wake?: boolean;
  // not chosen, but reached as all of the LAN is
  all?: boolean;
  missing?: string;
  // nil: it answers for its web pages itself
  web?: DeviceWeb;
}
// DeviceWeb is a device whose web pages this router serves, by https and with a
// certificate; it is told who calls.
export interface DeviceWeb {
  // "": not yet
  url?: string;
  // where it is asked itself: "http:5000"
  target: string;
}
// Devices is the things at home, those that can be reached first, then by name.
export interface Devices {
  // what the mesh may reach: all | chosen | none
  expose: string;
  devices: Device[] | null;
}
// DeviceExpose makes a thing at home reachable for the mesh.
export interface DeviceExpose {
  // its name, MAC or address
  device: string;
  // its name in the mesh; "": as it is called
  as?: string;
  // "tcp/80", "udp/5000-5010"; none: all
  ports?: string[];
  wake?: boolean;
}
// DeviceRequest speaks of one thing at home.
export interface DeviceRequest {
  // its name, MAC or address
  device: string;
}
// DeviceName gives a thing the name that its owner calls it by.
export interface DeviceName {
  device: string;
  // one label; "": as it calls itself
  name: string;
}
// DeviceWebRequest has this router serve a device's web pages.
export interface DeviceWebRequest {
  // its name, MAC or address
  device: string;
  // "80", "http:5000", "https:5001"; "": no more
  target: string;
}
// DeviceMode is what of the LAN the mesh may reach: all | chosen | none.
export interface DeviceMode {
  expose: string;
}
// DeviceReach counts how often one member reached one device.
export interface DeviceReach {
  // its name in the mesh, else its address
  device: string;
  // on the LAN
  to: string;
  // the member's name; "": gone from the mesh
  who?: string;
  // whose it is
  user?: string;
  from: string;
  // that began, since there was none for a week
  flows: number;
  last?: string;
}
// DeviceLog is what reached the devices lately, the newest first.
export interface DeviceLog {
  reached: DeviceReach[] | null;
  // Full: there were more pairs than are counted, some are missing.
  full?: boolean;
}
// Whois is whose an address of the mesh is.
export interface Whois {
  address: string;
  // node | device | route | self
  kind: string;
  // fully qualified, without a dot at its end
  name: string;
  user?: string;
  // User is the owner of this router
  owner?: boolean;
  // a tagged node is nobody's
  tags?: string[];
  // the router behind which it is, or that routes it
  via?: string;
  device?: Device;
}
// Drop is the files that members send here, and those that leave from here: GET /v1/drop.
export interface Drop {
  // where files land, as the owner chose; "": in the inbox
  folder?: string;
  // why none can land there now
  missing?: string;
  // bytes that all of it may have; 0: as many as there is room for
  quota: number;
  // bytes that it has, with what is under way
  used: number;
  // bytes that its file system has to give
  free: number;
  // bytes of those that are left alone
  keepFree: number;
  // of the inbox, or what arrived in the folder lately; the newest first
  files: DropFile[] | null;
  // under way, the oldest first
  transfers: DropTransfer[] | null;
  // members who take files from here now, by name
  targets: string[] | null;
  // what at home may send, as it stands in drop.from
  from: string[] | null;
  // where it sends them to: http://drop.cabin.mesh.internal
  address?: string;
}
// DropFile is a file that arrived.
export interface DropFile {
  name: string;
  // bytes
  size: number;
  // the member who sent it; "": not known any more
  from?: string;
  at: string;
}
// DropTransfer is a file under way.
export interface DropTransfer {
  id: number;
  name: string;
  // from here; else to here
  sending?: boolean;
  // the member at its other end
  peer: string;
  // bytes; -1: not known before its end
  size: number;
  // bytes of those
  done: number;
  since: string;
  // for others to end first
  waits?: boolean;
}
// DropRequest is the body of POST /v1/drop/remove.
export interface DropRequest {
  name: string;
}
// DropFolder is the body of POST /v1/drop/folder.
export interface DropFolder {
  // absolute; "": the inbox
  folder: string;
}
// DropAllow is the body of POST /v1/drop/allow.
export interface DropAllow {
  // a MAC, an address or a name of something at home; "lan": all of it
  device: string;
  allow: boolean;
}
// DropSent is the answer to PUT /v1/drop/send.
export interface DropSent {
  // the member who has it
  to: string;
  // as it was sent
  name: string;
  // bytes
  size: number;
}
// Exits is how this home uses the internet by exits, and whether it is one.
export interface Exits {
  // members may use the internet from here
  offer: boolean;
  // and the coordinator lets them
  approved?: boolean;
  // the first that fits decides
  rows: ExitRow[] | null;
  // nodes that are exits, by name
  there: string[] | null;
}
// ExitRow is a row of the configuration, and where its sources use the internet now.
export interface ExitRow {
  // from 1
  row: number;
  sources: string[] | null;
  // as wished, the best first; "direct" or "block" at the end
  exits: string[] | null;
  // name of the exit in use, "direct" or "blocked"
  now: string;
  // why not the best of them
  why?: string;
  // of that, if it is known
  since?: string;
  // the exit in use does not carry that family
  noIPv4?: boolean;
  noIPv6?: boolean;
}
// ExitUse asks for exits for some devices.
export interface ExitUse {
  // nodes, the best first; "direct" or "block" at the end
  exits: string[] | null;
  // none: the whole home
  devices?: string[];
}
// ExitOff takes devices off their exits; none: all there are.
export interface ExitOff {
  devices?: string[];
}
// ExitOffer says whether members may use the internet from here.
export interface ExitOffer {
  on: boolean;
}
// ExitTest is where the internet traffic of one thing would go.
export interface ExitTest {
  // a MAC address, or "router"
  what: string;
  addresses?: string[];
  // it is behind; "": not known
  interface?: string;
  // nil: no row fits, it goes direct
  row?: ExitRow;
  // what could make it otherwise
  unsure?: string;
}
// HomeNode is one member as the coordinator in this router knows it.
export interface HomeNode {
  id: number;
  // fully qualified, without a dot at its end
  name: string;
  // "" if tagged
  user?: string;
  tags?: string[];
  addresses: string[] | null;
  os?: string;
  // version of its program
  client?: string;
  // this router
  self?: boolean;
  online: boolean;
  lastSeen?: string;
  created: string;
  // zero: never
  keyExpiry?: string;
  expired?: boolean;
  ephemeral?: boolean;
  routes?: HomeRoute[];
  devices?: HomeDevice[];
  // of a probe: milliseconds it took
  answer?: number;
}
// HomeRoute is one prefix that a node offers, or that was approved before it did.
export interface HomeRoute {
  prefix: string;
  offered: boolean;
  approved: boolean;
  // it goes through this node now
  primary?: boolean;
}
// HomeDevice is a further address of a node: a thing behind it.
export interface HomeDevice {
  // fully qualified, without a dot at its end
  name: string;
  addresses: string[] | null;
}
// HomePending is a device that asks to be let in.
export interface HomePending {
  code: string;
  hostname: string;
  os?: string;
  // address it asked from
  from?: string;
  since: string;
}
// HomeNodes is everybody in the mesh, sorted by name, and everybody at the door.
export interface HomeNodes {
  nodes: HomeNode[] | null;
  pending?: HomePending[];
}
// HomeKey is a pre-auth key without its secret.
export interface HomeKey {
  id: string;
  user?: string;
  tags?: string[];
  reusable?: boolean;
  ephemeral?: boolean;
  created: string;
  expires: string;
  uses: number;
  // good | used | expired | revoked
  state: string;
}
// InviteRequest asks for a pre-auth key. Zero values: one use, a day, the owner.
export interface InviteRequest {
  user?: string;
  // "tag:name"
  tags?: string[];
  reusable?: boolean;
  ephemeral?: boolean;
  // nanoseconds from now; 0: a day
  expires?: number;
}
// Invite is what a new member needs.
export interface Invite {
  // the login server
  url: string;
  // shown this once, never stored
  key: string;
  // of the key
  id: string;
  expires: string;
  // to be typed on a computer
  line: string;
  // URL works from everywhere
  outside: boolean;
  // what stands between, one sentence each
  missing?: string[];
}
// RevokeRequest names a key.
export interface RevokeRequest {
  id: string;
}
// NodeRequest says what shall become of one node.
export interface NodeRequest {
  // name (full or first label), address or ID
  node?: string;
  // approve
  code?: string;
  // approve; "": as before, else the owner
  user?: string;
  // rename
  name?: string;
  // expire: nanoseconds from now
  in?: number;
  // routes: exactly these are approved
  routes?: string[];
}
// HomePolicy is the policy in force.
export interface HomePolicy {
  // "": the built-in one
  file?: string;
  text: string;
  // why the file is not what is in force
  error?: string;
}
// PolicyText is a policy to be looked at.
export interface PolicyText {
  text: string;
}
// PolicyVerdict says whether a policy could be put in force; Error names the line.
export interface PolicyVerdict {
  error?: string;
}
// Page is what the page must know before anybody has logged in, and who asks.
export interface Page {
  state: string;
  // what to do, if State is PageShut
  text?: string;
  // lan | mesh | local: how the browser reaches this router
  over: string;
  // name of the node that asks, if it comes by the mesh
  member?: string;
  // whose it is, or the name that was logged in with; "": the password alone
  who?: string;
  // may change things; else may look only
  owner?: boolean;
  // the password is that of this machine's root
  root?: boolean;
  // seconds until a password is looked at again
  retry?: number;
  // this router's name
  host?: string;
  // of the program, once logged in
  version?: string;
  // another one after each start of the daemon
  boot: string;
  now: string;
}
// PageSecret is the body of POST /v1/page/login and /v1/page/setup.
export interface PageSecret {
  // of this machine; "": the page's own password
  user?: string;
  password?: string;
}
// PagePassword is the body of POST /v1/page/password.
export interface PagePassword {
  // needs not be told by an owner who comes by the mesh
  old?: string;
  new: string;
}
// Event is one message of GET /v1/events. The first has everything, of those after
// it each only what changed: a thing that is there replaces the one of that key.
export interface Event {
  // another one: forget everything before
  boot: string;
  // one more each time something changed
  seq: number;
  // everything is in it: forget everything before
  whole?: boolean;
  time: string;
  // as a whole, if anything in it changed
  house?: House;
  // by name
  peers?: Peer[];
  // names
  peersGone?: string[];
  // by MAC, or address if there is none
  devices?: Device[];
  // MACs or addresses
  devicesGone?: string[];
  // by ID; if this router is the coordinator
  nodes?: HomeNode[];
  // IDs
  nodesGone?: number[];
  // as a whole, once a minute
  traffic?: Traffic;
}
// House is all of an Event that is not in lists by key.
export interface House {
  // its Peers are left empty
  status: Snapshot;
  // what the mesh may reach at home: all | chosen | none
  expose: string;
  // this router is the coordinator
  home: boolean;
  pending?: HomePending[];
  // a change that waits for its confirmation
  trial?: Trial;
  // another one: GET /v1/drop tells something else
  drop: number;
}
// Traffic is what went through the mesh lately.
export interface Traffic {
  // that a point stands for
  seconds: number;
  // the end of the last point
  until: string;
  // the oldest first, at most 60
  points: TrafficPoint[] | null;
}
// TrafficPoint is the bytes of one span of time.
export interface TrafficPoint {
  // from the mesh
  rx: number;
  tx: number;
}
// Settings is what of the configuration the page shows and changes.
export interface Settings {
  // "home" or a URL
  control: string;
  // "": the system's
  hostname: string;
  // of the LAN, as wished; none: found
  interfaces: string[] | null;
  // those of this machine that are the LAN now
  found: string[] | null;
  // all | chosen | none
  expose: string;
  snat: boolean;
  // members may use the internet from here
  offer: boolean;
  // of exits: "SOURCES -> EXITS"; the first that fits decides
  rows: string[] | null;
  // how the world reaches the coordinator in this router
  url: string;
  // of this page
  listen: string;
}
// SettingsChange has what shall be otherwise; what is not there stays. The page must
// confirm the change, or it is undone.
export interface SettingsChange {
  control?: string;
  hostname?: string;
  interfaces?: string[];
  expose?: string;
  snat?: boolean;
  offer?: boolean;
  rows?: string[];
  url?: string;
  listen?: string;
}
// Trial is a change that is in force, and undone after Until unless it is confirmed.
export interface Trial {
  id: string;
  // keys of the configuration, such as "web.listen"
  what: string[] | null;
  until: string;
}
// TrialRequest names a trial.
export interface TrialRequest {
  id: string;
}
// LogLine is one line of the daemon's log.
export interface LogLine {
  time: string;
  // DEBUG | INFO | WARN | ERROR
  level: string;
  part?: string;
  text: string;
}
// Phase says where this node stands on its way into the mesh.
export type Phase = "down" | "connecting" | "needs-login" | "waiting" | "joined" | "cached";
// Problem is a trouble told to the owner: what, since when, what to do.
export interface Problem {
  code: string;
  text: string;
  fix?: string;
  since?: string;
}
// Peer is one other member as seen from here.
export interface Peer {
  name: string;
  addresses: string[] | null;
  routes?: string[];
  online: boolean;
  os?: string;
  // none | relay | direct
  path: string;
  endpoint?: string;
  // region code
  relay?: string;
  // why it is relayed
  reason?: string;
  // milliseconds
  rtt?: number;
  // bytes
  rx: number;
  tx: number;
  handshake?: string;
}
// Openings is the ports at which the world calls this router itself.
export interface Openings {
  udp: number[] | null;
  tcp: number[] | null;
}
// Snapshot is the state of this node at one moment.
export interface Snapshot {
  version: string;
  // of the configuration it reflects
  generation: number;
  phase: Phase;
  control: string;
  loginURL?: string;
  // the coordinator's last refusal, one sentence
  error?: string;
  // last frame from the coordinator
  lastContact?: string;
  name?: string;
  domain?: string;
  addresses?: string[];
  keyExpiry?: string;
  engine?: string;
  engineReason?: string;
  // of this machine that asks for the mesh's names, or why none does
  resolver?: string;
  port?: number;
  endpoints?: string[];
  homeRelay?: string;
  udp: boolean;
  // interface names
  lans?: string[];
  // that the firewall towards the internet must have
  openings: Openings;
  // offered to the mesh
  exposed?: string[];
  // and accepted by the coordinator
  approved?: string[];
  peers: Peer[] | null;
  exits: Exits;
  // nil: not updated through us
  system?: System;
  problems: Problem[] | null;
}
// System is the system of this machine, where the daemon can replace it.
export interface System {
  version: string;
  // another one is installed: the next start tries it, once
  waiting?: boolean;
  // what the owner must know, as that the last update did not come up
  note?: string;
  // under way
  update?: Update;
}
// Update is an image that comes in.
export interface Update {
  // bytes
  done: number;
  size: number;
}
// Updated is the answer to an image that was installed.
export interface Updated {
  // what happens next, in the words of the program that installed it
  text: string;
}
// UpRequest is the body of POST /v1/up. An empty field means: as before.
export interface UpRequest {
  // URL or "home"
  control?: string;
  // used once, never stored
  authKey?: string;
  hostname?: string;
}
// PingResult is the answer of one peer. The time it took is Path.RTT.
export interface PingResult {
  name: string;
  // its mesh address
  addr: string;
  path: Path;
  // code of the relay's region, if relayed
  relay?: string;
}
// PathKind says how packets reach a peer.
export type PathKind = "none" | "relay" | "direct";
// Path is the way packets to a peer take now, and why.
export interface Path {
  kind: PathKind;
  // direct: the peer's endpoint
  addr?: string;
  // relay: region
  relay?: number;
  // last measured, 0: unknown
  rtt?: number;
  // why not direct, in plain words
  reason?: string;
  since?: string;
}
