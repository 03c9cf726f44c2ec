package stackstorm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// SyncKeys is the step sync_keys: a secondary has the primary's key of the datastore and its htpasswd, each where its
// own st2.conf has it.
type SyncKeys struct {
	Primary host.Host
	Restart When
	Run     string // the run's name, which the restart may wait for
}

// Name is sync_keys.
func (s *SyncKeys) Name() string { return "sync_keys" }

// The files that are shared, by what findings about them are called.
const (
	keyFile      = "datastore_key"
	passwordFile = "htpasswd"
)

// sharedFile is a file whose bytes all nodes must have.
type sharedFile struct {
	name   string // keyFile or passwordFile
	path   string // on the secondary
	source string // on the primary
	data   []byte // the primary's
}

// EncryptionKey is the file of the key that encrypts the datastore's values,
// [keyvalue] encryption_key_path; empty if there is none
// (st2common/st2common/config.py:495: there is none by default).
func (c *Conf) EncryptionKey() string { return c.option("keyvalue", "encryption_key_path") }

// Passwords is the file of the users that log in with a password, as [auth] has it for the backend flat_file, which is
// the default in mode standalone (st2auth/st2auth/config.py); empty if there is none.
func (c *Conf) Passwords() string {
	for key, want := range map[string]string{"mode": "standalone", "backend": "flat_file"} {
		if value := c.option("auth", key); value != "" && value != want {
			return ""
		}
	}
	var args struct {
		Path string `json:"file_path"`
	}
	if json.Unmarshal([]byte(c.option("auth", "backend_kwargs")), &args) != nil {
		return "" // st2auth does not start with it, and says so
	}
	return args.Path
}

// look reads what the primary has to share, and says what stands in the way.
func (s *SyncKeys) look(ctx context.Context, conf *Conf) (files []sharedFile, found []step.Finding, err error) {
	source, err := ReadConf(ctx, s.Primary)
	if err != nil {
		return nil, nil, err
	}
	add := func(h host.Host, severity step.Severity, check, message, fix string) {
		found = append(found, step.Finding{Severity: severity, Host: h.Name(), Check: check, Message: message, Fix: fix})
	}
	for _, f := range []sharedFile{
		{name: keyFile, source: source.EncryptionKey(), path: conf.EncryptionKey()},
		{name: passwordFile, source: source.Passwords(), path: conf.Passwords()},
	} {
		if f.source == "" {
			if f.name == keyFile && f.path != "" {
				add(conf.host, step.Warning, keyFile, fmt.Sprintf("%s has [keyvalue] encryption_key_path, and the primary's "+
					"has none: what this node encrypts in the datastore, the primary cannot read", ConfPath),
					"set it on the primary as well, and run this again")
			}
			continue
		}
		got, err := s.Primary.ReadFile(ctx, f.source)
		if errors.Is(err, fs.ErrNotExist) {
			add(s.Primary, step.Warning, f.name, fmt.Sprintf("%s names %s, which does not exist: there is nothing to copy",
				ConfPath, f.source), "put it back from a backup, or take the setting out; then run this again")
			continue
		} else if err != nil {
			return nil, nil, err
		}
		switch f.data = got.Data; {
		case f.path == "" && f.name == passwordFile:
			add(conf.host, step.Warning, passwordFile, fmt.Sprintf("[auth] of %s does not have the primary's backend, "+
				"flat_file with file_path: who logs in there with a password cannot do so here", ConfPath),
				"set mode, backend and backend_kwargs as on the primary, and run this again")
			continue
		case f.path == "":
			f.path = f.source
		}
		if _, err := parseKey(f.data); err != nil && f.name == keyFile {
			add(s.Primary, step.Error, keyFile, fmt.Sprintf("%s is no key of the datastore: %v", f.source, err),
				"put it back from a backup, or take [keyvalue] encryption_key_path out of "+ConfPath)
			continue
		}
		if !path.IsAbs(f.path) {
			add(conf.host, step.Error, f.name, fmt.Sprintf("%s names %q, which is no absolute path", ConfPath, f.path),
				"write it as an absolute path")
			continue
		}
		files = append(files, f)
	}
	return files, found, nil
}

// Check says what cannot be copied, and which files of the node are to be replaced.
func (s *SyncKeys) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	files, found, err := s.look(ctx, conf)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		have, existed, err := step.ReadOrEmpty(ctx, h, f.path, 0)
		if err != nil {
			return nil, err
		}
		if existed && f.replaces(have.Data) {
			found = append(found, step.Finding{Severity: step.Warning, Host: h.Name(), Check: f.name,
				Message: fmt.Sprintf("%s is not the primary's %s: that takes its place, and it is kept as %s", f.path, f.source,
					f.aside(have.Data)),
				Fix: "nothing; what this node's own database holds can be read or used with the file that is kept"})
		}
	}
	return found, nil
}

// replaces says whether there is something that would be lost.
func (f sharedFile) replaces(have []byte) bool { return len(have) > 0 && !bytes.Equal(have, f.data) }

// aside is where the node's own file is kept: the name says which, so that a second one has another.
func (f sharedFile) aside(have []byte) string {
	sum := sha256.Sum256(have)
	return f.path + ".before-st2ha-" + hex.EncodeToString(sum[:4])
}

