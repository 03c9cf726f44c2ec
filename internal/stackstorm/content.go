package stackstorm

import (
	"cmp"
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

// DefaultSystemUser is as whom actions run where st2.conf does not say it (st2common/st2common/config.py:81).
const DefaultSystemUser = "stanley"

// SystemUser is [system_user] user: as whom actions run.
func (c *Conf) SystemUser() string { return cmp.Or(c.option("system_user", "user"), DefaultSystemUser) }

// PythonBinary is [actionrunner] python_binary, with which virtualenvs of packs are made; empty for StackStorm's own.
func (c *Conf) PythonBinary() string { return c.option("actionrunner", "python_binary") }
