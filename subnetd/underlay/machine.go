package underlay

import (
	"crypto/rand"

	"subnetd/subnetd/path"
)

// newMachine makes the path machine with true random numbers.
func newMachine() machine {
	return path.New(path.Config{NewTxID: func() path.TxID {
		var id path.TxID
		_, _ = rand.Read(id[:]) // never fails, by its documentation
		return id
	}})
}
