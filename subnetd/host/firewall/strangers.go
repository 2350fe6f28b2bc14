package firewall

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
)

// What the world sends to this router itself has to pass the input chains of all, and
// we may not accept for others. So that the owner is told where theirs are shut, a
// packet of a stranger is led through them, as the kernel would do:
//
//	shut    opening -> packets -> each base chain of others
//	walk    rule by rule, with jumps: who may have the last word
//	judge   one rule: expressions over registers, as in nf_tables(4)
//
// What an expression says may not be known here (the mark, extensions of iptables,
// what newer kernels have). Then both is possible, and only what is dropped in any case
// counts as shut.

// strangers are where the packets come from: root servers, whom nobody bans, and
// nobody has let in by name.
var strangers = [...]netip.Addr{netip.AddrFrom4([4]byte{198, 41, 0, 4}), netip.MustParseAddr("2001:503:ba3e::2:30")}

const (
	mostSteps = 20_000 // rules walked for one packet
	mostJumps = 16     // the kernel's own bound, NFT_JUMP_STACK_SIZE

	objrefType, bitwiseOperation   = 1, 6 // NFTA_OBJREF_IMM_TYPE, NFTA_BITWISE_OP
	extensionName, extensionInside = 1, 3 // NFTA_MATCH_NAME, NFTA_MATCH_INFO; of targets the same
)

// base is a chain at the input hook.
type base struct {
	place
	priority int32
	drops    bool // its policy
}

// place is a chain.
type place struct {
	family uint8 // NFPROTO_*
	table  string
	chain  string
}

// expression is one of a rule.
type expression struct {
	name string
	data attributes
}

// rulesets is the part of the kernel's ruleset that is walked.
type rulesets interface {
	bases() []base                                        // in the order of priorities
	rules(place) [][]expression                           // of a chain
	element(at place, set string, key []byte) (e element) // of a set
	keySize(at place, set string) (bytes int)             // 0: not known
}

// element is what a set says to a key.
type element struct {
	found   bool
	verdict attributes // of maps of verdicts
	value   []byte     // of other maps
}

// outcome is what may become of a packet, several at once if not all is known.
type outcome uint8

const (
	passes  outcome = 1 << iota // this chain says nothing
	accepts                     // the base chain lets it in
	drops
	unsure = passes | accepts | drops
)

// shut gives the openings through which nobody comes.
func shut(o host.Openings, f rulesets) []host.Shut {
	var out []host.Shut
	for _, b := range f.bases() {
		for _, at := range o.At {
			for _, p := range packets(o, at) {
				if !p.concerns(b.family) {
					continue
				}
				w := walker{rulesets: f, packet: p}
				end := w.walk(b.place, 0)
				if end&passes != 0 && b.drops {
					end = end&^passes | drops
				}
				if end == drops {
					out = append(out, host.Shut{UDP: p.udp, Port: p.port, V6: p.v6,
						Table: familyName(b.family) + " " + b.table, Chain: b.chain, Zone: zoneOf(w.by)})
				}
			}
		}
	}
	return out
}

func familyName(f uint8) string {
	switch f {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	}
	return "inet"
}

// zoneOf is the zone of fw4 in whose chain the packet ended.
func zoneOf(path []string) string {
	for _, chain := range path {
		if zone, ok := strings.CutPrefix(chain, "input_"); ok {
			return zone
		}
	}
	return ""
}

// packet is the first that a stranger sends.
type packet struct {
	at         host.WANAddr
	v6, udp    bool
	port       uint16
	translated bool // it was sent to another port
	network    []byte
	transport  []byte
}

func packets(o host.Openings, at host.WANAddr) []packet {
	var out []packet
	for _, port := range o.UDP {
		out = append(out, newPacket(at, true, port))
	}
	for _, port := range o.TCP {
		p := newPacket(at, false, port)
		p.translated = o.Translated
		out = append(out, p)
	}
	return out
}

func newPacket(at host.WANAddr, udp bool, port uint16) packet {
	p := packet{at: at, v6: at.Addr.Is6(), udp: udp, port: port}
	proto, size := byte(protoTCP), 20
	if udp {
		proto, size = protoUDP, 8
	}
	p.transport = make([]byte, size)
	binary.BigEndian.PutUint16(p.transport, 40000)
	binary.BigEndian.PutUint16(p.transport[2:], port)
	if !udp {
		p.transport[12], p.transport[13] = 5<<4, 2 // no options, SYN
	}
	if p.v6 {
		p.network = make([]byte, 40)
		p.network[0], p.network[5], p.network[6], p.network[7] = 6<<4, byte(size), proto, 64
		copy(p.network[8:], strangers[1].AsSlice())
		copy(p.network[24:], at.Addr.AsSlice())
	} else {
		p.network = make([]byte, 20)
		p.network[0], p.network[3], p.network[8], p.network[9] = 4<<4|5, byte(20+size), 64, proto
		copy(p.network[12:], strangers[0].AsSlice())
		copy(p.network[16:], at.Addr.AsSlice())
	}
	return p
}

