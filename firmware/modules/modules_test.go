package modules_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"subnetd/firmware/modules"
)

func TestFor(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":     "kernel/drivers/block/virtio_blk.ko:\nkernel/net/8021q/8021q.ko: kernel/net/802/mrp.ko kernel/net/802/garp.ko\nkernel/drivers/char/hw_random/virtio-rng.ko:\n",
		"modules.builtin": "kernel/fs/fat/fat.ko\n",
		"modules.alias": "# by depmod\nalias virtio:d00000002v* virtio_blk\nalias rtnl-link-vlan 8021q\nalias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n" +
			"alias pci:v*d*sv*sd*bc02sc*i* any_nic\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := modules.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string][]string{
		"virtio_blk":          {"virtio_blk"},
		"virtio-rng":          {"virtio_rng"},
		"fat":                 {"fat"},
		"virtio:d00000002v01": {"virtio_blk"},
		"virtio:d00000003v01": nil,
		"rtnl-link-vlan":      {"8021q"},
		"pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00": {"e1000e", "any_nic"},
		"":     nil,
		"[":    nil,
		"nfs4": nil,
	} {
		if d := cmp.Diff(want, s.For(what)); d != "" {
			t.Errorf("%q: %s", what, d)
		}
	}
	if err := s.Load("fat"); err != nil {
		t.Error("what is built in:", err)
	}
	if err := s.Load("nfs4"); !errors.Is(err, modules.ErrNone) {
		t.Error(err)
	}
}
