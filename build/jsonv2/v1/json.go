// Package json has what tailscale.com/types/logger names of it.
package json

import "github.com/go-json-experiment/json"

// DefaultOptionsV1 is upstream's.
func DefaultOptionsV1() json.Options { return nil }
