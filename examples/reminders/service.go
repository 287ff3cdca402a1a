package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/flaminco/redischannels"
)

// topic is the stream of reminders whose time has come.
const topic = "examples:reminders"

// Reminder is what is sent.
type Reminder struct {
	Text string `json:"text"`
}

// service takes reminders and sends them.
type service struct {
	reminders *redischannels.Channel[Reminder]
	waiting   *redischannels.DelayedMessages
	keeper    *redischannels.Housekeeper
	out       io.Writer
}

func newService(hub *redischannels.Hub, out io.Writer) (*service, error) {
	reminders, err := redischannels.NewStreamChannel[Reminder](hub, topic, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "sender"},
	})
	if err != nil {
		return nil, err
	}
	waiting, err := redischannels.NewDelayedMessages(redischannels.DelayedMessagesConfig{Client: hub.Client()}, nil)
	if err != nil {
		return nil, err
	}
	// The writer takes care of what this process stores; the housekeeper of what others have.
	keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{Client: hub.Client(), Topics: []string{topic}}, nil)
	return &service{reminders: reminders, waiting: waiting, keeper: keeper, out: out}, err
}

// send prints every reminder when it is due; a real service would send a mail.
func (s *service) send(ctx context.Context) error {
	return s.reminders.Reader().Handle(ctx, func(_ context.Context, r Reminder) error {
		_, err := fmt.Fprintln(s.out, "reminder:", r.Text)
		return err
	}, redischannels.HandleConfig{})
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /reminders", s.add)
	mux.HandleFunc("GET /reminders", s.list)
	mux.HandleFunc("DELETE /reminders/{id}", s.cancel)
	return mux
}

// add stores a reminder: {"text": "...", "in": "20s"}, or "at" with a time.
func (s *service) add(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Reminder
		In string    `json:"in"`
		At time.Time `json:"at"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	write := func() (redischannels.PublishResult, error) {
		return s.reminders.Writer().WriteAt(r.Context(), in.At, in.Reminder)
	}
	if in.In != "" {
		after, err := time.ParseDuration(in.In)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		write = func() (redischannels.PublishResult, error) {
			return s.reminders.Writer().WriteAfter(r.Context(), after, in.Reminder)
		}
	}
	result, err := write()
	if err != nil {
		http.Error(w, "the reminder may not be stored", http.StatusServiceUnavailable)
		return
	}
	answer(w, http.StatusCreated, map[string]string{"id": result.DelayedID}) // empty if it was due at once
}

// list answers with all that wait.
func (s *service) list(w http.ResponseWriter, r *http.Request) {
	type item struct {
		ID   string    `json:"id"`
		Due  time.Time `json:"due"`
		Text string    `json:"text"`
	}
	items := []item{}
	for waiting, err := range s.waiting.List(r.Context(), topic) {
		if err != nil {
			http.Error(w, "Redis does not answer", http.StatusServiceUnavailable)
			return
		}
		var reminder Reminder
		if msg, err := waiting.Message(nil); err == nil {
			_ = json.Unmarshal(msg.Payload, &reminder) // a stranger's message has no text
		}
		items = append(items, item{waiting.ID, waiting.Due, reminder.Text})
	}
	answer(w, http.StatusOK, items)
}

// cancel answers 404 when it is too late.
func (s *service) cancel(w http.ResponseWriter, r *http.Request) {
	cancelled, err := s.waiting.Cancel(r.Context(), topic, r.PathValue("id"))
	switch {
	case err != nil:
		http.Error(w, "Redis does not answer", http.StatusServiceUnavailable)
	case len(cancelled) == 0:
		http.Error(w, "there is no such reminder any more", http.StatusNotFound)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has disconnected
}
