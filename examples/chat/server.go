package main

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"mime"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/flaminco/redischannels"
)

//go:embed web
var web embed.FS

// maxBody is the greatest request, in bytes: a text of maxText characters, all escaped.
const maxBody = 16 << 10

// config has the settings that tests change.
type config struct {
	log          *log.Logger
	hosts        []string      // names at which the chat is reached, besides localhost and IP addresses
	adminKey     string        // empty: a random one, kept in Redis
	embedded     bool          // Redis ends with this process
	rate         rate.Limit    // messages per second and user
	burst        int           // messages of a user at once
	history      int64         // messages that a room keeps
	roomAge      time.Duration // how long they are kept, and a room that is not used
	maxRooms     int           // in Redis
	openRooms    int           // in this process at a time
	idle         time.Duration // after which an open room is closed
	maxClients   int           // event streams per room and instance
	userStreams  int           // event streams of a user in this process
	presence     time.Duration // between two messages about who is there
	heartbeat    time.Duration
	wordPause    time.Duration // between two words of the assistant
	answerLease  time.Duration // after which an answer is lost whose instance has crashed
	retry        time.Duration // of pages whose stream has ended
	writeTimeout time.Duration
}

func defaultConfig() config {
	return config{
		log:  log.New(io.Discard, "", 0),
		rate: 2, burst: 10,
		history: 300, roomAge: 7 * 24 * time.Hour, maxRooms: 200,
		openRooms: 64, idle: time.Minute, maxClients: 1000, userStreams: 24,
		presence: 3 * time.Second, heartbeat: 15 * time.Second, retry: time.Second,
		wordPause: 60 * time.Millisecond, answerLease: 5 * time.Second,
		writeTimeout: 3 * time.Second,
	}
}

// server is the chat as seen over HTTP.
type server struct {
	config    config
	instance  string // names this process
	hub       *redischannels.Hub
	sessions  *sessions
	directory *directory
	rooms     *rooms
	assistant *assistant
	messages  *limiter // by user
	typing    *limiter // by user
	entries   *limiter // into rooms, by user
	signIns   *limiter // by address
	newRooms  *limiter // by address
	streams   *counter // open event streams, by user
	logged    rate.Sometimes
}

func newServer(ctx context.Context, client *redis.Client, config config) (*server, error) {
	s := &server{
		config: config, instance: rand.Text()[:6], directory: &directory{client: client, config: config},
		logged: rate.Sometimes{Interval: 5 * time.Second},
	}
	var err error
	if s.sessions, err = newSessions(ctx, client, config.adminKey); err != nil {
		return nil, err
	}
	for _, l := range []struct {
		limiter **limiter
		every   rate.Limit
		burst   int
	}{{&s.messages, config.rate, config.burst}, {&s.typing, 2, 4}, {&s.entries, 1, 10}, {&s.signIns, 1, 20}, {&s.newRooms, 0.1, 20}} {
		if *l.limiter, err = newLimiter(l.every, l.burst, 10_000); err != nil {
			return nil, err
		}
	}
	if s.hub, err = redischannels.NewHub(client, redischannels.HubConfig{}); err != nil {
		return nil, err
	}
	s.streams = newCounter(config.userStreams)
	s.rooms = newRooms(s.hub, config, s.instance)
	if s.assistant, err = newAssistant(s.hub, config); err != nil {
		return nil, err
	}
	return s, nil
}

// endStreams ends all event streams, and answers 503 from then on.
func (s *server) endStreams() {
	s.rooms.endStreams()
	_ = s.assistant.events.Close() // always nil
}

// close closes all but the Redis client. The HTTP server must have ended.
func (s *server) close() error {
	return errors.Join(s.assistant.close(), s.rooms.close(), s.hub.Close())
}

