package backend

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig(`{"primary": "x", "watch_mongodb_uri": "mongodb://h/", "watch_ping_interval": 0.5, "watch_up_after": 3}`)
	require.NoError(t, err)
	assert.Equal(t, "500ms", c.Timing().PingEvery.String())
	assert.Equal(t, "3s", c.UpFor().String())
	for _, text := range []string{`[]`, `{"watch_mongodb_uri": ["mongodb://u:secret@h/"]}`, `{"watch_down_after": -1}`,
		`{"watch_redis_url": "redis://:secret@h`} {
		_, err := ParseConfig(text)
		require.Error(t, err, text)
		assert.NotContains(t, err.Error(), "secret")
	}
}
