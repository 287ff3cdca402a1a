package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The bounds of what users type, in characters.
const (
	maxName = 24
	maxText = 1000
)

// Roles.
const (
	customer = "customer"
	admin    = "admin"
)

// User is a signed-in user.
type User struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Role string `json:"role"` // customer or admin; the assistant has one of its own
}

// Message is a message in a room's stream. The ID of its entry has the time of writing.
type Message struct {
	// Key is made by the page. A message that is sent again, because the answer got lost, has
	// the same one, so pages show it once.
	Key          string `json:"key"`
	From         User   `json:"from"`
	Text         string `json:"text"`
	Announcement bool   `json:"announcement,omitempty"` // of an admin
	Question     bool   `json:"question,omitempty"`     // to the assistant
}

// Live is a message on a room's Pub/Sub channel: either the people in the room, published by each
// instance for its own people every few seconds, or a person who is typing.
type Live struct {
	Instance string `json:"instance,omitempty"`
	People   []User `json:"people,omitempty"`
	Typing   *User  `json:"typing,omitempty"`
}

var (
	roomPattern = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$`)
	keyPattern  = regexp.MustCompile(`^[A-Za-z0-9-]{8,64}$`)
)

func checkRoom(name string) error {
	if !roomPattern.MatchString(name) {
		return errors.New("a room's name has 1 to 32 letters a to z, digits and hyphens, and begins and ends with a letter or digit")
	}
	return nil
}

// checkName returns the name as it is shown, without surrounding and repeated spaces.
func checkName(name string) (string, error) {
	name = strings.Join(strings.Fields(name), " ")
	switch {
	case !utf8.ValidString(name):
		return "", errors.New("the name is not valid UTF-8")
	case name == "":
		return "", errors.New("a name is needed")
	case utf8.RuneCountInString(name) > maxName:
		return "", fmt.Errorf("the name has more than %d characters", maxName)
	case strings.ContainsFunc(name, unprintable):
		return "", errors.New("the name has characters that cannot be shown")
	case !strings.ContainsFunc(name, visible):
		return "", errors.New("the name has nothing that can be seen")
	}
	return name, nil
}

// checkText returns the text as it is stored.
func checkText(text string) (string, error) {
	text = strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n"))
	switch {
	case !utf8.ValidString(text):
		return "", errors.New("the message is not valid UTF-8")
	case utf8.RuneCountInString(text) > maxText:
		return "", fmt.Errorf("the message has more than %d characters", maxText)
	case strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && unprintable(r) }):
		return "", errors.New("the message has characters that cannot be shown")
	case !strings.ContainsFunc(text, visible):
		return "", errors.New("the message is empty")
	}
	return text, nil
}

// unprintable says of control characters, and of those that turn the direction of the text
// around them, so that it looks like something else.
func unprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) && r != '\u200e' && r != '\u200f' && r != '\u061c' ||
		unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r)
}

// visible says of characters that leave a mark on the page.
func visible(r rune) bool {
	return unicode.IsGraphic(r) && !unicode.IsSpace(r) && !unicode.IsMark(r) && r != '\u2800'
}
