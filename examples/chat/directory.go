package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// defaultRooms exist always.
var defaultRooms = []string{"lounge", "support", "ideas"}

// directoryKey is a sorted set: rooms by the time of their last use.
const directoryKey = "chat:rooms"

var (
	errTooManyRooms = errors.New("there are too many rooms; please use one of those that exist")
	errNoRoom       = errors.New("there is no such room")
)

// directory knows the rooms of all instances. It is kept in Redis and has a bound; a room that
// is not used for roomAge is forgotten, with its messages.
type directory struct {
	client redis.UniversalClient
	config config

	mu       sync.Mutex // held while the overview is read: others wait for it meanwhile
	overview []roomInfo
	err      error
	read     time.Time // when overview and err were read
}

// roomInfo is a room as the list of rooms shows it.
type roomInfo struct {
	Name   string `json:"name"`
	Stream string `json:"stream"`         // its key in Redis
	Last   string `json:"last,omitempty"` // ID of its last message; empty if there is none
}

const (
	overviewAge     = time.Second     // for which all pages share an overview
	overviewTimeout = 2 * time.Second // after which Redis counts as down
)

func (d *directory) now() float64 { return float64(time.Now().Unix()) }

// oldest is the bound of rooms that are remembered, as Redis writes it.
func (d *directory) oldest() string {
	return strconv.FormatInt(time.Now().Add(-d.config.roomAge).Unix(), 10)
}

// add makes the room if there is none of this name. Instances that add at the same moment may
// exceed the bound by a few.
func (d *directory) add(ctx context.Context, name string) error {
	known, err := d.has(ctx, name)
	if err != nil || slices.Contains(defaultRooms, name) {
		return err
	}
	if !known {
		if err := d.client.ZRemRangeByScore(ctx, directoryKey, "-inf", "("+d.oldest()).Err(); err != nil {
			return fmt.Errorf("forget old rooms: %w", err)
		}
		rooms, err := d.client.ZCard(ctx, directoryKey).Result()
		if err != nil {
			return fmt.Errorf("count rooms: %w", err)
		}
		if rooms >= int64(d.config.maxRooms) {
			return errTooManyRooms
		}
		defer d.outdate()
	}
	if err := d.client.ZAdd(ctx, directoryKey, redis.Z{Score: d.now(), Member: name}).Err(); err != nil {
		return fmt.Errorf("add room: %w", err)
	}
	return nil
}

// touch notes that the room was written to.
func (d *directory) touch(ctx context.Context, name string) error {
	_, err := d.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.ZAddXX(ctx, directoryKey, redis.Z{Score: d.now(), Member: name})
		p.Expire(ctx, roomKey(name), d.config.roomAge)
		return nil
	})
	return err
}

func (d *directory) has(ctx context.Context, name string) (bool, error) {
	if slices.Contains(defaultRooms, name) {
		return true, nil
	}
	switch err := d.client.ZScore(ctx, directoryKey, name).Err(); {
	case errors.Is(err, redis.Nil):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for room: %w", err)
	}
	return true, nil
}

// list returns the rooms: the default ones, then the others by name.
func (d *directory) list(ctx context.Context) ([]string, error) {
	others, err := d.client.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: directoryKey, ByScore: true, Start: d.oldest(), Stop: "+inf", Count: int64(d.config.maxRooms),
	}).Result()
	if err != nil {
		return nil, fmt.Errorf("list rooms: %w", err)
	}
	others = slices.DeleteFunc(others, func(name string) bool {
		return slices.Contains(defaultRooms, name) || checkRoom(name) != nil
	})
	slices.Sort(others)
	return append(slices.Clone(defaultRooms), others...), nil
}

// rooms returns all rooms with their last messages, or why Redis cannot be asked.
func (d *directory) rooms(ctx context.Context) ([]roomInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.read) >= overviewAge {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), overviewTimeout)
		defer cancel()
		d.overview, d.err = d.readRooms(ctx)
		d.read = time.Now()
	}
	return d.overview, d.err
}

// outdate has the next page that asks read the rooms anew.
func (d *directory) outdate() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read = time.Time{}
}

func (d *directory) readRooms(ctx context.Context) ([]roomInfo, error) {
	names, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	last := make([]*redis.XMessageSliceCmd, len(names))
	if _, err = d.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, name := range names {
			last[i] = p.XRevRangeN(ctx, roomKey(name), "+", "-", 1)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read last messages: %w", err)
	}
	rooms := make([]roomInfo, len(names))
	for i, name := range names {
		rooms[i] = roomInfo{Name: name, Stream: roomKey(name)}
		for _, entry := range last[i].Val() {
			rooms[i].Last = entry.ID
		}
	}
	return rooms, nil
}

// useKnown is use of a room that exists, which is looked up when it is not open here.
func (rs *rooms) useKnown(ctx context.Context, directory *directory, name string) (*room, func(), error) {
	if !rs.isOpen(name) {
		if ok, err := directory.has(ctx, name); err != nil {
			return nil, nil, err
		} else if !ok {
			return nil, nil, errNoRoom
		}
	}
	return rs.use(name)
}

func (rs *rooms) isOpen(name string) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.open[name] != nil
}
