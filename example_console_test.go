package redischannels_test

import (
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/console"
	"github.com/flaminco/redischannels/inspect"
)

// user is who is signed in.
type user struct {
	Name  string
	Admin bool
}

// userOf stands for the sessions of a service.
func userOf(r *http.Request) (user, bool) {
	name, _, ok := r.BasicAuth()
	return user{name, name == "ann"}, ok
}

func mountConsole(mux *http.ServeMux, client redis.UniversalClient) (*console.Console, error) {
	page, err := console.New(console.Config{
		Inspect: inspect.Config{Client: client},
		Prefix:  "/redis",
		Authorize: func(r *http.Request) (console.Access, error) {
			user, ok := userOf(r) // your own session or proxy
			if !ok {
				return console.Access{}, errors.New("not signed in") // status 401
			}
			return console.Access{Act: user.Admin, Payloads: user.Admin, Name: user.Name}, nil
		},
	}, logger)
	if err != nil {
		return nil, err
	}
	mux.Handle("/redis/", page)
	return page, nil
}

// The console is mounted in a service, behind its own sessions.
func Example_console() {
	client, stop := exampleServer()
	defer stop()
	mux := http.NewServeMux()
	page, err := mountConsole(mux, client)
	if err != nil {
		log.Fatal(err)
	}
	defer page.Close()
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/redis/", nil))
	fmt.Println(w.Code)
	// Output: 401
}
