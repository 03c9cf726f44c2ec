// St2ha runs one action of the pack: it brings one piece of configuration
// about on one host, or undoes what it did, and prints one JSON object.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// StackStorm ends an action that it cancels with SIGTERM: what was changed
	// is undone then, too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
