package tests

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/control"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/retention"
	"github.com/flaminco/redischannels/internal/stream"
)

// modelGroup is a consumer group as the test knows it.
type modelGroup struct {
	exists  bool
	seen    bool // by a look of the trimmer
	last    stream.ID
	pending map[stream.ID]string // consumer
	base    stream.ID            // no entry that it needed was older at the last look
	ended   int64                // lost by the server's counters when it had last read everything, -1 before
}

// needs returns whether the group has still to read or to acknowledge an entry.
func (g *modelGroup) needs(id stream.ID) bool {
	return g.last.Less(id) || g.pending[id] != ""
}

// retentionModel takes random steps on a stream and compares.
type retentionModel struct {
	t        *testing.T
	client   *redis.Client
	topic    keys.Topic
	rnd      *rand.Rand
	policy   retention.Policy
	deletes  bool // entries are deleted by others
	entries  []stream.ID
	groups   map[string]*modelGroup
	removed  int64
	restored int // groups that stood before entries that were not removed meanwhile
	blocked  int // looks that removed nothing since a group is missing
}

func newRetentionModel(t *testing.T, client *redis.Client, seed uint64, deletes bool) *retentionModel {
	topic := redistest.Key(t)
	return &retentionModel{
		t: t, client: client, topic: keys.Topic{Name: topic, Base: "{" + topic + "}"}, deletes: deletes,
		rnd: rand.New(rand.NewPCG(seed, 0)), groups: map[string]*modelGroup{},
		policy: retention.Policy{StaleAfter: time.Hour, Groups: []string{"group 0"}},
	}
}

func (m *retentionModel) group(exists bool) (string, *modelGroup) {
	names := slices.Sorted(maps.Keys(m.groups))
	names = slices.DeleteFunc(names, func(name string) bool { return m.groups[name].exists != exists })
	if len(names) == 0 {
		return "", nil
	}
	name := names[m.rnd.IntN(len(names))]
	return name, m.groups[name]
}

func (m *retentionModel) consumer() string { return strconv.Itoa(m.rnd.IntN(3)) }

func (m *retentionModel) id(text string) stream.ID {
	id, err := stream.ParseID(text)
	require.NoError(m.t, err)
	return id
}

func (m *retentionModel) append() {
	pipe := m.client.Pipeline()
	var added []*redis.StringCmd
	for range 1 + m.rnd.IntN(12) {
		added = append(added, pipe.XAdd(m.t.Context(), &redis.XAddArgs{Stream: m.topic.Name, Values: []string{"n", "1"}}))
	}
	_, err := pipe.Exec(m.t.Context())
	require.NoError(m.t, err)
	for _, cmd := range added {
		m.entries = append(m.entries, m.id(cmd.Val()))
	}
}

// create makes a new group at the beginning, at the end or in mid-stream.
func (m *retentionModel) create() {
	if len(m.groups) == 5 {
		return
	}
	name := ""
	for n := 0; name == "" || m.groups[name] != nil; n++ {
		name = "group " + strconv.Itoa(n)
	}
	g := &modelGroup{exists: true, pending: map[stream.ID]string{}, ended: -1}
	if len(m.entries) > 0 {
		switch m.rnd.IntN(3) {
		case 0:
			g.last = m.entries[len(m.entries)-1]
		case 1:
			g.last = m.entries[m.rnd.IntN(len(m.entries))]
		}
	}
	m.groups[name] = g
	require.NoError(m.t, m.client.XGroupCreateMkStream(m.t.Context(), m.topic.Name, name, g.last.String()).Err())
}

