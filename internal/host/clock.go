package host

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Clock measures how far a host's clock is ahead of this machine's, and how well that is known: to half of the round
// trip.
func Clock(ctx context.Context, h Host) (ahead, accuracy time.Duration, err error) {
	before := time.Now()
	out, err := h.Run(ctx, nil, "date", "+%s.%N")
	if err != nil {
		return 0, 0, fmt.Errorf("%s: clock: %w", h.Name(), err)
	}
	accuracy = time.Since(before) / 2
	seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: clock: %w", h.Name(), err)
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(fraction*1e9)).Sub(before.Add(accuracy)), accuracy, nil
}
