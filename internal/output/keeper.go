package output

import (
	"context"
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
	"st2ha/internal/wait"
)

const diskPause = 2 * time.Second // until a disk that took no event is tried again

// Keeper keeps messages in a spool, and which incidents are open beside it.
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
	k := &Keeper{ctx: ctx, spool: s, log: log, file: filepath.Join(dir, incident.FileName)}
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
		k.log.Warn("incidents of before are not known, and are reported anew", "error", err)
		k.open = nil
	}
	for i, now := 0, time.Now(); i < len(k.open); i++ {
		if k.open[i].Began.After(now) { // the clock was set back since
			k.open[i].Began = now
		}
	}
}

// Put keeps a message. It waits for a disk that is full.
func (k *Keeper) Put(m Message) error {
	line, err := m.Line()
	if err != nil {
		return err
	}
	id := LineID(line)
	if m.Change != nil {
		id = m.Change.MessageID()
	}
	for logged := false; ; logged = true {
		lost, err := k.spool.Append(id, line)
		if lost > 0 {
			k.log.Error("the spool is full: the oldest events had to go", "lost", lost)
		}
		if err == nil {
			break
		}
		if !logged {
			k.log.Error("an event cannot be kept yet", "error", err)
		}
		if wait.Sleep(k.ctx, diskPause) != nil {
			return err
		}
	}
	if m.Change != nil {
		k.note(*m.Change)
	}
	return nil
}

// note writes the open incidents down, after the event: a kill in between has
// the next run report it again, under the same id.
func (k *Keeper) note(e incident.Event) {
	before := len(k.open)
	k.open = incident.Note(k.open, e)
	if before == 0 && len(k.open) == 0 {
		return
	}
	data, err := json.Marshal(k.open)
	if err == nil {
		err = host.NewLocal("").WriteFile(context.WithoutCancel(k.ctx),
			host.File{Path: k.file, Data: data, Mode: 0o600, UID: os.Getuid(), GID: os.Getgid()})
	}
	if err != nil {
		k.log.Error("note the open incidents", "error", err)
	}
}
