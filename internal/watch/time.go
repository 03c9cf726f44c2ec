package watch

import (
	"context"
	"fmt"
	"time"
)

// span is a duration as reasons have it: "250 ms", "4.2 s".
func span(d time.Duration) string {
	if d = d.Round(50 * time.Millisecond); d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
