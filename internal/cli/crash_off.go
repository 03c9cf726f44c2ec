//go:build !crash

package cli

import "st2ha/internal/host"

// crashing does nothing: only the build for the crash test (tag crash) dies on purpose.
func crashing(h host.Host) host.Host { return h }
