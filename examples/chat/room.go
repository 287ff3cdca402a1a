package main

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
)

// room is the state of a room while a user of this instance is in it.
type room struct {
	name     string
	instance string // of this process, in Live
	messages *redischannels.Channel[Message]
	live     *redischannels.Channel[Live]

	messageEvents, liveEvents eventStream

	// used and since belong to rooms, under its lock.
	used  int       // requests that are using the room
	since time.Time // when used became 0

	changed chan struct{} // has a token when a user came
	stop    context.CancelFunc
	done    chan struct{} // closed when announce has ended

	mu     sync.Mutex
	people map[string]*presence
}

// eventStream is an sse.Handler of either type.
type eventStream interface {
	http.Handler
	Close() error
}

// presence is a user with so many open streams, one but for moments.
type presence struct {
	user    User
	streams int
}

// openRoom makes the channels of a room and their event streams. It does not talk to Redis.
func openRoom(ctx context.Context, hub *redischannels.Hub, config config, instance, name string) (*room, error) {
	r := &room{
		name: name, instance: instance, people: make(map[string]*presence),
		changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if err := r.openChannels(hub, config); err != nil {
		return nil, errors.Join(err, r.closeChannels())
	}
	ctx, r.stop = context.WithCancel(ctx)
	go r.announce(ctx, config.presence)
	return r, nil
}

func (r *room) openChannels(hub *redischannels.Hub, config config) (err error) {
	r.messages, err = redischannels.NewStreamChannel[Message](hub, roomKey(r.name), redischannels.StreamChannelConfig{
		Publisher: redischannels.PublisherConfig{
			Retention: redischannels.Retention{MaxLen: config.history},
			Timeout:   config.writeTimeout,
		},
	})
	if err != nil {
		return err
	}
	r.live, err = redischannels.NewPubSubChannel[Live](hub, "chat:live:"+r.name, redischannels.PubSubChannelConfig{
		Publisher: redischannels.PubSubPublisherConfig{Timeout: config.writeTimeout},
	})
	if err != nil {
		return err
	}
	messageEvents, err := sse.NewHandler(r.messages, sse.Options[Message]{
		// A person that enters sees as much as is retained.
		Start:      func(*http.Request) redischannels.Position { return redischannels.Oldest },
		Heartbeat:  config.heartbeat,
		Retry:      config.retry,
		MaxClients: config.maxClients,
	})
	if err != nil {
		return err
	}
	r.messageEvents = messageEvents
	liveEvents, err := sse.NewHandler(r.live, sse.Options[Live]{
		Heartbeat:  config.heartbeat,
		Retry:      config.retry,
		MaxClients: config.maxClients,
		Event: func(d redischannels.Delivery[Live]) string {
			if d.Value.Typing != nil {
				return "typing"
			}
			return "people"
		},
	})
	if err != nil {
		return err
	}
	r.liveEvents = liveEvents
	return nil
}

func roomKey(name string) string { return "chat:room:" + name }

// enter notes that a stream of a user is open, until leave is called.
func (r *room) enter(user User) (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.people[user.ID]
	if p == nil {
		p = &presence{user: user}
		r.people[user.ID] = p
	}
	p.streams++
	r.show()
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		// The next regular message is early enough: who reconnects is not seen to leave.
		if p.streams--; p.streams == 0 {
			delete(r.people, user.ID)
		}
	}
}

// show makes announce publish at once who is here.
func (r *room) show() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// here returns who is in the room on this instance.
func (r *room) here() []User {
	r.mu.Lock()
	defer r.mu.Unlock()
	people := make([]User, 0, len(r.people))
	for _, p := range r.people {
		people = append(people, p.user)
	}
	slices.SortFunc(people, func(a, b User) int { return cmp.Compare(a.ID, b.ID) })
	return people[:min(len(people), maxShown)]
}

// maxShown is how many people of one instance are shown by name.
const maxShown = 50

