// Package all lists the backends.
package all

import (
	"slices"

	"st2ha/internal/backend"
	"st2ha/internal/backend/mongodb"
	"st2ha/internal/backend/mount"
	"st2ha/internal/backend/nfs"
	"st2ha/internal/backend/rabbitmq"
	"st2ha/internal/backend/redis"
	"st2ha/internal/backend/st2"
)

// Backends are all that there are.
func Backends() []backend.Backend {
	return []backend.Backend{
		mongodb.New(),
		rabbitmq.New(),
		redis.New(),
		st2.New(),
		nfs.New(),
		mount.New(),
	}
}

// Get returns the backend of that name; one without a name if there is none.
func Get(name string) backend.Backend {
	for _, b := range Backends() {
		if b.Name == name {
			return b
		}
	}
	return backend.Backend{}
}

// OfUnit returns the backend that a unit runs; one without a name for what runs none.
func OfUnit(unit string) backend.Backend {
	for _, b := range Backends() {
		if slices.Contains(b.Units, unit) {
			return b
		}
	}
	return backend.Backend{}
}
