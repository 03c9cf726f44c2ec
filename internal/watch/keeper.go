package watch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/spool"
)

const (
	incidentsName = "incidents.json" // beside the spool
	diskPause     = 2 * time.Second  // until a disk that took no event is tried again
)

// Keeper keeps lines in the spool, and which incidents are open.
type Keeper struct {
	ctx   context.Context
	spool *spool.Spool
	log   *slog.Logger
	file  string // of incidents
	open  []incident.Incident
}

// NewKeeper keeps events in s until ctx ends, and the incidents in dir, from
// where it reads those of a former run.
func NewKeeper(ctx context.Context, s *spool.Spool, dir string, log *slog.Logger) *Keeper {
	k := &Keeper{ctx: ctx, spool: s, log: log, file: filepath.Join(dir, incidentsName)}
	k.load()
	return k
}

// Open are the incidents that have not ended.
func (k *Keeper) Open() []incident.Incident { return k.open }

// load reads the incidents of a former run.
func (k *Keeper) load() {
	data, err := os.ReadFile(k.file)
	if err == nil {
		err = json.Unmarshal(data, &k.open)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("incidents of before are not known, and are told anew", "error", err)
		k.open = nil
	}
	for i, now := 0, time.Now(); i < len(k.open); i++ {
		if k.open[i].Began.After(now) { // the clock was set back since
			k.open[i].Began = now
		}
	}
}

// Write keeps one line. It waits for a disk that is full.
func (k *Keeper) Write(line []byte) (int, error) {
	var e incident.Event
	id := MessageID(line)
	isEvent := json.Unmarshal(line, &e) == nil && e.Event == incident.Changed
	if isEvent {
		id = e.MessageID()
	}
	for told := false; ; told = true {
		lost, err := k.spool.Append(id, bytes.TrimSuffix(line, []byte("\n")))
		if lost > 0 {
			k.log.Error("the spool is full: the oldest events had to go", "lost", lost)
		}
		if err == nil {
			break
		}
		if !told {
			k.log.Error("an event cannot be kept yet", "error", err)
		}
		select {
		case <-k.ctx.Done():
			return 0, err
		case <-time.After(diskPause):
		}
	}
	if isEvent {
		k.note(e)
	}
	return len(line), nil
}

// note writes the open incidents down, after the event: a kill in between has
// the next run tell it again, under the same id.
func (k *Keeper) note(e incident.Event) {
	before := len(k.open)
	k.open = incident.Note(k.open, e)
	if before == 0 && len(k.open) == 0 {
		return
	}
	data, err := json.Marshal(k.open)
	if err == nil {
		err = host.NewLocal("").WriteFile(context.WithoutCancel(k.ctx), host.File{Path: k.file, Data: data, Mode: 0o600, UID: os.Getuid(), GID: os.Getgid()})
	}
	if err != nil {
		k.log.Error("note the open incidents", "error", err)
	}
}

// MessageID is the name of a line that is no change of state.
func MessageID(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:12])
}
