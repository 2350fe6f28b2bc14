package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"subnetd/subnetd/api"
	"subnetd/subnetd/coord/policy"
	"subnetd/subnetd/status"
)

// policyFile is the state file of the last good policy, for a start with one
// that is broken.
const policyFile = "policy"

// policyState is the policy in force and what stands in its way; home.mu guards it.
type policyState struct {
	file  string
	text  string // of the owner's file when last read
	force *policy.Policy
	err   error
}

// readPolicy gives the policy to be in force: that of the owner's file, the
// last good one while the file is broken, the built-in one without a file.
func (h *home) readPolicy(file string) *policy.Policy {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &h.policy
	if file == "" {
		if s.force == nil || s.file != "" {
			*s = policyState{force: policy.Default()}
			h.policyTrouble(nil)
		}
		return s.force
	}
	text, err := readBounded(file, api.MaxPolicy)
	if err == nil && s.force != nil && s.err == nil && s.file == file && s.text == text {
		return s.force
	}
	var next *policy.Policy
	if err == nil {
		next, err = policy.Parse([]byte(text))
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
		if s.force == nil || s.file != file {
			s.force = h.lastPolicy()
		}
	} else {
		s.force = next
		if e := h.d.dir.Save(policyFile, text); e != nil {
			h.log.Warn("the policy is not kept for the next start", "err", e)
		}
	}
	s.file, s.text, s.err = file, text, err
	h.policyTrouble(err)
	return s.force
}

// lastPolicy is the last good policy of an owner's file, or one that lets
// nothing through: who has asked for rules is not left without any.
func (h *home) lastPolicy() *policy.Policy {
	var text string
	if found, err := h.d.dir.Load(policyFile, &text); found && err == nil {
		if p, err := policy.Parse([]byte(text)); err == nil {
			return p
		}
	}
	p, err := policy.Parse([]byte(`{"acls": [], "grants": []}`))
	if err != nil {
		panic("the closed policy is refused: " + err.Error()) // it is a constant
	}
	return p
}

func (h *home) policyTrouble(err error) {
	if err == nil {
		h.d.engine.SetProblem("policy", "", "")
		return
	}
	h.log.Error("the policy is not used, the last good one stays", "err", err)
	h.d.engine.SetProblem("policy", "The policy is not used, the last good one stays in force: "+err.Error(),
		"Correct the file and send SIGHUP; `subnetd policy check FILE` tries it.")
}

func (h *home) policyInForce() status.HomePolicy {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := status.HomePolicy{File: h.policy.file, Text: h.policy.force.Text()}
	if h.policy.err != nil {
		out.Error = h.policy.err.Error()
	}
	return out
}

// readBounded reads a file of at most limit bytes.
func readBounded(file string, limit int64) (string, error) {
	f, err := os.Open(file)
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return "", pe.Err // the caller names the file
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it has more than %d bytes", limit)
	}
	return string(b), err
}
