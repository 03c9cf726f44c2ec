package step

import (
	"context"
	"time"

	"st2ha/internal/wait"
)

// Await looks again and again until there is nothing left to wait for, or ctx
// ends. look returns why it is still waiting, nil if it is not; an error is one
// that waiting does not mend. gaveUp makes the error of a wait that ended out of
// what was seen last: an attempt that the end of ctx cut off saw nothing.
func Await(ctx context.Context, every time.Duration, look func(context.Context) (waiting, err error),
	gaveUp func(seen error) error) error {
	var seen error
	for {
		waiting, err := look(ctx)
		switch {
		case waiting == nil && err == nil:
			return nil
		case ctx.Err() == nil && err != nil:
			return err
		case ctx.Err() == nil:
			seen = waiting
		case seen == nil && waiting != nil:
			seen = waiting
		case seen == nil:
			seen = err
		}
		if wait.Sleep(ctx, every) != nil {
			return gaveUp(seen)
		}
	}
}