// handler returns the whole chat.
func (s *server) handler() http.Handler {
	files, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the folder is embedded
	}
	api := http.NewServeMux()
	api.HandleFunc("POST /api/session", s.signIn)
	api.HandleFunc("GET /api/session", s.asUser(s.whoAmI))
	api.HandleFunc("DELETE /api/session", s.asUser(s.signOut))
	api.HandleFunc("GET /api/rooms", s.asUser(s.listRooms))
	api.HandleFunc("POST /api/rooms/{room}", s.asUser(s.enterRoom))
	api.HandleFunc("POST /api/rooms/{room}/messages", s.asUser(s.postMessage))
	api.HandleFunc("POST /api/rooms/{room}/questions", s.asUser(s.postQuestion))
	api.HandleFunc("DELETE /api/rooms/{room}/answer", s.asUser(s.stopAnswer))
	api.HandleFunc("POST /api/rooms/{room}/typing", s.asUser(s.postTyping))

	all := http.NewServeMux()
	all.Handle("/", pages(files))
	all.Handle("/api/", bounded(api))
	all.Handle("GET /api/rooms/{room}/events", s.asUser(s.counted(s.events)))
	all.Handle("GET /api/rooms/{room}/live", s.asUser(s.counted(s.liveEvents)))
	all.Handle("GET /api/rooms/{room}/answer", s.asUser(s.counted(s.answerEvents)))
	// Browsers report where a request comes from: those that change something must come from
	// our own page. The cookies are SameSite=Strict besides.
	return secured(addressed(s.config.hosts, http.NewCrossOriginProtection().Handler(all)))
}

// sender is the address that a request comes from. Behind a proxy it is the proxy's: there the proxy
// should limit.
func sender(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// signIn answers {"name", "key"} with the new user.
func (s *server) signIn(w http.ResponseWriter, r *http.Request) {
	if wait := s.signIns.allow(sender(r)); wait > 0 {
		refuse(w, wait)
		return
	}
	var in struct {
		Name string `json:"name"`
		Key  string `json:"key"`
	}
	if !read(w, r, &in) {
		return
	}
	name, err := checkName(in.Name)
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return
	}
	role := customer
	if in.Key != "" {
		if !s.sessions.isAdminKey(in.Key) {
			fail(w, http.StatusForbidden, errors.New("this is not the admin key, which is printed where the chat was started"))
			return
		}
		role = admin
	}
	answer(w, http.StatusCreated, s.sessions.begin(w, r, name, role))
}

func (s *server) whoAmI(w http.ResponseWriter, _ *http.Request, user User) {
	answer(w, http.StatusOK, user)
}

func (s *server) signOut(w http.ResponseWriter, r *http.Request, user User) {
	s.sessions.end(w, r, user)
	w.WriteHeader(http.StatusNoContent)
}

// listRooms answers with the rooms and this instance. Pages ask every few seconds, and so learn which
// rooms have new messages, and whether Redis answers.
func (s *server) listRooms(w http.ResponseWriter, r *http.Request, _ User) {
	rooms, err := s.directory.rooms(r.Context())
	if err != nil {
		s.failRedis(w, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{
		"instance": s.instance, "process": os.Getpid(), "embedded": s.config.embedded, "rooms": rooms,
	})
}

// enterRoom makes the room if it does not exist. Event streams are of rooms that do.
func (s *server) enterRoom(w http.ResponseWriter, r *http.Request, user User) {
	name := r.PathValue("room")
	if err := checkRoom(name); err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return
	}
	if wait := s.entries.allow(user.ID); wait > 0 {
		refuse(w, wait)
		return
	}
	known, err := s.directory.has(r.Context(), name)
	if err != nil {
		s.failRedis(w, err)
		return
	}
	if !known { // a user is quickly made, so the bound is of the address
		if wait := s.newRooms.allow(sender(r)); wait > 0 {
			refuse(w, wait)
			return
		}
	}
	switch err := s.directory.add(r.Context(), name); {
	case errors.Is(err, errTooManyRooms):
		fail(w, http.StatusConflict, err)
	case err != nil:
		s.failRedis(w, err)
	default:
		answer(w, http.StatusOK, map[string]string{"room": name})
	}
}

// postMessage answers {"key", "text", "announcement"} with the ID of the entry, when Redis has it.
func (s *server) postMessage(w http.ResponseWriter, r *http.Request, user User) {
	var in struct {
		Key          string `json:"key"`
		Text         string `json:"text"`
		Announcement bool   `json:"announcement"`
	}
	if !read(w, r, &in) {
		return
	}
	if in.Announcement && user.Role != admin {
		fail(w, http.StatusForbidden, errors.New("only admins make announcements"))
		return
	}
	text, ok := s.checkMessage(w, user, in.Key, in.Text)
	if !ok {
		return
	}
	room, release, ok := s.room(w, r)
	if !ok {
		return
	}
	defer release()
	// Who closes the page now has sent the message all the same.
	ctx := context.WithoutCancel(r.Context())
	id, err := room.messages.Writer().Write(ctx, Message{Key: in.Key, From: user, Text: text, Announcement: in.Announcement})
	if err != nil {
		// Perhaps it is written. The page sends it again in any case, under the same key.
		s.failRedis(w, err)
		return
	}
	_ = s.directory.touch(ctx, room.name) // the next message does it as well
	answer(w, http.StatusCreated, map[string]string{"id": id})
}

