package qemu

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// build gives the folder of something that testbed/qemu/build.sh makes, and makes it if it is not there.
func build(what string) (string, error) {
	root, err := repoRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(root, "testbed", "qemu", "build.sh"), what)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("testbed/qemu/build.sh %s: %w: %s", what, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// repoRoot is the nearest folder above the current one that holds a go.mod.
func repoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod above %s: guests are made within the checkout", dir)
		}
		dir = up
	}
}
