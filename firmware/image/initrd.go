package main

import (
	"bufio"
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// initrd makes the initramfs: stage1, and the modules by which it finds the disk and mounts a root.
func initrd(p places) ([]byte, error) {
	c := &cpio{made: map[string]bool{}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "root"} {
		c.folder(dir)
	}
	stage1, err := os.ReadFile(p.stage1)
	if err != nil {
		return nil, err
	}
	c.file("init", 0o755, stage1)
	list, err := os.ReadFile(filepath.Join(p.parts, "early"))
	if err != nil {
		return nil, err
	}
	early := strings.Fields(string(list))
	there := path.Join("lib/modules", p.kernel)
	for _, file := range early {
		body, err := os.ReadFile(filepath.Join(p.parts, "root", there, file))
		if err != nil {
			return nil, err
		}
		c.file(path.Join(there, file), 0o644, body)
	}
	for _, index := range []string{"modules.dep", "modules.alias", "modules.builtin"} {
		body, err := os.ReadFile(filepath.Join(p.parts, "root", there, index))
		if err != nil {
			return nil, err
		}
		c.file(path.Join(there, index), 0o644, only(early, index, body))
	}
	return c.bytes(), nil
}

// only keeps the lines of an index that are of these modules; all that is built in stays.
func only(files []string, index string, body []byte) []byte {
	keep := map[string]bool{}
	for _, f := range files {
		keep[f+":"] = true
		keep[strings.ReplaceAll(strings.TrimSuffix(path.Base(f), ".ko"), "-", "_")] = true
	}
	var out bytes.Buffer
	for l := bufio.NewScanner(bytes.NewReader(body)); l.Scan(); {
		words := strings.Fields(l.Text())
		if index == "modules.builtin" || index == "modules.dep" && keep[words[0]] || index == "modules.alias" && keep[words[len(words)-1]] {
			out.WriteString(l.Text() + "\n")
		}
	}
	return out.Bytes()
}