func (m *retentionModel) read() {
	name, g := m.group(true)
	if g == nil {
		return
	}
	consumer := m.consumer()
	got, err := m.client.XReadGroup(m.t.Context(), &redis.XReadGroupArgs{
		Group: name, Consumer: consumer, Streams: []string{m.topic.Name, ">"}, Count: 1 + int64(m.rnd.IntN(40)), Block: -1,
	}).Result()
	if errors.Is(err, redis.Nil) {
		return
	}
	require.NoError(m.t, err)
	for _, message := range got[0].Messages {
		id := m.id(message.ID)
		require.True(m.t, g.last.Less(id))
		g.last, g.pending[id] = id, consumer
	}
}

// ack acknowledges some of what is pending, or most.
func (m *retentionModel) ack() {
	name, g := m.group(true)
	if g == nil {
		return
	}
	var ids []string
	for _, id := range slices.SortedFunc(maps.Keys(g.pending), stream.ID.Compare) {
		if m.rnd.IntN(10) < 9 {
			ids = append(ids, id.String())
			delete(g.pending, id)
		}
	}
	if len(ids) > 0 {
		require.NoError(m.t, m.client.XAck(m.t.Context(), m.topic.Name, name, ids...).Err())
	}
}

func (m *retentionModel) claim() {
	name, g := m.group(true)
	if g == nil {
		return
	}
	consumer := m.consumer()
	ids, _, err := m.client.XAutoClaimJustID(m.t.Context(), &redis.XAutoClaimArgs{
		Stream: m.topic.Name, Group: name, Consumer: consumer, Start: "0", Count: 10,
	}).Result()
	require.NoError(m.t, err)
	for _, id := range ids {
		g.pending[m.id(id)] = consumer
	}
}

// seek moves a group back or forward.
func (m *retentionModel) seek() {
	name, g := m.group(true)
	if g == nil || len(m.entries) == 0 {
		return
	}
	g.last, g.ended = m.entries[m.rnd.IntN(len(m.entries))], -1
	require.NoError(m.t, m.client.XGroupSetID(m.t.Context(), m.topic.Name, name, g.last.String()).Err())
}

func (m *retentionModel) destroy() {
	name, g := m.group(true)
	if g == nil {
		return
	}
	require.NoError(m.t, m.client.XGroupDestroy(m.t.Context(), m.topic.Name, name).Err())
	if g.exists = false; !g.seen {
		delete(m.groups, name) // no trimmer knows of it, nor did a subscription say so
	}
}

// restore creates a group again where it stood, as its consumers do.
func (m *retentionModel) restore() {
	name, g := m.group(false)
	if g == nil {
		return
	}
	require.NoError(m.t, m.client.XGroupCreateMkStream(m.t.Context(), m.topic.Name, name, g.last.String()).Err())
	for id, consumer := range g.pending {
		require.NoError(m.t, m.client.Do(m.t.Context(), "XCLAIM", m.topic.Name, name, consumer, 0, id.String(), "FORCE", "JUSTID").Err())
	}
	for _, id := range m.entries {
		if g.needs(id) {
			m.restored++
			break
		}
	}
	g.exists, g.ended = true, -1
}

// remove removes a deleted group for good.
func (m *retentionModel) remove() {
	name, g := m.group(false)
	if g == nil {
		return
	}
	group := control.Group{Topic: m.topic, Name: name, Actor: "model"}
	removed, err := group.Remove(m.t.Context(), m.client, 0, false)
	require.NoError(m.t, err)
	require.Empty(m.t, removed.Busy)
	delete(m.groups, name)
}

// deleteOne is XDEL by others.
func (m *retentionModel) deleteOne() {
	if !m.deletes || len(m.entries) == 0 {
		return
	}
	i := m.rnd.IntN(len(m.entries))
	require.NoError(m.t, m.client.XDel(m.t.Context(), m.topic.Name, m.entries[i].String()).Err())
	m.entries = slices.Delete(m.entries, i, i+1)
}

