package host_test

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"github.com/stretchr/testify/require"

	"st2ha/internal/host"
	"st2ha/internal/host/hosttest"
)

// oddFiles is an sftp server on standard input and output that says anything
// of its files' sizes.
func oddFiles() {
	h := oddHandlers{}
	_ = sftp.NewRequestServer(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout}, sftp.Handlers{FileGet: h, FilePut: h, FileCmd: h, FileList: h}).Serve()
}

type oddHandlers struct{}

func (oddHandlers) Fileread(*sftp.Request) (io.ReaderAt, error) {
	return bytes.NewReader([]byte("data")), nil
}
func (oddHandlers) Filewrite(*sftp.Request) (io.WriterAt, error)    { return nil, fs.ErrPermission }
func (oddHandlers) Filecmd(*sftp.Request) error                     { return fs.ErrPermission }
func (oddHandlers) Filelist(r *sftp.Request) (sftp.ListerAt, error) { return oddInfo(r.Filepath), nil }
func (i oddInfo) ListAt(to []os.FileInfo, at int64) (int, error) {
	if at > 0 {
		return 0, io.EOF
	}
	to[0] = i
	return 1, io.EOF
}

// oddInfo is that of a path: the root is a directory, all else are files.
type oddInfo string

func (i oddInfo) Name() string       { return string(i) }
func (i oddInfo) ModTime() time.Time { return time.Time{} }
func (i oddInfo) IsDir() bool        { return i == "/" }
func (i oddInfo) Sys() any           { return nil }
func (i oddInfo) Mode() fs.FileMode {
	if i.IsDir() {
		return fs.ModeDir | 0o755
	}
	return 0o644
}
func (i oddInfo) Size() int64 {
	return map[oddInfo]int64{"/negative": -1, "/least": -1 << 63, "/most": 1<<63 - 1, "/zero": 0}[i]
}

// A file's size is what the server says: one of 2^63 and more once was the end
// of the program.
func TestOddSizes(t *testing.T) {
	server := hosttest.NewServer(t)
	server.Script("sudo", `shift 2; case "$*" in *sftp-server*) exec env `+child+`=sftp `+
		host.Quote(os.Args[0])+`;; esac; exec "$@"`)
	s, err := host.DialSSH(t.Context(), server.Config)
	require.NoError(t, err)
	defer s.Close()
	for _, name := range []string{"/negative", "/least", "/zero"} {
		f, err := s.ReadFile(t.Context(), name)
		require.NoError(t, err, name)
		require.Equal(t, "data", string(f.Data), name)
	}
	_, err = s.ReadFile(t.Context(), "/most")
	require.ErrorContains(t, err, "larger than 64 MiB")
}
