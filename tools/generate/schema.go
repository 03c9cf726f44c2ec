package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// schema is what StackStorm says of a type's JSON, as YAML of which each line but the first begins with n spaces
// (st2common/util/schema/action_output_schema.json). What may be left out is not required.
func schema(n int, t reflect.Type) string {
	text := strings.Builder{}
	space := strings.Repeat(" ", n)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[time.Time](), t.Kind() == reflect.String:
		return "type: string"
	case t.Kind() == reflect.Bool:
		return "type: boolean"
	case t.Kind() == reflect.Float64:
		return "type: number"
	case t.Kind() == reflect.Slice:
		return "type: array\n" + space + "items:\n" + space + "  " + schema(n+2, t.Elem())
	case t.Kind() != reflect.Struct:
		return "type: integer"
	}
	text.WriteString("type: object\n" + space + "properties:")
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" || f.Anonymous {
			continue
		}
		fmt.Fprintf(&text, "\n%s  %s:\n%s    %s", space, name, space, schema(n+4, f.Type))
		if !strings.Contains(options, "omit") {
			fmt.Fprintf(&text, "\n%s    required: true", space)
		}
	}
	return text.String()
}
