package qemu

import "os"

// Card makes this machine's end of a network card, for a machine that is not one of our guests. It exists until the file is
// closed, here and in QEMU.
func Card(n NIC) (*os.File, error) { return openTap(n) }

// Address is the card's address in the machine.
func (n NIC) Address() string { return n.mac() }
