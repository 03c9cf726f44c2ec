// Command messages writes docs/messages.md: every code that a failure or a
// finding can have, with its texts as the Go sources have them, and what to do.
package main

import (
	"fmt"
	"os"
)

//go:generate go run .

const (
	root = "../.." // go generate runs this in its own directory
	page = root + "/docs/messages.md"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "messages:", err)
		os.Exit(1)
	}
}

func run() error {
	text, err := generate()
	if err != nil {
		return err
	}
	return os.WriteFile(page, text, 0o644)
}

// generate is the whole page.
func generate() ([]byte, error) {
	messages, err := collect(root, "cmd", "internal")
	if err != nil {
		return nil, err
	}
	causes, err := readCauses("causes.md")
	if err != nil {
		return nil, err
	}
	return format(messages, causes), nil
}