// Plan writes the files, and names the key's in st2.conf where that has none.
func (s *SyncKeys) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	files, _, err := s.look(ctx, conf)
	if err != nil {
		return nil, err
	}
	var changes []step.Change
	made := map[string]bool{}
	for _, f := range files {
		more, err := f.plan(ctx, h, made)
		if err != nil {
			return nil, err
		}
		changes = append(changes, more...)
		if f.name == keyFile && conf.EncryptionKey() == "" {
			if err := conf.Set("keyvalue", "encryption_key_path", escape(f.path)); err != nil {
				return nil, conf.located("keyvalue", "encryption_key_path", err)
			}
		}
	}
	if edit := conf.Change(); edit != nil {
		changes = append(changes, edit)
	}
	restart, err := planRestart(ctx, h, s.Restart, len(changes) > 0, s.Run)
	if err != nil {
		return nil, err
	}
	if restart != nil {
		changes = append(changes, restart)
	}
	return changes, nil
}

// plan makes the file the primary's. Its owner and mode stay if st2 can read it and nobody else; else they are those
// that StackStorm's packages give such a file, st2:st2 and 0600 (conf/BUILD:102). made are the directories that this
// plan makes.
func (f sharedFile) plan(ctx context.Context, h host.Host, made map[string]bool) (changes []step.Change, err error) {
	owner, err := serviceUser(ctx, h)
	if err != nil {
		return nil, err
	}
	have, existed, err := step.ReadOrEmpty(ctx, h, f.path, owner.Mode)
	if err != nil {
		return nil, err
	}
	if !existed {
		have.UID, have.GID = owner.UID, owner.GID
		dir := path.Dir(f.path)
		there, err := exists(ctx, h, dir)
		if err != nil {
			return nil, err
		}
		if !there && !made[dir] {
			made[dir] = true
			if above, err := exists(ctx, h, path.Dir(dir)); err != nil {
				return nil, err
			} else if !above {
				return nil, fault.Preflight("key_directory", "make it on "+h.Name()+", or name another path in "+ConfPath,
					"%s: there is no directory %s for %s", h.Name(), path.Dir(dir), f.path)
			}
			// As the installer leaves /etc/st2/keys.
			changes = append(changes, &step.MakeDir{Dir: dir, Mode: 0o750, GID: owner.GID, Shared: true})
		}
	}
	private := have.Mode&0o007 == 0
	readable := have.UID == owner.UID && have.Mode&0o400 != 0 || have.GID == owner.GID && have.Mode&0o040 != 0
	if private && readable {
		owner = step.Owner{Mode: have.Mode, UID: have.UID, GID: have.GID}
	}
	if existed && f.replaces(have.Data) {
		kept, there, err := step.ReadOrEmpty(ctx, h, f.aside(have.Data), owner.Mode)
		if err != nil {
			return nil, err
		}
		if !there {
			kept.UID, kept.GID = owner.UID, owner.GID
		}
		if c := step.EditSecret(kept, there, have.Data, owner); c != nil {
			changes = append(changes, c)
		}
	}
	if c := step.EditSecret(have, existed, f.data, owner); c != nil {
		changes = append(changes, c)
	}
	return changes, nil
}

func exists(ctx context.Context, h host.Host, path string) (bool, error) {
	_, err := h.Stat(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// serviceUser is whom the packages give what only the services may read, with its mode.
func serviceUser(ctx context.Context, h host.Host) (step.Owner, error) {
	out, err := h.Run(ctx, nil, "getent", "passwd", "st2")
	fields := strings.Split(strings.TrimSpace(string(out)), ":")
	if err != nil || len(fields) < 4 {
		return step.Owner{}, fault.Preflight("ids", "install StackStorm on "+h.Name()+" first; its packages create the user",
			"%s: there is no user st2", h.Name())
	}
	uid, uidErr := strconv.Atoi(fields[2])
	gid, gidErr := strconv.Atoi(fields[3])
	if err := errors.Join(uidErr, gidErr); err != nil {
		return step.Owner{}, fmt.Errorf("%s: user st2: %w", h.Name(), err)
	}
	return step.Owner{Mode: 0o600, UID: uid, GID: gid}, nil
}

// Verify proves that what the primary's key encrypts is decrypted by the one that the node's st2.conf names, that the
// users are the same, and that the services' user can read both files.
func (s *SyncKeys) Verify(ctx context.Context, h host.Host) error {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return err
	}
	files, _, err := s.look(ctx, conf)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.name == keyFile {
			f.path = conf.EncryptionKey() // and nowhere else
		}
		have, existed, err := step.ReadOrEmpty(ctx, h, f.path, 0)
		if err == nil && !existed && len(f.data) == 0 {
			continue // nobody has a password on either
		}
		if err == nil {
			err = f.proves(have.Data)
		}
		if err != nil {
			return fault.Failed(f.name, "run sync_keys on it", "%s: compare %s with the primary's %s: %w", h.Name(), f.path,
				f.source, err)
		}
		if _, err := h.Run(ctx, nil, "runuser", "-u", "st2", "--", "test", "-r", f.path); err != nil {
			return fault.Failed(f.name, "look at the modes of the directories above it",
				"%s: user st2 cannot read %s: %w", h.Name(), f.path, err)
		}
	}
	return nil
}

// proves has one node's file read what the other one's has written.
func (f sharedFile) proves(have []byte) error {
	if f.name == passwordFile {
		if !bytes.Equal(have, f.data) {
			return errors.New("they differ")
		}
		return nil
	}
	theirs, err := parseKey(f.data)
	if err != nil {
		return err
	}
	own, err := parseKey(have)
	if err != nil {
		return err
	}
	token := rand.Text()
	encrypted, err := theirs.encrypt(token)
	if err != nil {
		return err
	}
	decrypted, err := own.decrypt(encrypted)
	if err == nil && decrypted != token {
		err = errors.New("a value comes out as another one")
	}
	return err
}
