// St2ha-watch tells how StackStorm's backends are: as StackStorm's sensor one
// JSON line for each change on stdout, as a node's watchdog (--heal) into a
// spool, and it heals; with --own it runs the node's share of the sensors; with
// --once it prints one table and ends.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"st2ha/internal/backend/mount"
	"st2ha/internal/memexec"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "statfs" {
		os.Exit(mount.Statfs(os.Args[2])) // the child of a mount's probe
	}
	if err := memexec.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "st2ha-watch:", err) // it works as it is, as long as that file can be read
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], process{getenv: os.Getenv, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr})
	stop()
	os.Exit(code)
}
