package incident

import "time"

// Rules are what makes states of findings, beside each probe's own Limit.
type Rules struct {
	UpAfter    int           // good findings in a row, and
	UpFor      time.Duration // the time they cover, until a failed endpoint is up again
	History    int           // findings of a probe that flapping is judged by
	FlapAbove  float64       // share of changes among them above which it flaps
	FlapBelow  float64       // and below which it does not any more
	FlapWithin time.Duration // in which those findings were made: some probes find something only when there is trouble
	FlapCalm   time.Duration // without a change, after which it does not any more either
	Together   time.Duration // hosts that fall silent within this time do so together
}

// DefaultRules are Nagios's way to tell flapping (two thresholds over 21
// checks), and an up that a restarting service does not reach too early.
func DefaultRules() Rules {
	return Rules{UpAfter: 3, UpFor: 2 * time.Second, History: 21, FlapAbove: 0.30, FlapBelow: 0.20,
		FlapWithin: 5 * time.Minute, FlapCalm: 30 * time.Second, Together: 3 * time.Second}
}
