package sense

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Instructions of the kernel's filters. (golang.org/x/net/bpf would cost 14 kB of program.)
const (
	jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpBits  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	ofPacket  = 0xfffff000 // where what the kernel knows of a packet is "loaded" from: SKF_AD_OFF
)

func load8(at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: at}
}

func load16(at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: at}
}

func load32(at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
}

// attach makes the kernel drop what the program does not let pass to the socket.
func attach(c syscall.RawConn, prog []unix.SockFilter) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = attachTo(int(fd), prog) }); e != nil {
		return e
	}
	return err
}

func attachTo(fd int, prog []unix.SockFilter) error {
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	return nil
}
