package enroll

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
)

// note is what passwd(5) has of an account that was made here, so that no other one is ever removed.
const note = "StackStorm system user made by st2ha"

// Account is a user that is made, as StackStorm's packages make it (packaging/deb/scripts/pre-install.sh).
type Account struct {
	User    string
	HadHome bool // its home was there before, and stays
}

func planAccount(ctx context.Context, h host.Host, user string) (*Account, error) {
	a := &Account{User: user}
	_, err := h.Stat(ctx, a.home())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	a.HadHome = err == nil
	return a, nil
}

func (a *Account) home() string { return path.Join("/home", a.User) }

// Kind is "account".
func (a *Account) Kind() string { return "account" }

// Target is the user.
func (a *Account) Target() string { return a.User }

// Diff says what is made, and that its files follow.
func (a *Account) Diff() string { return "+ user " + a.User + ", with its key and authorized_keys" }

// Replans marks that the user's files are planned once it is there.
func (a *Account) Replans() {}

// Apply makes the user.
func (a *Account) Apply(ctx context.Context, h host.Host) error {
	_, err := h.Run(ctx, nil, "useradd", "--create-home", "--home-dir", a.home(), "--user-group", "--shell", "/bin/bash",
		"--comment", note, a.User)
	if err != nil {
		return fault.Failed("account", "make it by hand, then run this again: useradd --create-home "+a.User,
			"%s: make the user %s: %w", h.Name(), a.User, err)
	}
	return nil
}

// Undo removes the user. It may be logged in at the moment: it is as whom nodes reach each other.
func (a *Account) Undo(ctx context.Context, h host.Host) error {
	out, err := h.Run(ctx, nil, "getent", "passwd", a.User)
	var exit *host.ExitError
	if errors.As(err, &exit) && exit.Code == 2 || err == nil && !strings.Contains(string(out), ":"+note+":") {
		return nil
	}
	if err != nil {
		return err
	}
	argv := []string{"userdel", "--force", a.User}
	if !a.HadHome {
		argv = []string{"userdel", "--force", "--remove", a.User}
	}
	if _, err := h.Run(ctx, nil, argv...); err != nil {
		return fault.Failed("account", "remove it by hand: userdel --remove "+a.User, "%s: remove the user %s: %w", h.Name(),
			a.User, err)
	}
	return nil
}
