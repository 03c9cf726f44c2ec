// Package page has a real browser show the page of cluster_status, and compares what people see.
package page

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the pictures anew")

// The pages are those of internal/status, made of fixed inputs.
const pages = "../../internal/status/testdata"

// browser is one run of Chromium: what it is given, and what it prints. scheme is what the user prefers.
func browser(t *testing.T, scheme, page string, flags ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dark := map[string]string{"dark": "0", "light": "1"}[scheme] // blink::mojom::PreferredColorScheme
	args := append([]string{"--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
		"--no-sandbox", // a test runs as root, and the page is our own
		"--user-data-dir=" + t.TempDir(), "--allow-file-access-from-files", "--blink-settings=preferredColorScheme=" + dark},
		flags...)
	cmd := exec.CommandContext(ctx, "chromium", append(args, "file://"+page)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", &stderr)
	return out
}

// needs skips where make page has not installed what is needed, and returns the path of axe-core.
func needs(t *testing.T) string {
	t.Helper()
	axe := os.Getenv("AXE")
	if axe == "" {
		t.Skip("it takes a browser and axe-core: make page installs and runs both")
	}
	return axe
}

// write makes a file of the test's own, and returns its path.
func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page.html")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	return file
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(pages, name+".html"))
	require.NoError(t, err)
	return string(data)
}

// violation is what axe-core found.
type violation struct {
	ID, Help string
	Nodes    []struct{ HTML, FailureSummary string }
}

// audit has axe-core look at a page, with all rules of WCAG 2.2 AA and of good practice. The browser's policy of the page,
// which lets no script in, is taken out for that alone.
func audit(t *testing.T, axe, scheme, text string) []violation {
	t.Helper()
	script, err := os.ReadFile(axe)
	require.NoError(t, err)
	policy := regexp.MustCompile(`<meta http-equiv="Content-Security-Policy"[^>]*>`)
	require.Regexp(t, policy, text)
	text = policy.ReplaceAllString(text, "")
	const run = `<script>axe.run(document, {resultTypes: ["violations"]}).then(function (r) {
  var said = document.createElement("pre");
  said.id = "said"; said.textContent = JSON.stringify(r.violations); document.body.appendChild(said);
});</script>`
	text = strings.Replace(text, "</body>", "<script>"+string(script)+"</script>"+run+"</body>", 1)
	out := browser(t, scheme, write(t, text), "--window-size=1200,3000", "--virtual-time-budget=20000", "--dump-dom")
	m := regexp.MustCompile(`(?s)<pre id="said">(.*?)</pre>`).FindSubmatch(out)
	require.NotNil(t, m, "axe-core has not ended")
	var found []violation
	require.NoError(t, json.Unmarshal([]byte(html.UnescapeString(string(m[1]))), &found))
	return found
}

// Everybody can read the page: landmarks, headings, tables, names of pictures, contrast.
func TestAccessible(t *testing.T) {
	axe := needs(t)
	for scheme, faint := range map[string]string{"light": "#bbb", "dark": "#444"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			require.Empty(t, audit(t, axe, scheme, read(t, "troubled")))
			// The other page, and proof that the check can fail: a text that is too faint in this scheme is all that is found.
			spoilt := strings.Replace(read(t, "healthy"), "</style>", ".soft{color:"+faint+"!important}</style>", 1)
			found := audit(t, axe, scheme, spoilt)
			require.Len(t, found, 1, "%+v", found)
			require.Equal(t, "color-contrast", found[0].ID)
		})
	}
}

// What the page looks like, on a phone and on a desk: as in the pictures that people have looked at.
func TestLooks(t *testing.T) {
	needs(t)
	for _, c := range []struct {
		name, device, scheme string
		width, height        int
	}{
		{"healthy", "phone", "dark", 390, 3000},
		{"healthy", "desk", "light", 1100, 2100},
		{"troubled", "phone", "light", 390, 1700},
		{"troubled", "desk", "dark", 1100, 1500},
	} {
		t.Run(c.name+"-"+c.device+"-"+c.scheme, func(t *testing.T) {
			t.Parallel()
			compare(t, shot(t, c.scheme, c.name, c.width, c.height))
		})
	}
}

// shot is a picture of a page, half as large as it is. A window has a least width, so that the page is in a frame.
func shot(t *testing.T, scheme, name string, width, height int) image.Image {
	t.Helper()
	page, err := filepath.Abs(filepath.Join(pages, name+".html"))
	require.NoError(t, err)
	frame := write(t, fmt.Sprintf(`<!DOCTYPE html><meta name="color-scheme" content="light dark"><style>body{margin:0}`+
		`iframe{border:0;display:block}</style><iframe src="file://%s" width="%d" height="%d"></iframe>`, page, width, height))
	file := filepath.Join(t.TempDir(), "shot.png")
	browser(t, scheme, frame, "--force-device-scale-factor=0.5", fmt.Sprintf("--window-size=%d,%d", max(width, 600), height),
		"--screenshot="+file)
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	whole, err := png.Decode(f)
	require.NoError(t, err)
	part, ok := whole.(interface {
		SubImage(image.Rectangle) image.Image
	})
	require.True(t, ok)
	return part.SubImage(image.Rect(0, 0, width/2, min(height/2, whole.Bounds().Dy())))
}

// Other versions of the browser draw letters a little differently.
const (
	channel   = 48   // of 255, by which a pixel's colour may differ
	different = 0.01 // of all pixels may differ by more
)

// compare compares a picture with the one of the test's name.
func compare(t *testing.T, got image.Image) {
	t.Helper()
	name := filepath.Base(t.Name()) + ".png"
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		save(t, file, got)
	}
	f, err := os.Open(file)
	require.NoError(t, err, "make page UPDATE=-update makes it; look at it")
	defer f.Close()
	want, err := png.Decode(f)
	require.NoError(t, err)
	if part := differing(got, want); part > different {
		seen := filepath.Join(os.TempDir(), "st2ha-"+name)
		save(t, seen, got)
		t.Fatalf("%.1f %% of %s look different: see %s, and if that is right: make page UPDATE=-update", part*100, file, seen)
	}
}

// differing is the part of the pixels that differ; 1 if the sizes do.
func differing(a, b image.Image) float64 {
	size := a.Bounds().Size()
	if size != b.Bounds().Size() {
		return 1
	}
	count := 0
	for y := range size.Y {
		for x := range size.X {
			r1, g1, b1, _ := a.At(a.Bounds().Min.X+x, a.Bounds().Min.Y+y).RGBA()
			r2, g2, b2, _ := b.At(b.Bounds().Min.X+x, b.Bounds().Min.Y+y).RGBA()
			if apart(r1, r2) || apart(g1, g2) || apart(b1, b2) {
				count++
			}
		}
	}
	return float64(count) / float64(size.X*size.Y)
}

func apart(a, b uint32) bool { return max(a, b)-min(a, b) > channel*257 }

func save(t *testing.T, file string, picture image.Image) {
	t.Helper()
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(f, picture))
}

// The comparison can fail.
func TestDiffering(t *testing.T) {
	a, b := image.NewRGBA(image.Rect(0, 0, 10, 10)), image.NewRGBA(image.Rect(0, 0, 10, 10))
	require.Zero(t, differing(a, b))
	b.Pix[0] = channel
	require.Zero(t, differing(a, b))
	b.Pix[0] = 255
	require.InDelta(t, 0.01, differing(a, b), 1e-9)
	require.EqualValues(t, 1, differing(a, image.NewRGBA(image.Rect(0, 0, 9, 10))))
}
