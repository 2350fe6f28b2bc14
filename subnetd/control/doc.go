// Package control is the client of a coordinator: it registers this node,
// keeps one long poll open, and turns what arrives there into whole netmaps.
//
// One goroutine (Run) owns the identity and the state. Callers meet it in two
// one-slot signals: "the host changed" and "there is a command".
package control
