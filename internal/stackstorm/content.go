package stackstorm

import (
	"path"
	"slices"
	"strings"
)

// ContentSetting is one setting of st2.conf that says where content lies, and
// the directories it names.
type ContentSetting struct {
	Name        string // "[content] packs_base_paths"
	Directories []string
}

// Content are the directories of packs and of what belongs to them, as
// StackStorm takes them from st2.conf (st2common/st2common/config.py:105-160,
// content/utils.py: packs_base_paths are separated by colons).
func (c *Conf) Content() []ContentSetting {
	base := c.option("system", "base_path")
	if base == "" {
		base = "/opt/stackstorm"
	}
	packs := c.option("content", "system_packs_base_path")
	if packs == "" {
		packs = path.Join(base, "packs")
	}
	more := slices.DeleteFunc(strings.Split(c.option("content", "packs_base_paths"), ":"),
		func(dir string) bool { return dir == "" })
	return []ContentSetting{
		{"[system] base_path", []string{path.Join(base, "virtualenvs"), path.Join(base, "configs")}},
		{"[content] system_packs_base_path", []string{packs}},
		{"[content] packs_base_paths", more},
	}
}

// PackDirs are the directories of packs, among Content.
func (c *Conf) PackDirs() []string {
	all := c.Content()
	return slices.Concat(all[1].Directories, all[2].Directories)
}

// EncryptionKey is the file of the key that encrypts the datastore's values,
// [keyvalue] encryption_key_path; empty if there is none.
func (c *Conf) EncryptionKey() string { return c.option("keyvalue", "encryption_key_path") }
