package update

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"subnetd/firmware/disk"
)

// BoardFile is the root's word for the board that it is made for.
const BoardFile = "/etc/appliance/board"

const usage = `usage: appliance update SHA256 <IMAGE
The image is tried at the next boot, once: if it does not come up, the present system runs again and says so.
`

// Run is the command: exit code 0 when the image is installed, 1 when it is refused or something failed, 2 for a mistake in
// the arguments. stderr gets one line for the owner.
func Run(ctx context.Context, args []string, stdin io.Reader, stderr io.Writer) int {
	if len(args) != 1 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	sum, err := parseSum(args[0])
	if err != nil {
		fmt.Fprintf(stderr, "%v\n%s", err, usage)
		return 2
	}
	m, err := here()
	if err != nil {
		fmt.Fprintln(stderr, "this system has no slots to update:", err)
		return 1
	}
	head, err := m.Install(ctx, stdin, sum)
	if err != nil {
		fmt.Fprintf(stderr, "not installed: %v\n", err)
		return 1
	}
	fmt.Fprintf(stderr, "version %s is in slot %s and is tried at the next boot\n", head.Version, m.Running.Other())
	return 0
}

// here is the machine that this runs on.
func here() (Machine, error) {
	booted, err := disk.ReadBoot()
	if err != nil {
		return Machine{}, err
	}
	running, err := booted.Running()
	if err != nil {
		return Machine{}, err
	}
	board, err := os.ReadFile(BoardFile)
	if err != nil {
		return Machine{}, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Machine{}, err
	}
	return Machine{Disk: booted.Disk, Running: running, Board: strings.TrimSpace(string(board)),
		Kernel: unix.ByteSliceToString(u.Release[:]), Slot: booted.SlotPath}, nil
}
