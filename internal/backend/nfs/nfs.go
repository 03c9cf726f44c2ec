// Package nfs is the backend NFS: the server of what StackStorm's nodes share.
package nfs

import (
	"strconv"

	"st2ha/internal/backend"
	client "st2ha/internal/nfs"
)

// Name is the backend's.
const Name = "nfs"

// New describes an NFS server.
func New() backend.Backend {
	return backend.Backend{
		Name:    Name,
		Units:   client.Units(),
		Answers: client.Answers,
		Port:    strconv.Itoa(client.Port),
	}
}