func (p *packet) concerns(family uint8) bool {
	return family == unix.NFPROTO_INET || family == unix.NFPROTO_IPV4 && !p.v6 || family == unix.NFPROTO_IPV6 && p.v6
}

// walker leads one packet through the chains of one hook.
type walker struct {
	rulesets
	packet
	steps int
	path  []string // chains, from the base chain to where it is
	by    []string // the path to who drops it; nil: nobody but a policy
}

// walk leads the packet through a chain.
func (w *walker) walk(at place, depth int) (out outcome) {
	if depth > mostJumps {
		return unsure
	}
	w.path = append(w.path, at.chain)
	defer func() { w.path = w.path[:len(w.path)-1] }()
	for _, r := range w.rules(at) {
		if w.steps++; w.steps > mostSteps {
			return unsure
		}
		fits, then := w.judge(at, r, depth)
		if fits == no || then == passes {
			continue
		}
		if then == drops && w.by == nil {
			w.by = slices.Clone(w.path)
		}
		if out |= then &^ passes; fits == yes && then&passes == 0 {
			return w.leave(out)
		}
	}
	return w.leave(out | passes)
}

// returns is set while a chain may end before its end; nobody outside sees it.
const returns outcome = 1 << 7

// leave makes what returns from a chain pass it.
func (w *walker) leave(out outcome) outcome {
	if out&returns != 0 {
		out = out&^returns | passes
	}
	return out
}

// answer is whether a condition holds.
type answer int

const (
	no answer = iota
	yes
	maybe
)

func answerOf(b bool) answer {
	if b {
		return yes
	}
	return no
}

// judge says whether a rule fits the packet, and what becomes of that then.
func (w *walker) judge(at place, rule []expression, depth int) (fits answer, then outcome) {
	var r registers
	fits, then = yes, passes
	for _, e := range rule {
		holds := yes
		switch e.name {
		case "meta", "payload", "ct", "fib", "immediate", "bitwise":
			if e.name == "immediate" && e.data.verdict(unix.NFTA_IMMEDIATE_DATA) != nil {
				then = w.follow(at, e.data.verdict(unix.NFTA_IMMEDIATE_DATA), depth)
			} else {
				w.load(&r, e)
			}
		case "cmp", "range":
			holds = r.compare(e)
		case "lookup":
			var verdict attributes
			if holds, verdict = w.lookup(at, &r, e.data); verdict != nil {
				then = w.follow(at, verdict, depth)
			} else if holds == maybe && e.data.has(unix.NFTA_LOOKUP_DREG) {
				then = unsure
			}
		case "limit": // a stranger is no flood
			holds = answerOf(e.data.u32(unix.NFTA_LIMIT_FLAGS)&unix.NFT_LIMIT_F_INV == 0)
		case "reject":
			then = drops
		case "match":
			holds = extension(e.data)
		case "target":
			if name := e.data.text(extensionName); name != "LOG" && name != "NFLOG" {
				then = unsure
			}
		case "queue", "synproxy":
			then = unsure
		case "counter", "log", "notrack", "last":
		case "objref":
			if e.data.u32(objrefType) != unix.NFT_OBJECT_COUNTER {
				holds = maybe
			}
		default:
			r, holds = registers{}, maybe
		}
		if holds == no {
			return no, passes
		}
		if holds == maybe {
			fits = maybe
		}
	}
	return fits, then
}

// follow is what a verdict leads to.
func (w *walker) follow(at place, verdict attributes, depth int) outcome {
	const (
		drop, accept       = 0, 1
		jump, goTo, goBack = -3, -4, -5 // enum nft_verdicts
	)
	to := place{at.family, at.table, verdict.text(unix.NFTA_VERDICT_CHAIN)}
	switch int32(verdict.u32(unix.NFTA_VERDICT_CODE)) {
	case drop:
		return drops
	case accept:
		return accepts
	case goBack:
		return returns
	case jump:
		return w.walk(to, depth+1)
	case goTo: // what passes there does not come back here
		end := w.walk(to, depth+1)
		if end&passes != 0 {
			end = end&^passes | returns
		}
		return end
	}
	return unsure
}

