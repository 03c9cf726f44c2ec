// St2ha runs one action of the pack: it brings one piece of configuration
// about on one host, or undoes what it did, and prints one JSON object.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"st2ha/internal/cli"
)

func main() {
	// StackStorm ends an action that it cancels with SIGTERM: what was changed
	// is undone then, too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// Whoever reads the output may go: that is to be an error of the write, and
	// not the end of this process. What it starts has the signal as ever.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	code := cli.Run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
