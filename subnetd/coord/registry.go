package coord

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"subnetd/subnetd/coord/policy"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Files of the Store.
const (
	LedgerFile = "mesh"  // what must last
	hintsFile  = "peers" // what helps after a restart
)

// ledger is the file of what must last. It is written whole, and only when
// something in it has changed.
type ledger struct {
	Noise key.MachinePrivate `json:"noise"`
	Users []user             `json:"users"`
	Nodes []record           `json:"nodes"`
	Keys  []authKey          `json:"keys"`
	// Spent are addresses of nodes and devices that are gone: numbers in the IPv4
	// pool. Nobody is given them again.
	Spent []uint32 `json:"spent,omitempty"`
	// Removed are the keys of nodes that are gone, the newest last: such a node is
	// told so when it comes back, rather than taken for a new one.
	Removed []key.NodePublic `json:"removed,omitempty"`
}

type user struct {
	ID   tailcfg.UserID `json:"id"`
	Name string         `json:"name"` // as in a policy, without "@"
}

// record is what must last of a node.
type record struct {
	ID        tailcfg.NodeID            `json:"id"`
	Name      string                    `json:"name"`            // first label, unique among nodes and devices
	Named     bool                      `json:"named,omitempty"` // by the owner: the host's own name changes nothing
	User      tailcfg.UserID            `json:"user"`
	Tags      []string                  `json:"tags,omitempty"`
	Machine   key.MachinePublic         `json:"machine"`
	Key       key.NodePublic            `json:"key"`
	Number    uint32                    `json:"number"` // in the IPv4 pool
	V6        netip.Addr                `json:"v6"`
	Created   time.Time                 `json:"created"`
	Expiry    time.Time                 `json:"expiry,omitzero"` // of Key; zero: never
	Ephemeral bool                      `json:"ephemeral,omitempty"`
	Self      bool                      `json:"self,omitempty"`     // the router's own
	Offers    []netip.Prefix            `json:"offers,omitempty"`   // routes it would serve
	Approved  []netip.Prefix            `json:"approved,omitempty"` // by the owner's hand
	Devices   []device                  `json:"devices,omitempty"`
	Hostname  string                    `json:"hostname,omitempty"`
	OS        string                    `json:"os,omitempty"`
	Client    string                    `json:"client,omitempty"`
	Cap       tailcfg.CapabilityVersion `json:"cap,omitempty"`
}

// device is a further address of a node: a thing behind it.
type device struct {
	Name   string     `json:"name"`
	Want   string     `json:"want"`   // Name before it was made unique
	Number uint32     `json:"number"` // in the IPv4 pool
	V6     netip.Addr `json:"v6,omitzero"`
	ID     string     `json:"id,omitempty"` // what it is known by whatever its name is
}

// live is what a node tells anew whenever it connects; see hint.
type live struct {
	Disco     key.DiscoPublic   `json:"disco"`
	Endpoints []netip.AddrPort  `json:"endpoints,omitempty"`
	Home      int               `json:"home,omitempty"` // relay region
	Services  []tailcfg.Service `json:"services,omitempty"`
	Online    bool              `json:"online,omitempty"`
	Seen      time.Time         `json:"seen,omitzero"` // last moment it was online
	left      time.Time         // its long poll ended then; zero: it has one
}

// node is one member in a snapshot; it is never changed, only replaced.
type node struct {
	record
	live
	addrs []netip.Prefix // its own, /32 and /128
	pace  *pace          // one for all states of a node
	shown *shown         // as its peers see it
	rules policy.Node    // as the policy sees it
	ruled uint64         // gen of the snapshot since which rules are so
}

func (n *node) expired(now time.Time) bool { return !n.Expiry.IsZero() && !now.Before(n.Expiry) }

// snapshot is the mesh at one moment.
type snapshot struct {
	gen      uint64
	nodes    map[tailcfg.NodeID]*node
	order    []*node // nodes by ID
	byKey    map[key.NodePublic]*node
	users    []user
	keys     []authKey
	spent    []uint32
	removed  []key.NodePublic
	policy   *policy.Policy
	place    Place
	names    Names
	primary  map[netip.Prefix]tailcfg.NodeID
	compiled *compiled
	dns      *tailcfg.DNSConfig
	recent   []recent // the last changes, oldest first
}

// recent says which nodes a snapshot shows otherwise than the one before it.
type recent struct {
	gen uint64
	ids []tailcfg.NodeID
}

