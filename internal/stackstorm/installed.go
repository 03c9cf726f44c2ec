package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"st2ha/internal/host"
)

// home is where StackStorm's packages install it: a Python virtualenv.
const home = "/opt/stackstorm/st2"

var (
	st2Version = regexp.MustCompile(`__version__\s*=\s*["']([^"']+)`)
	pyVersion  = regexp.MustCompile(`(?m)^version(?:_info)?\s*=\s*([0-9][0-9.]*[0-9])`)
)

// Installed are the versions of StackStorm on a host and of the Python that runs it, read from files: neither
// interpreter is started. What cannot be found is empty.
func Installed(ctx context.Context, h host.Host) (version, python string, err error) {
	names, err := h.ReadDir(ctx, home+"/lib")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "python") {
			continue
		}
		f, err := h.ReadFile(ctx, path.Join(home, "lib", name, "site-packages/st2common/__init__.py"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		m := st2Version.FindSubmatch(f.Data)
		if m == nil {
			return "", "", fmt.Errorf("%s: %s does not say which version of StackStorm it is", h.Name(), f.Path)
		}
		version, python = string(m[1]), strings.TrimPrefix(name, "python")
	}
	f, err := h.ReadFile(ctx, home+"/pyvenv.cfg") // the third part of the number, which the directory's name has not
	if m := pyVersion.FindSubmatch(f.Data); err == nil && m != nil {
		python = string(m[1])
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return version, python, err
}
