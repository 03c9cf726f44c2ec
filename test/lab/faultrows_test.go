package lab

import (
	"testing"
	"time"

	"st2ha/internal/watch"
)

const (
	mongo  = primary + ":27017"
	rabbit = primary + ":5672"
	redis  = "127.0.0.1:6379"
	nfs    = primary + ":2049"
	packs  = "/opt/stackstorm/packs"
)

// rows are the faults. Restarts of one backend are kept apart.
func rows(f *faults) []fault {
	none := func(*testing.T) time.Time { return time.Now() }
	_ = none
	return []fault{
		{name: "MongoDB killed", inject: signalling("primary", "KILL", "mongod"), healer: "watchdog",
			wants: []want{
				{by: sensor, backend: watch.MongoDB, endpoint: mongo, states: "down up", down: killedLimit, reason: "connection refused"},
				{by: onPrimary, backend: watch.MongoDB, states: "down up"},
			}},
		{name: "RabbitMQ killed", inject: signalling("primary", "KILL", "beam.smp"), healer: "itself",
			wants: []want{
				{by: sensor, backend: watch.RabbitMQ, endpoint: rabbit, states: "suspect? down up", down: killedLimit, reason: "connection refused"},
				{by: onPrimary, backend: watch.RabbitMQ, states: "suspect? down up"},
			}, also: []watch.Backend{watch.StackStorm}},
		{name: "Redis killed", inject: signalling("secondary", "KILL", "redis-server"), healer: "itself",
			wants: []want{
				{by: sensor, backend: watch.Redis, endpoint: redis, states: "suspect? down up", down: killedLimit, reason: "connection refused"},
				{by: onSecondary, backend: watch.Redis, states: "suspect? down up"},
			}},
		{name: "NFS server stopped", inject: running("primary", "rpc.nfsd 0"), healer: "watchdog",
			wants: []want{
				{by: sensor, backend: watch.NFS, endpoint: nfs, states: "suspect? down up", reason: "connection refused"},
				{by: onPrimary, backend: watch.NFS, states: "suspect? down up"},
			}, also: []watch.Backend{watch.Mount}},
		{name: "Redis frozen", inject: signalling("secondary", "STOP", "redis-server"), healer: "watchdog",
			wants: []want{
				{by: sensor, backend: watch.Redis, endpoint: redis, states: "suspect down up", suspect: suspectLimit, down: downLimit},
				{by: onSecondary, backend: watch.Redis, states: "suspect down up", suspect: suspectLimit, down: downLimit},
			}},
	}
}
