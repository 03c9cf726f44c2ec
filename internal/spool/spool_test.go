package spool

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/testenv"
)

// TestMain is also the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ST2HA_TEST_SPOOL"); dir != "" {
		appendForEver(dir, os.Getenv("ST2HA_TEST_PREFIX"))
	}
	os.Exit(m.Run())
}

// appendForEver says the id of each record that is on the disk.
func appendForEver(dir, prefix string) {
	most := math.MaxInt
	if text := os.Getenv("ST2HA_TEST_RECORDS"); text != "" {
		most, _ = strconv.Atoi(text)
	}
	s, err := Open(dir, 1<<30)
	for i := 0; err == nil; i++ {
		if i == most {
			os.Exit(0)
		}
		id := fmt.Sprintf("%s-%d", prefix, i)
		if _, err = s.Append(id, []byte(strings.Repeat(id, 1+i%500))); err == nil {
			fmt.Println(id)
		}
		if i%7 == 6 && err == nil {
			var records []Record
			if records, err = s.Read(3); err == nil && len(records) > 0 {
				fmt.Println("took", records[len(records)-1].ID, len(records))
				err = s.Taken(records[len(records)-1])
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func open(t *testing.T, dir string, limit int64) *Spool {
	t.Helper()
	s, err := Open(dir, limit)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func ids(t *testing.T, s *Spool) []string {
	t.Helper()
	records, err := s.Read(1 << 20)
	require.NoError(t, err)
	all := []string{}
	for _, r := range records {
		all = append(all, r.ID)
	}
	return all
}

func TestSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, 1<<20)
	for _, id := range []string{"a", "b", "c"} {
		_, err := s.Append(id, []byte("data of\n"+id))
		require.NoError(t, err)
	}
	<-s.More()
	records, err := s.Read(2)
	require.NoError(t, err)
	require.Len(t, records, 2)
	assert.Equal(t, "data of\nb", string(records[1].Data))
	assert.Equal(t, []string{"a", "b", "c"}, ids(t, s), "read again as long as nothing was taken")
	require.NoError(t, s.Taken(records[1]))
	require.NoError(t, s.Taken(records[0]), "taken already")
	assert.Equal(t, []string{"c"}, ids(t, s))

	_, err = Open(dir, 1)
	assert.ErrorContains(t, err, "in use by another watchdog")
	require.NoError(t, s.Close())
	s = open(t, dir, 1<<20)
	assert.Equal(t, []string{"c"}, ids(t, s))
	for _, id := range []string{"", "x\ny"} {
		_, err = s.Append(id, nil)
		assert.ErrorContains(t, err, "cannot be kept as one record")
	}
}

func TestSegments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, 64<<20)
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprint(i))
		_, err := s.Append(want[i], make([]byte, 100<<10))
		require.NoError(t, err)
	}
	files, _ := filepath.Glob(dir + "/*" + suffix)
	require.Len(t, files, 5)
	for len(want) > 0 {
		records, err := s.Read(7)
		require.NoError(t, err)
		require.Equal(t, want[0], records[0].ID)
		require.NoError(t, s.Taken(records[len(records)-1]))
		want = want[len(records):]
		require.NoError(t, s.Close())
		s = open(t, dir, 64<<20)
		require.Equal(t, len(want), len(ids(t, s)))
	}
	files, _ = filepath.Glob(dir + "/*" + suffix)
	assert.Len(t, files, 1, "what was taken is removed")
}

func TestLimit(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "spool"), 3<<20)
	lost := 0
	for i := range 100 {
		n, err := s.Append(fmt.Sprint(i), make([]byte, 100<<10))
		require.NoError(t, err)
		lost += n
	}
	left := ids(t, s)
	assert.Equal(t, 100, lost+len(left), "what goes is counted")
	assert.Equal(t, "99", left[len(left)-1])
	assert.Greater(t, len(left), 10)
}

