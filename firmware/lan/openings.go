package lan

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"time"
)

// openings are the ports that subnetd needs for the internet.
type openings struct{ UDP, TCP []uint16 }

const (
	askAgain = 2 * time.Second
	askMost  = 30 // times, until it has chosen its port
)

// askOpenings asks the running subnetd, as its package on OpenWrt does.
func askOpenings(ctx context.Context, program string) (openings, error) {
	var last error
	for range askMost {
		out, err := exec.CommandContext(ctx, program, "debug", "plan").Output()
		if err == nil {
			o, err := parsePlan(out)
			if err == nil && len(o.UDP) > 0 {
				return o, nil
			}
		}
		last = errors.Join(err, ctx.Err())
		select {
		case <-ctx.Done():
			return openings{}, last
		case <-time.After(askAgain):
		}
	}
	return openings{}, errors.Join(errors.New("subnetd names no port"), last)
}

func parsePlan(text []byte) (openings, error) {
	var plan struct {
		Host struct{ Firewall struct{ Openings openings } }
	}
	err := json.Unmarshal(text, &plan)
	return plan.Host.Firewall.Openings, err
}
