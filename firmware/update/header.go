// Package update brings another system onto the appliance: an image is streamed into the slot that does not run, and is
// tried at the next boot. Whatever ends it before, the appliance boots as if it had never begun.
//
// An image is a head of 4 KiB and a squashfs:
//
//	subnetd appliance 1
//	board qemu-malta
//	kernel 6.1.0-50-4kc-malta
//	version v1.2-3-gabcdef0
//	size 14680064
//	(zeroes)
//
// The kernel is named since it stays: it is on the boot partition, and the modules of the image must be of it.
package update

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// HeadSize is the size of the head.
const HeadSize = 4096

const firstLine = "subnetd appliance 1"

// Head is what an image says of itself.
type Head struct {
	Board   string
	Kernel  string // release, as uname tells it
	Version string
	Size    int64 // of the root, behind the head; a multiple of 4 KiB
}

// ErrNoImage means that something is no image of the appliance's.
var ErrNoImage = errors.New("this is no image of an appliance")

// Encode gives the head. Its fields must be words.
func (h Head) Encode() ([]byte, error) {
	text := fmt.Sprintf("%s\nboard %s\nkernel %s\nversion %s\nsize %d\n", firstLine, h.Board, h.Kernel, h.Version, h.Size)
	b := make([]byte, HeadSize)
	if copy(b, text) != len(text) {
		return nil, fmt.Errorf("the head of the image is too long: %d bytes", len(text))
	}
	if again, err := ParseHead(b); err != nil || again != h {
		return nil, fmt.Errorf("%+v fits no head of an image: %w", h, err)
	}
	return b, nil
}

// ParseHead reads a head. Lines that it does not know are of a later time, and are left out.
func ParseHead(b []byte) (Head, error) {
	if len(b) < HeadSize {
		return Head{}, ErrNoImage
	}
	text, _, _ := bytes.Cut(b[:HeadSize], []byte{0})
	lines := strings.Split(string(text), "\n")
	if lines[0] != firstLine {
		return Head{}, ErrNoImage
	}
	said := map[string]string{}
	for _, l := range lines[1:] {
		if f := strings.Fields(l); len(f) == 2 {
			said[f[0]] = f[1]
		}
	}
	h := Head{Board: said["board"], Kernel: said["kernel"], Version: said["version"]}
	size, err := strconv.ParseInt(said["size"], 10, 64)
	if err != nil || size <= 0 || size%4096 != 0 || h.Board == "" || h.Kernel == "" || h.Version == "" {
		return Head{}, fmt.Errorf("%w: its head is damaged", ErrNoImage)
	}
	h.Size = size
	return h, nil
}