// announce publishes who is here, when a user comes and from time to time, until ctx ends. A
// failed announcement is not retried.
func (r *room) announce(ctx context.Context, every time.Duration) {
	defer close(r.done)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for told := 0; ; {
		select {
		case <-r.changed:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		people := r.here()
		if len(people) > 0 || told > 0 {
			_, _ = r.live.Writer().Write(ctx, Live{Instance: r.instance, People: people})
		}
		told = len(people)
	}
}

// endStreams ends the event streams of the room; pages then look for another instance.
func (r *room) endStreams() {
	_ = r.messageEvents.Close()
	_ = r.liveEvents.Close()
}

// close returns when nothing of the room is left in this process.
func (r *room) close() error {
	r.stop()
	<-r.done
	return r.closeChannels()
}

func (r *room) closeChannels() error {
	var errs []error
	for _, stream := range []eventStream{r.messageEvents, r.liveEvents} {
		if stream != nil {
			errs = append(errs, stream.Close())
		}
	}
	if r.messages != nil {
		errs = append(errs, r.messages.Close())
	}
	if r.live != nil {
		errs = append(errs, r.live.Close())
	}
	return errors.Join(errs...)
}

var (
	errRoomsBusy = errors.New("too many rooms are in use at the moment")
	errEnding    = errors.New("this instance is ending")
)

// rooms are those that are open in this instance: the ones that are in use, and for a while the
// ones that were.
type rooms struct {
	hub      *redischannels.Hub
	config   config
	instance string

	life   context.Context // ends with close
	stop   context.CancelFunc
	closer sync.WaitGroup // of closeIdle

	mu     sync.Mutex
	open   map[string]*room
	ending bool
}

func newRooms(hub *redischannels.Hub, config config, instance string) *rooms {
	life, stop := context.WithCancel(context.Background())
	rs := &rooms{hub: hub, config: config, instance: instance, life: life, stop: stop, open: make(map[string]*room)}
	rs.closer.Go(rs.closeIdle)
	return rs
}

// use returns the room, which stays open until release is called.
func (rs *rooms) use(name string) (r *room, release func(), err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.ending {
		return nil, nil, errEnding
	}
	r = rs.open[name]
	if r == nil {
		if len(rs.open) >= rs.config.openRooms {
			return nil, nil, errRoomsBusy
		}
		if r, err = openRoom(rs.life, rs.hub, rs.config, rs.instance, name); err != nil {
			return nil, nil, err
		}
		rs.open[name] = r
	}
	r.used++
	return r, sync.OnceFunc(func() {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		if r.used--; r.used == 0 {
			r.since = time.Now()
		}
	}), nil
}

// closeIdle closes rooms that were not used for a while.
func (rs *rooms) closeIdle() {
	ticker := time.NewTicker(rs.config.idle / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-rs.life.Done():
			return
		}
		for _, r := range rs.takeIdle(time.Now().Add(-rs.config.idle)) {
			_ = r.close()
		}
	}
}

// takeIdle takes the rooms that were last used before t.
func (rs *rooms) takeIdle(t time.Time) []*room {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var idle []*room
	for name, r := range rs.open {
		if r.used == 0 && r.since.Before(t) {
			idle = append(idle, r)
			delete(rs.open, name)
		}
	}
	return idle
}

// endStreams ends the event streams of all rooms. No room can be used from then on.
func (rs *rooms) endStreams() {
	rs.mu.Lock()
	rs.ending = true
	open := slices.Collect(maps.Values(rs.open))
	rs.mu.Unlock()
	for _, r := range open {
		r.endStreams()
	}
}

// close closes all rooms; they must not be in use.
func (rs *rooms) close() error {
	rs.endStreams()
	rs.stop()
	rs.closer.Wait()
	var errs []error
	for _, r := range rs.takeIdle(time.Now().Add(time.Hour)) {
		errs = append(errs, r.close())
	}
	return errors.Join(errs...)
}
