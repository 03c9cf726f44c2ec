package fault

import (
	"strconv"
	"strings"
)

// Printable is a text from elsewhere for people's terminals: an escape sequence is shown, not obeyed.
func Printable(text string) string {
	quoted := strconv.QuoteToGraphic(text)
	if quoted = quoted[1 : len(quoted)-1]; strings.ContainsAny(quoted, `\`) {
		return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(quoted)
	}
	return text
}