// trim lets the trimmer look, and compares what it has removed with what was needed.
func (m *retentionModel) trim() {
	_, err := retention.Trim(m.t.Context(), m.client, m.topic, "model", m.policy.String())
	if m.rnd.IntN(4) == 0 {
		_, err = retention.Operate(m.t.Context(), m.client, m.topic, "model", retention.Policy{})
	}
	require.NoError(m.t, err)
	left := make(map[stream.ID]bool, len(m.entries))
	for _, entry := range m.client.XRange(m.t.Context(), m.topic.Name, "-", "+").Val() {
		left[m.id(entry.ID)] = true
	}
	complete := m.groups["group 0"] != nil
	for _, g := range m.groups {
		g.seen = g.seen || g.exists
		complete = complete && g.exists
	}
	before := len(m.entries)
	m.entries = slices.DeleteFunc(m.entries, func(id stream.ID) bool {
		if left[id] {
			return false
		}
		require.True(m.t, complete, "entry %v was removed while a group is missing", id)
		for name, g := range m.groups {
			require.False(m.t, g.needs(id), "entry %v was removed, which %s needs: %+v", id, name, g)
		}
		return true
	})
	require.Len(m.t, left, len(m.entries), "entries that were never added")
	m.removed += int64(before - len(m.entries))
	if !complete {
		m.blocked++
	}
	if !m.deletes {
		m.noReports()
	}
}

// noReports lets a consumer of each group look for entries that were lost.
func (m *retentionModel) noReports() {
	for name, g := range m.groups {
		if !g.exists {
			continue
		}
		group := &stream.Group{Client: m.client, Key: m.topic.Name, Name: name, Consumer: "model"}
		standing, err := group.Reap(m.t.Context(), stream.ReapOptions{
			Timeout: time.Hour, Alive: time.Hour, Count: stream.CountAll, Base: g.base, Control: m.topic.Control(),
		})
		require.NoError(m.t, err)
		require.Zero(m.t, standing.Lost, "entries of %s are reported: %+v", name, standing)
		require.False(m.t, standing.Removed, "%s may have lost entries from %v on: %+v", name, g.base, standing)
		if standing.LostUntilNow >= 0 {
			require.True(m.t, g.ended < 0 || standing.LostUntilNow == g.ended, "entries of %s are reported: %+v, before %d", name, standing, g.ended)
			g.ended = standing.LostUntilNow
		}
		if g.base = standing.Oldest; g.base.IsZero() {
			g.base = standing.LastDelivered.Next()
		}
	}
}

func (m *retentionModel) run(steps int) {
	m.create()
	for range steps {
		switch n := m.rnd.IntN(100); {
		case n < 25:
			m.append()
		case n < 55:
			m.read()
		case n < 80:
			m.ack()
		case n < 86:
			m.claim()
		case n < 88:
			m.create()
		case n < 89:
			m.destroy()
		case n < 91:
			m.restore()
		case n < 92 && m.rnd.IntN(3) == 0:
			m.remove()
		case n < 93 && m.rnd.IntN(5) == 0:
			m.seek()
		case n < 94:
			m.deleteOne()
		default:
			m.trim()
		}
	}
}

// Trimming by what groups have acknowledged removes what one of them needs: of groups that begin in
// mid-stream, that claim, that are moved, that are deleted and restored; or consumers report as lost what
// no group needed.
func TestRetention_Model(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	for _, deletes := range []bool{false, true} {
		t.Run(fmt.Sprintf("others delete %v", deletes), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			m := newRetentionModel(t, client, seed, deletes)
			m.run(5000)
			require.Greater(t, m.removed, int64(500))
			require.Greater(t, m.restored, 5)
			require.Greater(t, m.blocked, 5)
		})
	}
}

// The same for as long as SOAK says.
func TestSoakRetention_Model(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("SOAK is not set: this is for make soak")
	}
	soak, err := time.ParseDuration(os.Getenv("SOAK"))
	require.NoError(t, err)
	client := trimServer(t)
	for end := time.Now().Add(soak); time.Now().Before(end); {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		newRetentionModel(t, client, seed, seed%2 == 0).run(100_000)
	}
}
