package main

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	cookiePrefix = "chat_"

	// sessionAge is how long a user stays signed in.
	sessionAge = 24 * time.Hour

	// maxSessions is how many users one browser may be at once, one in each tab.
	maxSessions = 12
)

var errNoSession = errors.New("not signed in")

// sessions know users by signed cookies. The keys are kept in Redis, so all instances, and the
// ones started later, know the same users.
//
// Each tab is a user of its own, so that one person can try the chat alone. So a user's cookie
// has the user's ID in its name, and a request says by ?as=ID who of the browser's users sends it.
// The ID is public; the cookie, which scripts cannot read, is the proof.
type sessions struct {
	secret   []byte
	adminKey string
}

// session is the content of a cookie.
type session struct {
	User  User  `json:"u"`
	Since int64 `json:"t"` // Unix seconds
}

// newSessions takes the keys from Redis, where the first instance has put them. An adminKey that
// is given is used in place of the one in Redis.
func newSessions(ctx context.Context, client redis.UniversalClient, adminKey string) (*sessions, error) {
	secret, err := sharedKey(ctx, client, "chat:secret", rand.Text()+rand.Text())
	if err == nil && adminKey == "" {
		adminKey, err = sharedKey(ctx, client, "chat:admin-key", strings.ToLower(rand.Text()[:16]))
	}
	if err != nil {
		return nil, fmt.Errorf("keep keys in Redis: %w", err)
	}
	return &sessions{[]byte(secret), adminKey}, nil
}

// sharedKey returns the key that all instances share: fresh, if there was none.
func sharedKey(ctx context.Context, client redis.UniversalClient, name, fresh string) (string, error) {
	if err := client.SetNX(ctx, name, fresh, 0).Err(); err != nil {
		return "", err
	}
	return client.Get(ctx, name).Result()
}

// isAdminKey compares without showing by its duration how much was right.
func (s *sessions) isAdminKey(key string) bool {
	given, right := sha256.Sum256([]byte(key)), sha256.Sum256([]byte(s.adminKey))
	return subtle.ConstantTimeCompare(given[:], right[:]) == 1
}

// begin signs a user in, and the browser's users out who are too many.
func (s *sessions) begin(w http.ResponseWriter, r *http.Request, name, role string) User {
	user := User{ID: strings.ToLower(rand.Text()[:12]), Name: name, Role: role}
	var others []session
	for _, cookie := range r.Cookies() {
		if id, ours := strings.CutPrefix(cookie.Name, cookiePrefix); ours {
			// Those of another chat on this host, or of one that is no more, count as old.
			other, _ := s.verify(cookie.Value)
			other.User.ID = id
			others = append(others, other)
		}
	}
	slices.SortStableFunc(others, func(a, b session) int { return cmp.Compare(b.Since, a.Since) })
	for _, old := range others[min(len(others), maxSessions-1):] {
		http.SetCookie(w, s.cookie(r, old.User.ID, "", -1))
	}
	value := s.sign(session{user, time.Now().Unix()})
	http.SetCookie(w, s.cookie(r, user.ID, value, int(sessionAge.Seconds())))
	return user
}

// user returns who sends the request.
func (s *sessions) user(r *http.Request) (User, error) {
	id := r.URL.Query().Get("as")
	for _, cookie := range r.CookiesNamed(cookiePrefix + id) {
		if known, err := s.verify(cookie.Value); err == nil && known.User.ID == id {
			return known.User, nil
		}
	}
	return User{}, errNoSession
}

// end signs a user out.
func (s *sessions) end(w http.ResponseWriter, r *http.Request, user User) {
	http.SetCookie(w, s.cookie(r, user.ID, "", -1))
}

func (s *sessions) cookie(r *http.Request, id, value string, maxAge int) *http.Cookie {
	return &http.Cookie{
		Name: cookiePrefix + id, Value: value, MaxAge: maxAge, Path: "/api/",
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	}
}

// sign returns the value of a cookie: what it says, and its signature.
func (s *sessions) sign(said session) string {
	body, err := json.Marshal(said)
	if err != nil {
		panic(err) // strings and a number
	}
	encoded := base64.RawURLEncoding.EncodeToString(body)
	return encoded + "." + s.signature(encoded)
}

// verify returns what the cookie says if this chat has signed it.
func (s *sessions) verify(value string) (session, error) {
	encoded, signature, _ := strings.Cut(value, ".")
	if !hmac.Equal([]byte(signature), []byte(s.signature(encoded))) {
		return session{}, errNoSession
	}
	var said session
	body, err := base64.RawURLEncoding.DecodeString(encoded)
	if err == nil {
		err = json.Unmarshal(body, &said)
	}
	if err != nil || time.Since(time.Unix(said.Since, 0)) > sessionAge {
		return session{}, errNoSession
	}
	return said, nil
}

func (s *sessions) signature(text string) string {
	mac := hmac.New(sha256.New, s.secret)
	mac.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
