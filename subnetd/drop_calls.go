package main

import (
	"path/filepath"

	"subnetd/subnetd/config"
	"subnetd/subnetd/drop"
)

// newDrop gives the store of files. What it remembers of the owner's folder is lost with
// a damaged file only, and then it is remembered anew.
func (d *daemon) newDrop() *drop.Store {
	var memory drop.Memory
	if _, err := d.dir.Load("drop", &memory); err != nil {
		d.log.Error("where the disk for files was mounted is not known any more", "err", err)
	}
	return drop.New(drop.Config{
		Inbox: filepath.Join(d.opts.State, "inbox"), Memory: memory, Save: func(m drop.Memory) error { return d.dir.Save("drop", m) },
		Netmap: d.engine.Netmap, Changed: func() {}, Now: d.clock.now, Log: d.logger("drop"),
	})
}

// dropSettings is what the owner wants of files.
func dropSettings(c config.Drop) drop.Settings {
	return drop.Settings{Folder: c.Folder, Quota: c.Limit(), KeepFree: c.KeepFree}
}
