package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

func (n *Node) register(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	now := time.Now().Round(time.Second)
	res, err := l.post(ctx, "/machine/register", n.node.Public(), &tailcfg.RegisterRequest{
		Version: version, NodeKey: n.node.Public(), NLKey: key.NewNLPrivate().Public(), Hostinfo: n.hostinfo(0), Timestamp: &now,
		Auth: &tailcfg.RegisterResponseAuth{AuthKey: n.swarm.cfg.AuthKey},
	})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	var ans tailcfg.RegisterResponse
	if err := decode(res, &ans); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	switch {
	case ans.Error != "":
		return &refusal{ans.Error}
	case ans.AuthURL != "" || ans.NodeKeyExpired || !ans.MachineAuthorized:
		return &refusal{fmt.Sprintf("key expired %v, authorized %v, login at %q", ans.NodeKeyExpired, ans.MachineAuthorized, ans.AuthURL)}
	}
	return nil
}

// announce sends what a stock client sends within the first moments: that it is there, where it is reached, and which
// relay is its home. If that fails, the next connection begins with it.
func (n *Node) announce(ctx context.Context, l *link) {
	first := n.mapRequest()
	first.Endpoints, first.EndpointTypes, first.Hostinfo = nil, nil, n.hostinfo(0)
	second := n.mapRequest()
	second.Hostinfo = n.hostinfo(0)
	for _, req := range []*tailcfg.MapRequest{first, second} {
		if n.send(ctx, l, req) != nil || sleep(ctx, pause) != nil {
			return
		}
	}
	select { // the home is chosen from the DERP map
	case <-n.joined:
	case <-ctx.Done():
		return
	}
	if n.send(ctx, l, n.mapRequest()) == nil {
		n.confirm()
	}
}

// send updates the coordinator beside the stream.
func (n *Node) send(ctx context.Context, l *link, req *tailcfg.MapRequest) error {
	req.OmitPeers = true
	res, err := l.post(ctx, "/machine/map", n.node.Public(), req)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	defer res.Body.Close()
	if _, err := io.CopyN(io.Discard, res.Body, maxAnswer); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("update: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("update: HTTP status %d", res.StatusCode)
	}
	return nil
}

func (n *Node) mapRequest() *tailcfg.MapRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	types := make([]tailcfg.EndpointType, len(n.endpoints))
	for i := range types {
		types[i] = tailcfg.EndpointSTUN
		if n.endpoints[i].Addr().IsPrivate() {
			types[i] = tailcfg.EndpointLocal
		}
	}
	return &tailcfg.MapRequest{Version: version, KeepAlive: true, Compress: "zstd", NodeKey: n.node.Public(), DiscoKey: n.disco,
		Endpoints: n.endpoints, EndpointTypes: types, Hostinfo: n.hostinfo(n.relay)}
}

// hostinfo is that of a Debian machine; relay is its home, 0 if it has none yet.
func (n *Node) hostinfo(relay int) *tailcfg.Hostinfo {
	hi := &tailcfg.Hostinfo{
		IPNVersion: "1.102.5-t0123456789-g9876543210", BackendLogID: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		OS: "linux", OSVersion: "6.1.0-28-amd64", Distro: "debian", DistroVersion: "12.8", DistroCodeName: "bookworm",
		Hostname: n.name, Machine: "x86_64", GoArch: "amd64", GoArchVar: "v1", GoVersion: "go1.26.0", Desktop: "false",
		Services:  []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 41000}, {Proto: tailcfg.PeerAPI6, Port: 41000}},
		Userspace: "false", UserspaceRouter: "false", StateEncrypted: "false",
	}
	ni := &tailcfg.NetInfo{PreferredDERP: relay, MappingVariesByDestIP: "false", WorkingIPv6: "false", OSHasIPv6: "true",
		WorkingUDP: "true", WorkingICMPv4: "false", UPnP: "false", PMP: "false", PCP: "false", FirewallMode: "nft-default"}
	if relay != 0 {
		ni.DERPLatency = map[string]float64{strconv.Itoa(relay) + "-v4": 0.0123}
		hi.NetInfo = ni
	}
	return hi
}
