package appliance_test

import (
	"fmt"
	"os"
	"path/filepath"
)

// offered is one of the images on the second disk.
type offered struct {
	read string // the command that reads it
	sum  string
}

// offer puts images on the second disk.
func (b *testBox) offer(images ...[]byte) []offered {
	b.t.Helper()
	var disk []byte
	var all []offered
	for _, image := range images {
		all = append(all, offered{fmt.Sprintf("dd if=/dev/vdb bs=4096 skip=%d count=%d 2>/dev/null", len(disk)/4096, len(image)/4096), sumOf(image)})
		disk = append(disk, image...)
	}
	path := filepath.Join(b.t.TempDir(), "images")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.Insert(path)
	return all
}