// checkMessage returns the text of a message as it is stored, or answers why it is refused.
func (s *server) checkMessage(w http.ResponseWriter, user User, key, text string) (_ string, ok bool) {
	text, err := checkText(text)
	if err == nil && !keyPattern.MatchString(key) {
		err = errors.New("the key must be 8 to 64 letters, digits and hyphens")
	}
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return "", false
	}
	if wait := s.messages.allow(user.ID); wait > 0 {
		refuse(w, wait)
		return "", false
	}
	return text, true
}

// postTyping informs the others in the room that the user is typing.
func (s *server) postTyping(w http.ResponseWriter, r *http.Request, user User) {
	if wait := s.typing.allow(user.ID); wait > 0 {
		refuse(w, wait)
		return
	}
	room, release, ok := s.room(w, r)
	if !ok {
		return
	}
	defer release()
	if _, err := room.live.Writer().Write(r.Context(), Live{Typing: &user}); err != nil {
		s.failRedis(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// counted bounds the event streams of a user.
func (s *server) counted(stream func(http.ResponseWriter, *http.Request, User)) func(http.ResponseWriter, *http.Request, User) {
	return func(w http.ResponseWriter, r *http.Request, user User) {
		if !s.streams.enter(user.ID) {
			refuse(w, time.Second)
			return
		}
		defer s.streams.leave(user.ID)
		stream(w, r, user)
	}
}

// events is the stream of messages. Its user is in the room as long as it is open.
func (s *server) events(w http.ResponseWriter, r *http.Request, user User) {
	if room, release, ok := s.room(w, r); ok {
		defer release()
		defer room.enter(user)()
		room.messageEvents.ServeHTTP(w, r)
	}
}

// liveEvents is the stream of who is there and who is typing.
func (s *server) liveEvents(w http.ResponseWriter, r *http.Request, _ User) {
	if room, release, ok := s.room(w, r); ok {
		defer release()
		room.show()
		room.liveEvents.ServeHTTP(w, r)
	}
}

// room opens the room of the path for a request, or answers that it cannot.
func (s *server) room(w http.ResponseWriter, r *http.Request) (_ *room, release func(), ok bool) {
	name := r.PathValue("room")
	if err := checkRoom(name); err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return nil, nil, false
	}
	room, release, err := s.rooms.useKnown(r.Context(), s.directory, name)
	switch {
	case err == nil:
		return room, release, true
	case errors.Is(err, errNoRoom):
		fail(w, http.StatusNotFound, err)
	case errors.Is(err, errRoomsBusy), errors.Is(err, errEnding):
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusServiceUnavailable, err)
	default:
		s.failRedis(w, err)
	}
	return nil, nil, false
}

// asUser calls the handler with the user who sends the request.
func (s *server) asUser(handler func(http.ResponseWriter, *http.Request, User)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, err := s.sessions.user(r)
		if err != nil {
			fail(w, http.StatusUnauthorized, err)
			return
		}
		handler(w, r, user)
	}
}

// read decodes the request's JSON, or answers why it cannot.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, errors.New("the request must be application/json"))
		return false
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil {
		if _, more := decoder.Token(); more != io.EOF {
			err = errors.New("more than one value")
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		fail(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the request has more than %d bytes", tooLarge.Limit))
	case err != nil:
		fail(w, http.StatusBadRequest, fmt.Errorf("the request cannot be read: %w", err))
	}
	return err == nil
}

// answer writes JSON, in which <, > and & are escaped.
func answer(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func fail(w http.ResponseWriter, status int, err error) {
	answer(w, status, map[string]string{"error": err.Error()})
}

// failRedis answers what users need to know of an error of Redis, and logs the error, during an
// outage one every few seconds.
func (s *server) failRedis(w http.ResponseWriter, err error) {
	s.logged.Do(func() { s.config.log.Printf("chat: %v", err) })
	w.Header().Set("Retry-After", "1")
	fail(w, http.StatusServiceUnavailable, errors.New("the chat's storage does not answer at the moment"))
}

// refuse answers a client that is too fast.
func refuse(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	fail(w, http.StatusTooManyRequests, errors.New("that was too fast; please wait a moment"))
}