// registers are what a rule has loaded. nf_tables names them by 16 or by 4 bytes.
type registers struct {
	data  [64]byte
	known [64]bool
}

func slot(register uint32) int {
	switch {
	case register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4:
		return int(register-unix.NFT_REG_1) * 16
	case register >= unix.NFT_REG32_00 && register <= unix.NFT_REG32_15:
		return int(register-unix.NFT_REG32_00) * 4
	}
	return math.MaxInt
}

// get gives what is known of n bytes.
func (r *registers) get(register uint32, n int) ([]byte, bool) {
	i := slot(register)
	if i > len(r.data) || n <= 0 || n > len(r.data)-i {
		return nil, false
	}
	return r.data[i : i+n], !slices.Contains(r.known[i:i+n], false)
}

// set loads a value, and what is nil as something unknown. The kernel fills up to 4 bytes.
func (r *registers) set(register uint32, value []byte) {
	i := slot(register)
	if i > len(r.data) {
		return
	}
	for n := i; n < len(r.data) && (value == nil || n < i+(len(value)+3)/4*4); n++ {
		r.data[n], r.known[n] = 0, value != nil
	}
	copy(r.data[i:], value)
}

// load does what writes a register, and nothing for what writes elsewhere.
func (w *walker) load(r *registers, e expression) {
	switch e.name {
	case "meta":
		if e.data.has(unix.NFTA_META_DREG) {
			r.set(e.data.u32(unix.NFTA_META_DREG), w.meta(e.data.u32(unix.NFTA_META_KEY)))
		}
	case "payload":
		if e.data.has(unix.NFTA_PAYLOAD_DREG) {
			r.set(e.data.u32(unix.NFTA_PAYLOAD_DREG), w.bytes(e.data))
		}
	case "ct":
		if e.data.has(unix.NFTA_CT_DREG) {
			r.set(e.data.u32(unix.NFTA_CT_DREG), w.conntrack(e.data.u32(unix.NFTA_CT_KEY)))
		}
	case "fib":
		r.set(e.data.u32(unix.NFTA_FIB_DREG), w.fib(e.data))
	case "immediate":
		r.set(e.data.u32(unix.NFTA_IMMEDIATE_DREG), e.data.value(unix.NFTA_IMMEDIATE_DATA))
	case "bitwise":
		r.bitwise(e.data)
	}
}

// meta is what the packet's circumstances are; nil: not known.
func (w *walker) meta(key uint32) []byte {
	proto := w.network[9]
	family, ether := byte(unix.NFPROTO_IPV4), uint16(unix.ETH_P_IP)
	if w.v6 {
		proto, family, ether = w.network[6], unix.NFPROTO_IPV6, unix.ETH_P_IPV6
	}
	switch key {
	case unix.NFT_META_IIFNAME:
		return ifnameKey(w.at.Interface)
	case unix.NFT_META_IIF:
		return binary.NativeEndian.AppendUint32(nil, uint32(w.at.Index))
	case unix.NFT_META_NFPROTO:
		return []byte{family}
	case unix.NFT_META_L4PROTO:
		return []byte{proto}
	case unix.NFT_META_PROTOCOL:
		return binary.BigEndian.AppendUint16(nil, ether)
	case unix.NFT_META_PKTTYPE:
		return []byte{unix.PACKET_HOST}
	}
	return nil
}

// bytes are those of a header.
func (w *walker) bytes(a attributes) []byte {
	var header []byte
	switch a.u32(unix.NFTA_PAYLOAD_BASE) {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		header = w.network
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		header = w.transport
	}
	from, n := a.u32(unix.NFTA_PAYLOAD_OFFSET), a.u32(unix.NFTA_PAYLOAD_LEN)
	if n == 0 || uint64(from)+uint64(n) > uint64(len(header)) {
		return nil
	}
	return header[from : from+n]
}

func (w *walker) conntrack(key uint32) []byte {
	const isNew, dstNAT = 1 << 3, 1 << 5 // NF_CT_STATE_BIT(IP_CT_NEW), enum ip_conntrack_status
	switch key {
	case unix.NFT_CT_STATE:
		return binary.NativeEndian.AppendUint32(nil, isNew)
	case unix.NFT_CT_DIRECTION:
		return []byte{0}
	case unix.NFT_CT_STATUS:
		if w.translated {
			return binary.NativeEndian.AppendUint32(nil, dstNAT)
		}
		return binary.NativeEndian.AppendUint32(nil, 0)
	}
	return nil
}

