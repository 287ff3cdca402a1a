package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/schedule"
)

// topic is the stream of reminders whose time has come.
const topic = "examples:reminders"

// Reminder is a message of the service.
type Reminder struct {
	Text string `json:"text"`
}

// service takes reminders and sends them.
type service struct {
	reminders *redischannels.Channel[Reminder]
	waiting   *redischannels.DelayedMessages
	schedules *schedule.Schedules
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
	// The writer takes care of what this process stores; Run of the schedules of what others have.
	schedules, err := schedule.New(schedule.Config{Client: hub.Client(), Topic: topic}, nil)
	return &service{reminders: reminders, waiting: waiting, schedules: schedules, out: out}, err
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

// add stores a reminder: {"text": "...", "in": "20s"}, or "at" with a time, or "cron" with a cron expression
// and "zone".
func (s *service) add(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Reminder
		In string    `json:"in"`
		At time.Time `json:"at"`

		Cron string `json:"cron"`
		Zone string `json:"zone"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if in.Cron != "" {
		s.addRecurring(w, r, schedule.Schedule{ID: watermill.NewUUID(), Cron: in.Cron, Zone: in.Zone}, in.Reminder)
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

// addRecurring stores a reminder that comes again and again.
func (s *service) addRecurring(w http.ResponseWriter, r *http.Request, recurring schedule.Schedule, reminder Reminder) {
	msg, err := schedule.Value(s.reminders.Writer(), reminder)
	if err == nil {
		recurring.Message = msg
		_, err = s.schedules.Put(r.Context(), recurring)
	}
	switch {
	case errors.Is(err, redischannels.ErrInvalidArgument):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, "the reminder may not be stored", http.StatusServiceUnavailable)
	default:
		answer(w, http.StatusCreated, map[string]string{"id": recurring.ID})
	}
}

// list answers with all that wait, the next one of a recurring reminder among them.
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
		items = append(items, item{strings.TrimPrefix(waiting.ID, "schedule:"), waiting.Due, reminder.Text})
	}
	answer(w, http.StatusOK, items)
}

// cancel answers 404 when it is too late.
func (s *service) cancel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	inTime, err := s.schedules.Cancel(r.Context(), id)
	if err == nil && !inTime {
		var cancelled []string
		cancelled, err = s.waiting.Cancel(r.Context(), topic, id)
		inTime = len(cancelled) > 0
	}
	switch {
	case err != nil:
		http.Error(w, "Redis does not answer", http.StatusServiceUnavailable)
	case !inTime:
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
