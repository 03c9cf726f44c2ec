package host

import "time"

// WithKeepalive is c with another pace than an operator has patience for.
func (c SSHConfig) WithKeepalive(d time.Duration) SSHConfig {
	c.keepalive = d
	return c
}

// What tests see of the package.
var (
	Quote       = quote
	Environment = environment
	TempName    = tempName
)
