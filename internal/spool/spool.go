// Package spool keeps events on disk until somebody has taken them: what a
// node's watchdog saw while the message bus was away. It outlives a kill and a
// power cut at any point.
package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A segment is a file of records: length and CRC-32C of the payload, four
// bytes each, big endian, then the payload, ID, newline, data. Only the newest
// segment is written to, so only its end can be torn. A record that is broken
// elsewhere (a flipped byte) costs itself: the next one is found by its checksum.
const (
	segmentSize = 1 << 20
	headerSize  = 8
	maxRecord   = 1 << 20
	suffix      = ".segment"
	ackFile     = "taken"
)

// Record is one event.
type Record struct {
	ID   string // unique; what a reader tells a repetition by
	Data []byte
	// Broken is how many records before this one could not be read, at least;
	// they are counted once, for they are taken with it.
	Broken int
	end    position
}

// position is a place in the spool.
type position struct {
	segment uint64
	offset  int64
}

func (p position) before(q position) bool {
	return p.segment < q.segment || p.segment == q.segment && p.offset < q.offset
}

// Spool is a directory of segments. It is safe for concurrent use, by one
// process at a time.
type Spool struct {
	dir   string
	limit int64
	lock  *os.File
	more  chan struct{}

	mu       sync.Mutex
	segments []uint64 // oldest first; the last one is written to
	sizes    map[uint64]int64
	out      *os.File
	taken    position // all before it was taken
}

// Open opens or makes the spool in dir, whose parent exists. What a kill left
// half written at its end is cut off. limit bounds its size in bytes, give or
// take a segment.
func Open(dir string, limit int64) (*Spool, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("spool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &Spool{dir: dir, limit: limit, lock: lock, more: make(chan struct{}, 1), sizes: map[uint64]int64{}}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("spool %s is in use by another watchdog: %w", dir, err)
	}
	if err := s.load(); err != nil {
		s.Close()
		return nil, fmt.Errorf("spool: %w", err)
	}
	s.wake()
	return s, nil
}

// Close lets the directory go.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out != nil {
		_ = s.out.Close()
		s.out = nil
	}
	return s.lock.Close()
}

// load finds the segments, mends the newest, and removes what was taken.
func (s *Spool) load() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if number, ok := strings.CutSuffix(e.Name(), suffix); ok {
			n, err := strconv.ParseUint(number, 10, 64)
			if err != nil {
				continue
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			s.segments = append(s.segments, n)
			s.sizes[n] = info.Size()
		}
	}
	slices.Sort(s.segments)
	if len(s.segments) == 0 {
		return s.begin(1)
	}
	s.readTaken()
	last := s.segments[len(s.segments)-1]
	if s.out, err = os.OpenFile(s.path(last), os.O_RDWR, 0o600); err != nil {
		return err
	}
	data, err := readSegment(s.out)
	if err != nil {
		return err
	}
	whole := int64(0)
	for {
		_, payload := next(data, whole)
		if payload.end == 0 {
			break // torn, or the end
		}
		whole = payload.end
	}
	s.sizes[last] = whole
	if err := s.out.Truncate(whole); err != nil {
		return err
	}
	if err := s.out.Sync(); err != nil {
		return err
	}
	return s.removeTaken()
}

// readTaken reads how far was taken. What is missing, torn or beyond the end
// counts as nothing taken of what is still there: better twice than never.
func (s *Spool) readTaken() {
	s.taken = position{s.segments[0], 0}
	data, err := os.ReadFile(filepath.Join(s.dir, ackFile))
	if err != nil {
		return
	}
	var p position
	if n, _ := fmt.Sscanf(string(data), "%d %d\n", &p.segment, &p.offset); n != 2 {
		return
	}
	size, ok := s.sizes[p.segment]
	if ok && p.offset <= size && s.taken.before(p) {
		s.taken = p
	}
}

func (s *Spool) path(segment uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%012d%s", segment, suffix))
}

