package heal

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"st2ha/internal/backend/all"
	"st2ha/internal/host"
)

// fullBelow is the free space that a backend needs to start and to say why if
// it cannot. RabbitMQ raises its alarm at 50 MB.
const fullBelow = 16 << 20

// DiskFull says which of a backend's directories lies on a full disk, in words;
// empty if none does. Restarting what has no room to work makes things worse.
func DiskFull(ctx context.Context, h host.Host, backend string) (string, error) {
	for _, dir := range all.Get(backend).DataDirs {
		if _, err := h.Stat(ctx, dir); err != nil {
			continue // not where this distribution keeps it
		}
		out, err := h.Run(ctx, nil, "stat", "--file-system", "--format=%a %S %d %c", dir)
		if err != nil {
			return "", err
		}
		free, err := freeSpace(string(out))
		if err != nil {
			return "", fmt.Errorf("%s: %s: %w", h.Name(), dir, err)
		}
		if free != "" {
			return "the disk of " + dir + " is full: " + free, nil
		}
	}
	return "", nil
}

// freeSpace reads stat(1)'s blocks available, block size, free and total
// inodes. It returns what there is too little of, in words. File systems
// without a number of inodes have 0 of 0.
func freeSpace(text string) (string, error) {
	var n [4]uint64
	fields := strings.Fields(text)
	if len(fields) != len(n) {
		return "", fmt.Errorf("stat answered %q", text)
	}
	for i, f := range fields {
		var err error
		if n[i], err = strconv.ParseUint(f, 10, 64); err != nil {
			return "", fmt.Errorf("stat answered %q", text)
		}
	}
	switch {
	case n[0]*n[1] < fullBelow:
		return fmt.Sprintf("less than %d MB are left", fullBelow>>20), nil
	case n[3] > 0 && n[2] == 0:
		return "no inode is left", nil
	}
	return "", nil
}
