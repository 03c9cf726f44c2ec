package probe

import (
	"fmt"
	"time"
)

// Span is a duration as reasons have it: "250 ms", "4.2 s".
func Span(d time.Duration) string {
	if d = d.Round(50 * time.Millisecond); d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
