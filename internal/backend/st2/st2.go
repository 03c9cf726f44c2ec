// Package st2 is StackStorm's own services, which are watched and restarted one
// by one.
package st2

import "st2ha/internal/backend"

// Name is the backend's.
const Name = "st2"

// New describes StackStorm's services.
func New() backend.Backend {
	return backend.Backend{Name: Name, DataDirs: []string{"/var/log/st2"}}
}