// Whatever part of the last write reached the disk: what was there before is
// read, nothing that is broken is, and the next record is.
func TestTornTail(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, 1<<20)
	for _, id := range []string{"one", "two"} {
		_, err := s.Append(id, []byte("data"))
		require.NoError(t, err)
	}
	require.NoError(t, s.Close())
	name := s.path(1)
	whole, err := os.ReadFile(name)
	require.NoError(t, err)
	first := len(whole) / 2
	for cut := first; cut < len(whole); cut++ {
		for _, fill := range []byte{0, 0xff} {
			torn := append([]byte{}, whole[:cut]...)
			for len(torn) < len(whole) && fill != 0xff {
				torn = append(torn, fill)
			}
			require.NoError(t, os.WriteFile(name, torn, 0o600))
			s := open(t, dir, 1<<20)
			require.Equal(t, []string{"one"}, ids(t, s), "cut at %d", cut)
			_, err := s.Append("next", []byte("x"))
			require.NoError(t, err)
			require.NoError(t, s.Close())
			s = open(t, dir, 1<<20)
			require.Equal(t, []string{"one", "next"}, ids(t, s))
			require.NoError(t, s.Close())
		}
	}
	require.NoError(t, os.WriteFile(name, whole, 0o600))
	for _, taken := range []string{"", "1", "1 9999999", "7 0\n", "0 0\n", "\x00\x00\x00"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, ackFile), []byte(taken), 0o600))
		s := open(t, dir, 1<<20)
		require.Equal(t, []string{"one", "two"}, ids(t, s), "taken %q: better twice than never", taken)
		require.NoError(t, s.Close())
	}
}

// One flipped byte costs one record, wherever it is, and that is counted once.
func TestFlippedByte(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, 1<<20)
	want := []string{"one", "two", "three", "four"}
	for _, id := range want {
		_, err := s.Append(id, []byte(`{"event": "backend_changed", "id": "`+id+`"}`))
		require.NoError(t, err)
	}
	name := s.path(1)
	whole, err := os.ReadFile(name)
	require.NoError(t, err)
	read := func(s *Spool) (left []string, broken int) {
		records, err := s.Read(100)
		require.NoError(t, err)
		for _, r := range records {
			left = append(left, r.ID)
			broken += r.Broken
		}
		return left, broken
	}
	for at := range whole {
		for _, flip := range []byte{1, 0x80, 0xff} {
			spoilt := slices.Clone(whole)
			spoilt[at] ^= flip
			require.NoError(t, os.WriteFile(name, spoilt, 0o600))
			lost := at * len(want) / len(whole) // they are about the same size
			left, broken := read(s)
			for _, id := range left {
				require.Contains(t, want, id)
			}
			require.Len(t, left, 3, "byte %d", at)
			require.InDelta(t, lost, slices.Index(want, missing(want, left)), 1)
			if left[2] == "four" { // else nobody comes after it yet
				require.Equal(t, 1, broken, "byte %d", at)
			}
		}
	}
	// One after the other that nothing follows, and then something: counted with that.
	spoilt := slices.Clone(whole)
	spoilt[len(whole)-1] ^= 1
	require.NoError(t, os.WriteFile(name, spoilt, 0o600))
	_, err = s.Append("five", []byte("x"))
	require.NoError(t, err)
	left, broken := read(s)
	require.Equal(t, []string{"one", "two", "three", "five"}, left)
	require.Equal(t, 1, broken)
	records, err := s.Read(100)
	require.NoError(t, err)
	require.NoError(t, s.Taken(records[3]))
	left, broken = read(s)
	require.Empty(t, left)
	require.Zero(t, broken, "counted once")
	require.NoError(t, s.Close())

	// The same for a spool that is opened: nothing that follows a broken record is cut off.
	require.NoError(t, os.Remove(filepath.Join(dir, ackFile)))
	whole, err = os.ReadFile(name)
	require.NoError(t, err)
	whole[10] ^= 1
	require.NoError(t, os.WriteFile(name, whole, 0o600))
	s = open(t, dir, 1<<20)
	left, broken = read(s)
	require.Equal(t, []string{"two", "three", "five"}, left)
	require.Equal(t, 2, broken)
}

// missing is the one that is wanted and not there.
func missing(want, have []string) string {
	for _, id := range want {
		if !slices.Contains(have, id) {
			return id
		}
	}
	return ""
}

// A broken record at the end of a segment is counted with the next segment's first.
func TestBrokenEnd(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "spool"), 64<<20)
	for i := range 15 {
		_, err := s.Append(fmt.Sprint(i), make([]byte, 100<<10))
		require.NoError(t, err)
	}
	f, err := os.OpenFile(s.path(1), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{1}, s.sizes[1]-1)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	records, err := s.Read(100)
	require.NoError(t, err)
	require.Len(t, records, 14)
	for _, r := range records {
		if r.Broken > 0 {
			require.Equal(t, "10", r.ID)
			require.Equal(t, 1, r.Broken)
		}
	}
	require.Equal(t, 1, records[9].Broken)
}