// change is a wish for another snapshot, and where its asker waits.
type change struct {
	do   func(*draft) error
	done chan error
}

// draft is the next snapshot while the writer makes it.
type draft struct {
	snapshot
	before  *snapshot
	now     time.Time
	lasting bool                    // something must be on the disk first
	touched map[tailcfg.NodeID]bool // to be shown anew
	around  bool                    // policy, place or names are others
	gone    []key.NodePublic
}

// changed reports whether the draft is anything new. Strangers who knock, and
// members who tell what is known, wake nobody.
func (d *draft) changed() bool { return d.lasting || d.around || len(d.touched) > 0 }

// update has the writer make the change; it returns when that is on the disk,
// if it must be, and published. On an error nothing has changed.
func (c *Coordinator) update(ctx context.Context, do func(*draft) error) error {
	req := &change{do: do, done: make(chan error, 1)}
	select {
	case c.changes <- req:
	case <-c.stopped:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	return <-req.done // also when we stop: what do has written is the asker's only then
}

// maxBatch changes share one write to the disk.
const maxBatch = 256

// write is the one writer.
func (c *Coordinator) write(ctx context.Context) error {
	for {
		var batch []*change
		select {
		case <-ctx.Done():
			return nil
		case req := <-c.changes:
			batch = append(batch, req)
		}
	gather:
		for len(batch) < maxBatch {
			select {
			case req := <-c.changes:
				batch = append(batch, req)
			default:
				break gather
			}
		}
		c.commit(batch)
	}
}

// commit makes one snapshot of many changes. When the disk refuses it, those
// changes that need no disk are made alone.
func (c *Coordinator) commit(batch []*change) {
	d := c.snap.Load().draft(c.cfg.Now())
	errs := make([]error, len(batch))
	var lasts []bool
	for i, req := range batch {
		before := d.lasting
		d.lasting = false
		errs[i] = req.do(d)
		lasts = append(lasts, d.lasting)
		d.lasting = d.lasting || before
	}
	if d.lasting {
		if err := c.cfg.Store.Save(LedgerFile, d.ledger(c.noise)); err != nil {
			c.cfg.Log.Error("the mesh is not kept on disk, nothing of it changes", "err", err)
			var light []*change
			for i, req := range batch {
				if lasts[i] {
					req.done <- fmt.Errorf("the router cannot keep it: %w", err)
				} else {
					light = append(light, req)
				}
			}
			if len(light) > 0 && len(light) < len(batch) {
				c.commit(light)
			}
			return
		}
	}
	if d.changed() {
		c.publish(d)
	}
	for i, req := range batch {
		req.done <- errs[i]
	}
}

func (s *snapshot) draft(now time.Time) *draft {
	d := &draft{snapshot: *s, before: s, now: now, touched: map[tailcfg.NodeID]bool{}}
	d.nodes, d.byKey = maps.Clone(s.nodes), maps.Clone(s.byKey)
	d.primary = maps.Clone(s.primary)
	d.users, d.keys = slices.Clip(s.users), slices.Clone(s.keys)
	d.spent, d.removed = slices.Clip(s.spent), slices.Clip(s.removed)
	d.recent = slices.Clone(s.recent[max(0, len(s.recent)-maxRecent+1):])
	d.gen++
	return d
}

// maxRecent snapshots back a session need not look at every node.
const maxRecent = 64

// edit gives a copy of the node that may be changed.
func (d *draft) edit(id tailcfg.NodeID) *node {
	old := d.nodes[id]
	if old == nil {
		return nil
	}
	if d.touched[id] && old.shown == nil {
		return old // it is a copy already
	}
	n := *old
	n.shown = nil
	d.put(&n)
	return &n
}

// put makes n the node of its ID. Its key must be free or its own.
func (d *draft) put(n *node) {
	if old := d.nodes[n.ID]; old != nil {
		delete(d.byKey, old.Key)
	}
	d.nodes[n.ID], d.byKey[n.Key] = n, n
	d.touched[n.ID] = true
}

// rekey gives a node another key.
func (d *draft) rekey(n *node, k key.NodePublic) {
	if n.Key == k {
		return
	}
	delete(d.byKey, n.Key)
	if !n.Key.IsZero() {
		d.gone = append(d.gone, n.Key)
	}
	n.Key = k
	d.byKey[k] = n
	d.lasting = true
}

// spend sees to it that nobody is given an address again. The oldest of a great
// many are forgotten: to hit one of them is a chance of one in millions.
func (d *draft) spend(number uint32) {
	d.spent = append(d.spent[max(0, len(d.spent)-maxSpent+1):], number)
}

// remove forgets a node for good; its addresses are nobody's again.
func (d *draft) remove(id tailcfg.NodeID) {
	n := d.nodes[id]
	d.spend(n.Number)
	for _, dev := range n.Devices {
		d.spend(dev.Number)
	}
	delete(d.nodes, id)
	delete(d.byKey, n.Key)
	d.gone = append(d.gone, n.Key)
	d.removed = append(d.removed[max(0, len(d.removed)-maxRemoved+1):], n.Key)
	d.touched[id], d.lasting = true, true
}

// publish completes the draft and makes it what everybody sees.
func (c *Coordinator) publish(d *draft) {
	d.complete(c.cfg.Domain)
	d.expirations(c.snap.Load())
	c.store(d)
	c.mu.Lock()
	for _, s := range c.sessions {
		signal(s.wake)
	}
	c.mu.Unlock()
	signal(c.news)
	signal(c.moves)
	for _, k := range d.gone {
		c.cfg.Gone(k)
	}
	c.cfg.Changed()
}

// store makes the draft's snapshot the one in force. It is a copy: a pointer into
// the draft would keep that alive, and with it the snapshot before, and so on.
func (c *Coordinator) store(d *draft) {
	next := d.snapshot
	c.snap.Store(&next)
}

// expirations adds the keys that are none of ours since before because they
// expired, whoever made them so.
func (d *draft) expirations(before *snapshot) {
	for id := range d.touched {
		was, is := before.nodes[id], d.nodes[id]
		if was != nil && is != nil && was.Key == is.Key && !was.shown.node.Expired && is.shown.node.Expired {
			d.gone = append(d.gone, is.Key)
		}
	}
}

// signal says «look again» to whoever owns the one slot; it never blocks.
func signal(slot chan struct{}) {
	select {
	case slot <- struct{}{}:
	default:
	}
}

func (d *draft) ledger(noise key.MachinePrivate) ledger {
	l := ledger{Noise: noise, Users: d.users, Keys: d.keys, Spent: d.spent, Removed: d.removed, Nodes: make([]record, 0, len(d.nodes))}
	for _, n := range d.sorted() {
		l.Nodes = append(l.Nodes, n.record)
	}
	return l
}

// sorted is the nodes by ID.
func (s *snapshot) sorted() []*node {
	return slices.SortedFunc(maps.Values(s.nodes), func(a, b *node) int { return cmp.Compare(a.ID, b.ID) })
}

// load makes the first snapshot of what was kept. A ledger that cannot be
// understood is an error: a coordinator that forgot everybody would hand out
// their addresses to others.
func (c *Coordinator) load() error {
	var l ledger
	found, err := c.cfg.Store.Load(LedgerFile, &l)
	if err != nil {
		return fmt.Errorf("the members of the mesh are not known: %w", err)
	}
	if found && l.Noise.IsZero() {
		return errors.New("the file of the mesh's members has no key of this coordinator: put a backup of the state directory back")
	}
	if !found {
		l = ledger{Noise: key.NewMachine(), Users: []user{{ID: ownerID, Name: OwnerName}}}
		if err := c.cfg.Store.Save(LedgerFile, l); err != nil {
			return fmt.Errorf("the mesh cannot be begun: %w", err)
		}
	}
	hints := map[key.NodePublic]hint{}
	if _, err := c.cfg.Store.Load(hintsFile, &hints); err != nil {
		c.cfg.Log.Warn("where the members were is forgotten, they will tell", "err", err)
	}
	c.noise = l.Noise
	d := (&snapshot{users: l.Users, keys: l.Keys, spent: l.Spent, removed: l.Removed, policy: c.cfg.Policy, compiled: nil}).draft(c.started)
	d.nodes, d.byKey, d.primary = map[tailcfg.NodeID]*node{}, map[key.NodePublic]*node{}, map[netip.Prefix]tailcfg.NodeID{}
	for _, r := range l.Nodes {
		n := &node{record: r, live: hints[r.Key].live, pace: newPace()}
		for _, p := range hints[r.Key].Serves {
			d.primary[p] = r.ID
		}
		n.left = c.started.Add(returnWithin - offlineAfter)
		n.addrs = addressesOf(r)
		d.put(n)
	}
	d.complete(c.cfg.Domain)
	c.store(d)
	return nil
}
