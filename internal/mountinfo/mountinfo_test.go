package mountinfo

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	got, err := Parse([]byte(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue
58 29 0:52 / /opt/stackstorm/packs rw,relatime - nfs4 192.168.0.100:/opt/stackstorm/packs rw,vers=4.2
59 29 0:53 / /x rw - tmpfs  rw
`))
	require.NoError(t, err)
	assert.Equal(t, []Mount{
		{Root: "/mnt1", Point: "/mnt 2", FSType: "ext3", Source: "/dev/root", Options: []string{"rw", "noatime"},
			SuperOptions: []string{"rw", "errors=continue"}},
		{Root: "/", Point: "/opt/stackstorm/packs", FSType: "nfs4", Source: "192.168.0.100:/opt/stackstorm/packs",
			Options: []string{"rw", "relatime"}, SuperOptions: []string{"rw", "vers=4.2"}},
		{Root: "/", Point: "/x", FSType: "tmpfs", Options: []string{"rw"}, SuperOptions: []string{"rw"}},
	}, got)
	_, err = Parse([]byte("36 35 98:0 / / rw shared:2 ext3 a rw\n"))
	require.EqualError(t, err, "line 1 is not a line of mountinfo")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\n"))
	f.Add([]byte("59 29 0:53 / /x rw - tmpfs  rw\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		got, err := Parse(src)
		if err == nil && len(got) != bytes.Count(append(bytes.TrimSuffix(src, []byte("\n")), 'x'), []byte("\n"))+1 &&
			len(src) > 0 {
			t.Fatalf("%d mounts of %q", len(got), src)
		}
	})
}
