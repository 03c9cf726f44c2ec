package host

import "strings"

// quote is s as one word of a POSIX shell, whatever its bytes. A NUL byte
// cannot be quoted; checkArgv has refused it.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// quoteAll is argv as words of a POSIX shell.
func quoteAll(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = quote(a)
	}
	return strings.Join(words, " ")
}
