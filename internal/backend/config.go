package backend

import (
	"encoding/json"
	"errors"
	"time"

	"st2ha/internal/probe"
)

// Config is what the pack's configuration says of watching. What it leaves
// empty is taken from the node: /etc/st2/st2.conf, /etc/fstab, /etc/exports.
type Config struct {
	MongoDB  string   `json:"watch_mongodb_uri"`   // as [database] host
	RabbitMQ string   `json:"watch_rabbitmq_urls"` // with commas, as [messaging] cluster_urls
	Redis    string   `json:"watch_redis_url"`     // as [coordination] url
	NFS      []string `json:"watch_nfs"`           // host:/path
	Mounts   []string `json:"watch_mounts"`        // mount points
	Units    []string `json:"watch_units"`         // st2api, st2actionrunner…

	SuspectEvents bool `json:"watch_suspect_events"` // events also of doubts, and of what is only unknown

	// In seconds; 0 is the default.
	PingEvery     float64 `json:"watch_ping_interval"`
	PingDeadline  float64 `json:"watch_ping_deadline"`
	PingMisses    int     `json:"watch_ping_misses"` // no seconds: in a row
	DownAfter     float64 `json:"watch_down_after"`
	LoginEvery    float64 `json:"watch_login_interval"`
	LoginDeadline float64 `json:"watch_login_deadline"`
	UpAfter       float64 `json:"watch_up_after"`
}

// ParseConfig reads the pack's configuration, one JSON object. Settings that
// are none of watching are left alone; none at all is the empty text.
func ParseConfig(text string) (Config, error) {
	var c Config
	if text == "" {
		return c, nil
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		// err may hold a secret
		return c, errors.New("the pack's configuration for watching must be a JSON object with the types of " +
			"config.schema.yaml")
	}
	for _, v := range []float64{c.PingEvery, c.PingDeadline, float64(c.PingMisses), c.DownAfter, c.LoginEvery,
		c.LoginDeadline, c.UpAfter} {
		if v < 0 {
			return c, errors.New("the pack's configuration for watching has a negative number: all must be 0 or more")
		}
	}
	return c, nil
}

// Timing is that of backends that are reached over TCP.
func (c Config) Timing() probe.Timing {
	return probe.Timing{PingEvery: seconds(c.PingEvery), PingDeadline: seconds(c.PingDeadline), PingMisses: c.PingMisses,
		DownAfter:  seconds(c.DownAfter),
		LoginEvery: seconds(c.LoginEvery), LoginDeadline: seconds(c.LoginDeadline)}
}

// UpFor is the time that good findings cover until a failed endpoint is up again; 0 is the default.
func (c Config) UpFor() time.Duration { return seconds(c.UpAfter) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
