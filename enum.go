package redischannels

import (
	"fmt"
	"slices"
	"strings"
)

// enumName returns the name of a value of an enumeration, by which it stands in logs and
// in JSON, or, for a value that has none, its number behind what it is.
func enumName[E ~uint8](names []string, what string, value E) string {
	if int(value) < len(names) && names[value] != "" {
		return names[value]
	}
	return fmt.Sprintf("%s %d", what, uint8(value))
}

// parseEnum sets a value by its name.
func parseEnum[E ~uint8](names []string, what string, text []byte, value *E) error {
	if i := slices.Index(names, string(text)); i >= 0 && len(text) > 0 {
		*value = E(i)
		return nil
	}
	known := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "" })
	return invalidArgument(what, fmt.Errorf(`must be one of "%s", got %q`, strings.Join(known, `", "`), text))
}
