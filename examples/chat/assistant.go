package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
)

// assistantUser is the author of answers.
var assistantUser = User{ID: "assistant", Name: "Assistant", Role: "assistant"}

// answerPrefix precedes the key of the question in the key of an answer.
const answerPrefix = "answer-"

// assistant answers questions word by word, as runs: one at a time in each room, whose name is the
// ID of the run. All people in the room see the answer grow, also after a reload, on another device
// and at another instance, and may stop it. The complete answer then becomes a message.
type assistant struct {
	runs    *sse.Runs[string]
	events  *sse.RunsHandler[string]
	pause   time.Duration // between two words
	writing sync.WaitGroup
}

func newAssistant(hub *redischannels.Hub, config config) (*assistant, error) {
	runs, err := sse.NewRuns[string](hub, sse.RunsConfig{Name: "chat:answers", WriterLease: config.answerLease})
	if err != nil {
		return nil, err
	}
	events, err := runs.Handler(sse.RunsOptions[string]{
		Options: sse.Options[string]{Heartbeat: config.heartbeat, Retry: config.retry, MaxClients: config.maxClients},
		ID:      func(r *http.Request) string { return r.PathValue("room") },
	})
	if err != nil {
		return nil, err
	}
	return &assistant{runs: runs, events: events, pause: config.wordPause}, nil
}

// close ends the answers that this instance writes.
func (a *assistant) close() error {
	err := errors.Join(a.events.Close(), a.runs.Close())
	a.writing.Wait()
	return err
}

// ask posts a question to the room and has it answered. The error is sse.ErrRunning while another
// question is being answered, but not for the same one, which a page sends again when it got no answer.
func (a *assistant) ask(ctx context.Context, room *room, release func(), question Message) (id string, err error) {
	run, err := a.runs.StartWith(ctx, room.name, map[string]string{"question": question.Key})
	if err != nil {
		release()
		if info, infoErr := a.runs.Info(ctx, room.name); infoErr == nil && info.Metadata["question"] == question.Key {
			return "", nil
		}
		return "", err
	}
	question.Question = true
	if id, err = room.messages.Writer().Write(ctx, question); err != nil {
		release()
		return "", errors.Join(err, run.End(ctx, errors.New("the question could not be stored")))
	}
	a.writing.Go(func() {
		defer release()
		a.answer(ctx, room, run, question)
	})
	return id, nil
}

// answer writes the words of an answer until it is complete or stopped.
func (a *assistant) answer(ctx context.Context, room *room, run *sse.Run[string], question Message) {
	var said strings.Builder
	ticker := time.NewTicker(a.pause)
	defer ticker.Stop()
	for _, word := range strings.SplitAfter(generate(question.Text), " ") {
		select {
		case <-ticker.C:
		case <-run.Context().Done():
		}
		if run.Write(run.Context(), word) != nil {
			break
		}
		said.WriteString(word)
	}
	if err := context.Cause(run.Context()); err != nil && !errors.Is(err, sse.ErrStopped) {
		return // this instance is ending, or another one has the room's assistant now
	}
	// The message is there before the end: a page that has seen the end need not wait for it.
	answer := Message{Key: answerPrefix + question.Key, From: assistantUser, Text: strings.TrimSpace(said.String())}
	if answer.Text != "" {
		_, _ = room.messages.Writer().Write(ctx, answer) // without it the page keeps what it has seen
	}
	ending, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	_ = run.End(ending, nil) // without it the run is lost when its lease is over
}

// generate stands for a model: it makes an answer of the words of a question.
func generate(question string) string {
	words := strings.FieldsFunc(question, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	topic := "streams"
	for _, word := range words {
		if len(word) > 2 {
			topic = word
		}
	}
	topic = "“" + topic + "”"
	return "That is a good question about " + topic + ". " +
		"First, every word of this answer is one entry of a Redis stream, and this page follows that stream. " +
		"So you may reload the page while I write, open the room on your phone, or lose the connection in a tunnel: " +
		"you see each word once and in order, and so do the others who are interested in " + topic + ". " +
		"Second, all of you can stop me, whichever instance of the chat they are connected to. " +
		"And if the instance that I run in crashes in the middle of a sentence about " + topic + ", " +
		"you learn that after a few seconds instead of waiting for the rest. " +
		"That is all I know. I am only a few lines of Go, after all."
}

// postQuestion answers like postMessage.
func (s *server) postQuestion(w http.ResponseWriter, r *http.Request, user User) {
	var in struct {
		Key  string `json:"key"`
		Text string `json:"text"`
	}
	if !read(w, r, &in) {
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
	// Who closes the page now has asked all the same.
	id, err := s.assistant.ask(context.WithoutCancel(r.Context()), room, release, Message{Key: in.Key, From: user, Text: text})
	switch {
	case errors.Is(err, sse.ErrRunning):
		fail(w, http.StatusConflict, errors.New("the assistant is still answering; please wait, or stop it"))
	case err != nil:
		s.failRedis(w, err)
	default:
		answer(w, http.StatusCreated, map[string]string{"id": id})
	}
}

// stopAnswer stops the answer that is being written, at whatever instance.
func (s *server) stopAnswer(w http.ResponseWriter, r *http.Request, _ User) {
	err := s.assistant.runs.Stop(r.Context(), r.PathValue("room"))
	if err != nil && !errors.Is(err, sse.ErrNoRun) && !errors.Is(err, sse.ErrRunEnded) {
		s.failRedis(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// answerEvents is the stream of the answer that is being written, or was last.
func (s *server) answerEvents(w http.ResponseWriter, r *http.Request, _ User) {
	if _, release, ok := s.room(w, r); ok {
		defer release()
		s.assistant.events.ServeHTTP(w, r)
	}
}
