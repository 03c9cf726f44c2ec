// Generate writes what follows from the pack's own data: actions/*.yaml, workflows/*.yaml, config.schema.yaml, and the
// tables of docs/reference.md and docs/watching.md. Run "go generate ./..." after a change of a step or a setting.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

//go:generate go run . ../..

func main() {
	if err := write(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate: "+err.Error())
		os.Exit(1)
	}
}

// write writes the files below the pack's directory that are not as they should be.
func write(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("it takes the directory of the pack, and was given %q", args)
	}
	files, err := generate(args[0])
	if err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(args[0], name)
		if old, err := os.ReadFile(path); err == nil && string(old) == text {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}
