package pid1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"subnetd/firmware/durable"
)

// One line is asked, the answer is all until the end: "+" and text, or "-" and what is
// wrong. Only root reaches the socket.

const patienceOfTalk = 5 * time.Second

// Ask sends a question to PID 1.
func Ask(words ...string) (string, error) { return ask(Socket, words) }

func ask(socket string, words []string) (string, error) {
	c, err := net.DialTimeout("unix", socket, patienceOfTalk)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patienceOfTalk)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, strings.Join(words, " ")); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(c, kept*longest*2))
	if err != nil {
		return "", err
	}
	text := string(answer)
	switch {
	case strings.HasPrefix(text, "+"):
		return text[1:], nil
	case strings.HasPrefix(text, "-"):
		return "", errors.New(text[1:])
	}
	return "", errors.New("init did not answer")
}

func (i *initer) serve(ctx context.Context) error {
	if err := os.Remove(Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", Socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(Socket, 0o600); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			i.talk(c)
		}
	}()
	return nil
}

// talk answers one question. One at a time is enough for a machine's owner.
func (i *initer) talk(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patienceOfTalk))
	line, err := bufio.NewReader(io.LimitReader(c, longest)).ReadString('\n')
	if err != nil {
		return
	}
	text, err := i.answer(strings.Fields(line))
	if err != nil {
		text = "-" + err.Error()
	} else {
		text = "+" + text
	}
	_, _ = io.WriteString(c, text)
}

func (i *initer) answer(words []string) (string, error) {
	if len(words) == 0 {
		return "", errors.New("nothing was asked")
	}
	switch what := words[0]; what {
	case "status":
		return i.status(), nil
	case "log", "reload":
		if len(words) != 2 {
			return "", fmt.Errorf("%s takes the name of a service", what)
		}
		return i.about(what, words[1])
	case "reset":
		if err := durable.Write(ResetFile, []byte("wipe\n"), 0o600); err != nil {
			return "", err
		}
		i.order(reboot)
		return "", nil
	}
	for how, name := range names {
		if name == words[0] {
			i.order(how)
			return "", nil
		}
	}
	return "", fmt.Errorf("%q is no order", words[0])
}

func (i *initer) about(what, service string) (string, error) {
	for _, r := range i.running {
		switch {
		case r.Name != service:
		case what == "log":
			return r.ring.text(), nil
		default:
			r.reload()
			return "", nil
		}
	}
	return "", fmt.Errorf("there is no service %q", service)
}

func (i *initer) status() string {
	var b strings.Builder
	for _, r := range i.running {
		b.WriteString(r.state() + "\n")
	}
	if i.cfg.Note != "" {
		b.WriteString(i.cfg.Note + "\n")
	}
	return b.String()
}
