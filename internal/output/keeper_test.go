package output

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/incident"
)

// An incident that began in the future, for the clock was set back, began now.
func TestIncidentsOfTheFuture(t *testing.T) {
	k := &Keeper{file: filepath.Join(t.TempDir(), incident.FileName), log: slog.New(slog.DiscardHandler)}
	past := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	data, err := json.Marshal([]incident.Incident{{ID: "a", Began: time.Now().AddDate(1, 0, 0)}, {ID: "b", Began: past}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(k.file, data, 0o600))
	k.load()
	require.WithinDuration(t, time.Now(), k.open[0].Began, 5*time.Second)
	require.Equal(t, past, k.open[1].Began.UTC())
}
