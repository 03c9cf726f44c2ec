package step

import (
	"encoding/json"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// Masker replaces secrets in what people and logs get to see.
type Masker struct {
	secrets  []string
	userinfo *regexp.Regexp
	option   *regexp.Regexp
}

// NewMasker masks the given values, as they are and as they look in a URI or
// in Go's and JSON's quotes, beside the passwords it knows by their place: the
// userinfo of a URI and options such as "password = ".
func NewMasker(secrets ...string) *Masker {
	m := &Masker{
		userinfo: regexp.MustCompile(`(://[^:/@\s]*:)[^/\s]*@`),
		option:   regexp.MustCompile(`(?im)^([-+ \t]*[a-z_.]*(?:password|passwd|secret|token|api_key)[a-z_]*"?\s*[=:][ \t]*)\S.*$`),
	}
	for _, s := range secrets {
		if s == "" {
			continue
		}
		inJSON, _ := json.Marshal(s) // never fails for a string
		inGo, query := strconv.Quote(s), url.QueryEscape(s)
		m.secrets = append(m.secrets, s, query, strings.ReplaceAll(query, "+", "%20"), url.PathEscape(s),
			url.UserPassword("", s).String()[1:], strings.ReplaceAll(s, "$", "$$"), inGo[1:len(inGo)-1],
			string(inJSON[1:len(inJSON)-1]))
	}
	return m
}

const masked = "********"

// Mask returns text without secrets.
func (m *Masker) Mask(text string) string {
	for _, s := range m.secrets {
		text = strings.ReplaceAll(text, s, masked)
	}
	text = m.userinfo.ReplaceAllString(text, "${1}"+masked+"@")
	return m.option.ReplaceAllString(text, "${1}"+masked)
}
