package watch

import "st2ha/internal/action"

// Settings are what the pack's configuration says of watching, in its order. The sensor is given them as they are.
func Settings() []action.Setting {
	return []action.Setting{
		{Name: "watch_mongodb_uri", Default: "", Secret: true,
			Kept: `Servers to watch, as a MongoDB URI. Empty means those of [database] in /etc/st2/st2.conf.`},
		{Name: "watch_rabbitmq_urls", Default: "", Secret: true,
			Kept: `Brokers to watch, URLs with commas between them. Empty means those of [messaging] in /etc/st2/st2.conf.`},
		{Name: "watch_redis_url", Default: "", Secret: true,
			Kept: `Redis to watch, as a URL. Empty means that of [coordination] in /etc/st2/st2.conf.`},
		{Name: "watch_nfs", Default: []string{},
			Kept: `Exports to watch, host:/path. Empty means those that /etc/fstab mounts.`},
		{Name: "watch_mounts", Default: []string{}, Kept: `NFS mount points to watch. Empty means those of /etc/fstab.`},
		{Name: "watch_units", Default: []string{},
			Kept: `StackStorm's units to watch, for example st2api. Empty means those that start at boot.`},
		{Name: "watch_suspect_events", Default: false,
			Kept: "Dispatch a trigger also when a backend is suspect or unknown, and when that is over, and one for each " +
				"observer of a\nfault. " + `Rules of the pack do not act on doubts, and a slow database makes many of them.`},
		{Name: "watch_ping_interval", Default: 0.0, Kept: `Seconds between two pings of a backend. 0 means 0.25.`},
		{Name: "watch_ping_deadline", Default: 0.0,
			Kept: `Seconds after which a ping without an answer is missed. 0 means 0.25.`},
		{Name: "watch_ping_misses", Default: 0, Kept: `Pings missed in a row until a backend is suspect. 0 means 2.`},
		{Name: "watch_down_after", Default: 0.0, Kept: `Seconds of missed pings until a backend is down. 0 means 3.`},
		{Name: "watch_login_interval", Default: 0.0, Kept: `Seconds between two fresh logins. 0 means 10.`},
		{Name: "watch_login_deadline", Default: 0.0, Kept: `Seconds after which a fresh login has failed. 0 means 4.`},
		{Name: "watch_up_after", Default: 0.0,
			Kept: `Seconds of good findings, three at least, until a backend that failed is up again. 0 means 2.`},
	}
}