// A disk that is full, and a process without descriptors, are errors for as long as that lasts, and no longer.
func TestUsableAgain(t *testing.T) {
	testenv.NeedsRoot(t)
	for name, trouble := range map[string]func(t *testing.T, dir string) (end func()){
		"no descriptors": func(t *testing.T, _ string) func() {
			var limit unix.Rlimit
			require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
			none := limit
			none.Cur = 0
			require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
			return func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }
		},
		"disk full": func(t *testing.T, dir string) func() {
			full := filepath.Join(dir, "full")
			_ = os.WriteFile(full, make([]byte, 8<<20), 0o600)
			return func() { require.NoError(t, os.Remove(full)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, unix.Mount("st2ha-test", dir, "tmpfs", 0, "size=4m"))
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			s := open(t, filepath.Join(dir, "spool"), 64<<20)
			var want []string
			add := func(id string) error {
				_, err := s.Append(id, make([]byte, 300<<10))
				if err == nil {
					want = append(want, id)
				}
				return err
			}
			for i := range 3 { // the next one begins a segment
				require.NoError(t, add(fmt.Sprint(i)))
			}
			end := trouble(t, dir)
			for range 5 {
				require.Error(t, add("x"))
			}
			end()
			for i := range 5 {
				require.NoError(t, add(fmt.Sprint("after ", i)))
			}
			require.Equal(t, want, ids(t, s))
			require.NoError(t, s.Close())
			s = open(t, filepath.Join(dir, "spool"), 64<<20)
			require.Equal(t, want, ids(t, s))
		})
	}
}

// A process that appends and takes is killed again and again: every record it
// said was on the disk is there, or was taken, in order.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	var said []string
	taken := 0
	for round := range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "ST2HA_TEST_SPOOL="+dir, fmt.Sprintf("ST2HA_TEST_PREFIX=r%d", round))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		kill := time.AfterFunc(time.Duration(20+80*round/25)*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if what, ok := strings.CutPrefix(lines.Text(), "took "); ok {
				var id string
				var n int
				_, err := fmt.Sscan(what, &id, &n)
				require.NoError(t, err)
				taken += n
				continue
			}
			said = append(said, lines.Text())
		}
		_ = cmd.Wait()
		kill.Stop()
		require.Equal(t, -1, cmd.ProcessState.ExitCode(), "it was killed, and did not fail")
	}
	require.NotEmpty(t, said)
	left := map[string]bool{}
	s := open(t, dir, 1<<30)
	for _, id := range ids(t, s) {
		require.False(t, left[id], "%s is there twice", id)
		left[id] = true
	}
	missing := 0
	for _, id := range said {
		if !left[id] {
			missing++
		}
	}
	t.Logf("%d records over 25 kills, %d taken, %d left", len(said), taken, len(left))
	assert.LessOrEqual(t, missing, taken, "only what was taken is gone")
}

// The same, with the kill at each system call in turn that changes the disk,
// just before it takes effect (strace(1), --inject with a signal).
func TestKillAtEachSystemCall(t *testing.T) {
	testenv.NeedsPrograms(t, "strace")
	for _, call := range []string{"openat", "pwrite64", "fsync", "write", "renameat"} {
		killed := 0
		for when := 1; when <= 12; when++ {
			dir := filepath.Join(t.TempDir(), "spool")
			cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-P", dir, "-P", dir+"/000000000001.segment", "-P",
				dir+"/"+ackFile+".new", "-P", dir+"/"+ackFile,
				"-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, when), os.Args[0])
			cmd.Env = append(os.Environ(), "ST2HA_TEST_SPOOL="+dir, "ST2HA_TEST_PREFIX=x", "ST2HA_TEST_RECORDS=20")
			out, err := cmd.Output()
			var exit *exec.ExitError
			if err != nil {
				require.ErrorAs(t, err, &exit)
			}
			if exit == nil || exit.ExitCode() == 0 {
				break // it made no more of these calls
			}
			killed++
			check(t, dir, string(out))
		}
		t.Logf("%s: killed at %d calls", call, killed)
		require.Positive(t, killed, call)
	}
}

// check opens what a killed process left: all that it said it had appended is
// there, in order, but for what it said was taken.
func check(t *testing.T, dir, out string) {
	t.Helper()
	var said []string
	taken := 0
	for line := range strings.Lines(out) {
		var id string
		var n int
		if _, err := fmt.Sscanf(line, "took %s %d", &id, &n); err == nil {
			taken += n
			continue
		}
		said = append(said, strings.TrimSpace(line))
	}
	s := open(t, dir, 1<<30)
	left := ids(t, s)
	require.NoError(t, s.Close())
	for first := 0; first <= taken; first++ {
		if first <= len(said) && len(left) >= len(said)-first && slices.Equal(said[first:], left[:len(said)-first]) {
			require.LessOrEqual(t, len(left)-(len(said)-first), 1, "one more record at most than was said: %v, %v", said, left)
			return
		}
	}
	t.Fatalf("said %v, took %d, left %v", said, taken, left)
}
