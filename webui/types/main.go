// Types writes the TypeScript declarations of what the daemon's API speaks: the
// exported structs of package status, with their comments, and what of other
// packages is part of its answers.
//
//	go run ./webui/types > webui/src/status.ts
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "types:", err)
		os.Exit(1)
	}
}

// run reads the packages below root, the checkout, and writes to standard output.
func run(root string) error {
	text, err := generate(root)
	if err != nil {
		return err
	}
	_, err = os.Stdout.WriteString(text)
	return err
}