// begin makes a new segment the one that is written to.
func (s *Spool) begin(n uint64) error {
	// What is there is the rest of a try that failed, for want of a descriptor or of room.
	out, err := os.OpenFile(s.path(n), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil {
		out.Close()
		return err
	}
	if s.out != nil {
		_ = s.out.Close()
	}
	s.out = out
	s.segments = append(s.segments, n)
	s.sizes[n] = 0
	if len(s.segments) == 1 {
		s.taken = position{n, 0}
	}
	return nil
}

// Append adds a record. It is on the disk when Append returns. lost is how
// many older ones, not taken yet, had to go to keep the spool within its limit.
func (s *Spool) Append(id string, data []byte) (lost int, err error) {
	if id == "" || strings.ContainsAny(id, "\n") || len(id)+len(data) >= maxRecord {
		return 0, fmt.Errorf("spool: this cannot be kept as one record: id %q, %d bytes", id, len(data))
	}
	payload := append([]byte(id+"\n"), data...)
	record := make([]byte, headerSize, headerSize+len(payload))
	binary.BigEndian.PutUint32(record, uint32(len(payload)))
	binary.BigEndian.PutUint32(record[4:], checksum(payload))
	record = append(record, payload...)

	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.segments[len(s.segments)-1]
	if s.sizes[last] > 0 && s.sizes[last]+int64(len(record)) > segmentSize {
		if err := s.begin(last + 1); err != nil {
			return 0, fmt.Errorf("spool: %w", err)
		}
		last++
	}
	_, err = s.out.WriteAt(record, s.sizes[last])
	if err == nil {
		err = s.out.Sync()
	}
	if err != nil {
		_ = s.out.Truncate(s.sizes[last]) // else the next one overwrites it
		return 0, fmt.Errorf("spool: %w", err)
	}
	s.sizes[last] += int64(len(record))
	s.wake()
	return s.bound(), nil
}

// bound removes the oldest segments beyond the limit.
func (s *Spool) bound() (lost int) {
	total := int64(0)
	for _, size := range s.sizes {
		total += size
	}
	for total > s.limit && len(s.segments) > 1 {
		oldest := s.segments[0]
		if s.taken.segment <= oldest { // else it was counted, and could not be removed
			from := int64(0)
			if s.taken.segment == oldest {
				from = s.taken.offset
			}
			records, broken, _ := s.scan(oldest, from, -1)
			for _, r := range records {
				broken += r.Broken
			}
			lost += len(records) + broken
			s.taken = position{s.segments[1], 0}
		}
		total -= s.sizes[oldest]
		if s.removeTaken() != nil {
			break // tried again with the next record; this one is on the disk
		}
	}
	return lost
}

// More has a token when there may be records to read.
func (s *Spool) More() <-chan struct{} { return s.more }

func (s *Spool) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// Read returns the oldest records that were not taken, at most n. Without Taken
// it returns the same again.
func (s *Spool) Read(n int) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Record
	from, broken := s.taken.offset, 0
	for _, segment := range s.segments {
		if segment < s.taken.segment {
			continue
		}
		records, rest, err := s.scan(segment, from, n-len(all))
		if err != nil {
			return all, fmt.Errorf("spool: %w", err)
		}
		if len(records) > 0 {
			records[0].Broken += broken
			broken = 0
		}
		all, from, broken = append(all, records...), 0, broken+rest
		if len(all) >= n {
			break
		}
	}
	return all, nil
}

// scan reads at most n records of a segment, all if n is negative. broken is
// how many could not be read at its end.
func (s *Spool) scan(segment uint64, offset int64, n int) (all []Record, broken int, err error) {
	f, err := os.Open(s.path(segment))
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	data, err := readSegment(f)
	if err != nil {
		return nil, 0, err
	}
	// What is written beyond the size was never said to be there.
	data = data[:min(int64(len(data)), s.sizes[segment])]
	for n < 0 || len(all) < n {
		skipped, found := next(data, offset)
		if found.end == 0 {
			if offset < int64(len(data)) {
				broken = 1
			}
			break
		}
		r := Record{end: position{segment, found.end}}
		if skipped {
			r.Broken = 1
		}
		offset = found.end
		id, rest, _ := bytes.Cut(data[found.start:found.end], []byte("\n"))
		r.ID, r.Data = string(id), rest
		all = append(all, r)
	}
	return all, broken, nil
}

// Taken notes that a record, and all before it, need not be read again.
func (s *Spool) Taken(r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.taken.before(r.end) {
		return nil
	}
	s.taken = r.end
	if i := slices.Index(s.segments, r.end.segment); i >= 0 && i < len(s.segments)-1 &&
		r.end.offset >= s.sizes[r.end.segment] {
		s.taken = position{s.segments[i+1], 0}
	}
	// Not synced: after a power cut some go out twice, which readers expect.
	name := filepath.Join(s.dir, ackFile)
	if err := os.WriteFile(name+".new", fmt.Appendf(nil, "%d %d\n", s.taken.segment, s.taken.offset), 0o600); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := s.removeTaken(); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// removeTaken removes the segments of which all was taken.
func (s *Spool) removeTaken() error {
	for len(s.segments) > 1 && s.segments[0] < s.taken.segment {
		if err := os.Remove(s.path(s.segments[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(s.sizes, s.segments[0])
		s.segments = s.segments[1:]
	}
	return nil
}

// readSegment reads a whole segment; one record may reach beyond its size.
func readSegment(f *os.File) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(f, 0, segmentSize+headerSize+maxRecord))
}

// extent is where a payload lies in a segment; its end is zero if there is none.
type extent struct{ start, end int64 }

// next finds the first whole record from an offset on. skipped says that it is
// not right there. A payload begins with an ID and a newline, and events are
// text: so few places look like a header that each can be tried.
func next(data []byte, from int64) (skipped bool, found extent) {
	for at := from; at+headerSize < int64(len(data)); at++ {
		length := int64(binary.BigEndian.Uint32(data[at:]))
		e := extent{at + headerSize, at + headerSize + length}
		if length > 0 && length <= maxRecord && e.end <= int64(len(data)) &&
			checksum(data[e.start:e.end]) == binary.BigEndian.Uint32(data[at+4:]) {
			return at != from, e
		}
	}
	return true, extent{}
}

func checksum(payload []byte) uint32 {
	return crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
