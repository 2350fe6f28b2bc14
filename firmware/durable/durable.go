// Package durable replaces files so that a power cut at any instant leaves the old or
// the new one.
package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Write gives the file new content, with its directory if that is missing. A file that
// has this content already is not touched: flash is precious.
func Write(file string, data []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, data) {
		return nil
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp := filepath.Join(dir, "."+filepath.Base(file)+".new")
	err := fill(temp, data, mode)
	if err == nil {
		err = os.Rename(temp, file)
	}
	if err != nil {
		_ = os.Remove(temp) // it may not be there
		return err
	}
	return syncDir(dir)
}

func fill(file string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