func (w *walker) fib(a attributes) []byte {
	kind := uint32(unix.RTN_LOCAL)
	if a.u32(unix.NFTA_FIB_FLAGS)&unix.NFTA_FIB_F_SADDR != 0 {
		kind = unix.RTN_UNICAST
	}
	if a.u32(unix.NFTA_FIB_RESULT) != unix.NFT_FIB_RESULT_ADDRTYPE {
		return nil
	}
	return binary.NativeEndian.AppendUint32(nil, kind)
}

// bitwise is (source & mask) ^ xor; newer kernels have other operations, too.
func (r *registers) bitwise(a attributes) {
	to := a.u32(unix.NFTA_BITWISE_DREG)
	n := int(a.u32(unix.NFTA_BITWISE_LEN))
	from, known := r.get(a.u32(unix.NFTA_BITWISE_SREG), n)
	mask, xor := a.value(unix.NFTA_BITWISE_MASK), a.value(unix.NFTA_BITWISE_XOR)
	if !known || a.u32(bitwiseOperation) != 0 || len(mask) != n || len(xor) != n {
		r.set(to, nil)
		return
	}
	out := make([]byte, n)
	for i := range out {
		out[i] = from[i]&mask[i] ^ xor[i]
	}
	r.set(to, out)
}

// compare is cmp and range.
func (r *registers) compare(e expression) answer {
	first, last, op := e.data.value(unix.NFTA_RANGE_FROM_DATA), e.data.value(unix.NFTA_RANGE_TO_DATA), e.data.u32(unix.NFTA_RANGE_OP)
	if e.name == "cmp" {
		first = e.data.value(unix.NFTA_CMP_DATA)
		last, op = first, e.data.u32(unix.NFTA_CMP_OP)
	}
	got, known := r.get(e.data.u32(unix.NFTA_CMP_SREG), len(first)) // the same number in both
	if !known || len(first) != len(last) {
		return maybe
	}
	a, b := bytes.Compare(got, first), bytes.Compare(got, last)
	switch op {
	case unix.NFT_CMP_EQ:
		return answerOf(a >= 0 && b <= 0)
	case unix.NFT_CMP_NEQ:
		return answerOf(a < 0 || b > 0)
	case unix.NFT_CMP_LT:
		return answerOf(a < 0)
	case unix.NFT_CMP_LTE:
		return answerOf(a <= 0)
	case unix.NFT_CMP_GT:
		return answerOf(a > 0)
	case unix.NFT_CMP_GTE:
		return answerOf(a >= 0)
	}
	return maybe
}

// lookup asks a set, and gives the verdict of a map of verdicts.
func (w *walker) lookup(at place, r *registers, a attributes) (answer, attributes) {
	set := a.text(unix.NFTA_LOOKUP_SET)
	key, known := r.get(a.u32(unix.NFTA_LOOKUP_SREG), w.keySize(at, set))
	if !known {
		r.set(a.u32(unix.NFTA_LOOKUP_DREG), nil)
		return maybe, nil
	}
	e := w.element(at, set, key)
	if a.has(unix.NFTA_LOOKUP_DREG) && e.found {
		r.set(a.u32(unix.NFTA_LOOKUP_DREG), e.value)
	}
	return answerOf(e.found != (a.u32(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0)), e.verdict
}

// extension is what a match of iptables says that stands in every ruleset made by that
// (linux/netfilter/xt_conntrack.h); others are not known.
func extension(a attributes) answer {
	const matched, inverted, states = 146, 148, 150 // in struct xt_conntrack_mtinfo2 and 3
	const state, isNew = 1, 1 << 3                  // XT_CONNTRACK_STATE, XT_CONNTRACK_STATE_BIT(IP_CT_NEW)
	inside := a[extensionInside]
	switch name := a.text(extensionName); {
	case name == "comment":
		return yes
	case name == "conntrack" && len(inside) >= states+2 && binary.NativeEndian.Uint16(inside[matched:]) == state:
		invert := binary.NativeEndian.Uint16(inside[inverted:])&state != 0
		return answerOf((binary.NativeEndian.Uint16(inside[states:])&isNew != 0) != invert)
	}
	return maybe
}

// sortBases brings chains into the order in which packets pass them.
func sortBases(all []base) {
	sort.SliceStable(all, func(i, j int) bool { return all[i].priority < all[j].priority })
}
