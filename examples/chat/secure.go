package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

// requestTimeout bounds a request that has an end: reading it, and writing the answer.
const requestTimeout = 15 * time.Second

// contentPolicy lets the page use what comes from here and nothing else. Scripts cannot turn text
// into elements even if they tried (trusted types).
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'; trusted-types 'none'"

// secured sets the headers that every answer has.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
		next.ServeHTTP(w, r)
	})
}

// addressed refuses requests for other names than localhost and those in hosts. A page of another site
// whose name its owner points at this machine (DNS rebinding) is of the same origin to a browser; it
// cannot do that with an IP address.
func addressed(hosts []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := (&url.URL{Host: r.Host}).Hostname()
		if net.ParseIP(name) == nil && !strings.EqualFold(name, "localhost") && !slices.ContainsFunc(hosts, func(h string) bool { return strings.EqualFold(h, name) }) {
			fail(w, http.StatusMisdirectedRequest, fmt.Errorf("this chat is not at %q; -host names the hosts at which it is", name))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// bounded is for requests that have an end. Event streams set and take back deadlines themselves.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		control := http.NewResponseController(w)
		deadline := time.Now().Add(requestTimeout)
		_ = control.SetReadDeadline(deadline)
		_ = control.SetWriteDeadline(deadline)
		next.ServeHTTP(w, r)
	})
}

// pages serves the embedded files. Browsers ask each time whether they have changed, since
// another version of the program may run at the same address.
func pages(files fs.FS) http.Handler {
	tags := make(map[string]string)
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		tags["/"+name] = `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
		return nil
	})
	if err != nil {
		panic(err) // the files are embedded
	}
	server := http.FileServerFS(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		name := r.URL.Path
		if name == "/" {
			name = "/index.html"
		}
		if tag, ok := tags[name]; ok {
			w.Header().Set("Etag", tag)
			w.Header().Set("Cache-Control", "no-cache")
		}
		// Do not depend on the tables of the machine.
		switch strings.ToLower(path.Ext(name)) {
		case ".js":
			w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		default:
			if kind := mime.TypeByExtension(path.Ext(name)); kind != "" {
				w.Header().Set("Content-Type", kind)
			}
		}
		server.ServeHTTP(w, r)
	})
}
