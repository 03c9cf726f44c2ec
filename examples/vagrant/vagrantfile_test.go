// Package vagrant holds no code: this test evaluates the Vagrantfile with
// Ruby, as Vagrant does, and checks what it defines. Nothing is booted.
package vagrant

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/testenv"
)

// machine is a node as record.rb prints it.
type machine struct {
	Box      string
	Hostname string
	Options  struct{ Primary bool }
	Networks []struct {
		Type string
		IP   string
	}
	Folders []struct {
		From, To string
		Disabled bool
	}
	Providers map[string]struct{ CPUs, Memory int }
}

// evaluate runs a Vagrantfile and returns its machines by name.
func evaluate(t *testing.T, vagrantfile string) (map[string]machine, error) {
	t.Helper()
	testenv.NeedsPrograms(t, "ruby")
	script, err := os.Open("record.rb")
	require.NoError(t, err)
	defer script.Close()
	cmd := exec.CommandContext(t.Context(), "ruby", "-W", "-", vagrantfile)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = script, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Log(stderr.String())
		return nil, err
	}
	assert.Empty(t, stderr.String(), "ruby warns")
	machines := map[string]machine{}
	require.NoError(t, json.Unmarshal(out, &machines), "%s", out)
	return machines, nil
}

func TestVagrantfile(t *testing.T) {
	machines, err := evaluate(t, "Vagrantfile")
	require.NoError(t, err)
	addresses := map[string]string{"primary": "192.168.0.100", "secondary": "192.168.0.101"}
	require.Len(t, machines, len(addresses))
	for name, address := range addresses {
		m, ok := machines[name]
		require.True(t, ok, "no machine %s", name)
		assert.Equal(t, "bento/ubuntu-22.04", m.Box, name)
		assert.Equal(t, name, m.Hostname)
		assert.Equal(t, name == "primary", m.Options.Primary, name)
		require.Len(t, m.Networks, 1, name)
		assert.Equal(t, "private_network", m.Networks[0].Type, name)
		assert.Equal(t, address, m.Networks[0].IP, name)
		require.Len(t, m.Folders, 1, name)
		assert.Equal(t, "/vagrant", m.Folders[0].To, name)
		assert.True(t, m.Folders[0].Disabled, name)
		require.Len(t, m.Providers, 2, name)
		for _, provider := range []string{"virtualbox", "libvirt"} {
			assert.Equal(t, 2, m.Providers[provider].CPUs, "%s with %s", name, provider)
			assert.Equal(t, 2048, m.Providers[provider].Memory, "%s with %s", name, provider)
		}
	}
}

// The addresses are the ones that the README and the example configuration
// have people type.
func TestAddressesAreTheDocumentedOnes(t *testing.T) {
	machines, err := evaluate(t, "Vagrantfile")
	require.NoError(t, err)
	require.NotEmpty(t, machines["primary"].Networks)
	require.NotEmpty(t, machines["secondary"].Networks)
	primary := regexp.QuoteMeta(machines["primary"].Networks[0].IP)
	secondary := regexp.QuoteMeta(machines["secondary"].Networks[0].IP)
	for file, patterns := range map[string][]string{
		"../../README.md":          {`primary\s+` + primary + `\b`, `secondary\s+` + secondary + `\b`, `(?i)CI does not boot`},
		"README.md":                {`\b` + primary + `\b`, `\b` + secondary + `\b`},
		"../../st2ha.yaml.example": {`(?m)^primary: ` + primary + `$`, `(?m)^secondaries:\n  - ` + secondary + `$`},
	} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, pattern := range patterns {
			assert.Regexp(t, pattern, string(text), file)
		}
	}
	// No other address of that network but the lab's: a typo would be one.
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	known := map[string]bool{"192.168.0.100": true, "192.168.0.101": true, "192.168.0.102": true}
	for _, address := range regexp.MustCompile(`\b192\.168\.\d+\.\d+\b`).FindAllString(string(text), -1) {
		assert.True(t, known[address], "README.md has the address %s", address)
	}
}

// A setting that record.rb does not know is an error, so that none goes unchecked.
func TestUnknownSettingIsAnError(t *testing.T) {
	for name, text := range map[string]string{
		"vm":       "Vagrant.configure('2') { |c| c.vm.guest = :linux; c.vm.define('a') { |n| } }",
		"provider": "Vagrant.configure('2') { |c| c.vm.provider('virtualbox') { |v| v.gui = true }; c.vm.define('a') { |n| } }",
		"syntax":   "Vagrant.configure('2') do",
	} {
		t.Run(name, func(t *testing.T) {
			file := t.TempDir() + "/Vagrantfile"
			require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			_, err := evaluate(t, file)
			assert.Error(t, err)
		})
	}
}
