package relay

import (
	"sync"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	recvHeader = derp.FrameHeaderLen + derp.KeyLen // before the packet in a frame to its receiver
	smallFrame = 2048                              // of nearly all packets; longer ones are rare
	maxRecord  = 16 << 10                          // payload of a TLS record (RFC 8446, section 5.1)
)

// packet is one packet on its way, framed for its receiver.
type packet struct {
	frame []byte
	from  *seat
	share int // of the lane it waits in
}

// pools keep memory between uses.
type pools struct {
	packets sync.Pool // *packet of smallFrame
	records sync.Pool // *[]byte of maxRecord
}

// packet makes room for a packet of n bytes and frames it.
func (p *pools) packet(n int, from *seat) *packet {
	var q *packet
	if size := recvHeader + n; size > smallFrame {
		q = &packet{frame: make([]byte, size)}
	} else if q, _ = p.packets.Get().(*packet); q == nil {
		q = &packet{frame: make([]byte, size, smallFrame)}
	}
	q.from = from
	q.frame = from.key.AppendTo(appendHeader(q.frame[:0], derp.FrameRecvPacket, key.NodePublicRawLen+n))[:recvHeader+n]
	return q
}

func (p *pools) free(q *packet) {
	q.from = nil
	if cap(q.frame) == smallFrame {
		p.packets.Put(q)
	}
}

func (p *pools) record() *[]byte {
	if b, _ := p.records.Get().(*[]byte); b != nil {
		return b
	}
	b := make([]byte, 0, maxRecord)
	return &b
}

func (p *pools) freeRecord(b *[]byte) {
	if cap(*b) == maxRecord { // not one that a long packet has made grow
		p.records.Put(b)
	}
}

const (
	discoMagic = "TS💬"
	discoMin   = len(discoMagic) + key.DiscoPublicRawLen + derp.NonceLen
)

// looksDisco reports whether the packet is of the protocol that finds direct
// paths, as far as one who has not its keys can see (tailscale.com/disco).
func looksDisco(b []byte) bool {
	return len(b) >= discoMin && string(b[:len(discoMagic)]) == discoMagic
}
