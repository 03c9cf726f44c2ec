package heal

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/step"
)

// lockTime is how long another decision, which takes milliseconds, is waited for.
const lockTime = 5 * time.Second

// locked runs f while nobody else decides on the host: a watchdog and an
// action may want to heal the same fault at the same moment.
func locked(ctx context.Context, h host.Host, f func() error) error {
	for _, dir := range []string{step.StateDir, Dir} {
		if err := h.Mkdir(ctx, dir, host.Info{Mode: 0o700}); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	waiting, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	var release func()
	err := step.Await(waiting, 20*time.Millisecond, func(context.Context) (busy, err error) {
		var held *host.LockedError
		if release, err = h.Lock(ctx, lockFile, "a decision on healing"); errors.As(err, &held) {
			return err, nil
		}
		return nil, err
	}, func(seen error) error { return cmp.Or(ctx.Err(), seen) })
	if err != nil {
		return err
	}
	defer release()
	return f()
}

// file is where a target's account lies. A name has 255 bytes at most.
func file(target string) string {
	name := url.PathEscape(target)
	if len(name) > 200 {
		sum := sha256.Sum256([]byte(target))
		name = name[:160] + "-" + hex.EncodeToString(sum[:8])
	}
	return Dir + "/" + name + ".json"
}

// read returns a target's account. One that is missing or torn is empty: to
// heal once more than the limit does less harm than never to heal again.
func read(ctx context.Context, h host.Host, target string) (account, error) {
	f, err := h.ReadFile(ctx, file(target))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return account{}, err
	}
	var a account
	if err != nil || json.Unmarshal(f.Data, &a) != nil {
		a = account{}
	}
	a.Target = target
	return a, nil
}

func (a account) write(ctx context.Context, h host.Host) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return h.WriteFile(ctx, host.File{Path: file(a.Target), Data: append(data, '\n'), Mode: 0o600})
}
