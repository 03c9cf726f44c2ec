package step

import (
	"bytes"

	"github.com/aymanbagabas/go-udiff"
)

// unified shows only the lines that differ, since the ones around them may
// hold anything. Like diff(1) it shows nothing of a program.
func unified(path string, before, after []byte) string {
	if bytes.IndexByte(before, 0) >= 0 || bytes.IndexByte(after, 0) >= 0 {
		return "Binary files a" + path + " and b" + path + " differ\n"
	}
	edits := udiff.Lines(string(before), string(after))
	text, err := udiff.ToUnified("a"+path, "b"+path, string(before), edits, 0)
	if err != nil {
		return path + " differs"
	}
	return text
}
